"""Settings of the optimizer, the learning-rate schedule and the training loop. Imports no torch."""

from dataclasses import dataclass, field, replace
from typing import Any

from dtl.base.checks import BATCHES, MANY, check_choices, check_fractions, check_positive, check_range, check_unique
from dtl.errors import ConfigError
from dtl.registry import LOSSES, OPTIMIZERS, SCHEDULES, STEP_FIELDS, STOP_CRITERIA, Options

STATE_DTYPES = ("fp32", "bf16")
MOST_BETA2_IN_BF16 = 1 - 2**-8  # above it a step takes less from a second moment than bf16 can tell: it never falls
ORTHOGONALIZATIONS = ("newton_schulz", "polar_express")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MACHINES = ("auto", "amp4060", "cpu")
CHECKPOINTING = ("none", "selective", "full")
_CHECKPOINTING_AS_BOOL = {"false": "none", "true": "full"}  # the only values before `selective`
# micro_batch_size and grad_accum_steps of trainer=cpu. A step then takes a second or so, not minutes: progress is seen,
# Ctrl-C is obeyed, and small text gives the many steps that a model needs.
CPU_BATCHES = (4, 1)
LOWEST_BETA2 = 0.9  # by a half-life: a moment over fewer than ten steps is noise
LENGTHS = ("tokens", "tokens_per_parameter", "total_steps")  # settings of trainer that set the optimizer steps


@dataclass(frozen=True)
class OptimizerTraits:
    """Properties of an optimizer that the rest of DTL needs; these defaults are those of a user-defined one."""

    reads_state_dtype: bool = False  # applies optimizer.state_dtype, whose other values are an error elsewhere


OPTIMIZERS.describe("adamw", OptimizerTraits(reads_state_dtype=True))
OPTIMIZERS.describe("muon", OptimizerTraits(reads_state_dtype=True))


@dataclass
class OptimizerConfig:
    """Settings of the weight update: algorithm, learning rates, decay."""

    name: str = "adamw"  # registered name: adamw | muon | your own
    lr: float = 1e-3  # peak learning rate (muon: of norms, biases and an untied head)
    embedding_lr: float | None = None  # peak learning rate of embeddings, and of a head tied to them; None = lr
    betas: list[float | None] = field(default_factory=lambda: [0.9, 0.95])  # Adam's decays; null: by the half-life
    beta2_half_life: float = 56_320  # tokens that half of the second moment is from, for betas=[0.9,null]
    eps: float = 1e-8  # Adam's floor of the denominator
    state_dtype: str = "fp32"  # of Adam's two moments: fp32 | bf16 (half of their memory)
    weight_decay: float = 0.1  # decoupled; on matrices only, never on norms, biases
    # The groups set the width at which they were tuned. Not the default: a run that was written before this key existed
    # keeps its rates, and an optimizer of your own has its own.
    base_width: int | None = None  # model.dim that the rates are for: other widths scale them; null = the same for all
    matrix_lr: float = 0.005  # muon: peak learning rate of the matrices inside the blocks
    momentum: float = 0.95  # muon: decay of its momentum
    momentum_warmup_steps: int = 0  # muon: optimizer steps in which the momentum rises to this from 0.85; 0 = none
    orthogonalization: str = "newton_schulz"  # muon: newton_schulz | polar_express (nearer to orthogonal)
    row_beta2: float | None = None  # muon: decay of a second moment of each row (NorMuon), e.g. 0.95; null = none
    cautious_decay: bool = False  # muon: decay a weight only in steps that also move it towards zero
    options: dict[str, Any] = field(default_factory=dict)  # settings of a user-defined optimizer

    def validate(self) -> None:
        self.options = OPTIMIZERS.checked_options(self.name, self.options)
        check_positive(self, "optimizer", "lr", "matrix_lr", "embedding_lr")
        check_range(self, "optimizer", ", or null for the same rates at all widths", base_width=(1, 65_536))
        check_range(self, "optimizer", eps=(1e-30, 1))
        if len(self.betas) != 2 or self.betas[0] is None or not all(b is None or 0 <= b < 1 for b in self.betas):
            raise ConfigError(
                f"optimizer.betas={self.betas}: two numbers in [0, 1), for example [0.9,0.95]; or [0.9,null]: the "
                "second by optimizer.beta2_half_life."
            )
        self._check_second_moment()
        check_range(self, "optimizer", beta2_half_life=(1, 1e15))
        check_range(self, "optimizer", weight_decay=(0, 1_000_000))
        check_fractions(self, "optimizer", "momentum", interval="[0, 1)", rule="must lie in")
        check_fractions(self, "optimizer", "row_beta2", interval="[0, 1)", rule="must lie in", rest=", or null")
        check_range(self, "optimizer", momentum_warmup_steps=(0, MANY))
        check_choices(self, "optimizer", orthogonalization=ORTHOGONALIZATIONS, state_dtype=STATE_DTYPES)
        if self.state_dtype != "fp32" and not self.traits.reads_state_dtype:
            raise ConfigError(
                f"optimizer.state_dtype={self.state_dtype}: optimizer.name={self.name} does not read it. Leave it out, "
                f'or register one that does: @OPTIMIZERS.register("{self.name}", OptimizerTraits(True)).'
            )

    @property
    def traits(self) -> OptimizerTraits:
        return OPTIMIZERS.traits(self.name) or OptimizerTraits()

    def with_beta2(self, tokens_per_step: int) -> "OptimizerConfig":
        """Return the settings with a number for the second beta: that of `beta2_half_life`, at least `LOWEST_BETA2`.

        A half-life in tokens keeps its value over batch sizes (Marek et al. 2025, arXiv:2507.07101).
        """
        if self.betas[1] is not None:
            return self
        beta2 = max(LOWEST_BETA2, 0.5 ** (tokens_per_step / self.beta2_half_life))
        filled = replace(self, betas=[self.betas[0], round(beta2, 5)])
        filled._check_second_moment()
        return filled

    @property
    def second_moment_may_be_in_bf16(self) -> bool:
        """Whether bf16 can tell what a step takes from it; True while the second beta is not known."""
        beta2 = self.betas[1]
        return beta2 is None or beta2 <= MOST_BETA2_IN_BF16

    def _check_second_moment(self) -> None:
        if self.state_dtype == "bf16" and not self.second_moment_may_be_in_bf16:
            raise ConfigError(
                f"optimizer.state_dtype=bf16: the second beta is {self.betas[1]}. A second moment in bf16 falls with "
                f"{MOST_BETA2_IN_BF16:.4f} at most. Take more tokens a step, set 'optimizer.betas=[0.9,0.95]', or "
                "leave it out."
            )


@dataclass
class ScheduleConfig:
    """Learning rate over the run: warm-up, then decay to a fraction of the peak."""

    name: str = "cosine"  # registered name: cosine | linear | wsd | your own
    warmup_fraction: float = 0.05  # fraction of all optimizer steps in which the learning rate rises from 0
    warmup_steps: int | None = None  # the same in optimizer steps; overrides the fraction when set
    min_lr_fraction: float = 0.1  # end of the decay, as a fraction of the peak learning rate
    decay_fraction: float = 0.2  # wsd: fraction of the steps after warm-up that decay; before them it is constant
    options: dict[str, Any] = field(default_factory=dict)  # settings of a user-defined schedule

    def validate(self) -> None:
        self.options = SCHEDULES.checked_options(self.name, self.options)
        check_fractions(self, "schedule", "warmup_fraction", "min_lr_fraction", "decay_fraction")
        check_range(self, "schedule", warmup_steps=(0, MANY))


LOSS_TERMS = ("z_loss", "label_smoothing")  # settings of trainer.loss that a loss may read or not; 0 = off


@dataclass(frozen=True)
class LossTraits:
    """Properties of a loss that the rest of DTL needs; these defaults are those of a user-defined one."""

    reads: tuple[str, ...] = ()  # those of LOSS_TERMS that it applies; setting another is an error


LOSSES.describe("cross_entropy", LossTraits(LOSS_TERMS))


@dataclass
class LossConfig:
    """What training minimises. Validation and evaluation always measure the plain cross-entropy."""

    name: str = "cross_entropy"  # registered name: cross_entropy | your own
    z_loss: float = 0.0  # weight of log(sum of exp(logits)) squared, which keeps logits small, e.g. 1e-4; 0 = off
    label_smoothing: float = 0.0  # part of each target's probability that all tokens share; 0 = off
    options: dict[str, Any] = field(default_factory=dict)  # settings of a user-defined loss

    def validate(self) -> None:
        self.options = LOSSES.checked_options(self.name, self.options)
        reads = (LOSSES.traits(self.name) or LossTraits()).reads
        for name in LOSS_TERMS:
            if getattr(self, name) and name not in reads:
                raise ConfigError(
                    f"trainer.loss.{name}={getattr(self, name)}: trainer.loss.name={self.name} does not read it. Leave "
                    f'it out, or register a loss that does: @LOSSES.register("{self.name}", LossTraits(("{name}",))).'
                )
        check_fractions(self, "trainer.loss", "z_loss", "label_smoothing", interval="[0, 1)", rule="must lie in")


@dataclass
class TrainerConfig:
    """Batch, precision, length and intervals of a run."""

    machine: str | None = "auto"  # fills the next two where null: auto (by device) | amp4060 (as recommended) | cpu
    micro_batch_size: int | None = None  # sequences in one forward pass; None = the data's recommendation
    grad_accum_steps: int | None = None  # forward passes in one optimizer step; None = the data's recommendation
    precision: str = "auto"  # auto (bf16 where the device has it, else fp32) | fp32 | bf16 | fp16
    tf32: bool = False  # fp32 on CUDA: round the factors of matrix products to TF32; much faster, no longer exact fp32
    compile: bool = False  # torch.compile: faster steps after minutes of compiling; resume is then not bit-exact
    activation_checkpointing: str = "none"  # none | selective (recompute all but matrix products) | full: less memory
    check_memory: bool = True  # refuse a run that needs over 1.15 x the free memory, where dtl.plan has counted it
    deterministic: bool = False  # torch's deterministic algorithms: bit-identical runs where torch has them
    loss: LossConfig = field(default_factory=LossConfig)
    ema_decay: float | None = None  # evaluate and publish an average of the weights, e.g. 0.999 (a step); null = off
    max_grad_norm: float | None = 1.0  # gradients are scaled down to this norm; null = no clipping
    total_steps: int | None = None  # stop after this many optimizer steps; also the end of the schedule
    tokens: float | None = None  # total_steps by tokens to train on, such as 2e7; the run records the steps
    tokens_per_parameter: float | None = None  # the same by parameters without embeddings; 20 is compute-optimal
    max_epochs: int | None = None  # stop after this many epochs; None = the data's recommendation
    hours: float | None = None  # stop after this many hours of training
    stop_after_steps: int | None = None  # pause at this step, counted from 0; applies to this session only
    eval_every_steps: int | None = None  # optimizer steps between evaluations; None = once an epoch
    eval_max_batches: int | None = 50  # micro-batches of one evaluation; null = the complete validation set
    early_stopping_patience: int | None = 5  # evaluations without improvement before the run ends; null = never
    stop_criteria: list[str] = field(default_factory=list)  # additional, by registered name: your own
    stop_options: dict[str, Any] = field(default_factory=dict)  # settings of user-defined stop criteria
    save_every_steps: int | None = None  # optimizer steps between checkpoints; null = only by epochs
    save_every_epochs: int | None = 5  # epochs between checkpoints; null = only by steps
    keep: int = 3  # newest step checkpoints to keep on disk; best and last are always kept
    log_every_steps: int = 10  # optimizer steps between progress lines and tracker rows
    step_fields: list[str] = field(default_factory=list)  # additional, in metrics.jsonl: block_grad_norms | your own
    sample_every_evals: int = 1  # evaluations between sampled texts; 0 = none
    profile: bool = False  # show the slowest operators of steps 3 to 5; torch's trace of them in profile.json

    def __post_init__(self) -> None:
        checkpointing = str(self.activation_checkpointing)  # OmegaConf gives true as "True"
        self.activation_checkpointing = _CHECKPOINTING_AS_BOOL.get(checkpointing.lower(), checkpointing)

    @property
    def lengths(self) -> dict[str, float]:
        """Settings that give the run a length in optimizer steps, by name: at most one, see `validate`."""
        named = {name: getattr(self, name) for name in LENGTHS}
        return {name: value for name, value in named.items() if value is not None}

    def validate(self) -> None:
        """Raises ConfigError for a loop that cannot run."""
        choices = {"precision": PRECISIONS, "machine": MACHINES, "activation_checkpointing": CHECKPOINTING}
        check_choices(self, "trainer", **choices)
        self.loss.validate()
        for registry, names in ((STOP_CRITERIA, self.stop_criteria), (STEP_FIELDS, self.step_fields)):
            for name in names:
                registry.check(name)
            check_unique(names, registry.key)
        criteria = f"trainer.stop_criteria=[{','.join(self.stop_criteria)}]"
        self.stop_options = Options.of(criteria, "trainer.stop_options", self.stop_options)
        if self.stop_options and not self.stop_criteria:
            raise ConfigError(
                f"trainer.stop_options={self.stop_options}: nothing reads them without trainer.stop_criteria=[name]."
            )
        check_fractions(self, "trainer", "ema_decay", interval="(0, 1)", rule="must lie in", rest=", or null")
        optional = (
            "total_steps max_epochs stop_after_steps eval_every_steps eval_max_batches early_stopping_patience "
            "save_every_steps save_every_epochs"
        )
        check_range(self, "trainer", ", or null", **BATCHES, **dict.fromkeys(optional.split(), (1, MANY)))
        check_range(self, "trainer", keep=(1, MANY), log_every_steps=(1, MANY))
        check_positive(self, "trainer", "hours", "max_grad_norm", rest=", or null")
        check_range(self, "trainer", sample_every_evals=(0, MANY))
        check_range(self, "trainer", ", or null", tokens=(1, 1e15), tokens_per_parameter=(0.001, 1e6))
        if len(lengths := self.lengths) > 1:
            given = " ".join(f"trainer.{name}={value:g}" for name, value in lengths.items())
            first, *others = lengths
            keep = " ".join(f"trainer.{name}=null" for name in others)
            raise ConfigError(
                f"{given}: each sets the length of the run, and one may be given. To keep trainer.{first}, add {keep}."
            )
