"""The launch of a grid: runs or resumes its trials in the sweep's folder, under a lock, and shows them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig

from dtl.base.display import command_line, shown
from dtl.base.units import number_of
from dtl.checkpoints.upkeep import LOCK, LOCK_PROBE_SECONDS
from dtl.commandline.cli import JobFailedError, remove_empty_run_dir
from dtl.commandline.command import Command
from dtl.errors import ConfigError, InterruptedRun
from dtl.run_dir.provenance import composition_flags
from dtl.run_dir.sweep_records import MULTIRUN, SWEEP, SweepFolder, SweepRecord, Trial, as_typed, now
from dtl.sweeps.config import LauncherConfig
from dtl.sweeps.grid import Composer, NoTrialError, compose_all, create_trials, describe_duplicates, trial_overrides
from dtl.sweeps.live import SweepScreen
from dtl.sweeps.pool import ListSource, run_trials


def launch_grid(
    job_overrides: Sequence[Sequence[str]],
    settings: LauncherConfig,
    context: HydraContext,
    config: DictConfig,
    command: Command,
) -> list[JobReturn]:
    """Run the trials of a grid that are left; return one JobReturn per trial.

    Raises InterruptedRun after Ctrl-C, JobFailedError at the end if trials failed, ConfigError for a sweep that
    another process runs, NoTrialError for a new one of which every trial is rejected (its folder is removed).
    """
    sweep = SweepFolder(Path(config.hydra.sweep.dir))
    try:
        with locked_sweep(sweep.path):
            return _run(sweep, job_overrides, settings, config, Composer(context, config, command, sweep))
    except NoTrialError:
        remove_empty_run_dir(sweep.path, (MULTIRUN, SWEEP, LOCK))
        raise


def _run(
    sweep: SweepFolder,
    job_overrides: Sequence[Sequence[str]],
    settings: LauncherConfig,
    config: DictConfig,
    composer: Composer,
) -> list[JobReturn]:
    arguments = as_typed(config)
    record = sweep.read() or SweepRecord(arguments, started=now())
    record.arguments = arguments  # hydra.sweep.dir= may add values to the sweep of that folder
    record.state, record.sessions = "running", record.sessions + 1
    record.extra |= composer.recorded()
    sweep.write(record)
    screen = SweepScreen(sweep)
    screen.checking(len(job_overrides))
    combinations = compose_all(job_overrides, composer)  # 5 to 10 a second: sweep.json is written before, for a resume
    if not sweep.trials() and all(combination.refused for combination in combinations):
        raise NoTrialError((combination.overrides, combination.refused) for combination in combinations)
    trials = create_trials(sweep, combinations)
    record.planned = len(sweep.trials())
    sweep.write(record)
    with screen:
        # A configuration that is rejected here would be rejected in its own process too.
        left = [trial for trial in trials if trial.state != "refused" and trial.is_pending(config.sweep.retry_failed)]
        screen.begin(trials, left, record.sessions > 1, describe_duplicates(combinations))
        try:
            shared = [*composition_flags(config.hydra), *trial_overrides(config.hydra.overrides.hydra)]
            run_trials(sweep, ListSource(left, screen.ended), settings, shared, screen.started, screen.idle)
        except (InterruptedRun, KeyboardInterrupt):
            record.state = "interrupted"
            sweep.write(record)
            screen.interrupted(trials)
            raise
        record.state = "finished"
        sweep.write(record)
        screen.end(trials)
    failed = sum(trial.has_failed for trial in trials)
    if failed:
        raise JobFailedError(f"{failed} of {number_of('trials', len(trials))} did not finish")
    return [_job_return(trial) for trial in trials]


def _job_return(trial: Trial) -> JobReturn:
    """Convert a trial to the JobReturn that Hydra's sweepers expect."""
    done = JobReturn(overrides=trial.overrides, task_name="train", status=JobStatus.COMPLETED)
    done.return_value = trial.value
    return done


@contextmanager
def locked_sweep(folder: Path) -> Iterator[None]:
    """Lock the sweep in `folder`, which is created. Raises ConfigError if another process has locked it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOCK_PROBE_SECONDS)
    except Timeout:
        raise ConfigError(
            f"{shown(folder)}: this sweep is already running. Show it with "
            f"{command_line('sweep', f'status={shown(folder)}')}, or start another one with sweep.new=true."
        ) from None
    try:
        yield
    finally:
        lock.release()
