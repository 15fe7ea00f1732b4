"""Generation from token ids to token ids, prompts of any lengths in one batch: cache, sampling, prefill, decode.

Letters: b batch, t new tokens, s slots of the cache, d model width, g key/value heads, k head width, v vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dtl.base.runtime import compute_dtype
from dtl.errors import CheckpointError
from dtl.generation.config import SamplingConfig
from dtl.generation.decoder import Decoder, unsupported_reason
from dtl.model.config import ModelConfig
from dtl.model.transformer import TransformerLM

# --- key/value cache ----------------------------------------------------------------------------------------------


class StaticKeyValueCache:
    """`KeyValueCache` for prompts of different `lengths`, padded on the right; `capacity` slots per sequence.

    Buffers have a fixed size: nothing is copied as a text grows. Each sequence continues at its own length, so the
    slots of padding are overwritten or masked. Sequences of one length need no mask: they read the filled slots only.
    A full sequence overwrites its last slot, so that the others can continue; its further tokens are meaningless.
    """

    def __init__(
        self, config: ModelConfig, lengths: Sequence[int], capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (len(lengths), config.resolved_n_kv_heads, capacity, config.resolved_head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.capacity = capacity
        self.device = device
        self.lengths_b = torch.tensor(lengths, device=device)
        self.slots_s = torch.arange(capacity, device=device)
        self.rows_b = torch.arange(len(lengths), device=device)
        self._common_length = lengths[0] if len(set(lengths)) == 1 else None
        self._prompts_are_in = False
        self._new_slot: slice | Tensor = slice(0, 0)  # of the new tokens: common to all sequences, or (b,)

    def extend(self, n_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Implement `KeyValueCache.extend`. Raises ValueError for several tokens after the first pass."""
        if not self._prompts_are_in:
            self._prompts_are_in = True
            self._new_slot = slice(0, n_tokens)
            return rearrange(self.slots_s[:n_tokens], "t -> 1 t"), None
        if n_tokens != 1:
            raise ValueError("After the prompts, one token per sequence at a time.")
        if self._common_length is not None:
            slot = min(self._common_length, self.capacity - 1)
            self._common_length += 1
            self._new_slot = slice(slot, slot + 1)
            return rearrange(self.slots_s[self._new_slot], "t -> 1 t"), None
        slots_b = self.lengths_b.clamp(max=self.capacity - 1)
        self.lengths_b = self.lengths_b + 1
        self._new_slot = slots_b
        positions_bt = rearrange(slots_b, "b -> b 1")
        mask_bts = rearrange(self.slots_s, "s -> 1 1 s") <= rearrange(positions_bt, "b t -> b t 1")
        return positions_bt, mask_bts

    def update(self, layer: int, k_bgtk: Tensor, v_bgtk: Tensor) -> tuple[Tensor, Tensor]:
        """Implement `KeyValueCache.update`."""
        keys, values = self.keys[layer], self.values[layer]
        if isinstance(self._new_slot, slice):  # the prompts, or a token in the same slot of every sequence
            keys[:, :, self._new_slot], values[:, :, self._new_slot] = k_bgtk, v_bgtk
            return keys[:, :, : self._new_slot.stop], values[:, :, : self._new_slot.stop]
        keys[self.rows_b, :, self._new_slot] = rearrange(k_bgtk, "b g 1 k -> b g k").to(keys.dtype)
        values[self.rows_b, :, self._new_slot] = rearrange(v_bgtk, "b g 1 k -> b g k").to(values.dtype)
        return keys, values


# --- sampling -----------------------------------------------------------------------------------------------------
# Pure functions from logits (b, v) to logits or ids; the generator is an argument.


def penalise_repetition(logits_bv: Tensor, seen_bv: Tensor, penalty: float) -> Tensor:
    """Divide the logits of `seen` tokens, bool (b, v), by `penalty` when positive, else multiply them by it.

    Keskar et al., 2019, section 4.1.
    """
    if penalty == 1:
        return logits_bv
    penalised_bv = torch.where(logits_bv > 0, logits_bv / penalty, logits_bv * penalty)
    return torch.where(seen_bv, penalised_bv, logits_bv)


def keep_top_k(logits_bv: Tensor, k: int) -> Tensor:
    """Keep the `k` most likely tokens, and ties with the last of them."""
    if k >= logits_bv.shape[-1]:
        return logits_bv
    edge_b1 = logits_bv.topk(k, dim=-1).values[:, -1:]
    return logits_bv.masked_fill(logits_bv < edge_b1, float("-inf"))


def keep_top_p(logits_bv: Tensor, p: float) -> Tensor:
    """Keep the most likely tokens that together have at least `p` of the probability (Holtzman et al., 2020)."""
    if p >= 1:
        return logits_bv
    sorted_bv, order_bv = logits_bv.sort(dim=-1, descending=True)
    probabilities_bv = sorted_bv.softmax(dim=-1)
    # A token is kept when the ones before it have not yet reached p, and always the most likely: in fp32 1e-50 is 0.
    reached_bv = probabilities_bv.cumsum(dim=-1) - probabilities_bv >= p
    reached_bv[:, 0] = False
    hidden_bv = torch.zeros_like(reached_bv).scatter(-1, order_bv, reached_bv)
    return logits_bv.masked_fill(hidden_bv, float("-inf"))


def keep_min_p(logits_bv: Tensor, p: float) -> Tensor:
    """Keep the tokens whose probability is at least `p` times the highest (Nguyen et al., 2024)."""
    if p <= 0:
        return logits_bv
    edge_b1 = logits_bv.amax(dim=-1, keepdim=True) + math.log(p)
    return logits_bv.masked_fill(logits_bv < edge_b1, float("-inf"))


def sample_next(
    logits_bv: Tensor, config: SamplingConfig, generator: torch.Generator | None, seen_bv: Tensor | None = None
) -> Tensor:
    """Draw ids (b,) from the logits as `config` says; temperature 0 takes the most likely.

    `seen_bv`, bool (b, v), marks the tokens of the prompt and of the text so far; None = no repetition penalty.
    """
    if seen_bv is not None:
        logits_bv = penalise_repetition(logits_bv, seen_bv, config.repetition_penalty)
    logits_bv = logits_bv.float()
    if config.temperature == 0:
        return _most_likely(logits_bv)
    probabilities_bk, ids_bk = distribution(logits_bv, config)
    drawn_b1 = torch.multinomial(probabilities_bk, 1, generator=generator)
    return (drawn_b1 if ids_bk is None else ids_bk.gather(1, drawn_b1))[:, 0]


def distribution(logits_bv: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor | None]:
    """Return the probabilities (b, k) to draw from, and the ids (b, k) that they belong to; None = all, (b, v)."""
    # The highest logit shifted to 0: divided by a temperature near 0, the others become -inf and none becomes inf.
    temperature = max(config.temperature, torch.finfo(torch.float32).tiny)  # a smaller one would be 0 in fp32
    logits_bv = (logits_bv - logits_bv.amax(dim=-1, keepdim=True)) / temperature
    ids_bk = None
    if config.top_k is not None and config.top_k < logits_bv.shape[-1]:
        logits_bk, ids_bk = logits_bv.topk(config.top_k, dim=-1)
        if int((logits_bv >= logits_bk[:, -1:]).sum()) == ids_bk.numel():
            # On a CPU a draw from all tokens of GPT-2's vocabulary takes 2 ms, and sorting them for top_p 5 ms more.
            logits_bv = logits_bk
        else:  # ties with the last are kept
            logits_bv, ids_bk = keep_top_k(logits_bv, config.top_k), None
    return keep_min_p(keep_top_p(logits_bv, config.top_p), config.min_p).softmax(dim=-1), ids_bk


def _most_likely(logits_bv: Tensor) -> Tensor:
    """Return `logits_bv.argmax(dim=-1)`, on a CPU by NumPy: 20 times as fast with GPT-2's vocabulary."""
    if logits_bv.device.type != "cpu":
        return logits_bv.argmax(dim=-1)
    return torch.from_numpy(logits_bv.detach().numpy().argmax(axis=-1))


# --- prefill and decode -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Next token of each text."""

    ids: list[int | None]  # None: this text has already ended
    logprobs: list[float]  # natural logarithm, of each token, by the unmodified model: temperature 1, no filter
    context_shifted: list[bool]  # True: the model sees only the end of this text, since all of it exceeds the context


def generate(
    model: TransformerLM,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    stop_id: int,
    seed: int = 0,
    decoder: Decoder | None = None,
) -> list[list[int]]:
    """Return the new tokens of each prompt, as `stream` yields them."""
    texts: list[list[int]] = [[] for _ in prompts]
    for step in stream(model, prompts, sampling, stop_id, seed, decoder):
        for text, token in zip(texts, step.ids, strict=True):
            if token is not None:
                text.append(token)
    return texts


@torch.inference_mode()
def stream(
    model: TransformerLM,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    stop_id: int,
    seed: int = 0,
    decoder: Decoder | None = None,
) -> Iterator[Step]:
    """Continue each prompt, one token per step, until its `stop_id` (not returned) or `sampling.max_new_tokens`.

    Greedy texts do not depend on the other prompts of the batch. With `stop_id` -1 no text stops early. A text that
    fills the context continues from its last half. `sampling.stop` is up to the caller, who decodes the text and may
    leave the loop. A `decoder` of this model continues the prompts, with its own weights; without one the model is
    laid out in fp32 for this call. Raises ValueError for an empty prompt or one that leaves no room in the context,
    CheckpointError for logits that are not finite.
    """
    context = model.config.max_seq_len
    lengths = [len(prompt) for prompt in prompts]
    if not lengths:
        return
    if min(lengths) < 1 or max(lengths) >= context:
        raise ValueError(f"A prompt needs 1 to {context - 1} tokens; got {min(lengths)} to {max(lengths)}.")
    seen = [list(prompt) for prompt in prompts]  # the part of each text in the model's context
    penalised_bv = _occurring(seen, model.vocab_size) if sampling.repetition_penalty != 1 else None
    running, context_shifted = [True] * len(seen), [False] * len(seen)
    # Drawn on the CPU, since generators of other devices give other numbers for the same seed.
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        logits_bv, cache = _prefill(model, seen, sampling.max_new_tokens)
        decoder = decoder or lay_out(model)
        for n_left in reversed(range(sampling.max_new_tokens)):
            logits_bv = logits_bv.float().cpu()
            if not torch.isfinite(logits_bv.amax()).item():  # NaN propagates
                raise CheckpointError(
                    "The model's logits are not finite: its weights are damaged, or too large to use."
                )
            next_b = sample_next(logits_bv, sampling, generator, penalised_bv)
            next_ids = next_b.tolist()
            running = [was and token != stop_id for was, token in zip(running, next_ids, strict=True)]
            if not any(running):
                return
            logprobs_b1 = logits_bv.gather(1, rearrange(next_b, "b -> b 1")) - logits_bv.logsumexp(-1, keepdim=True)
            written = [token if runs else None for token, runs in zip(next_ids, running, strict=True)]
            yield Step(written, logprobs_b1[:, 0].tolist(), list(context_shifted))
            if n_left == 0:
                return
            if penalised_bv is not None:
                penalised_bv[torch.arange(len(seen)), next_b] = True
            for text, token in zip(seen, next_ids, strict=True):
                text.append(token)
            full = [row for row, text in enumerate(seen) if running[row] and len(text) > context]
            if full:  # cut to half the context: one prefill in context / 2 tokens; a cut by one needs one for each
                context_shifted = [before or row in full for row, before in enumerate(context_shifted)]
                seen = [text if len(text) <= context else text[-(context // 2) :] for text in seen]
                logits_bv, cache = _prefill(model, seen, n_left)
            else:
                logits_bv = _decode_one(decoder or model, next_b, cache)
    finally:
        model.train(was_training)


def _prefill(model: TransformerLM, texts: Sequence[Sequence[int]], n_new: int) -> tuple[Tensor, StaticKeyValueCache]:
    """Run the model over all texts: logits (b, v) after each last token, and a cache with room for `n_new` more."""
    lengths = [len(text) for text in texts]
    longest = max(lengths)
    device = next(model.parameters()).device
    # Padded on the right with an arbitrary token: causality and the cache hide it.
    ids_bt = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    capacity = min(model.config.max_seq_len, longest + n_new)
    cache = StaticKeyValueCache(model.config, lengths, capacity, compute_dtype(next(model.parameters())), device)
    last_b = torch.tensor([row * longest + length - 1 for row, length in enumerate(lengths)], device=device)
    return model.head(model.hidden(ids_bt, cache=cache, at_n=last_b)), cache


def lay_out(model: TransformerLM) -> Decoder | None:
    """Return the model laid out for decoding in fp32; None where it has to be computed as it is."""
    if torch.is_autocast_enabled(next(model.parameters()).device.type) or unsupported_reason(model) is not None:
        return None
    return Decoder(model)


def _decode_one(model: TransformerLM | Decoder, ids_b: Tensor, cache: StaticKeyValueCache) -> Tensor:
    """Run the model over one more token per text; logits (b, v) of the token after it."""
    ids_b = ids_b.to(cache.device)
    if isinstance(model, Decoder):
        return model.logits(ids_b, cache)
    return model.head(model.hidden(rearrange(ids_b, "b -> b 1"), cache=cache)[:, 0])


@torch.inference_mode()
def nats_when_decoding(model: TransformerLM, decoder: Decoder, ids_bt: Tensor) -> Tensor:
    """Return the surprise -log p of each token after the first, (b, t - 1), as the decoder predicts it: one by one."""
    cache = StaticKeyValueCache(model.config, [0] * len(ids_bt), ids_bt.shape[1], torch.float32, ids_bt.device)
    cache.extend(0)  # no prompt: the decoder sees the first token, too
    nats = []
    for token_b, next_b in zip(ids_bt.T[:-1], ids_bt.T[1:], strict=True):
        nats.append(F.cross_entropy(decoder.logits(token_b, cache), next_b, reduction="none"))
    return torch.stack(nats, dim=1)


def _occurring(texts: Sequence[Sequence[int]], vocab_size: int) -> Tensor:
    """Bool (b, v): True for the tokens that occur in each text."""
    occurs_bv = torch.zeros(len(texts), vocab_size, dtype=torch.bool)
    for row, text in enumerate(texts):
        occurs_bv[row, torch.tensor(text)] = True
    return occurs_bv
