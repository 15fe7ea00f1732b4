"""The command `python -m dtl.runs`: lists the runs in outputs/ and deletes what is no longer needed."""

from pathlib import Path

from omegaconf import DictConfig

from dtl.base.display import Display, exit_when_output_closes, shell_line
from dtl.base.units import in_bytes, number_of
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.config import typed_as
from dtl.errors import ConfigError, DTLError
from dtl.housekeeping.config import RunsConfig
from dtl.housekeeping.disk_runs import chosen, freed_by, is_of_dtl, leftovers, may_start, read_runs, running_folders
from dtl.housekeeping.removal import Removal, check_names, clear_leftover, delete_removal, is_named, removals
from dtl.housekeeping.show import (
    can_ask,
    confirm_by_typing,
    in_sum,
    is_agreed,
    show_cleanup_hints,
    show_removals,
    show_runs,
)

COMMAND = Command(
    "runs",
    RunsConfig,
    usage="""\
python -m dtl.runs [state=...] [name=...] [sort=...] [delete=...]
Lists the runs and the trials of sweeps in outputs/, and deletes what you
choose: it shows what would go and asks first.

  python -m dtl.runs sort=size limit=10
  python -m dtl.runs state=failed,killed
  python -m dtl.runs 'name=demo*' sort=loss
  python -m dtl.runs delete=checkpoints         all but the best and the last
  python -m dtl.runs delete=empty               runs without a checkpoint
  python -m dtl.runs delete=runs state=killed older_than_days=30
""",
    details="""\
It reads files only, so it works while runs are in progress and after a crash. delete=checkpoints is of finished runs;
with state=stopped of stopped ones, all but the best and the newest. yes=true does not ask. A run with a best
checkpoint is kept unless its folder is typed, or named by best_of=[2026-11-23/12-14-28-3698_demo]. Running runs and
sweeps are never touched.
""",
    free_text=("state", "name"),
)


def main() -> None:
    """Entry point of `python -m dtl.runs` and of the console script dtl-runs."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """List runs, and delete what the user confirms. Raises DTLError when something could not be deleted."""
    settings = typed_as(RunsConfig, composed)
    outputs = Path(settings.outputs).expanduser()
    with exit_when_output_closes(), Display() as display:
        everything, left = read_runs(outputs), leftovers(outputs)
        if not everything and not left:
            display.print(f"There is no run under {outputs}/ yet. Train one: python -m dtl.train experiment=demo")
            return
        runs = chosen(everything, settings)
        if settings.delete is None:
            show_runs(display, runs, len(everything), settings)
            idle = [run for run in everything if run.state.state != "running" and not may_start(run)]
            room = {
                what: sum(item.n_bytes for item in removals(idle, RunsConfig(delete=what)))
                for what in ("checkpoints", "empty")
            }
            show_cleanup_hints(display, settings, room | {"leftovers": freed_by(left)})
            return
        _clear_leftovers(display, left, outputs)
        busy = running_folders(everything, outputs)
        idle = [run for run in runs if run.folder not in busy]
        if len(idle) < len(runs):
            display.note(f"kept, as running or just starting: {number_of('runs', len(runs) - len(idle))}.")
        foreign = [run for run in idle if not is_of_dtl(run.folder)]
        if foreign:
            idle = [run for run in idle if run not in foreign]
            display.note(f"kept, as no runs of DTL: {', '.join(run.label for run in foreign)}.")
        check_names(idle, settings)
        agreed = _agreed(display, removals(idle, settings), settings)
        if agreed:
            _delete(display, agreed, outputs)


def _clear_leftovers(display: Display, left: list[Path], outputs: Path) -> None:
    """Complete a deletion that was killed: it had been confirmed."""
    n_bytes = freed_by(left)
    problems = [problem for leftover in left for problem in clear_leftover(leftover, outputs)]
    if left:
        display.note(f"{in_bytes(n_bytes - freed_by(left))} freed: left over from an interrupted deletion.")
    for problem in problems:
        display.warn(problem)


def _agreed(display: Display, found: list[Removal], settings: RunsConfig) -> list[Removal]:
    """The removals that the user or `yes=true` confirmed. Raises ConfigError where there is no terminal to ask on."""
    guarded = [item for item in found if item.takes_best and not is_named(item.run, settings)]
    free = [item for item in found if item not in guarded]
    if guarded and can_ask() and not settings.yes:
        free += confirm_by_typing(display, guarded)
    elif guarded:
        display.warn(
            f"kept, for their best checkpoint: {number_of('runs', len(guarded))}. To delete one anyway: "
            f"{shell_line([f'best_of=[{guarded[0].run.label}]'])}"
        )
    if not free:
        display.print(f"delete={settings.delete}: nothing to delete.")
        return []
    display.print(f"To be deleted: {in_sum(free)}")
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
    display.print("Nothing was deleted.")
    return []


def _delete(display: Display, agreed: list[Removal], outputs: Path) -> None:
    problems, n_bytes = [], 0
    for item in agreed:
        problems += delete_removal(item, outputs)
        n_bytes += item.run.n_bytes - freed_by([item.run.folder])
    display.print(f"Deleted: {in_bytes(n_bytes)} freed.")
    if problems:
        raise DTLError("Some of it could not be deleted:\n" + "\n".join(problems))


if __name__ == "__main__":
    main()
