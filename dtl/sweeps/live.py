"""The screen of a running sweep: a line for each start and end, and below a live table of the running trials."""

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dtl.base.display import lasting_output, shown, table_console
from dtl.base.safe_text import in_one_line
from dtl.base.units import in_time, number_of
from dtl.checkpoints.listing import step_folders
from dtl.commandline.overrides import as_shown
from dtl.run_dir.sweep_records import SweepFolder, Trial
from dtl.sweeps.config import SearchConfig
from dtl.sweeps.search_space import Space
from dtl.sweeps.table import STYLES, comparing, counted, failures, rows_of, trial_table, varying_overrides

SECONDS_BETWEEN_DRAWINGS = 1.0
MANY = 20  # combinations: composing them takes seconds, at five to ten a second


class SweepScreen:
    """Context manager that draws the screen; outside a terminal it prints plain lines on standard output."""

    def __init__(self, sweep: SweepFolder, console: Console | None = None) -> None:
        self.sweep = sweep
        self.console = console or table_console(file=lasting_output())
        self._live: Live | None = None
        self._drawn = 0.0
        self._trials: list[Trial] | None = None  # of a grid, known from the beginning
        self._names: dict[int, str] = {}

    def __enter__(self) -> "SweepScreen":
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def checking(self, n_combinations: int) -> None:
        """Log that the combinations of a large grid are being composed."""
        if n_combinations >= MANY:
            self.log(f"checking {n_combinations} combinations", "dim")

    def begin(self, trials: list[Trial], left: list[Trial], resumed: bool, note: str = "") -> None:
        """Log the number of trials, a `note`, the trials left of a `resumed` sweep, and the refused ones."""
        self._trials = trials
        shorter = varying_overrides([trial.overrides for trial in trials])
        self._names = {
            trial.number: in_one_line(" ".join(overrides)) or "(defaults)"
            for trial, overrides in zip(trials, shorter, strict=True)
        }
        self.log(f"{number_of('trials', len(trials))} in {shown(self.sweep.path)}", "bold")
        if note:
            self.log(note, "yellow")
        if len(trials) == 1 and not resumed:
            self.log("no key has several values: one trial. A sweep has some, as optimizer.lr=1e-3,3e-3", "yellow")
        if resumed:
            self._resumes([trial for trial in trials if trial not in left], left, len(left))
        for trial in trials:
            if trial.state == "refused" and trial not in left:
                self.log(f"  trial {trial.number}  {self._name(trial)}  refused: {trial.reason}", "red")

    def _resumes(self, done: list[Trial], begun: list[Trial], n_left: int) -> None:
        saved = sum(bool(step_folders(self.sweep.trial_folder(trial.number))) for trial in begun)
        steps = f", {saved} of them from a checkpoint" if saved else ""
        done_so_far = counted(done) or "no trial has ended yet"
        self.log(f"resumes: {done_so_far}; {n_left} left to run{steps} (sweep.new=true starts another sweep)", "dim")

    def started(self, trial: Trial) -> None:
        again = "" if trial.attempts == 1 else f", attempt {trial.attempts}"
        self.log(f"  trial {trial.number}  {self._name(trial)}  started{again}", "dim")

    def ended(self, trial: Trial) -> None:
        loss = "" if trial.value is None else f", best loss {trial.value:.4f}"
        why = f": {trial.reason}" if trial.reason else ""
        took = in_time(trial.seconds() or 0.0)
        line = f"  trial {trial.number}  {self._name(trial)}  {trial.state}{loss}, {took}{why}"
        self.log(line, STYLES.get(trial.state, ""))

    def idle(self, running: list[Trial]) -> None:
        """Draw the table of the running trials, at most once in SECONDS_BETWEEN_DRAWINGS."""
        now = time.monotonic()
        if self._live is None or now - self._drawn < SECONDS_BETWEEN_DRAWINGS:
            return
        self._drawn = now
        if running:
            self._live.update(trial_table(rows_of(self.sweep, running), self._trials), refresh=True)

    def interrupted(self, trials: list[Trial]) -> None:
        self.log(f"stopped: {counted(trials)}. The same command resumes it.", "yellow")

    def end(self, trials: list[Trial]) -> None:
        """Print the table of all trials, the failures, and the command that compares the trials."""
        self.__exit__()
        rows = rows_of(self.sweep, trials)
        self.console.print(trial_table(rows))
        self.log(counted(trials), "bold")
        for line in failures(self.sweep, trials):
            self.log(f"  {line}", "dim")
        for line in comparing(self.sweep, rows):
            self.log(line, "dim")

    def _name(self, trial: Trial) -> str:
        return self._names.get(trial.number) or in_one_line(" ".join(trial.overrides))

    def log(self, line: str, style: str = "") -> None:
        """Print one line, above the live table."""
        self.console.print(Text(line, style=style), soft_wrap=True)


# --- searches -----------------------------------------------------------------------------------------------------


class SearchScreen(SweepScreen):
    """Screen of a search, whose trials are not known beforehand: each is named by the searched keys."""

    def __init__(self, sweep: SweepFolder, space: Space) -> None:
        super().__init__(sweep)
        self._keys = {*space.searched, "seed"}

    def begin_search(self, settings: SearchConfig, tried: list[Trial], left: int, resumed: bool) -> None:
        """Log the limits of the search, and the trials left of a `resumed` one."""
        pruned = "" if settings.pruner == "none" else f", pruned by {settings.pruner}"
        hours = "" if settings.hours is None else f", at most {settings.hours:g} h"
        where = shown(self.sweep.path)
        self.log(
            f"search of {number_of('trials', settings.n_trials)} ({settings.sampler}{pruned}{hours}) in {where}", "bold"
        )
        if resumed:
            self._resumes([trial for trial in tried if trial.done], [trial for trial in tried if not trial.done], left)

    def _name(self, trial: Trial) -> str:
        own = [word for word in trial.overrides if word.partition("=")[0] in self._keys]
        return in_one_line(" ".join(map(as_shown, own)))
