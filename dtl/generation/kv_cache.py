"""Keys and values of the tokens seen so far, in buffers of fixed size: no copying as a text grows.

Letters: b batch, t new tokens, s slots, g key/value heads, k head width.
"""

import torch
from einops import rearrange
from torch import Tensor

from dtl.model.config import ModelConfig


class StaticKeyValueCache:
    """A `KeyValueCache` for prompts of different lengths, padded on the right.

    The first pass takes the padded prompts; what padding wrote is overwritten or masked later, since each row
    goes on at its own length. `lengths_b` are the prompts' lengths, `capacity` the slots of a row. A row that is
    full overwrites its last slot, so that others can go on; what it says from there on means nothing.
    """

    def __init__(self, config: ModelConfig, lengths_b: Tensor, capacity: int, dtype: torch.dtype) -> None:
        shape = (len(lengths_b), config.resolved_n_kv_heads, capacity, config.resolved_head_dim)
        new = {"device": lengths_b.device, "dtype": dtype}
        self.keys = [torch.zeros(shape, **new) for _ in range(config.n_layers)]
        self.values = [torch.zeros(shape, **new) for _ in range(config.n_layers)]
        self.lengths_b = lengths_b
        self.slots_s = torch.arange(capacity, device=lengths_b.device)
        self.slots_b: Tensor | None = None  # where each row's new token goes; None during the first pass
        self.started = False

    def extend(self, n_tokens: int) -> tuple[Tensor, Tensor | None]:
        """See `dtl.model.attention.KeyValueCache`. Raises ValueError for several tokens after the first pass."""
        if not self.started:
            self.started = True
            return rearrange(self.slots_s[:n_tokens], "t -> 1 t"), None
        if n_tokens != 1:
            raise ValueError("After the prompts, one token a row at a time.")
        self.slots_b = self.lengths_b.clamp(max=len(self.slots_s) - 1)
        self.lengths_b = self.lengths_b + 1
        positions_bt = rearrange(self.slots_b, "b -> b 1")
        mask_bts = rearrange(self.slots_s, "s -> 1 1 s") <= rearrange(positions_bt, "b t -> b t 1")
        return positions_bt, mask_bts

    def update(self, layer: int, k_bgtk: Tensor, v_bgtk: Tensor) -> tuple[Tensor, Tensor]:
        """See `dtl.model.attention.KeyValueCache`."""
        keys, values = self.keys[layer], self.values[layer]
        if self.slots_b is None:  # the prompts: the first slots of every row
            n_tokens = k_bgtk.shape[2]
            keys[:, :, :n_tokens], values[:, :, :n_tokens] = k_bgtk, v_bgtk
            return k_bgtk, v_bgtk
        rows_b = torch.arange(len(keys), device=keys.device)
        keys[rows_b, :, self.slots_b] = rearrange(k_bgtk, "b g 1 k -> b g k").to(keys.dtype)
        values[rows_b, :, self.slots_b] = rearrange(v_bgtk, "b g 1 k -> b g k").to(values.dtype)
        return keys, values
