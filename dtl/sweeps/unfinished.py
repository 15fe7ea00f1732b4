"""Which sweep a command line goes on with. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from dtl.run_dir.sweep_records import SweepFolder, SweepRecord, find_sweeps
from dtl.sweeps.config import asks_for_more


def sweep_to_continue(arguments: Sequence[str], outputs: Path) -> Path | None:
    """The newest sweep under `outputs` that was asked for with the same overrides and has something left to run.

    None where there is none, where the command line names a folder, and with sweep.new=true.
    """
    if _is_set(arguments, "sweep.new") or any(one.startswith("hydra.sweep.dir=") for one in arguments):
        return None
    asked, again = asked_for(arguments), _is_set(arguments, "sweep.retry_failed")
    for sweep in find_sweeps(outputs):
        record = sweep.read()
        if record is None or asked_for(record.arguments) != asked:
            continue
        if _has_more(sweep, record, again) or (record.kind == "search" and asks_for_more(arguments, record.extra)):
            return sweep.path
    return None


def as_typed(config: DictConfig) -> list[str]:
    """The overrides of a command line, Hydra's own among them: what sweep.json keeps."""
    own = [one for one in config.hydra.overrides.hydra if not one.startswith("hydra.mode=")]
    return [*own, *config.hydra.overrides.task]


def asked_for(arguments: Sequence[str]) -> list[str]:
    """What makes two sweeps the same: their overrides in any order, but not how they are run."""
    words = (one.lstrip("+") for one in arguments if ("=" in one and not one.startswith("-")) or one.startswith("~"))
    own = ("sweep.", "hydra.launcher.", "hydra.sweep.", "hydra.sweeper.n_trials", "hydra.sweeper.hours")
    return sorted(word for word in words if not word.startswith(own))


def _has_more(sweep: SweepFolder, record: SweepRecord, again: bool) -> bool:
    """Whether something is left. A sweep that was killed while it said `running` has more to do."""
    if record.state != "finished":
        return True
    return any(trial.is_left(again) for trial in sweep.trials())


def _is_set(arguments: Sequence[str], key: str) -> bool:
    return any(one.partition("=")[0] == key and one.partition("=")[2].lower() == "true" for one in arguments)
