"""The compared metric: a key of result.json, its title, and whether higher is better."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from dtl.data.config import TokenizerConfig
from dtl.reports.reading import Curve, Run

BEST_LOSS = "value"
BITS = "validation/bits_per_byte"
TAUGHT = "exact_match/train"


@dataclass(frozen=True)
class Metric:
    """A key of result.json and its direction."""

    key: str = BEST_LOSS
    higher_is_better: bool = False

    @property
    def title(self) -> str:
        """Name in tables and sentences."""
        return "best validation loss" if self.key == BEST_LOSS else self.key

    @property
    def label(self) -> str:
        """Title with the unit, for an axis."""
        unit = {"loss": " (nats per target token)", "bits_per_byte": " (bits per byte)"}
        ending = "loss" if self.key == BEST_LOSS else self.key.rpartition("/")[2]
        return self.title + unit.get(ending, "")

    @property
    def is_per_token(self) -> bool:
        """True if the metric depends on the tokenizer."""
        return self.key == BEST_LOSS or self.key.rpartition("/")[2] in ("loss", "perplexity")

    @property
    def better(self) -> str:
        """Direction in words: `lower` or `higher`."""
        return "higher" if self.higher_is_better else "lower"


def format_number(value: float | None, digits: int = 4) -> str:
    """Format a number with that many significant digits; a dash for None."""
    return "-" if value is None else f"{value:#.{digits}g}".removesuffix(".")


# --- loss per token or bits per byte ------------------------------------------------------------------------------
# Runs with different tokenizers compare by bits per byte alone: the more text a token holds, the higher its loss, so
# that of two equally good models the one with the larger vocabulary has the higher loss. Bits per byte do not depend
# on the tokenizer (Gao et al. 2020, The Pile, 3.1).

NATS = "nats per target token"


def tokenizer_of(run: Run) -> tuple[str, ...]:
    """Return the settings that determine how a run tokenizes its text."""
    kind = run.config.get("tokenizer.kind", "")
    return (
        kind,
        run.config.get("tokenizer.vocab_size", "") if TokenizerConfig(kind).traits.by_vocab_size else "",
        run.config.get("tokenizer.path", ""),
    )


def same_tokenizer(runs: Iterable[Run]) -> bool:
    """Return True if all runs have the same tokenizer."""
    return len({tokenizer_of(run) for run in runs if run.config}) < 2


def metric_for(runs: Sequence[Run], asked: Metric | None) -> Metric:
    """Return the `asked` metric, else validation loss, else bits per byte if tokenizers differ and all runs have it.

    Of runs without validation data, all of which have it, the score on the training questions.
    """
    finished = [run for run in runs if run.finished]
    if asked is None and finished and all(BEST_LOSS not in run.metrics and TAUGHT in run.metrics for run in finished):
        return Metric(TAUGHT, higher_is_better=True)
    if asked is None and not same_tokenizer(finished) and all(BITS in run.metrics for run in finished):
        return Metric(BITS)
    return asked or Metric()


def not_comparable(runs: Iterable[Run], metric: Metric) -> str:
    """Return why the metric of these runs cannot be compared; empty if it can."""
    if not metric.is_per_token or same_tokenizer(run for run in runs if run.finished):
        return ""
    return (
        f"These runs have different tokenizers, and {metric.title} is per token: it cannot be compared. "
        "metric=test/bits_per_byte or metric=validation/bits_per_byte can, if the runs have it."
    )


def to_bits_per_byte(runs: Sequence[Run]) -> list[Run] | None:
    """Return the runs with their losses in bits per byte; None if the factor of some tokenizer is unknown.

    The factor of a tokenizer is the median of its runs, each from its last evaluation on the validation text.
    """
    factors: dict[tuple[str, ...], list[float]] = {tokenizer_of(run): [] for run in runs}
    for run in runs:
        if factor := bits_per_nat(run):
            factors[tokenizer_of(run)].append(factor)
    if not all(factors.values()):
        return None
    scaled = []
    for run in runs:
        factor = median(factors[tokenizer_of(run)])
        scaled.append(replace(run, training=_times(run.training, factor), validation=_times(run.validation, factor)))
    return scaled


def bits_per_nat(run: Run) -> float | None:
    """Return the bits per byte that a nat per token is on the run's validation text; None if it has not both."""
    bits, nats = run.metrics.get(BITS), run.metrics.get("validation/loss")
    return bits / nats if bits and nats else None


def _times(curve: Curve, factor: float) -> Curve:
    return replace(curve, loss=curve.loss * factor)
