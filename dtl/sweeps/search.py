"""The search: Optuna proposes trials, and the losses in their metrics.jsonl are reported back to it.

Independent of processes and of Hydra: `create_trial` turns overrides into a trial with a folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.run_dir.state import read_run_state
from dtl.run_dir.sweep_records import FAILED, SUCCEEDED, SweepFolder, Trial, now
from dtl.sweeps.config import SearchConfig
from dtl.sweeps.pool import Budget
from dtl.sweeps.search_study import NUMBER, PRUNED, Study, report
from dtl.tracking.metrics import METRICS, VALIDATION, parse_row

if TYPE_CHECKING:
    import optuna


# --- the losses of a running trial --------------------------------------------------------------------------------


class Losses:
    """Validation losses of a run, followed in its metrics.jsonl: `new` returns those written since its last call.

    A run that resumes from a checkpoint rewrites the file without the rows after it: then all losses are returned
    again, with the same numbers.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / METRICS
        self._identity: tuple[int, int] | None = None
        self._read = self._evaluations = 0

    def new(self) -> list[tuple[int, float | None]]:
        """Return (evaluation, counted from 1; validation loss, None if not finite), in order."""
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
        complete = data[: data.rfind(b"\n") + 1]  # the rest of the last line is still being written
        self._read += len(complete)
        losses: list[tuple[int, float | None]] = []
        for row in map(parse_row, complete.splitlines()):
            if row is not None and VALIDATION in row:
                self._evaluations += 1
                loss = row[VALIDATION]
                losses.append((self._evaluations, float(loss) if isinstance(loss, int | float) else None))
        return losses


# --- the search ---------------------------------------------------------------------------------------------------

MAX_REPEATS = 100  # proposals in a row that were tried already: the space counts as exhausted


class Search:
    """Source of trials for `dtl.sweeps.pool.run_trials`: asks Optuna for each and tells it the outcome.

    Each trial is told exactly once, also after a crash; one that was interrupted or killed stays open and resumes
    with the next session of the sweep.
    """

    def __init__(
        self,
        sweep: SweepFolder,
        study: Study,
        settings: SearchConfig,
        budget: Budget,
        create_trial: Callable[[list[str]], Trial],
        on_end: Callable[[Trial], None],
        *,
        retry_failed: bool = False,
        rounds_after: int = 0,
    ) -> None:
        """`on_end` is called with each trial that has ended. The budget reserves time for `rounds_after` trials, one
        after the other, that follow the search."""
        self._sweep, self._study, self._settings, self._budget = sweep, study, settings, budget
        self._create_trial, self._on_end, self._rounds_after = create_trial, on_end, rounds_after
        self._open: dict[int, optuna.Trial] = {}  # by the number of its folder
        self._losses: dict[int, Losses] = {}
        self._waiting: list[Trial] = []  # to be resumed
        self._again: set[int] = set()  # numbers of failed trials to run again
        self._must_wait = False  # the proposed configuration is running already: wait for its loss
        self.why_ended = ""  # empty if the number of trials or Ctrl-C ended it
        self._restore()
        if retry_failed:
            self._retry()

    @property
    def tried(self) -> dict[int, Trial]:
        """The search's own trials, by number."""
        return {trial.number: trial for trial in self._sweep.trials() if trial.role == "trial"}

    def left(self) -> int:
        """Return how many trials are still to run, by `n_trials` alone."""
        return len(self._waiting) + len(self._again) + max(0, self._settings.n_trials - len(self.tried))

    # --- the interface of dtl.sweeps.pool.Source --------------------------------------------------------------------

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
        """See `dtl.sweeps.pool.Source`. Reports every evaluation, in order. After its last step a trial is not pruned:
        nothing is left to save, and it counts as finished."""
        asked = self._open[trial.number]
        if PRUNED in asked.user_attrs:
            return asked.user_attrs[PRUNED]
        for evaluation, loss in self._losses[trial.number].new():
            if report(asked, evaluation, loss) and not self._is_at_last_step(trial):
                why = f"by {self._settings.pruner}: validation loss {loss:.4f} at its evaluation {evaluation}"
                asked.set_user_attr(PRUNED, why)
                return why
        return None

    def _is_at_last_step(self, trial: Trial) -> bool:
        run = read_run_state(self._sweep.trial_folder(trial.number))
        return run.last_step is not None and run.step == run.last_step

    def ended(self, trial: Trial) -> None:
        """See `dtl.sweeps.pool.Source`."""
        self._must_wait = False
        self._budget.learn(trial)
        asked, losses = self._open.pop(trial.number), self._losses.pop(trial.number)
        if trial.state != "pruned":
            for evaluation, loss in losses.new():
                report(asked, evaluation, loss)  # it ended between two polls
        self._tell_study(asked, trial)
        self._on_end(trial)

    # --- proposals --------------------------------------------------------------------------------------------------

    def _propose(self) -> Trial | None:
        """Return a new trial to run; None for a configuration whose loss is known already, or that is running."""
        asked = self._study.ask()
        known = self.tried
        trial = self._create_trial(self._study.space.overrides(asked.params))
        asked.set_user_attr(NUMBER, trial.number)
        if trial.number in self._again:
            self._again.remove(trial.number)
        elif trial.number in self._open:
            self._study.fail(asked, f"the same as trial {trial.number}, which is running")
            self._must_wait = True
            return None
        elif trial.done or trial.attempts:
            self._tell_again(asked, trial)
            if trial.number not in known:  # rejected when it was composed
                self._on_end(trial)
            return None
        self._open[trial.number] = asked
        return self._opened(trial)

    def _opened(self, trial: Trial) -> Trial:
        self._losses[trial.number] = Losses(self._sweep.trial_folder(trial.number))
        return trial

    def _tell_study(self, asked: "optuna.Trial", trial: Trial) -> None:
        """Tell Optuna how `trial` ended. One that is not done stays open, for the next session."""
        if trial.state in SUCCEEDED and trial.value is not None:
            self._study.finish(asked, trial.value)
        elif trial.state == "pruned":
            self._study.prune(asked)
        elif trial.done:
            self._study.fail(asked, trial.reason or f"{trial.state}, without a validation loss")

    def _tell_again(self, asked: "optuna.Trial", trial: Trial) -> None:
        """Tell Optuna the known losses of a configuration that was proposed again."""
        if trial.done:
            self._report_all(asked, trial)
            self._tell_study(asked, trial)
        else:
            self._study.fail(asked, f"the same as trial {trial.number}, which was {trial.state}")

    def _report_all(self, asked: "optuna.Trial", trial: Trial) -> None:
        for evaluation, loss in Losses(self._sweep.trial_folder(trial.number)).new():
            report(asked, evaluation, loss)

    # --- resuming ---------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Restore the trials that Optuna was not told of, and those that a damaged journal has lost."""
        for asked in self._study.unfinished():
            if NUMBER not in asked.user_attrs:  # killed between the proposal and the creation of its folder
                asked.set_user_attr(NUMBER, self._create_trial(self._study.space.overrides(asked.params)).number)
        in_study = self._study.numbers()
        for number, trial in self.tried.items():
            if number not in in_study:
                self._study.restore(trial)
        known = self.tried
        for asked in self._study.unfinished():
            trial = known.get(asked.user_attrs[NUMBER])
            if trial is None:
                self._study.fail(asked, "its folder was removed")
            elif trial.number in self._open:
                self._study.fail(asked, f"the same as trial {trial.number}, which is running")
            else:
                self._restore_trial(asked, trial)

    def _restore_trial(self, asked: "optuna.Trial", trial: Trial) -> None:
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
                again = self._create_trial(trial.overrides)
                if again.number == trial.number and again.state != "refused":
                    self._again.add(trial.number)
                    self._study.ask_again(params)
