"""Questions put to a model: what it answers, how sure it is, how likely it finds the expected answer.

Nothing is kept of a batch but texts and sums. Letters: b batch, t time, d model width, n targets, v vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dtl.data.documents import QuestionAnswer
from dtl.data.qa import document
from dtl.data.tokenizer import Tokenizer
from dtl.generation.config import SamplingConfig
from dtl.generation.conversation import fitting_prompt
from dtl.generation.engine import stream
from dtl.model.transformer import TransformerLM
from dtl.training.loss import IGNORE


@dataclass(frozen=True)
class GreedyAnswer:
    """What a model says when it takes the likeliest token each time."""

    text: str
    confidence: float  # mean log-probability of its tokens, natural logarithm; -inf when it says nothing


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of a given answer, its end token included."""

    nats: float
    n_bytes: int  # UTF-8 bytes of the answer's text, its leading space included


def answer_greedily(
    model: TransformerLM, tokenizer: Tokenizer, asked: Sequence[str], max_new_tokens: int, batch_size: int
) -> list[GreedyAnswer]:
    """An answer to each text that asks (`dtl.data.qa.prompt`). The batch size changes none of them."""
    greedy = SamplingConfig(temperature=0, top_k=None, max_new_tokens=max_new_tokens)
    prompts = [fitting_prompt(model, tokenizer, ids, greedy) for ids in tokenizer.encode_batch(list(asked))]
    answers: dict[int, GreedyAnswer] = {}
    for chosen in _batches([len(ids) for ids in prompts], batch_size):
        ids: list[list[int]] = [[] for _ in chosen]
        logprobs: list[list[float]] = [[] for _ in chosen]
        for step in stream(model, [prompts[i] for i in chosen], greedy, tokenizer.eos_id):
            for row, (token, logprob) in enumerate(zip(step.ids, step.logprobs, strict=True)):
                if token is not None:
                    ids[row].append(token)
                    logprobs[row].append(logprob)
        for row, i in enumerate(chosen):
            said = logprobs[row]
            confidence = math.fsum(said) / len(said) if said else -math.inf
            answers[i] = GreedyAnswer(tokenizer.decode(ids[row]).strip(), confidence)
    return [answers[i] for i in range(len(prompts))]


@torch.inference_mode()
def likelihoods(
    model: TransformerLM,
    tokenizer: Tokenizer,
    pairs: Sequence[QuestionAnswer],
    of_token: np.ndarray,
    batch_size: int,
) -> list[Likelihood]:
    """How likely the model finds each pair's own answer. `of_token`: see `dtl.evaluation.token_bytes`.

    Of a pair that is longer than the model's context the beginning is cut.
    """
    texts = [document(pair) for pair in pairs]
    asked = tokenizer.encode_batch([text.text[: text.answer_start] for text in texts])
    answers = tokenizer.encode_batch([text.text[text.answer_start :] for text in texts])
    found: dict[int, Likelihood] = {}
    was_training = model.training
    model.eval()
    try:
        for chosen in _batches([len(a) + len(b) for a, b in zip(asked, answers, strict=True)], batch_size):
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


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices, longest first, so that a batch holds about equal lengths."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))
