"""How long a run is: optimizer steps of an epoch, of the schedule, of the whole run."""

import math
from dataclasses import dataclass, replace

from dtl.base.checks import MANY
from dtl.base.units import number_of
from dtl.config import RunConfig
from dtl.data.batches import TrainingData
from dtl.errors import ConfigError
from dtl.model.transformer import TransformerLM
from dtl.training.schedule import warmup_steps

ENOUGH_STEPS = 200  # of the optimizer: fewer are a try


@dataclass(frozen=True)
class RunLength:
    """Length of a run in optimizer steps."""

    steps_per_epoch: int
    horizon: int  # end of the schedule
    last_step: int  # end of the run: the first limit reached
    warmup: int
    by_tokens: tuple[str, float] | None = None  # the setting, and its value, that gave the steps instead of total_steps

    @classmethod
    def of(cls, config: RunConfig, steps_per_epoch: int) -> "RunLength":
        """Return the length: the horizon is `total_steps` if set, else all epochs; the first limit ends the run.

        Epochs that the data recommends are as many more as `data.recommended.min_steps` needs.
        """
        epochs, total = config.max_epochs, config.trainer.total_steps
        by_epochs = epochs * steps_per_epoch if epochs is not None else None
        if by_epochs is not None and config.trainer.max_epochs is None:
            by_epochs = max(by_epochs, config.data.recommended.min_steps)
        horizon = total if total is not None else by_epochs
        assert horizon is not None  # max_epochs falls back to the data's recommendation
        last_step = min(horizon, by_epochs) if by_epochs is not None else horizon
        return cls(steps_per_epoch, horizon, last_step, warmup_steps(config.schedule, horizon))

    def warnings(self, config: RunConfig) -> list[str]:
        """Return warnings about a length with which the model learns little, each with the setting that fixes it."""
        warnings = []
        if self.last_step < ENOUGH_STEPS:
            if self.last_step == config.trainer.total_steps and self.by_tokens is not None:
                key, value = self.by_tokens
                fix = f"Raise trainer.{key}={value:g} {math.ceil(ENOUGH_STEPS / self.last_step)}-fold"
            elif self.last_step == config.trainer.total_steps:
                fix = f"Raise trainer.total_steps to {ENOUGH_STEPS}"
                if config.trainer.hours is not None:
                    fix += ", or trainer.hours if model=auto chose the steps"
            else:
                fix = f"Raise trainer.max_epochs to {math.ceil(ENOUGH_STEPS / self.steps_per_epoch)}"
            if config.grad_accum_steps > 1:
                fix += f", or lower trainer.grad_accum_steps={config.grad_accum_steps}"
            steps = number_of("optimizer steps", self.last_step)
            warnings.append(f"only {steps}: most models need {ENOUGH_STEPS} or more to learn anything. {fix}.")
        if self.warmup > 0.1 * self.last_step:
            warnings.append(
                f"warm-up takes {self.warmup} of {self.last_step} steps, over 10 %. "
                f"Set schedule.warmup_steps={self.last_step // 20}."
            )
        return warnings


def with_total_steps(config: RunConfig, train: TrainingData | None, model: TransformerLM) -> RunConfig:
    """Return the config with `trainer.total_steps` in place of `.tokens` or `.tokens_per_parameter`; a run records this
    one, so that a resume changes its length as any other's.

    Parameters are counted without embeddings, as in papers on scaling laws. Without `train`, data that is not prepared
    yet, each step is taken to be whole.
    """
    trainer = config.trainer
    if trainer.tokens is None and trainer.tokens_per_parameter is None:
        return config
    tokens = trainer.tokens or (trainer.tokens_per_parameter or 0) * model.n_parameters(embeddings=False)
    per_epoch = config.global_batch_size if train is None else train.sequences_per_epoch
    total_steps = steps_for(tokens, per_epoch, config.global_batch_size, config.seq_len)
    if total_steps > MANY:
        key, value = next(iter(trainer.lengths.items()))
        raise ConfigError(f"trainer.{key}={value:g}: is {total_steps:,} steps, and at most {MANY:,} are possible.")
    return replace(config, trainer=replace(trainer, total_steps=total_steps, tokens=None, tokens_per_parameter=None))


def steps_for(tokens: float, sequences_per_epoch: int, rows_per_step: int, seq_len: int) -> int:
    """Return the optimizer steps after which `TrainState.tokens` first reaches `tokens`: positions, padding included.

    The last step of an epoch has the sequences that are left.
    """
    epochs, rest = divmod(math.ceil(tokens), sequences_per_epoch * seq_len)
    return epochs * -(-sequences_per_epoch // rows_per_step) + -(-rest // (rows_per_step * seq_len))
