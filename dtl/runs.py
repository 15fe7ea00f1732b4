"""The command `python -m dtl.runs`: what lies in outputs/, and deleting what is no longer needed."""

from pathlib import Path

from omegaconf import DictConfig

from dtl.base.display import Display, quiet_when_gone
from dtl.base.units import in_bytes
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.config import typed_as
from dtl.errors import ConfigError, DTLError
from dtl.housekeeping.config import RunsConfig
from dtl.housekeeping.disk_runs import at_work, chosen, freed_by, leftovers, may_start, read_runs
from dtl.housekeeping.removal import Removal, carry_out, check_names, clear_leftover, is_named, removals
from dtl.housekeeping.screen import (
    can_ask,
    in_sum,
    is_agreed,
    named_by_typing,
    show_removals,
    show_runs,
    show_ways_on,
)

COMMAND = Command(
    "runs",
    RunsConfig,
    page="""\
python -m dtl.runs [state=...] [name=...] [older_than_days=N] [sort=...] [delete=...]

Lists the runs and the trials of sweeps in outputs/: how they stand, best validation loss, size on the disk, time
since they last wrote. It reads files only, so it works while runs are at work and after a crash.

  python -m dtl.runs sort=size limit=10
  python -m dtl.runs state=failed,killed
  python -m dtl.runs 'name=demo*' sort=loss
  python -m dtl.runs delete=checkpoints                  of finished runs, all but the best and the last one
  python -m dtl.runs delete=checkpoints state=stopped    of runs that stand otherwise: all but the best and the newest
  python -m dtl.runs delete=empty                        runs that ended without any checkpoint
  python -m dtl.runs delete=runs state=killed older_than_days=30

A deletion shows what goes and how much room that makes, then asks; yes=true does not ask. A run that holds a best
checkpoint stays unless its folder is typed, or named by best_of=[2026-11-23/12-14-28-3698_demo]. Runs and sweeps at
work are never touched.
""",
    free_text=("outputs", "state", "name"),
)


def main() -> None:
    """Entry point of `python -m dtl.runs` and of the console script dtl-runs."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """List, and delete what is agreed on. Raises DTLError when something could not be deleted."""
    settings = typed_as(RunsConfig, composed)
    outputs = Path(settings.outputs).expanduser()
    with quiet_when_gone(), Display() as display:
        everything, left = read_runs(outputs), leftovers(outputs)
        if not everything and not left:
            display.say(f"There is no run under {outputs}/ yet. Train one: python -m dtl.train")
            return
        runs = chosen(everything, settings)
        if settings.delete is None:
            show_runs(display, runs, len(everything), outputs)
            idle = [run for run in everything if run.state.state != "running" and not may_start(run)]
            room = {what: _room(removals(idle, RunsConfig(delete=what))) for what in ("checkpoints", "empty")}
            show_ways_on(display, settings, room | {"leftovers": freed_by(left)})
            return
        _clear_leftovers(display, left, outputs)
        busy = at_work(everything, outputs)
        idle = [run for run in runs if run.folder not in busy]
        if len(idle) < len(runs):
            display.note(f"{len(runs) - len(idle)} of these runs are at work or just starting, and stay as they are.")
        check_names(idle, settings)
        agreed = _agreed(display, removals(idle, settings), settings)
        if agreed:
            _delete(display, agreed, outputs)


def _room(found: list[Removal]) -> int:
    return sum(item.n_bytes for item in found)


def _clear_leftovers(display: Display, left: list[Path], outputs: Path) -> None:
    """End a deletion that was killed: it had been agreed to."""
    n_bytes = freed_by(left)
    problems = [problem for leftover in left for problem in clear_leftover(leftover, outputs)]
    if left:
        display.note(f"{in_bytes(n_bytes - freed_by(left))} came free: left by a deletion that was cut off.")
    for problem in problems:
        display.warn(problem)


def _agreed(display: Display, found: list[Removal], settings: RunsConfig) -> list[Removal]:
    """What is to be deleted by the word of a person or of a script. Raises ConfigError where nobody can be asked."""
    guarded = [item for item in found if item.takes_best and not is_named(item.run, settings)]
    free = [item for item in found if item not in guarded]
    if guarded and can_ask() and not settings.yes:
        free += named_by_typing(display, guarded)
    elif guarded:
        display.warn(
            f"{len(guarded)} runs stay, because they hold a best checkpoint. To delete one all the same: "
            f"best_of=[{guarded[0].run.label}]"
        )
    if not free:
        display.say(f"delete={settings.delete}: nothing to delete.")
        return []
    display.say(f"To be deleted: {in_sum(free)}")
    show_removals(display, free)
    if settings.yes:
        return free
    if not can_ask():
        raise ConfigError(
            f"delete={settings.delete}: nothing was deleted, there is no terminal to ask on. "
            "yes=true deletes what is listed above without asking."
        )
    if is_agreed(f"Delete {in_sum(free)}?"):
        return free
    display.say("Nothing was deleted.")
    return []


def _delete(display: Display, agreed: list[Removal], outputs: Path) -> None:
    problems, n_bytes = [], 0
    for item in agreed:
        problems += carry_out(item, outputs)
        n_bytes += item.run.n_bytes - freed_by([item.run.folder])
    display.say(f"Deleted: {in_bytes(n_bytes)} came free.")
    if problems:
        raise DTLError("Not all of it could be deleted:\n" + "\n".join(problems))


if __name__ == "__main__":
    main()
