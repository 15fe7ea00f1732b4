"""How right answers are, by split and by topic: the model's, and those of the baselines beside them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dtl.data.batches import IGNORE
from dtl.data.documents import QuestionAnswer, document
from dtl.data.tasks import Answer, is_right, token_f1
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.evaluation.metrics import bits_per_byte, mean
from dtl.generation.conversation import GreedyAnswer, by_length
from dtl.model.transformer import TransformerLM

# --- likelihood of the expected answers ---------------------------------------------------------------------------
# How likely a model finds the expected answers to questions.
#
# Nothing is kept of a batch but texts and sums. Letters: b batch, t time, d model width, n targets, v vocabulary.


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of a given answer, its end token included."""

    nats: float
    n_bytes: int  # UTF-8 bytes of the answer's text, its leading space included


@torch.inference_mode()
def likelihoods(
    model: TransformerLM,
    tokenizer: Tokenizer,
    pairs: Sequence[QuestionAnswer],
    of_token: np.ndarray,
    batch_size: int,
    lower_case: bool = False,
) -> list[Likelihood]:
    """How likely the model finds each pair's own answer. `of_token`: see `dtl.evaluation.text`; `lower_case`:
    see `dtl.data.documents.prompt`.

    Of a pair that is longer than the model's context the beginning is cut.
    """
    texts = [document(pair, lower_case=lower_case) for pair in pairs]
    asked = tokenizer.encode_batch([text.text[: text.answer_start] for text in texts])
    answers = tokenizer.encode_batch([text.text[text.answer_start :] for text in texts])
    found: dict[int, Likelihood] = {}
    was_training = model.training
    model.eval()
    try:
        for chosen in by_length([len(a) + len(b) for a, b in zip(asked, answers, strict=True)], batch_size):
            nats = _nats(model, [asked[i] for i in chosen], [[*answers[i], tokenizer.eos_id] for i in chosen])
            for i, total in zip(chosen, nats, strict=True):
                found[i] = Likelihood(total, int(of_token[answers[i]].sum()))
    finally:
        model.train(was_training)
    return [found[i] for i in range(len(pairs))]


def _nats(model: TransformerLM, begins: list[list[int]], ends: list[list[int]]) -> list[float]:
    """-log p of each end after its beginning, in nats, summed over its tokens."""
    inputs_bt, targets_bt = _padded(begins, ends, model.config.max_seq_len)
    device = next(model.parameters()).device
    x_btd = model.hidden(inputs_bt.to(device))
    row_n, time_n = torch.nonzero(targets_bt != IGNORE, as_tuple=True)
    logits_nv = model.head(x_btd[row_n.to(device), time_n.to(device)]).float()
    loss_n = F.cross_entropy(logits_nv, targets_bt[row_n, time_n].to(device), reduction="none").cpu().double()
    return torch.zeros(len(begins), dtype=torch.float64).index_add(0, row_n, loss_n).tolist()


def _padded(begins: list[list[int]], ends: list[list[int]], context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (b, t), padded on the right, where causal attention does not see it."""
    whole = [(begin + end)[-context - 1 :] for begin, end in zip(begins, ends, strict=True)]
    longest = max(map(len, whole)) - 1
    inputs_bt = torch.zeros(len(whole), longest, dtype=torch.long)
    targets_bt = torch.full_like(inputs_bt, IGNORE)
    for row, (ids, end) in enumerate(zip(whole, ends, strict=True)):
        inputs_bt[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        n_targets = min(len(end), len(ids) - 1)
        targets_bt[row, len(ids) - 1 - n_targets : len(ids) - 1] = torch.tensor(ids[-n_targets:])
    return inputs_bt, targets_bt


# --- scores -------------------------------------------------------------------------------------------------------


ALL_TOPICS = ""


@dataclass(frozen=True)
class Asked:
    """A question, what the model said, and what the baselines say."""

    pair: QuestionAnswer
    answer: GreedyAnswer
    gold: Likelihood
    look_up: str
    majority: str

    @property
    def right(self) -> bool:
        """Whether the model's answer is exact, after normalisation."""
        return is_right(self.answer.text, self.pair)


@dataclass(frozen=True)
class Scores:
    """Means over questions, in [0, 1]."""

    exact_match: float
    f1: float


@dataclass(frozen=True)
class AnswerScores:
    """Questions of one split and one topic."""

    split: str
    topic: str  # empty: all topics
    questions: int
    model: Scores
    look_up: Scores
    majority: Scores
    gold_bits_per_byte: float  # of the expected answers, by the model


@dataclass(frozen=True)
class WrongAnswer:
    """A question that was answered wrongly."""

    split: str
    topic: str
    question: str
    said: str
    expected: str
    probability: float  # of a token of the answer, the geometric mean


def with_baselines(
    pairs: Sequence[QuestionAnswer],
    answers: Sequence[GreedyAnswer],
    gold: Sequence[Likelihood],
    baselines: tuple[Answer, Answer],
) -> list[Asked]:
    """The answers of one split beside those of the look-up and of the majority (`dtl.data.tasks`)."""
    found, commonest = (baseline(pairs) for baseline in baselines)
    return [Asked(*of_one) for of_one in zip(pairs, answers, gold, found, commonest, strict=True)]


def answer_scores(asked: Mapping[str, Sequence[Asked]]) -> list[AnswerScores]:
    """Of each split: all questions together, then topic by topic where there are several."""
    found: list[AnswerScores] = []
    for split, of_split in asked.items():
        found.append(_scores(split, ALL_TOPICS, of_split))
        topics = sorted({one.pair.topic for one in of_split})
        if len(topics) > 1:
            found += [_scores(split, topic, [one for one in of_split if one.pair.topic == topic]) for topic in topics]
    return found


def _scores(split: str, topic: str, asked: Sequence[Asked]) -> AnswerScores:
    def of(said: Sequence[str]) -> Scores:
        given = list(zip(said, asked, strict=True))
        return Scores(
            exact_match=mean([is_right(text, one.pair) for text, one in given]),
            f1=mean([token_f1(text, one.pair) for text, one in given]),
        )

    return AnswerScores(
        split=split,
        topic=topic,
        questions=len(asked),
        model=of([one.answer.text for one in asked]),
        look_up=of([one.look_up for one in asked]),
        majority=of([one.majority for one in asked]),
        gold_bits_per_byte=bits_per_byte(
            math.fsum(one.gold.nats for one in asked), sum(one.gold.n_bytes for one in asked)
        ),
    )


def worst_cases(split: str, asked: Sequence[Asked], most: int) -> list[WrongAnswer]:
    """The wrong answers of which the model is surest, the surest first."""
    wrong = sorted((one for one in asked if not one.right), key=lambda one: -one.answer.confidence)
    return [
        WrongAnswer(
            split,
            one.pair.topic,
            one.pair.question,
            one.answer.text,
            one.pair.answer,
            math.exp(one.answer.confidence),
        )
        for one in wrong[:most]
    ]
