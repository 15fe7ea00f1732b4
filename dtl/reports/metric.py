"""What is compared: a key of result.json, its name for people, and which way is better."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from dtl.data.config import TokenizerConfig
from dtl.reports.reading import Curve, Run

BEST_LOSS = "value"
BITS = "validation/bits_per_byte"


@dataclass(frozen=True)
class Metric:
    """A number that each finished run has."""

    key: str = BEST_LOSS
    higher_is_better: bool = False

    @property
    def title(self) -> str:
        """As it stands in tables and sentences."""
        return "best validation loss" if self.key == BEST_LOSS else self.key

    @property
    def label(self) -> str:
        """With its unit, for an axis."""
        unit = {"loss": " (nats per target token)", "bits_per_byte": " (bits per byte)"}
        ending = "loss" if self.key == BEST_LOSS else self.key.rpartition("/")[2]
        return self.title + unit.get(ending, "")

    @property
    def is_per_token(self) -> bool:
        """Whether another tokenizer alone changes it."""
        return self.key == BEST_LOSS or self.key.rpartition("/")[2] in ("loss", "perplexity")

    @property
    def better(self) -> str:
        """`lower` or `higher`."""
        return "higher" if self.higher_is_better else "lower"


def shown_number(value: float | None, digits: int = 4) -> str:
    """A number for people: that many significant digits, a dash where there is none."""
    return "-" if value is None else f"{value:#.{digits}g}".removesuffix(".")


# --- loss per token or bits per byte ------------------------------------------------------------------------------
# Runs that cut text with different tokenizers compare by bits per byte alone: the more text a token holds, the higher
# its loss, so that of two equally good models the one with the larger vocabulary has the higher loss. Bits per
# byte do not depend on the tokenizer (Gao et al. 2020, The Pile, 3.1).

NATS = "nats per target token"


def tokenizer_of(run: Run) -> tuple[str, ...]:
    """The settings that decide how a run cuts its text."""
    kind = run.config.get("tokenizer.kind", "")
    return (
        kind,
        run.config.get("tokenizer.vocab_size", "") if TokenizerConfig(kind).traits.by_vocab_size else "",
        run.config.get("tokenizer.path", ""),
    )


def cut_alike(runs: Iterable[Run]) -> bool:
    """Whether all of them have the same tokenizer."""
    return len({tokenizer_of(run) for run in runs if run.config}) < 2


def metric_for(runs: Sequence[Run], asked: Metric | None) -> Metric:
    """What to compare the runs by: what was `asked`, else validation loss, where that can be compared."""
    finished = [run for run in runs if run.finished]
    if asked is None and not cut_alike(finished) and all(BITS in run.figures for run in finished):
        return Metric(BITS)
    return asked or Metric()


def not_comparable(runs: Iterable[Run], metric: Metric) -> str:
    """Why the metric of these runs cannot be compared; empty when it can."""
    if not metric.is_per_token or cut_alike(run for run in runs if run.finished):
        return ""
    return (
        f"These runs cut their text with different tokenizers, and {metric.title} is per token: it does not compare. "
        "metric=test/bits_per_byte or metric=validation/bits_per_byte does, where the runs have it."
    )


def in_bits_per_byte(runs: Sequence[Run]) -> list[Run] | None:
    """The runs with their losses in bits per byte; None when that is not known of some tokenizer.

    Each tokenizer's bytes per token are those of its runs' last evaluation on the validation text.
    """
    factors: dict[tuple[str, ...], list[float]] = {tokenizer_of(run): [] for run in runs}
    for run in runs:
        bits, nats = run.figures.get(BITS), run.figures.get("validation/loss")
        if bits and nats:
            factors[tokenizer_of(run)].append(bits / nats)
    if not all(factors.values()):
        return None
    scaled = []
    for run in runs:
        factor = median(factors[tokenizer_of(run)])
        scaled.append(replace(run, training=_times(run.training, factor), validation=_times(run.validation, factor)))
    return scaled


def _times(curve: Curve, factor: float) -> Curve:
    return replace(curve, loss=curve.loss * factor)
