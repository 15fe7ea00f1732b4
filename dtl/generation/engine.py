"""Token ids in, token ids out: prompts of any lengths continued together. Knows no text.

Letters: b batch, t time, v vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from dtl.generation.config import SamplingConfig
from dtl.model.config import ModelConfig
from dtl.model.transformer import TransformerLM

# --- key/value cache ----------------------------------------------------------------------------------------------
# Keys and values of the tokens seen so far, in buffers of fixed size: no copying as a text grows.
#
# Letters: b batch, t new tokens, s slots, g key/value heads, k head width.


class StaticKeyValueCache:
    """A `KeyValueCache` for prompts of different `lengths`, padded on the right; `capacity` slots a row.

    The first pass takes the padded prompts; what padding wrote is overwritten or masked later, since each row
    goes on at its own length. Rows of one length need no mask: they read the filled slots alone. A row that is full
    overwrites its last slot, so that others can go on; what it says from there on means nothing.
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
        self._new_slot: slice | Tensor = slice(0, 0)  # where each row's new tokens go: of all rows, or (b,)

    def extend(self, n_tokens: int) -> tuple[Tensor, Tensor | None]:
        """See `dtl.model.attention.KeyValueCache`. Raises ValueError for several tokens after the first pass."""
        if not self._prompts_are_in:
            self._prompts_are_in = True
            self._new_slot = slice(0, n_tokens)
            return rearrange(self.slots_s[:n_tokens], "t -> 1 t"), None
        if n_tokens != 1:
            raise ValueError("After the prompts, one token a row at a time.")
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
        """See `dtl.model.attention.KeyValueCache`."""
        keys, values = self.keys[layer], self.values[layer]
        if isinstance(self._new_slot, slice):  # the prompts, or one more token at the same place in every row
            keys[:, :, self._new_slot], values[:, :, self._new_slot] = k_bgtk, v_bgtk
            return keys[:, :, : self._new_slot.stop], values[:, :, : self._new_slot.stop]
        keys[self.rows_b, :, self._new_slot] = rearrange(k_bgtk, "b g 1 k -> b g k").to(keys.dtype)
        values[self.rows_b, :, self._new_slot] = rearrange(v_bgtk, "b g 1 k -> b g k").to(values.dtype)
        return keys, values


# --- sampling -----------------------------------------------------------------------------------------------------
# Drawing the next token: pure functions from logits (b, v) to logits or ids, with a generator passed in.


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


# --- layout of the weights ----------------------------------------------------------------------------------------
# How the weights lie in memory while texts are written one token at a time.


@torch.no_grad()
def lay_out_for_decoding(model: TransformerLM) -> None:
    """Store matrices with more outputs than inputs column by column: in place, the same values and shapes.

    For one token, or two, a CPU then reads them at the speed of its memory: measured with MKL on AMD, 2.5 times as
    fast for an output head, 1.5 times for an mlp; from four tokens on there is no difference. Logits change by
    rounding alone. For models that only generate: call it once after loading; on a GPU it does nothing.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features > module.in_features:
            weight = module.weight
            if weight.device.type == "cpu" and weight.is_contiguous():
                weight.data = weight.data.t().contiguous().t()


# --- prefill and decode -------------------------------------------------------------------------------------------


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
