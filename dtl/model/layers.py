"""The small layers: the norm, the output projection and the two mlps, as their Hugging Face twins compute them.

Letters: b batch, t time, d model width, f mlp width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Divides by the root mean square over the last dimension, then scales (Zhang & Sennrich 2019).

    Low-precision inputs are normalised in fp32 and rounded back before the weight is applied, as Qwen3 does;
    `F.rms_norm` given the weight would round once, after it, and refuses its fused kernel to mixed dtypes.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (..., dim) to the same shape."""
        return self.weight * F.rms_norm(x, (self.dim,), eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"


class OutputProjection(nn.Linear):
    """The last matrix of an attention or an mlp, whose result is added to the residual stream.

    A type of its own because first weights treat it differently from other matrices.
    """


class SwiGLU(nn.Module):
    """Gated mlp, down(silu(gate(x)) * up(x)), without biases (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, ffn_dim, bias=False)
        self.up = nn.Linear(dim, ffn_dim, bias=False)
        self.down = OutputProjection(ffn_dim, dim, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        y_btf = F.silu(self.gate(x_btd)) * self.up(x_btd)
        return self.down(y_btf)


class GeluMLP(nn.Module):
    """GPT-2's mlp: down(gelu(up(x))) with biases, and the tanh form of GELU that GPT-2 calls `gelu_new`."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, ffn_dim)
        self.down = OutputProjection(ffn_dim, dim)

    def forward(self, x_btd: Tensor) -> Tensor:
        y_btf = F.gelu(self.up(x_btd), approximate="tanh")
        return self.down(y_btf)
