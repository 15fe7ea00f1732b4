"""Settings of the model: its size, and the architecture that it is built from. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any

from dtl.errors import ConfigError
from dtl.registry import BLOCKS

ATTENTION_KERNELS = ("auto", "sdpa", "padded", "varlen", "flex", "reference")


@dataclass
class ArchConfig:
    """How a block computes: `modern` is Qwen3's, `classic` is GPT-2's."""

    block: str = "modern"  # registered name: modern | classic | your own
    norm_eps: float = 1e-6  # added to the variance inside the norms
    rope_theta: float = 10000.0  # base of the rotary frequencies; modern only
    options: dict[str, Any] = field(default_factory=dict)  # settings of a block of your own


@dataclass
class ModelConfig:
    """Width, depth and context of a decoder-only transformer."""

    arch: ArchConfig = field(default_factory=ArchConfig)
    dim: int = 256  # width of the residual stream
    n_layers: int = 6  # transformer blocks
    n_heads: int = 8  # query heads
    n_kv_heads: int | None = None  # key/value heads; None = as many as n_heads; classic has no other
    head_dim: int | None = None  # width of one head; None = dim / n_heads
    ffn_dim: int | None = None  # hidden width of the mlp; None = 4 x dim (classic) or its SwiGLU equal (modern)
    max_seq_len: int = 512  # context, in tokens
    token_dropout: float = 0.0  # probability, in training only: of a token's whole embedding
    dropout: float = 0.1  # probability, in training only: of embeddings, attention weights, and what a block adds
    tie_embeddings: bool = True  # one matrix for the input embedding and the output head
    attention: str = "auto"  # auto | sdpa | reference (to read); for packed documents: padded | varlen, flex (CUDA)

    @property
    def resolved_head_dim(self) -> int:
        return self.head_dim if self.head_dim is not None else self.dim // self.n_heads

    @property
    def resolved_n_kv_heads(self) -> int:
        return self.n_kv_heads if self.n_kv_heads is not None else self.n_heads

    @property
    def resolved_ffn_dim(self) -> int:
        """Hidden width of the mlp. SwiGLU has three matrices where the classic mlp has two, so that it
        gets two thirds of the width for the same number of parameters, rounded to a multiple of 16."""
        if self.ffn_dim is not None:
            return self.ffn_dim
        if self.arch.block == "classic":
            return 4 * self.dim
        return max(16, round(8 * self.dim / 3 / 16) * 16)

    def validate(self) -> None:
        """Raises ConfigError for a model that cannot be built."""
        BLOCKS.check(self.arch.block)
        for key in ("dim", "n_layers", "n_heads", "max_seq_len"):
            if getattr(self, key) < 1:
                raise ConfigError(f"model.{key}={getattr(self, key)}: must be at least 1.")
        for key in ("n_kv_heads", "head_dim", "ffn_dim"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"model.{key}={value}: must be at least 1, or null for its default.")
        if self.head_dim is None and self.dim % self.n_heads:
            raise ConfigError(
                f"model.n_heads={self.n_heads}: must divide model.dim={self.dim}. "
                "Choose another number of heads, or set model.head_dim."
            )
        if self.n_heads % self.resolved_n_kv_heads:
            raise ConfigError(
                f"model.n_kv_heads={self.n_kv_heads}: must divide model.n_heads={self.n_heads}, "
                "since each key/value head serves an equal group of query heads."
            )
        for key in ("dropout", "token_dropout"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"model.{key}={getattr(self, key)}: a probability in [0, 1). 0 turns it off.")
        if self.attention not in ATTENTION_KERNELS:
            raise ConfigError(f"model.attention={self.attention}: one of {', '.join(ATTENTION_KERNELS)}.")
        if self.arch.norm_eps <= 0 or self.arch.rope_theta <= 0:
            raise ConfigError("model.arch.norm_eps and model.arch.rope_theta must be above 0.")
        if self.arch.options and self.arch.block in ("modern", "classic"):
            raise ConfigError(
                f"model.arch.options={self.arch.options}: model.arch.block={self.arch.block} has none. "
                "They are for a block of your own."
            )
        if self.arch.block == "modern" and self.resolved_head_dim % 2:
            raise ConfigError(
                f"model.head_dim={self.resolved_head_dim}: must be even, since rotary positions turn pairs."
            )
        if self.arch.block == "classic":
            self._validate_classic()

    def _validate_classic(self) -> None:
        if self.resolved_n_kv_heads != self.n_heads or self.resolved_head_dim * self.n_heads != self.dim:
            raise ConfigError(
                "model/arch=classic: GPT-2 has as many key/value heads as heads, and head_dim = dim / n_heads. "
                "Remove model.n_kv_heads and model.head_dim, or use model/arch=modern."
            )
