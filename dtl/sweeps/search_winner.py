"""The best trial of a search, and what it is worth: its runs with fresh seeds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dtl.run_dir.sweep_records import WELL, Trial


@dataclass
class Winner:
    """The best trial and the losses of its confirmations. The search chose it for its loss: that one is too good on
    average, the others are not."""

    number: int
    overrides: list[str]
    value: float  # best validation loss of the search's own run
    asked: int = 0  # runs with fresh seeds that were to be made
    values: list[float] = field(default_factory=list)  # best validation losses of those that went through

    @property
    def mean(self) -> float | None:
        """Of the runs with fresh seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def standard_deviation(self) -> float | None:
        """Of one run with a fresh seed (n - 1 degrees of freedom)."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def record(self) -> dict[str, Any]:
        """As it is kept in sweep.json."""
        return {**asdict(self), "mean": self.mean, "standard_deviation": self.standard_deviation}

    def lines(self, searched: Iterable[str], n_tried: int) -> list[str]:
        """What is announced."""
        keys = set(searched)
        own = [override for override in self.overrides if override.partition("=")[0] in keys]
        best = f"best of the search: trial {self.number}  {' '.join(own)}  validation loss {self.value:.4f}"
        if not self.asked:
            return [f"{best}, not confirmed", f"  the best of {n_tried}, by one seed: sweep.confirm=5 runs it again"]
        if self.mean is None:
            return [f"{best}, not confirmed", f"  none of its {self.asked} runs with fresh seeds went through"]
        n = len(self.values)
        spread = "" if self.standard_deviation is None else f" ± {self.standard_deviation:.4f} (standard deviation)"
        short = "" if n == self.asked else f" of {self.asked}"
        return [
            best,
            f"  with fresh seeds: validation loss {self.mean:.4f}{spread}, n={n}{short}; this is the figure to quote, "
            f"the search's own {self.value:.4f} was chosen as the lowest of {n_tried}",
        ]


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """The search's own trial with the lowest loss, of those that went through; of equals the first."""
    through = [trial for trial in trials if trial.role == "trial" and trial.state in WELL and trial.value is not None]
    return min(through, key=lambda trial: (trial.value, trial.number), default=None)


def with_seeds(overrides: Sequence[str], seeds: Iterable[int]) -> list[list[str]]:
    """The same overrides, each time with another seed."""
    others = [override for override in overrides if override.lstrip("+").partition("=")[0] != "seed"]
    return [[*others, f"seed={seed}"] for seed in seeds]
