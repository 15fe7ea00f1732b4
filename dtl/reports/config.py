"""Settings of dtl.report. Imports no torch."""

import glob
import math
from dataclasses import dataclass, field
from pathlib import Path

from dtl.base.paths import choices
from dtl.errors import ConfigError, did_you_mean

# Metrics that are better when higher, or lower, by any part of their name between slashes.
HIGHER = ("exact_match", "f1", "auc", "accuracy", "coverage", "refused", "tokens_per_second")
LOWER = ("value", "loss", "perplexity", "bits_per_byte", "gold_bits_per_byte", "calibration_error")
MIN_SIZE, MAX_SIZE = 1e3, 1e13  # parameters of a forecast


@dataclass
class ReportConfig:
    """Settings of `python -m dtl.report`."""

    runs: str = "latest"  # folders of runs or sweeps, globs, latest; several as [outputs/a,outputs/b]
    metric: str | None = None  # key of result.json to compare; null = best loss, bits per byte where tokenizers differ
    higher_is_better: bool | None = None  # of the metric; null = by its name
    forecast: str | None = None  # loss of a larger model: small, medium, large, qa, or parameters without embeddings
    out: str | None = None  # output folder; null = report/ in the run or sweep, outputs/reports/ for several
    record: bool = False  # also add finished runs of recipes to experiments/, and rewrite its README.md
    reference: str | None = None  # also record the runs, one or several seeds, as the curve of this recipe or model
    text: str | None = None  # with reference=: name of their text
    licence: str | None = None  # with reference=: source and licence of their text
    curves: str | None = None  # file of reference curves; null = those that ship with DTL, in a checkout its own
    plugins: list[str] = field(default_factory=list)  # your own modules; a report needs none
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Raises ConfigError, naming key, value, rule and remedy, for invalid values."""
        if not self.wanted():
            raise ConfigError(f"runs={self.runs}: names nothing. Give a run, a sweep, a glob or latest.")
        self.prefers_higher()
        self.forecast_size()
        for key, value in (("text", self.text), ("licence", self.licence)):
            if value is not None and self.reference is None:
                raise ConfigError(f"{key}={value}: describes the text of a curve. Add reference=NAME, or leave it out.")
        if self.out is not None and Path(self.out).expanduser().is_file():
            raise ConfigError(f"out={self.out}: is a file. Give a folder.")

    def wanted(self) -> list[str]:
        """Return the parts of `runs`. An existing folder whose name contains a comma is one part."""
        text = self.runs.strip()
        if text and (Path(text).expanduser().exists() or glob.glob(text)):
            return [text]
        inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [part.strip().strip("'\"") for part in inside.split(",") if part.strip()]

    def forecast_size(self) -> float | None:
        """Return `forecast` as a number of parameters; None for a preset or none. Raises ConfigError for neither."""
        presets = [name for name in choices("model") if name != "auto"]
        if self.forecast is None or self.forecast in presets:
            return None
        try:
            size = float(self.forecast)
        except ValueError:
            size = math.nan
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise ConfigError(
                f"forecast={self.forecast}: must be a model ({', '.join(presets)}) or its number of parameters without "
                f"embeddings, {MIN_SIZE:g} to {MAX_SIZE:g}, such as 20e6.{did_you_mean(self.forecast, presets)}"
            )
        return size

    def metric_key(self) -> str:
        """Return the key of result.json."""
        return self.metric or "value"

    def prefers_higher(self) -> bool:
        """Return True if a higher value of the metric is better. Raises ConfigError if its name does not show it."""
        if self.higher_is_better is not None:
            return self.higher_is_better
        parts = set(self.metric_key().split("/"))
        if parts.intersection(HIGHER):
            return True
        if parts.intersection(LOWER):
            return False
        raise ConfigError(
            f"metric={self.metric}: its name does not show which way is better. Add higher_is_better=true or false."
        )
