"""The Optuna study of a search, kept in one file of the sweep's folder: asked, told and brought back after a kill.

A journal only grows by whole lines, so that a kill can cut off its last line alone; that line is removed before the
study goes on. What was in it, the trials' own folders still know.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.base.files import write_atomically
from dtl.errors import ConfigError
from dtl.run_dir.sweep_records import Trial
from dtl.sweeps.config import SearchConfig
from dtl.sweeps.search_space import Space

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"
NAME = "search"
# What the study keeps of a trial beside Optuna's own.
NUMBER, REASON, PRUNED = "number", "reason", "pruned"  # its folder; why it failed; why it is to be pruned

log = logging.getLogger(__name__)


class Study:
    """Optuna's study with the sampler and the pruner of the settings.

    What is proposed depends on the seed, on how many trials were proposed before and on what was told of them: with
    one trial at a time, a search that was killed goes on with what it would have proposed otherwise.
    """

    def __init__(self, folder: Path, settings: SearchConfig, space: Space) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # the sweep's own screen says it
        self.space = space
        self._settings = settings
        file = folder / JOURNAL
        mend(file)
        storage = JournalStorage(JournalFileBackend(str(file), lock_obj=_held_by_the_sweep()))
        pruner = _pruner(settings)
        self._study = optuna.create_study(storage=storage, study_name=NAME, pruner=pruner, load_if_exists=True)

    def ask(self) -> "optuna.Trial":
        """A new trial, with parameters. Raises ConfigError for a study of another space."""
        self._study.sampler = _sampler(self._settings, len(self._study.get_trials(deepcopy=False)))
        try:
            return self._study.ask(self.space.searched)
        except ValueError as error:
            raise ConfigError(
                f"{JOURNAL}: its search had other choices ({error}). Start another one with sweep.new=true."
            ) from None

    def unfinished(self) -> list["optuna.Trial"]:
        """Trials that were asked for and of which nothing was told: their sweep was ended. Those that had not even
        got all their parameters are told as failed."""
        import optuna

        found = []
        for frozen in self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            trial = optuna.trial.Trial(self._study, frozen._trial_id)
            if frozen.params.keys() == self.space.searched.keys():
                found.append(trial)
            else:
                self.fail(trial, "the sweep was killed while it was proposed")
        return found

    def numbers(self) -> dict[int, "optuna.trial.FrozenTrial"]:
        """The trials that have a folder, by its number; of several, the last one."""
        trials = self._study.get_trials(deepcopy=False)
        return {trial.user_attrs[NUMBER]: trial for trial in trials if NUMBER in trial.user_attrs}

    def ask_again(self, params: Mapping[str, Any]) -> None:
        """Propose these parameters once more, before anything else."""
        self._study.enqueue_trial(dict(params))

    def restore(self, trial: Trial) -> None:
        """Take a trial back into a study that lost it, as one that nothing was told of. One of another space is left
        out."""
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
        """The best validation loss of a trial that ended well."""
        self._study.tell(trial, loss)

    def prune(self, trial: "optuna.Trial") -> None:
        """A trial that was stopped; its last validation loss counts."""
        import optuna

        self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def fail(self, trial: "optuna.Trial", reason: str) -> None:
        """A trial without a loss: NaN, an error, a configuration that cannot be."""
        import optuna

        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def trials(self) -> list["optuna.trial.FrozenTrial"]:
        """All that was asked, as Optuna knows it."""
        return self._study.get_trials(deepcopy=False)


def report(trial: "optuna.Trial", evaluation: int, loss: float | None) -> bool:
    """Tell the study the validation loss of a trial's `evaluation`, counted from 1; whether it should be pruned.

    A loss that was told before, or that is none, changes nothing.
    """
    told = trial.storage.get_trial(trial._trial_id).intermediate_values
    if loss is None or not math.isfinite(loss) or evaluation in told:
        return False
    trial.report(loss, evaluation)
    return trial.should_prune()


def mend(file: Path) -> None:
    """Cut a journal off behind its last whole line; what follows a damaged line is kept in `<name>.damaged`."""
    if not file.exists():
        return
    data = file.read_bytes()
    whole = 0
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n") or not _is_entry(line):
            break
        whole += len(line)
    if whole == len(data):
        return
    rest = data[whole:]
    if b"\n" in rest.rstrip(b"\n"):
        aside = file.with_name(f"{file.name}.damaged")
        write_atomically(aside, rest)
        log.warning("%s: damaged from byte %d on; that part is now %s.", file, whole, aside.name)
    write_atomically(file, data[:whole])


def _is_entry(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _held_by_the_sweep() -> Any:
    """No lock of Optuna's own: the sweep's lock is held, and Optuna's would outlive a kill by half a minute."""
    from optuna.storages.journal._file import BaseJournalFileLock

    class HeldAlready(BaseJournalFileLock):
        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    return HeldAlready()


def _sampler(settings: SearchConfig, asked: int) -> "optuna.samplers.BaseSampler":
    import numpy as np
    from optuna.samplers import RandomSampler, TPESampler

    seed = int(np.random.SeedSequence([settings.seed, asked]).generate_state(1)[0])
    return TPESampler(seed=seed) if settings.sampler == "tpe" else RandomSampler(seed=seed)


def _pruner(settings: SearchConfig) -> "optuna.pruners.BasePruner":
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    if settings.pruner == "median":
        # Optuna judges from step n_warmup_steps on; ours count from 1.
        return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup + 1)
    if settings.pruner == "asha":
        return SuccessiveHalvingPruner(settings.min_resource, settings.reduction_factor)
    return NopPruner()
