"""Token ids in, token ids out: prompts of any lengths continued together. Knows no text.

Letters: b batch, t time, v vocabulary.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from dtl.generation.config import SamplingConfig
from dtl.generation.kv_cache import StaticKeyValueCache
from dtl.generation.sampling import sample_next
from dtl.model.transformer import TransformerLM


@torch.inference_mode()
def generate(
    model: TransformerLM, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, stop_id: int, seed: int = 0
) -> list[list[int]]:
    """Continue each prompt until `stop_id` (left out), `sampling.max_new_tokens`, or the model's context is full.

    Greedy texts do not depend on who else is in the batch. A `stop_id` that no token has (-1) never stops.
    Raises ValueError for an empty prompt or one that leaves no room in the context.
    """
    lengths = [len(prompt) for prompt in prompts]
    if not lengths:
        return []
    context = model.config.max_seq_len
    if min(lengths) < 1 or max(lengths) >= context:
        raise ValueError(f"A prompt needs 1 to {context - 1} tokens; got {min(lengths)} to {max(lengths)}.")
    rooms = [min(sampling.max_new_tokens, context - length) for length in lengths]
    device = next(model.parameters()).device
    # The draw happens on the CPU: the same seed gives the same text wherever the logits were computed.
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        ids_bt, lengths_b = _padded(prompts, device), torch.tensor(lengths, device=device)
        n_slots = max(length + room for length, room in zip(lengths, rooms, strict=True))
        cache = StaticKeyValueCache(model.config, lengths_b, n_slots, _compute_dtype(model))
        logits_bv = _prefill(model, ids_bt, lengths_b, cache)
        produced: list[Tensor] = []
        done_b, rooms_b = torch.zeros(len(prompts), dtype=torch.bool), torch.tensor(rooms)
        while True:
            next_b = sample_next(logits_bv.float().cpu(), sampling, generator)
            produced.append(next_b)
            done_b |= (next_b == stop_id) | (rooms_b <= len(produced))
            if done_b.all():
                break
            logits_bv = _decode_one(model, next_b.to(device), cache)
    finally:
        model.train(was_training)
    written = torch.stack(produced, dim=1).tolist()
    return [_until(ids[:room], stop_id) for ids, room in zip(written, rooms, strict=True)]


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """On the right, with any token: the cache hides it."""
    longest = max(len(prompt) for prompt in prompts)
    return torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)


def _compute_dtype(model: TransformerLM) -> torch.dtype:
    """What keys and values come in: autocast's type inside autocast, else the weights'."""
    weight = next(model.parameters())
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _prefill(model: TransformerLM, ids_bt: Tensor, lengths_b: Tensor, cache: StaticKeyValueCache) -> Tensor:
    """One pass over all prompts; logits (b, v) after each prompt's last token."""
    x_btd = model.hidden(ids_bt, cache=cache)
    rows_b = torch.arange(len(ids_bt), device=ids_bt.device)
    return model.head(x_btd[rows_b, lengths_b - 1])


def _decode_one(model: TransformerLM, ids_b: Tensor, cache: StaticKeyValueCache) -> Tensor:
    """One more token a row; logits (b, v) of the token after it."""
    return model.head(model.hidden(rearrange(ids_b, "b -> b 1"), cache=cache)[:, 0])


def _until(ids: list[int], stop_id: int) -> list[int]:
    return ids[: ids.index(stop_id)] if stop_id in ids else ids
