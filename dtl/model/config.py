"""Settings of the model: its size and its architecture. Imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass, field
from typing import Any

from dtl.base.checks import LONGEST, check_choices, check_fractions, check_range
from dtl.errors import ConfigError
from dtl.registry import BLOCKS, Options

# The checkpoint brings all other settings of the model.
KEPT_WITH_INIT = ("model.dropout", "model.attention_dropout", "model.token_dropout", "model.attention")
CHOSEN = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim")  # by model=auto, none of them given
ATTENTION_KERNELS = ("auto", "sdpa", "padded", "varlen", "flex", "reference")


class BlockRules:
    """Properties of a block that the rest of DTL needs.

    A user-defined block inherits them from `TransformerBlock`, and overrides them itself. Those of DTL's own blocks
    are classes below, which can be read without importing torch.
    """

    takes_options = True  # accepts settings in model.arch.options

    @classmethod
    def validate(cls, config: "ModelConfig") -> None:
        """Raises ConfigError for a model that cannot be built of such blocks."""

    @classmethod
    def default_ffn_dim(cls, config: "ModelConfig") -> int:
        """Hidden width of the mlp when model.ffn_dim is null: by default 4 x dim, for two matrices."""
        return equal_ffn_dim(2, config.dim)

    @classmethod
    def min_parameters(cls, config: "ModelConfig") -> int:
        """Lower bound of the parameters in blocks and positions, computed without building any."""
        return 0


class ModernRules(BlockRules):
    """Rules of `modern`, Qwen3's block."""

    takes_options = False

    @classmethod
    def validate(cls, config: "ModelConfig") -> None:
        require_even_head_dim(config)

    @classmethod
    def default_ffn_dim(cls, config: "ModelConfig") -> int:
        return equal_ffn_dim(3, config.dim, config.ffn_multiple_of)

    @classmethod
    def min_parameters(cls, config: "ModelConfig") -> int:
        attention_and_mlp = 2 * config.n_heads * config.resolved_head_dim + 2 * config.resolved_ffn_dim
        return config.n_layers * config.dim * attention_and_mlp


class ClassicRules(ModernRules):
    """Rules of `classic`, GPT-2's block."""

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
    def min_parameters(cls, config: "ModelConfig") -> int:
        return super().min_parameters(config) + config.dim * config.max_seq_len


BLOCKS.describe("modern", ModernRules)
BLOCKS.describe("value_embeddings", ModernRules)
BLOCKS.describe("classic", ClassicRules)


def require_even_head_dim(config: "ModelConfig") -> None:
    """Raises ConfigError for an odd head width, which rotary positions cannot rotate."""
    if config.resolved_head_dim % 2:
        raise ConfigError(f"model.head_dim={config.resolved_head_dim}: must be even: rotary positions rotate pairs.")


def equal_ffn_dim(n_matrices: float, dim: int, multiple_of: int = 16) -> int:
    """Width that gives an mlp of `n_matrices` as many parameters as one of two matrices at 4 x dim.

    SwiGLU, with three, gets two thirds (Shazeer 2020, arXiv:2002.05202). Rounded to the nearest `multiple_of`, where
    that changes a SwiGLU by 5 % at most (dim >= 4 x multiple_of); narrower ones to a multiple of 16.
    """
    if n_matrices in (0, 2):  # 0: an mlp without matrices, whose size does not depend on the width
        return 4 * dim
    step = multiple_of if dim >= 4 * multiple_of else min(16, multiple_of)
    return max(step, round(8 * dim / n_matrices / step) * step)


@dataclass
class ArchConfig:
    """Architecture of the blocks: `modern` is Qwen3's, with `value_embeddings` or without, `classic` is GPT-2's."""

    block: str = "modern"  # registered name: modern | value_embeddings | classic | your own
    norm_eps: float = 1e-6  # added to the variance inside the norms
    rope_theta: float = 10000.0  # base of the rotary frequencies; not of classic
    options: dict[str, Any] = field(default_factory=dict)  # settings of a user-defined block


@dataclass
class ModelConfig:
    """Width, depth and context of a decoder-only transformer."""

    arch: ArchConfig = field(default_factory=ArchConfig)
    auto: bool = False  # model=auto: trainer.hours and the measured speed choose dim, n_layers, n_heads
    dim: int = 256  # width of the residual stream
    n_layers: int = 6  # transformer blocks
    n_heads: int = 8  # query heads
    n_kv_heads: int | None = None  # key/value heads; None = n_heads, which classic requires
    head_dim: int | None = None  # width of one head; None = dim / n_heads
    ffn_dim: int | None = None  # hidden width of the mlp; None = the same size for any mlp: 4 x dim of two matrices
    # The presets set 64: tiles of GPUs take widths of 64, llama.cpp's Q8_0 and Q4_0 blocks of 32. Not the default: a
    # config that was written before this key existed has 16, and keeps the width that its run was trained with.
    ffn_multiple_of: int = 16  # the width that None gives a SwiGLU is rounded to it; to 16 where dim < 4 x as much
    max_seq_len: int = 512  # context, in tokens
    token_dropout: float = 0.0  # probability, in training only, that a token's complete embedding is zeroed
    dropout: float = 0.1  # probability, in training only: embeddings, outputs of attention and mlp
    # The fused kernels of packed documents (varlen, flex) have no dropout, so that the presets set 0. Not the default:
    # a config.yaml that was written before this key existed has None, and keeps the law that its run was trained with.
    attention_dropout: float | None = None  # of attention weights, in training only; None = model.dropout
    tie_embeddings: bool = True  # one matrix for the input embedding and the output head
    attention: str = "auto"  # auto | sdpa | reference (to read); for packed documents: padded | varlen, flex (CUDA)

    @property
    def resolved_head_dim(self) -> int:
        return self.head_dim if self.head_dim is not None else self.dim // self.n_heads

    @property
    def resolved_n_kv_heads(self) -> int:
        return self.n_kv_heads if self.n_kv_heads is not None else self.n_heads

    @property
    def resolved_attention_dropout(self) -> float:
        """Probability, in training only, that an attention weight is zeroed."""
        return self.attention_dropout if self.attention_dropout is not None else self.dropout

    @property
    def block_rules(self) -> type[BlockRules]:
        """Rules of the chosen block, without importing it when it is one of DTL's own.

        Raises ConfigError for a registered block that is no subclass of TransformerBlock.
        """
        rules = BLOCKS.traits(self.arch.block) or BLOCKS.get(self.arch.block)
        if not (isinstance(rules, type) and issubclass(rules, BlockRules)):
            raise ConfigError(f"model.arch.block={self.arch.block}: must be a subclass of TransformerBlock.")
        return rules

    @property
    def resolved_ffn_dim(self) -> int:
        """Hidden width of the mlp."""
        return self.ffn_dim if self.ffn_dim is not None else self.block_rules.default_ffn_dim(self)

    def validate(self) -> None:
        """Raises ConfigError for a model that cannot be built."""
        BLOCKS.check(self.arch.block)
        for name in CHOSEN if self.auto else ():
            if (value := getattr(self, name)) != getattr(ModelConfig, name):
                raise ConfigError(
                    f"model.{name}={value}: model=auto chooses the size. Leave it out; if a recipe sets it, leave out "
                    "experiment= and name its data and tokenizer, such as data=text tokenizer=bpe. Or take another "
                    "model, such as model=small."
                )
        self.arch.options = Options.of(f"model.arch.block={self.arch.block}", "model.arch.options", self.arch.options)
        widths = {"dim": (1, 65_536), "n_heads": (1, 65_536)}
        check_range(self, "model", **widths, n_layers=(1, 1000), max_seq_len=(1, LONGEST), ffn_multiple_of=(1, 4096))
        optional = {"n_kv_heads": (1, 65_536), "head_dim": (1, 8192), "ffn_dim": (1, 1 << 20)}
        check_range(self, "model", ", or null for its default", **optional)
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
        words = {"interval": "[0, 1)", "rule": "a probability in", "rest": ". 0 turns it off"}
        check_fractions(self, "model", "dropout", "attention_dropout", "token_dropout", **words)
        check_choices(self, "model", attention=ATTENTION_KERNELS)
        check_range(self.arch, "model.arch", norm_eps=(1e-30, 1), rope_theta=(1, 10**12))
        if self.arch.options and not self.block_rules.takes_options:
            raise ConfigError(
                f"model.arch.options={self.arch.options}: model.arch.block={self.arch.block} has none. "
                "They are for a user-defined block."
            )
        self.block_rules.validate(self)
