"""The checkpoint that `ckpt=` names, or the list of runs to choose from when it names none. Imports no torch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dtl.base.display import aligned, command_line
from dtl.base.safe_text import in_one_line
from dtl.checkpoints.find import find_checkpoint, list_runs
from dtl.checkpoints.listing import step_folders
from dtl.errors import CheckpointError, ConfigError
from dtl.run_dir.state import RunState, read_run_state

Ask = Callable[[str], str]  # from a question to the line that is typed, as `input`
MAX_RUNS = 10
TO_MAKE_ONE = """\
  python -m dtl.train experiment=demo    a small model, 2 minutes on two cores
  python -m dtl.train model=qa data=qa   with a GPU: 57 M parameters
  make demo                              the small one, then five questions"""


def checkpoint_to_use(spec: str | None, outputs: Path, command: str, ask: Ask | None = None) -> Path:
    """Return the checkpoint that `ckpt=spec` names, for `python -m dtl.<command>`.

    When `spec` is None, the user chooses with `ask`, by default the newest run that can be used. Without `ask`, and for
    `latest` without any run, raises ConfigError with the list of runs and the commands to type; CheckpointError as
    `find_checkpoint` does.
    """
    folders = list_runs(outputs) if spec in (None, "latest") else []
    if spec is None and ask and folders:
        spec = _chosen(folders[:MAX_RUNS], outputs, ask)
    if spec is None or (spec == "latest" and not folders):
        raise ConfigError(_choices_message(spec, folders, outputs, command))
    return find_checkpoint(spec, outputs)


def _chosen(folders: Sequence[Path], outputs: Path, ask: Ask) -> str | None:
    """Return the run that the user chooses by number, or by Enter; None when there is none to offer."""
    try:
        newest = find_checkpoint("latest", outputs).parent.parent
    except CheckpointError:
        return None
    rows = [
        (f"{number:>2}", in_one_line(str(folder.relative_to(outputs))), *_progress(read_run_state(folder)))
        for number, folder in enumerate(folders, 1)
    ]
    lines = [line.rstrip() for line in aligned(rows)]
    offer = f"Enter for {in_one_line(str(newest))}, or a number: "
    asked = "\n".join([f"Runs under {outputs}, newest first:", *lines, offer])
    while True:
        try:
            typed = ask(asked).strip()
        except EOFError:  # Ctrl-D
            raise KeyboardInterrupt from None
        if not typed:
            return str(newest)
        if typed.isascii() and typed.isdigit() and 1 <= int(typed) <= len(folders):
            return str(folders[int(typed) - 1])
        asked = f"{in_one_line(typed, 40)}: there is no run with this number. {offer}"


def _choices_message(spec: str | None, folders: Sequence[Path], outputs: Path, command: str) -> str:
    given = f"ckpt={spec or 'null'}: "
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
    rows = [(in_one_line(str(run.folder)), run.name, *_progress(run)) for run in runs]
    return (f"  {line.rstrip()}" for line in aligned(rows))


def _progress(run: RunState) -> tuple[str, str, str]:
    return (
        run.state,
        "no step yet" if run.step is None else f"step {run.step}",
        "" if run.best_loss is None else f"loss {run.best_loss:.4f}",
    )
