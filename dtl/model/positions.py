"""How a token learns where it stands: rotary positions (modern) or learned ones (classic).

Both take the embedded tokens and their positions, and return the tokens to go on with and the rotation that
attention applies to its queries and keys (None for learned positions).
Letters: b batch, t time, d model width, h heads, k head width.
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn


class Rotation(NamedTuple):
    """Cosine and sine of each token's angles, of shape (b, t, k); b is 1 when all rows share their positions."""

    cos_btk: Tensor
    sin_btk: Tensor

    def apply(self, x_bhtk: Tensor) -> Tensor:
        """Turn each pair (i, i + k/2) of a head by its angle. Pairs are half a head apart, as in Hugging Face;
        the interleaved pairs of the paper give other numbers for the same weights."""
        first, second = rearrange(x_bhtk, "b h t (two half) -> two b h t half", two=2)
        turned_bhtk = rearrange([-second, first], "two b h t half -> b h t (two half)")
        cos_bhtk = rearrange(self.cos_btk, "b t k -> b 1 t k")
        sin_bhtk = rearrange(self.sin_btk, "b t k -> b 1 t k")
        return x_bhtk * cos_bhtk + turned_bhtk * sin_bhtk


class RotaryEmbedding(nn.Module):
    """Rotary positions (Su et al. 2021, RoFormer): attention then depends on distances only.

    Angles are computed in fp32 at each forward pass, once for all layers. There is no table that
    `model.to(torch.bfloat16)` could round, a meta device leave empty or a checkpoint carry.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta

    def forward(self, x_btd: Tensor, positions_bt: Tensor) -> tuple[Tensor, Rotation | None]:
        """Tokens (b, t, d), unchanged, and the rotation for their positions (b or 1, t), in the tokens' dtype."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions_bt.device) / self.head_dim
        frequencies = 1.0 / self.theta**exponents
        angles = rearrange(positions_bt.float(), "b t -> b t 1") * frequencies
        angles_btk = repeat(angles, "b t half -> b t (two half)", two=2)
        return x_btd, Rotation(angles_btk.cos().to(x_btd.dtype), angles_btk.sin().to(x_btd.dtype))

    def extra_repr(self) -> str:
        return f"{self.head_dim}, theta={self.theta}"


class LearnedPositions(nn.Module):
    """One learned vector for each position, added to the token, as in GPT-2."""

    def __init__(self, max_seq_len: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_seq_len, dim)

    def forward(self, x_btd: Tensor, positions_bt: Tensor) -> tuple[Tensor, Rotation | None]:
        """Tokens (b, t, d) plus the vectors of their positions (b or 1, t); no rotation."""
        return x_btd + self.table(positions_bt), None
