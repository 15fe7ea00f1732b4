"""A grid of trials, run or continued in its folder, and told on the terminal."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig

from dtl.base.display import shown
from dtl.checkpoints.store import LOCK, SECONDS_OF_A_LOOK
from dtl.commandline.cli import JobFailedError, take_back
from dtl.commandline.command import Command
from dtl.errors import ConfigError, InterruptedRun
from dtl.run_dir.sweep_records import MULTIRUN, SWEEP, SweepFolder, SweepRecord, Trial, as_typed, now
from dtl.sweeps.config import LauncherConfig
from dtl.sweeps.grid import Composer, NoTrialError, combined, for_a_trial, lay_out, repeated
from dtl.sweeps.pool import ListSource, run_trials
from dtl.sweeps.screen import SweepScreen


def launch_grid(
    job_overrides: Sequence[Sequence[str]],
    settings: LauncherConfig,
    context: HydraContext,
    config: DictConfig,
    command: Command,
) -> list[JobReturn]:
    """Run what is left of a grid; one JobReturn for each trial.

    Raises InterruptedRun after Ctrl-C, JobFailedError at the end when trials failed, ConfigError for a sweep that
    another process runs, NoTrialError for a new one of which every trial is refused: its folder is gone then.
    """
    sweep = SweepFolder(Path(config.hydra.sweep.dir))
    try:
        with held(sweep.path):
            return _run(sweep, job_overrides, settings, config, Composer(context, config, command))
    except NoTrialError:
        take_back(sweep.path, (MULTIRUN, SWEEP, LOCK))
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
    record.arguments = arguments  # in a folder that was named there may be more values than at first
    record.state, record.sessions = "running", record.sessions + 1
    sweep.write(record)
    screen = SweepScreen(sweep)
    screen.checking(len(job_overrides))
    combinations = combined(job_overrides, composer)  # takes a while: a sweep that is killed now goes on, too
    if not sweep.trials() and all(one.refused for one in combinations):
        raise NoTrialError((one.overrides, one.refused) for one in combinations)
    trials = lay_out(sweep, combinations)
    record.planned = len(sweep.trials())
    sweep.write(record)
    with screen:
        # What is refused here would be refused in its process, too.
        left = [trial for trial in trials if trial.state != "refused" and trial.is_left(config.sweep.retry_failed)]
        screen.begin(trials, left, record.sessions > 1, repeated(combinations))
        try:
            beside = for_a_trial(config.hydra.overrides.hydra)
            run_trials(sweep, ListSource(left, screen.ended), settings, beside, screen.started, screen.idle)
        except (InterruptedRun, KeyboardInterrupt):
            record.state = "interrupted"
            sweep.write(record)
            screen.interrupted(trials)
            raise
        record.state = "finished"
        sweep.write(record)
        screen.end(trials)
    bad = [trial for trial in trials if trial.went_wrong]
    if bad:
        raise JobFailedError(f"{len(bad)} of {len(trials)} trials did not finish")
    return [_job_return(trial) for trial in trials]


def _job_return(trial: Trial) -> JobReturn:
    """A trial as Hydra's sweepers know them."""
    done = JobReturn(overrides=trial.overrides, task_name="train", status=JobStatus.COMPLETED)
    done.return_value = trial.value
    return done


# --- one process at a time ----------------------------------------------------------------------------------------
# One process at a time works on a sweep.


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the sweep in `folder`, which is made. Raises ConfigError where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=SECONDS_OF_A_LOOK)
    except Timeout:
        raise ConfigError(
            f"{shown(folder)}: this sweep is running already. Look at it with python -m dtl.sweep "
            f"status={shown(folder)}, or start another one with sweep.new=true."
        ) from None
    try:
        yield
    finally:
        lock.release()
