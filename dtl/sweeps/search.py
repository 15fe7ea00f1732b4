"""A search: Optuna proposes, trials run in processes of their own, their files tell how they do.

Knows no process and no Hydra: `lay` turns overrides into the trial that has a folder for them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.run_dir.state import read_run_state
from dtl.run_dir.sweep_records import FAILED, WELL, SweepFolder, Trial, now
from dtl.sweeps.config import SearchConfig
from dtl.sweeps.pool import Budget
from dtl.sweeps.search_study import NUMBER, PRUNED, Study, report
from dtl.tracking.metrics import METRICS, parse_row

if TYPE_CHECKING:
    import optuna


# --- the losses of a running trial --------------------------------------------------------------------------------
# The validation losses of a run while it writes them, from metrics.jsonl alone.


class Losses:
    """Follows metrics.jsonl of a run: each call of `new` gives what was written since the last one.

    A run that goes on from a checkpoint writes its file anew, without the rows beyond it: then all come again, with
    the same numbers.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / METRICS
        self._identity: tuple[int, int] | None = None
        self._read = self._evaluations = 0

    def new(self) -> list[tuple[int, float | None]]:
        """(number of the evaluation, counted from 1; validation loss, None for one that is not finite), in order."""
        try:
            with self._file.open("rb") as file:
                state = self._file.stat()
                if (state.st_dev, state.st_ino) != self._identity or state.st_size < self._read:
                    self._identity, self._read, self._evaluations = (state.st_dev, state.st_ino), 0, 0
                if state.st_size == self._read:
                    return []
                file.seek(self._read)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]  # the rest of the last line is still to come
        self._read += len(whole)
        found: list[tuple[int, float | None]] = []
        for row in map(parse_row, whole.splitlines()):
            if row is not None and "val/loss" in row:
                self._evaluations += 1
                loss = row["val/loss"]
                found.append((self._evaluations, float(loss) if isinstance(loss, int | float) else None))
        return found


# --- the search ---------------------------------------------------------------------------------------------------


MAX_REPEATS = 100  # proposals in a row that were tried already: the search is at its end


class Search:
    """Where the trials of a search come from: a source for `dtl.sweeps.pool.run_trials`.

    A trial that was asked for is told once, whatever happens in between; one that was interrupted or killed stays
    open and goes on with the next session of the sweep.
    """

    def __init__(
        self,
        sweep: SweepFolder,
        study: Study,
        settings: SearchConfig,
        budget: Budget,
        lay: Callable[[list[str]], Trial],
        tell: Callable[[Trial], None],
        *,
        retry_failed: bool = False,
        rounds_after: int = 0,
    ) -> None:
        """`tell` is told of each trial that has ended. `rounds_after` trials, one after the other, follow the search:
        its hours leave room for them."""
        self._sweep, self._study, self._settings, self._budget = sweep, study, settings, budget
        self._lay, self._tell, self._rounds_after = lay, tell, rounds_after
        self._open: dict[int, optuna.Trial] = {}  # by the number of its folder
        self._losses: dict[int, Losses] = {}
        self._waiting: list[Trial] = []  # to go on, or to be run again
        self._again: set[int] = set()  # numbers of failed trials that run once more
        self._must_wait = False  # what was proposed is running already
        self.why_ended = ""  # where neither the number of trials nor Ctrl-C ended it
        self._bring_back()
        if retry_failed:
            self._retry()

    @property
    def tried(self) -> dict[int, Trial]:
        """The search's own trials, by number."""
        return {trial.number: trial for trial in self._sweep.trials() if trial.role == "trial"}

    def left(self) -> int:
        """Trials that are still to run, as far as their number decides."""
        return len(self._waiting) + len(self._again) + max(0, self._settings.n_trials - len(self.tried))

    # --- as a source of trials --------------------------------------------------------------------------------------

    def next(self, running: int) -> Trial | None:
        """See `dtl.sweeps.pool.Source`."""
        if self._must_wait and running:
            return None
        if self.left() and not self._budget.allows(self._rounds_after):
            self.why_ended = "no further trial ends within hydra.sweeper.hours"
            return None
        if self._waiting:
            return self._opened(self._waiting.pop(0))
        for _ in range(MAX_REPEATS):
            if not self._again and len(self.tried) >= self._settings.n_trials:
                return None
            trial = self._propose()
            if trial is not None or self._must_wait:
                return trial
        self.why_ended = "what is proposed has all been tried already"
        return None

    def look(self, trial: Trial) -> str | None:
        """See `dtl.sweeps.pool.Source`. Every evaluation is reported, in order; after the last step there is nothing
        left to save, and the trial counts as one that went through."""
        asked = self._open[trial.number]
        if PRUNED in asked.user_attrs:
            return asked.user_attrs[PRUNED]
        for evaluation, loss in self._losses[trial.number].new():
            if report(asked, evaluation, loss) and not self._is_through(trial):
                why = f"by {self._settings.pruner}: validation loss {loss:.4f} at its evaluation {evaluation}"
                asked.set_user_attr(PRUNED, why)
                return why
        return None

    def _is_through(self, trial: Trial) -> bool:
        run = read_run_state(self._sweep.trial_folder(trial.number))
        return run.last_step is not None and run.step == run.last_step

    def ended(self, trial: Trial) -> None:
        """See `dtl.sweeps.pool.Source`."""
        self._must_wait = False
        self._budget.learn(trial)
        asked, losses = self._open.pop(trial.number), self._losses.pop(trial.number)
        if trial.state != "pruned":
            for evaluation, loss in losses.new():
                report(asked, evaluation, loss)  # it was through before anybody looked
        self._tell_study(asked, trial)
        self._tell(trial)

    # --- what is proposed -------------------------------------------------------------------------------------------

    def _propose(self) -> Trial | None:
        """A new trial to run; None for a configuration that was told at once, or that runs already."""
        asked = self._study.ask()
        known = self.tried
        trial = self._lay(self._study.space.overrides(asked.params))
        asked.set_user_attr(NUMBER, trial.number)
        if trial.number in self._again:
            self._again.remove(trial.number)
        elif trial.number in self._open:
            self._study.fail(asked, f"the same as trial {trial.number}, which is running")
            self._must_wait = True
            return None
        elif trial.done or trial.attempts:
            self._tell_again(asked, trial)
            if trial.number not in known:  # refused
                self._tell(trial)
            return None
        self._open[trial.number] = asked
        return self._opened(trial)

    def _opened(self, trial: Trial) -> Trial:
        self._losses[trial.number] = Losses(self._sweep.trial_folder(trial.number))
        return trial

    def _tell_study(self, asked: "optuna.Trial", trial: Trial) -> None:
        """How `trial` ended. One that is not done stays open, for the next session."""
        if trial.state in WELL and trial.value is not None:
            self._study.finish(asked, trial.value)
        elif trial.state == "pruned":
            self._study.prune(asked)
        elif trial.done:
            self._study.fail(asked, trial.reason or f"{trial.state}, without a validation loss")

    def _tell_again(self, asked: "optuna.Trial", trial: Trial) -> None:
        """The same configuration once more: its losses are known."""
        if trial.done:
            self._report_all(asked, trial)
            self._tell_study(asked, trial)
        else:
            self._study.fail(asked, f"the same as trial {trial.number}, which was {trial.state}")

    def _report_all(self, asked: "optuna.Trial", trial: Trial) -> None:
        for evaluation, loss in Losses(self._sweep.trial_folder(trial.number)).new():
            report(asked, evaluation, loss)

    # --- a search that goes on --------------------------------------------------------------------------------------

    def _bring_back(self) -> None:
        """What was asked for and not told, and what a damaged journal has lost."""
        for asked in self._study.unfinished():
            if NUMBER not in asked.user_attrs:  # killed between the proposal and its folder
                asked.set_user_attr(NUMBER, self._lay(self._study.space.overrides(asked.params)).number)
        told = self._study.numbers()
        for number, trial in self.tried.items():
            if number not in told:
                self._study.restore(trial)
        known = self.tried
        for asked in self._study.unfinished():
            trial = known.get(asked.user_attrs[NUMBER])
            if trial is None:
                self._study.fail(asked, "its folder was removed")
            elif trial.number in self._open:
                self._study.fail(asked, f"the same as trial {trial.number}, which is running")
            else:
                self._bring_back_one(asked, trial)

    def _bring_back_one(self, asked: "optuna.Trial", trial: Trial) -> None:
        if PRUNED in asked.user_attrs and not trial.done:  # killed while it was being stopped
            trial.state, trial.reason, trial.ended = "pruned", asked.user_attrs[PRUNED], now()
            self._sweep.keep(trial)
        if trial.done:
            self._report_all(asked, trial)
            self._tell_study(asked, trial)
        else:
            self._open[trial.number] = asked
            self._waiting.append(trial)

    def _retry(self) -> None:
        for trial in self.tried.values():
            params = self._study.space.params(trial.overrides) if trial.state in FAILED else None
            if params is not None:
                again = self._lay(trial.overrides)
                if again.number == trial.number and again.state != "refused":
                    self._again.add(trial.number)
                    self._study.ask_again(params)
