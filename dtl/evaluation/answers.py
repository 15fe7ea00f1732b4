"""Scores of answers by split and by topic: the model's, and those of the baselines for comparison."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dtl.data.batches import IGNORE
from dtl.data.documents import QuestionAnswer, document
from dtl.data.tasks import Answer, is_right, token_f1
from dtl.data.tokenizers.prompt import Prompt
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.evaluation.metrics import bits_per_byte, mean
from dtl.generation.conversation import GreedyAnswer, by_length
from dtl.model.transformer import TransformerLM
from dtl.training.loss import logits_in_chunks

# --- likelihood of the expected answers ---------------------------------------------------------------------------
# Letters: b batch, t time, d model width, n targets, v vocabulary.


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of an expected answer, its end token included."""

    nats: float
    n_bytes: int  # UTF-8 bytes of the answer's text, its leading space included


@torch.inference_mode()
def likelihoods(
    model: TransformerLM,
    tokenizer: Tokenizer,
    pairs: Sequence[QuestionAnswer],
    token_bytes: np.ndarray,
    batch_size: int,
    prompt: Prompt,
    after_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[Likelihood]:
    """Return the likelihood of each pair's own answer; a pair longer than the context is cut at its beginning.

    `token_bytes`: see `count_token_bytes`. `after_batch` gets the number of pairs done and of all.
    """
    texts = [document(pair, prompt) for pair in pairs]
    asked = tokenizer.encode_batch([text.text[: text.answer_start] for text in texts])
    answers = tokenizer.encode_batch([text.text[text.answer_start :] for text in texts])
    by_pair: dict[int, Likelihood] = {}
    was_training = model.training
    model.eval()
    try:
        for chosen in by_length([len(a) + len(b) for a, b in zip(asked, answers, strict=True)], batch_size):
            nats = _nats(model, [asked[i] for i in chosen], [[*answers[i], tokenizer.eos_id] for i in chosen])
            for i, total in zip(chosen, nats, strict=True):
                scored = answers[i][1 - model.config.max_seq_len :]  # with the end token, as many as fit the context
                by_pair[i] = Likelihood(total, int(token_bytes[scored].sum()))
            after_batch(len(by_pair), len(pairs))
    finally:
        model.train(was_training)
    return [by_pair[i] for i in range(len(pairs))]


def _nats(model: TransformerLM, begins: list[list[int]], ends: list[list[int]]) -> list[float]:
    """Return -log p of each end after its beginning, in nats, summed over its tokens."""
    inputs_bt, targets_bt = _padded(begins, ends, model.config.max_seq_len)
    device = next(model.parameters()).device
    row_n, time_n = torch.nonzero(targets_bt != IGNORE, as_tuple=True)
    x_nd = model.hidden(inputs_bt.to(device), at_n=(row_n * inputs_bt.shape[1] + time_n).to(device))
    chunks = logits_in_chunks(model.head, x_nd, targets_bt[row_n, time_n].to(device))
    loss_n = torch.cat([F.cross_entropy(logits_nv, target_n, reduction="none") for logits_nv, target_n in chunks])
    return torch.zeros(len(begins), dtype=torch.float64).index_add(0, row_n, loss_n.cpu().double()).tolist()


def _padded(begins: list[list[int]], ends: list[list[int]], context: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets (b, t), padded on the right, where causal attention does not see it."""
    sequences = [(begin + end)[-context - 1 :] for begin, end in zip(begins, ends, strict=True)]
    longest = max(map(len, sequences)) - 1
    inputs_bt = torch.zeros(len(sequences), longest, dtype=torch.long)
    targets_bt = torch.full_like(inputs_bt, IGNORE)
    for row, (ids, end) in enumerate(zip(sequences, ends, strict=True)):
        inputs_bt[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        n_targets = min(len(end), len(ids) - 1)
        targets_bt[row, len(ids) - 1 - n_targets : len(ids) - 1] = torch.tensor(ids[-n_targets:])
    return inputs_bt, targets_bt


# --- scores -------------------------------------------------------------------------------------------------------

ALL_TOPICS = ""


@dataclass(frozen=True)
class Asked:
    """Question with the answers of the model and of the baselines."""

    pair: QuestionAnswer
    answer: GreedyAnswer
    gold: Likelihood
    bm25: str | None  # None: no training questions
    majority: str | None

    @property
    def right(self) -> bool:
        """True when the model's answer is an exact match after normalisation."""
        return is_right(self.answer.text, self.pair)


@dataclass(frozen=True)
class Scores:
    """Means over questions, in [0, 1]; nan for none."""

    exact_match: float
    f1: float


@dataclass(frozen=True)
class AnswerScores:
    """Scores on the questions of one split and one topic. Field names are keys of evaluation.json."""

    split: str
    topic: str  # empty: all topics
    questions: int
    model: Scores
    look_up: Scores  # of the retrieval baseline (BM25)
    majority: Scores
    gold_bits_per_byte: float  # of the expected answers, by the model


@dataclass(frozen=True)
class WrongAnswer:
    """Question with a wrong answer. Field names are keys of evaluation.json."""

    split: str
    topic: str
    question: str
    said: str  # the model's answer
    expected: str
    probability: float  # geometric mean over the tokens of the answer


def with_baselines(
    pairs: Sequence[QuestionAnswer],
    answers: Sequence[GreedyAnswer],
    gold: Sequence[Likelihood],
    baselines: tuple[Answer, Answer] | None,
) -> list[Asked]:
    """Join the answers of one split with those of retrieval and of the majority (`dtl.data.tasks`)."""
    others = [of(pairs) for of in baselines] if baselines else [[None] * len(pairs)] * 2
    return [Asked(*question) for question in zip(pairs, answers, gold, *others, strict=True)]


def answer_scores(asked: Mapping[str, Sequence[Asked]]) -> list[AnswerScores]:
    """Score each split: all questions together, then by topic if there are several."""
    scores: list[AnswerScores] = []
    for split, questions in asked.items():
        scores.append(_scores(split, ALL_TOPICS, questions))
        topics = sorted({question.pair.topic for question in questions})
        if len(topics) > 1:
            scores += [_scores(split, topic, [q for q in questions if q.pair.topic == topic]) for topic in topics]
    return scores


def _scores(split: str, topic: str, asked: Sequence[Asked]) -> AnswerScores:
    def of(answers: Sequence[str | None]) -> Scores:
        answered = [(text, question) for text, question in zip(answers, asked, strict=True) if text is not None]
        return Scores(
            exact_match=mean([is_right(text, question.pair) for text, question in answered]),
            f1=mean([token_f1(text, question.pair) for text, question in answered]),
        )

    return AnswerScores(
        split=split,
        topic=topic,
        questions=len(asked),
        model=of([question.answer.text for question in asked]),
        look_up=of([question.bm25 for question in asked]),
        majority=of([question.majority for question in asked]),
        gold_bits_per_byte=bits_per_byte(math.fsum(q.gold.nats for q in asked), sum(q.gold.n_bytes for q in asked)),
    )


def worst_cases(split: str, asked: Sequence[Asked], most: int) -> list[WrongAnswer]:
    """Return the wrong answers with the highest confidence, in descending order."""
    wrong = sorted((q for q in asked if not q.right), key=lambda q: -q.answer.confidence)
    return [
        WrongAnswer(split, q.pair.topic, q.pair.question, q.answer.text, q.pair.answer, math.exp(q.answer.confidence))
        for q in wrong[:most]
    ]
