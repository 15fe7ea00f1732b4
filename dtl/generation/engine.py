"""Token ids in, token ids out: prompts of any lengths continued together. Knows no text.

Letters: b batch, t time, v vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from dtl.generation.config import SamplingConfig
from dtl.generation.kv_cache import StaticKeyValueCache
from dtl.generation.sampling import sample_next
from dtl.model.transformer import TransformerLM


@dataclass(frozen=True)
class Step:
    """One more token of each text."""

    ids: list[int | None]  # None: this text has ended before
    logprobs: list[float]  # of each token, by the model as it is: temperature 1, nothing filtered; natural logarithm
    slid: list[bool]  # whether the model sees only the end of a text, whose beginning has left the context


def generate(
    model: TransformerLM, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, stop_id: int, seed: int = 0
) -> list[list[int]]:
    """The new tokens of each prompt, as `stream` yields them."""
    texts: list[list[int]] = [[] for _ in prompts]
    for step in stream(model, prompts, sampling, stop_id, seed):
        for text, token in zip(texts, step.ids, strict=True):
            if token is not None:
                text.append(token)
    return texts


@torch.inference_mode()
def stream(
    model: TransformerLM, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, stop_id: int, seed: int = 0
) -> Iterator[Step]:
    """Continue each prompt, a token at a time, until its `stop_id` (left out) or `sampling.max_new_tokens`.

    Greedy texts do not depend on who else is in the batch. A `stop_id` that no token has (-1) never stops. A text
    that fills the model's context slides: it goes on from its last half alone. `sampling.stop` is for those who know
    the text: whoever reads may leave the loop.
    Raises ValueError for an empty prompt or one that leaves no room in the context.
    """
    context = model.config.max_seq_len
    lengths = [len(prompt) for prompt in prompts]
    if not lengths:
        return
    if min(lengths) < 1 or max(lengths) >= context:
        raise ValueError(f"A prompt needs 1 to {context - 1} tokens; got {min(lengths)} to {max(lengths)}.")
    seen = [list(prompt) for prompt in prompts]  # what the model sees of each text
    penalised_bv = _penalised(seen, model.vocab_size) if sampling.repetition_penalty != 1 else None
    running, slid = [True] * len(seen), [False] * len(seen)
    # The draw happens on the CPU: the same seed gives the same text wherever the logits were computed.
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        logits_bv, cache = _prefill(model, seen, sampling.max_new_tokens)
        for n_left in reversed(range(sampling.max_new_tokens)):
            logits_bv = logits_bv.float().cpu()
            next_b = sample_next(logits_bv, sampling, generator, penalised_bv)
            next_ids = next_b.tolist()
            running = [was and token != stop_id for was, token in zip(running, next_ids, strict=True)]
            if not any(running):
                return
            yield Step(
                [token if runs else None for token, runs in zip(next_ids, running, strict=True)],
                _logprobs(logits_bv, next_b).tolist(),
                list(slid),
            )
            if n_left == 0:
                return
            if penalised_bv is not None:
                penalised_bv[torch.arange(len(seen)), next_b] = True
            for text, token in zip(seen, next_ids, strict=True):
                text.append(token)
            full = [row for row, text in enumerate(seen) if running[row] and len(text) > context]
            if full:
                slid = [before or row in full for row, before in enumerate(slid)]
                seen = [text if len(text) <= context else text[-(context // 2) :] for text in seen]
                logits_bv, cache = _prefill(model, seen, n_left)
            else:
                logits_bv = _decode_one(model, next_b, cache)
    finally:
        model.train(was_training)


def _prefill(model: TransformerLM, texts: Sequence[Sequence[int]], n_new: int) -> tuple[Tensor, StaticKeyValueCache]:
    """One pass over all texts: logits (b, v) after each one's last token, and a cache with room for `n_new` more."""
    lengths = [len(text) for text in texts]
    longest = max(lengths)
    device = next(model.parameters()).device
    # Padded on the right, with any token: the cache hides it.
    ids_bt = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    capacity = min(model.config.max_seq_len, longest + n_new)
    cache = StaticKeyValueCache(model.config, lengths, capacity, _compute_dtype(model), device)
    x_btd = model.hidden(ids_bt, cache=cache)
    last_b = torch.tensor(lengths, device=device) - 1
    return model.head(x_btd[torch.arange(len(texts), device=device), last_b]), cache


def _decode_one(model: TransformerLM, ids_b: Tensor, cache: StaticKeyValueCache) -> Tensor:
    """One more token a row; logits (b, v) of the token after it."""
    ids_bt = rearrange(ids_b.to(cache.device), "b -> b 1")
    return model.head(model.hidden(ids_bt, cache=cache)[:, 0])


def _compute_dtype(model: TransformerLM) -> torch.dtype:
    """What keys and values come in: autocast's type inside autocast, else the weights'."""
    weight = next(model.parameters())
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _logprobs(logits_bv: Tensor, ids_b: Tensor) -> Tensor:
    """ln of the probability of each row's token, (b,)."""
    return logits_bv.gather(1, rearrange(ids_b, "b -> b 1"))[:, 0] - logits_bv.logsumexp(dim=-1)


def _penalised(texts: Sequence[Sequence[int]], vocab_size: int) -> Tensor:
    """Bool (b, v): the tokens that occur in each text."""
    found_bv = torch.zeros(len(texts), vocab_size, dtype=torch.bool)
    for row, text in enumerate(texts):
        found_bv[row, torch.tensor(text)] = True
    return found_bv
