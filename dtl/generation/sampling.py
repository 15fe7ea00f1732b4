"""Drawing the next token: pure functions from logits (b, v) to logits or ids, with a generator passed in."""

import math

import torch
from torch import Tensor

from dtl.generation.config import SamplingConfig


def penalise_repetition(logits_bv: Tensor, seen_bv: Tensor, penalty: float) -> Tensor:
    """Lower the logits of tokens that were `seen`, bool (b, v): divided by `penalty` when positive, else multiplied
    (Keskar et al., 2019, section 4.1)."""
    if penalty == 1:
        return logits_bv
    penalised_bv = torch.where(logits_bv > 0, logits_bv / penalty, logits_bv * penalty)
    return torch.where(seen_bv, penalised_bv, logits_bv)


def keep_top_k(logits_bv: Tensor, k: int) -> Tensor:
    """All but the `k` likeliest tokens of each row become impossible; ties at the edge stay."""
    if k >= logits_bv.shape[-1]:
        return logits_bv
    edge_b1 = logits_bv.topk(k, dim=-1).values[:, -1:]
    return logits_bv.masked_fill(logits_bv < edge_b1, float("-inf"))


def keep_top_p(logits_bv: Tensor, p: float) -> Tensor:
    """Keep the likeliest tokens that together hold at least `p` of the probability (Holtzman et al., 2020)."""
    if p >= 1:
        return logits_bv
    sorted_bv, order_bv = logits_bv.sort(dim=-1, descending=True)
    probabilities_bv = sorted_bv.softmax(dim=-1)
    # A token stays when the ones before it have not yet reached p; so the likeliest always stays.
    reached_bv = probabilities_bv.cumsum(dim=-1) - probabilities_bv >= p
    hidden_bv = torch.zeros_like(reached_bv).scatter(-1, order_bv, reached_bv)
    return logits_bv.masked_fill(hidden_bv, float("-inf"))


def keep_min_p(logits_bv: Tensor, p: float) -> Tensor:
    """Keep the tokens whose probability is at least `p` times that of the likeliest (Nguyen et al., 2024)."""
    if p <= 0:
        return logits_bv
    edge_b1 = logits_bv.amax(dim=-1, keepdim=True) + math.log(p)
    return logits_bv.masked_fill(logits_bv < edge_b1, float("-inf"))


def sample_next(
    logits_bv: Tensor, config: SamplingConfig, generator: torch.Generator | None, seen_bv: Tensor | None = None
) -> Tensor:
    """Ids (b,) drawn from the logits as `config` says; temperature 0 takes the likeliest.

    `seen_bv`, bool (b, v), marks the tokens of prompt and text so far; without it nothing counts as repeated.
    """
    if seen_bv is not None:
        logits_bv = penalise_repetition(logits_bv, seen_bv, config.repetition_penalty)
    if config.temperature == 0:
        return logits_bv.argmax(dim=-1)
    logits_bv = logits_bv.float()
    # The likeliest at 0: divided by a temperature near 0, the others fall to -inf and nothing rises to inf.
    temperature = max(config.temperature, torch.finfo(torch.float32).tiny)  # a smaller one would be 0 in fp32
    logits_bv = (logits_bv - logits_bv.amax(dim=-1, keepdim=True)) / temperature
    if config.top_k is not None:
        logits_bv = keep_top_k(logits_bv, config.top_k)
    logits_bv = keep_min_p(keep_top_p(logits_bv, config.top_p), config.min_p)
    return torch.multinomial(logits_bv.softmax(dim=-1), 1, generator=generator)[:, 0]
