"""What a sweep shows while it runs: a line for each start and end, below them how the running trials stand."""

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dtl.base.display import shown, table_console
from dtl.base.safe_text import in_one_line
from dtl.base.units import in_time
from dtl.run_dir.sweep_records import SweepFolder, Trial
from dtl.sweeps.config import SearchConfig
from dtl.sweeps.search_space import Space
from dtl.sweeps.table import STYLES, comparing, counted, failures, rows_of, trial_table, varied

SECONDS_BETWEEN_LOOKS = 1.0
MANY = 20  # combinations, which take some seconds to check


class SweepScreen:
    """A context manager; outside a terminal plain lines on standard output."""

    def __init__(self, sweep: SweepFolder, console: Console | None = None) -> None:
        self.sweep = sweep
        self.console = console or table_console()
        self._live: Live | None = None
        self._looked = 0.0
        self._total = self._done = 0
        self._names: dict[int, str] = {}

    def __enter__(self) -> "SweepScreen":
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def checking(self, n_combinations: int) -> None:
        """Said before the combinations of a large grid are composed: five or ten a second."""
        if n_combinations >= MANY:
            self._say(f"checking {n_combinations} combinations", "dim")

    def begin(self, trials: list[Trial], left: list[Trial], goes_on: bool, note: str = "") -> None:
        """What there is, a `note` on it, and what is left to do of a sweep that `goes_on`."""
        self._total, self._done = len(trials), len(trials) - len(left)
        shorter = varied([trial.overrides for trial in trials])
        self._names = {
            trial.number: in_one_line(" ".join(overrides)) or "(defaults)"
            for trial, overrides in zip(trials, shorter, strict=True)
        }
        self._say(f"{len(trials)} trials in {shown(self.sweep.path)}", "bold")
        if note:
            self._say(note, "yellow")
        if goes_on:
            done = counted(trial for trial in trials if trial not in left) or "nothing done yet"
            self._say(f"goes on: {done}; {len(left)} left to run (sweep.new=true starts another one)", "dim")
        for trial in trials:
            if trial.state == "refused" and trial not in left:
                self._say(f"  trial {trial.number}  {self._name(trial)}  refused: {trial.reason}", "red")

    def started(self, trial: Trial) -> None:
        again = "" if trial.attempts == 1 else f", attempt {trial.attempts}"
        self._say(f"  trial {trial.number}  {self._name(trial)}  started{again}", "dim")

    def ended(self, trial: Trial) -> None:
        self._done += 1
        loss = "" if trial.value is None else f", best loss {trial.value:.4f}"
        why = f": {trial.reason}" if trial.reason else ""
        took = in_time(trial.seconds() or 0.0)
        self._say(f"  trial {trial.number}  {self._name(trial)}  {trial.state}{loss}, {took}{why}", _style(trial))

    def idle(self, running: list[Trial]) -> None:
        """Draw how the running trials stand, now and then."""
        now = time.monotonic()
        if self._live is None or now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        if running:
            self._live.update(trial_table(rows_of(self.sweep, running)), refresh=True)

    def interrupted(self, trials: list[Trial]) -> None:
        self._say(f"stopped: {counted(trials)}. The same command goes on with what is left.", "yellow")

    def end(self, trials: list[Trial]) -> None:
        """The whole table, what went wrong, and what to do next."""
        self.__exit__(None, None, None)
        self.console.print(trial_table(rows_of(self.sweep, trials)))
        self._say(f"{counted(trials)}", "bold")
        for line in failures(self.sweep, trials):
            self._say(f"  {line}", "dim")
        for line in comparing(self.sweep, trials):
            self._say(line, "dim")

    def _name(self, trial: Trial) -> str:
        return self._names.get(trial.number) or in_one_line(" ".join(trial.overrides))

    def _say(self, line: str, style: str) -> None:
        self.console.print(Text(line, style=style), soft_wrap=True)


def _style(trial: Trial) -> str:
    return STYLES.get(trial.state, "")


# --- searches -----------------------------------------------------------------------------------------------------
# What a search shows while it runs.


class SearchScreen(SweepScreen):
    """As of any sweep; its trials are not known beforehand, so that each is named by the keys that are searched."""

    def __init__(self, sweep: SweepFolder, space: Space) -> None:
        super().__init__(sweep)
        self._keys = {*space.searched, "seed"}

    def begin_search(self, settings: SearchConfig, tried: list[Trial], left: int, goes_on: bool) -> None:
        """What is searched, and how much is left of a search that `goes_on`."""
        pruned = "" if settings.pruner == "none" else f", pruned by {settings.pruner}"
        hours = "" if settings.hours is None else f", at most {settings.hours:g} h"
        where = shown(self.sweep.path)
        self._say(f"search of {settings.n_trials} trials ({settings.sampler}{pruned}{hours}) in {where}", "bold")
        if goes_on:
            done = counted(trial for trial in tried if trial.done) or "nothing done yet"
            self._say(f"goes on: {done}; {left} left to run (sweep.new=true starts another one)", "dim")

    def say(self, line: str, style: str = "") -> None:
        """One line."""
        self._say(line, style)

    def _name(self, trial: Trial) -> str:
        own = [override for override in trial.overrides if override.partition("=")[0] in self._keys]
        return in_one_line(" ".join(own))
