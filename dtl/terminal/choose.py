"""The checkpoint that `ckpt=` names, or the list of runs to choose from when it names none. Imports no torch."""

from collections.abc import Iterator
from pathlib import Path

from dtl.base.display import aligned, command_line
from dtl.base.safe_text import in_one_line
from dtl.checkpoints.find import find_checkpoint, list_runs
from dtl.checkpoints.listing import step_folders
from dtl.errors import ConfigError
from dtl.run_dir.state import RunState, read_run_state

MAX_RUNS = 10
TO_MAKE_ONE = """\
  python -m dtl.train model=qa data=qa   on the questions and answers that ship with DTL
  make demo                              a small model: trains, then answers five questions"""


def checkpoint_to_use(spec: str | None, outputs: Path, command: str) -> Path:
    """Return the checkpoint that `ckpt=spec` names, for `python -m dtl.<command>`.

    Raises ConfigError with the list of runs and the commands to type when `spec` is None, or `latest` without any run;
    CheckpointError as `find_checkpoint` does.
    """
    if spec is None or (spec == "latest" and not list_runs(outputs)):
        raise ConfigError(_choices_message(spec, outputs, command))
    return find_checkpoint(spec, outputs)


def _choices_message(spec: str | None, outputs: Path, command: str) -> str:
    given = f"ckpt={spec or 'null'}: "
    folders = list_runs(outputs)
    if not folders:
        return f"{given}there is no run under {outputs} yet. Train one:\n{TO_MAKE_ONE}"
    runs = [read_run_state(folder) for folder in folders[:MAX_RUNS]]
    example = next((run.folder for run in runs if step_folders(run.folder)), runs[0].folder)
    shown = f"the last {len(runs)} of {len(folders)}, " if len(folders) > len(runs) else ""
    return "\n".join(
        [
            f"{given}choose a model. Runs under {outputs} ({shown}newest first):",
            *_table(runs),
            "Give the folder of one, or latest:",
            f"  {command_line(command, f'ckpt={example}')}",
            f"  {command_line(command, 'ckpt=latest')}",
            f"To train another:\n{TO_MAKE_ONE}",
        ]
    )


def _table(runs: list[RunState]) -> Iterator[str]:
    rows = [
        (
            in_one_line(str(run.folder)),
            run.name,
            run.state,
            "no step yet" if run.step is None else f"step {run.step}",
            "" if run.best_loss is None else f"best validation loss {run.best_loss:.4f}",
        )
        for run in runs
    ]
    return (f"  {line.rstrip()}" for line in aligned(rows))
