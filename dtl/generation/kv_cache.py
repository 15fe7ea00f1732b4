"""Keys and values of the tokens seen so far, in buffers of fixed size: no copying as a text grows.

Letters: b batch, t new tokens, s slots, g key/value heads, k head width.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from dtl.model.config import ModelConfig


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
