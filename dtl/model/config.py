"""Settings of the model: its size, and the architecture that it is built from. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any

from dtl.errors import ConfigError
from dtl.registry import BLOCKS

ATTENTION_KERNELS = ("auto", "sdpa", "padded", "varlen", "flex", "reference")


class BlockRules:
    """Answers to what the rest of DTL asks of a block. A block class answers for itself, those of DTL's own do so here,
    without torch. These hold for a block of your own that says nothing else."""

    takes_options = True  # may have settings in model.arch.options

    @classmethod
    def validate(cls, config: "ModelConfig") -> None:
        """Raises ConfigError for a model that cannot be built of such blocks."""

    @classmethod
    def default_ffn_dim(cls, config: "ModelConfig") -> int:
        """Hidden width of the mlp where model.ffn_dim does not say it: 4 x dim for two matrices."""
        return equal_ffn_dim(2, config.dim)

    @classmethod
    def least_parameters(cls, config: "ModelConfig") -> int:
        """Numbers that the blocks and positions of such a model have at least, counted without building any."""
        return 0


class ModernRules(BlockRules):
    """Of `modern`, Qwen3's block."""

    takes_options = False

    @classmethod
    def validate(cls, config: "ModelConfig") -> None:
        require_even_head_dim(config)

    @classmethod
    def default_ffn_dim(cls, config: "ModelConfig") -> int:
        return equal_ffn_dim(3, config.dim)

    @classmethod
    def least_parameters(cls, config: "ModelConfig") -> int:
        attention_and_mlp = 2 * config.n_heads * config.resolved_head_dim + 2 * config.resolved_ffn_dim
        return config.n_layers * config.dim * attention_and_mlp


class ClassicRules(ModernRules):
    """Of `classic`, GPT-2's block."""

    @classmethod
    def validate(cls, config: "ModelConfig") -> None:
        if config.resolved_n_kv_heads != config.n_heads or config.resolved_head_dim * config.n_heads != config.dim:
            raise ConfigError(
                "model/arch=classic: GPT-2 has as many key/value heads as heads, and head_dim = dim / n_heads. "
                "Remove model.n_kv_heads and model.head_dim, or use model/arch=modern."
            )

    @classmethod
    def default_ffn_dim(cls, config: "ModelConfig") -> int:
        return equal_ffn_dim(2, config.dim)

    @classmethod
    def least_parameters(cls, config: "ModelConfig") -> int:
        return super().least_parameters(config) + config.dim * config.max_seq_len


BLOCKS.describe("modern", ModernRules)
BLOCKS.describe("classic", ClassicRules)


def require_even_head_dim(config: "ModelConfig") -> None:
    """Raises ConfigError for heads that rotary positions cannot turn."""
    if config.resolved_head_dim % 2:
        raise ConfigError(
            f"model.head_dim={config.resolved_head_dim}: must be even, since rotary positions turn pairs."
        )


def equal_ffn_dim(n_matrices: float, dim: int) -> int:
    """Width at which an mlp of so many matrices has as many parameters as one of two has at 4 x dim: SwiGLU, of three,
    gets two thirds. Rounded to a multiple of 16."""
    if n_matrices in (0, 2):  # of an mlp without a matrix the width shapes nothing
        return 4 * dim
    return max(16, round(8 * dim / n_matrices / 16) * 16)


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
    def block_rules(self) -> type[BlockRules]:
        """The answers of the block; imports none of DTL's own."""
        return BLOCKS.traits(self.arch.block) or BLOCKS.get(self.arch.block)

    @property
    def resolved_ffn_dim(self) -> int:
        """Hidden width of the mlp."""
        return self.ffn_dim if self.ffn_dim is not None else self.block_rules.default_ffn_dim(self)

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
        if self.arch.options and not self.block_rules.takes_options:
            raise ConfigError(
                f"model.arch.options={self.arch.options}: model.arch.block={self.arch.block} has none. "
                "They are for a block of your own."
            )
        self.block_rules.validate(self)
