"""The Optuna study of a search, in one journal file of the sweep's folder: ask, tell, and restore after a kill.

A journal grows by complete lines, so that a kill can damage only its last line, which is cut off when the study is
opened. Its content is restored from the trials' folders.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.base.files import write_atomically
from dtl.base.safe_text import safe_logger
from dtl.errors import ConfigError
from dtl.run_dir.sweep_records import Trial
from dtl.sweeps.config import SearchConfig
from dtl.sweeps.search_space import Space

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"
NAME = "search"
# User attributes of a trial in the study: its folder, why it failed, why it is to be pruned.
NUMBER, REASON, PRUNED = "number", "reason", "pruned"

logger = safe_logger(__name__)


class Study:
    """Optuna's study with the sampler and the pruner of the settings.

    A proposal depends on the seed, on the number of earlier proposals and on the reported losses: with one trial at
    a time, a killed search resumes with the proposals that it would have made otherwise.
    """

    def __init__(self, folder: Path, settings: SearchConfig, space: Space) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # the sweep's screen logs the trials
        self.space = space
        self._settings = settings
        file = folder / JOURNAL
        truncate_journal(file)
        storage = JournalStorage(JournalFileBackend(str(file), lock_obj=_no_lock()))
        pruner = _pruner(settings)
        self._study = optuna.create_study(storage=storage, study_name=NAME, pruner=pruner, load_if_exists=True)

    def ask(self) -> "optuna.Trial":
        """Return a new trial with its parameters. Raises ConfigError if the study was made with another space."""
        self._study.sampler = _sampler(self._settings, len(self._study.get_trials(deepcopy=False)))
        try:
            return self._study.ask(self.space.searched)
        except ValueError as error:
            raise ConfigError(
                f"{JOURNAL}: its search had other choices ({error}). Start another sweep with sweep.new=true."
            ) from None

    def unfinished(self) -> list["optuna.Trial"]:
        """Return the trials without an outcome, whose sweep ended before them. Those that were killed before they had
        all their parameters are told as failed."""
        import optuna

        trials = []
        for frozen in self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            trial = optuna.trial.Trial(self._study, frozen._trial_id)
            if frozen.params.keys() == self.space.searched.keys():
                trials.append(trial)
            else:
                self.fail(trial, "the sweep was killed while it was proposed")
        return trials

    def numbers(self) -> dict[int, "optuna.trial.FrozenTrial"]:
        """Return the trials that have a folder, by its number; of several, the last one."""
        trials = self._study.get_trials(deepcopy=False)
        return {trial.user_attrs[NUMBER]: trial for trial in trials if NUMBER in trial.user_attrs}

    def ask_again(self, params: Mapping[str, Any]) -> None:
        """Propose these parameters again, before any others."""
        self._study.enqueue_trial(dict(params))

    def restore(self, trial: Trial) -> None:
        """Add a trial that the study has lost, without an outcome. A trial of another space is skipped."""
        import optuna

        params = self.space.params(trial.overrides)
        if params is None:
            return
        self._study.add_trial(
            optuna.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=params,
                distributions=self.space.searched,
                user_attrs={NUMBER: trial.number},
            )
        )

    def finish(self, trial: "optuna.Trial", loss: float) -> None:
        """Tell the best validation loss of a trial that finished."""
        self._study.tell(trial, loss)

    def prune(self, trial: "optuna.Trial") -> None:
        """Tell that a trial was pruned; its last validation loss counts."""
        import optuna

        self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def fail(self, trial: "optuna.Trial", reason: str) -> None:
        """Tell that a trial has no loss: NaN, an error, a rejected configuration."""
        import optuna

        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def trials(self) -> list["optuna.trial.FrozenTrial"]:
        """Return all trials of the study."""
        return self._study.get_trials(deepcopy=False)


def report(trial: "optuna.Trial", evaluation: int, loss: float | None) -> bool:
    """Report the loss of a trial's `evaluation`, counted from 1; return True if the trial should be pruned.

    A loss that was reported before, is None or is not finite changes nothing.
    """
    reported = trial.storage.get_trial(trial._trial_id).intermediate_values
    if loss is None or not math.isfinite(loss) or evaluation in reported:
        return False
    trial.report(loss, evaluation)
    return trial.should_prune()


def truncate_journal(file: Path) -> None:
    """Truncate a journal after its last valid line; what follows a damaged line is kept in `<name>.damaged`."""
    if not file.exists():
        return
    data = file.read_bytes()
    valid = 0
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n") or not _is_entry(line):
            break
        valid += len(line)
    if valid == len(data):
        return
    rest = data[valid:]
    if b"\n" in rest.rstrip(b"\n"):
        aside = file.with_name(f"{file.name}.damaged")
        write_atomically(aside, rest)
        logger.warning("%s: damaged from byte %d on; that part is now %s.", file, valid, aside.name)
    write_atomically(file, data[:valid])


def _is_entry(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _no_lock() -> Any:
    """Return a lock that does nothing: the sweep is locked already, and Optuna's own outlives a kill by 30 s."""
    from optuna.storages.journal._file import BaseJournalFileLock

    class NoLock(BaseJournalFileLock):
        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    return NoLock()


def _sampler(settings: SearchConfig, asked: int) -> "optuna.samplers.BaseSampler":
    import numpy as np
    from optuna.samplers import RandomSampler, TPESampler

    # A new sampler for each proposal: its random state need not survive a kill.
    seed = int(np.random.SeedSequence([settings.seed, asked]).generate_state(1)[0])
    # TPE: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization.
    return TPESampler(seed=seed) if settings.sampler == "tpe" else RandomSampler(seed=seed)


def _pruner(settings: SearchConfig) -> "optuna.pruners.BasePruner":
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    if settings.pruner == "median":
        # Optuna prunes from step n_warmup_steps on; evaluations count from 1.
        return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup + 1)
    if settings.pruner == "asha":  # Li et al. 2018, arXiv:1810.05934
        return SuccessiveHalvingPruner(settings.min_resource, settings.reduction_factor)
    return NopPruner()
