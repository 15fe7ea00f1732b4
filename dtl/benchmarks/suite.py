"""What a suite is: measurements by name, each of which gives one or several rows."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dtl.benchmarks.config import BenchConfig
from dtl.benchmarks.measuring import Row
from dtl.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Workplace:
    """What a measurement is given: the settings, and a folder that is removed at the end."""

    settings: BenchConfig
    folder: Path


Measurement = Callable[[Workplace], Iterator[Row]]


@dataclass(frozen=True)
class Suite:
    """Measurements in their order. `long` names those that are left out unless asked for.

    One of your own, in a module that plugins= names: `SUITES.register("mine")(Suite({"sorting": sorting}))`.
    """

    measurements: Mapping[str, Measurement]
    long: frozenset[str] = frozenset()

    def chosen(self, settings: BenchConfig) -> dict[str, Measurement]:
        """The measurements that the settings ask for. Raises ConfigError for a name that is not there."""
        for name in settings.rows:
            if name not in self.measurements:
                known = list(self.measurements)
                raise ConfigError(
                    f"rows=[{name}]: suite={settings.suite} has no such measurement. Known: {', '.join(known)}."
                    f"{did_you_mean(name, known)}"
                )
        if settings.rows:
            return {name: self.measurements[name] for name in self.measurements if name in settings.rows}
        return {name: made for name, made in self.measurements.items() if settings.full or name not in self.long}


def measured(chosen: Mapping[str, Measurement], settings: BenchConfig, say: Callable[[str], None]) -> Iterator[Row]:
    """The rows of the chosen measurements, as they are made; `say` is told the name of each before it begins."""
    with tempfile.TemporaryDirectory(prefix="dtl-bench-", ignore_cleanup_errors=True) as folder:
        for name, measure in chosen.items():
            say(name)
            own = Path(folder) / name
            own.mkdir()
            yield from measure(Workplace(settings, own))
