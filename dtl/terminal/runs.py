"""Which checkpoint a person means; the runs to choose from when none is named. Imports no torch."""

import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dtl.checkpoints.find import find_checkpoint, list_runs
from dtl.checkpoints.listing import step_folders
from dtl.durable import read_json
from dtl.errors import CheckpointError, ConfigError
from dtl.terminal.safe_text import in_one_line
from dtl.tracking import RESULT

MOST_RUNS = 10
MOST_CONFIG_BYTES = 2**20
TO_MAKE_ONE = """\
  python -m dtl.train model=qa data=qa   questions and answers that ship with DTL
  make demo                              a small one: trains, then answers five questions"""


@dataclass(frozen=True)
class RunLine:
    """What is said of a run in a list of runs; None where it is not known."""

    folder: Path
    name: str
    state: str
    step: int | None
    best_loss: float | None


def checkpoint_to_use(spec: str | None, outputs: Path, command: str) -> Path:
    """The checkpoint that `ckpt=spec` means, for `python -m dtl.<command>`.

    Raises ConfigError with the list of runs and the lines to type when nothing is named, or `latest` where there is no
    run at all; CheckpointError as `find_checkpoint` does.
    """
    if spec is None or (spec == "latest" and not list_runs(outputs)):
        raise ConfigError(_what_to_type(spec, outputs, command))
    return find_checkpoint(spec, outputs)


def _what_to_type(spec: str | None, outputs: Path, command: str) -> str:
    given = f"ckpt={spec or 'null'}: "
    folders = list_runs(outputs)
    if not folders:
        return f"{given}there is no run under {outputs} yet. Train one:\n{TO_MAKE_ONE}"
    runs = [read_run(folder) for folder in folders[:MOST_RUNS]]
    begin = f"python -m dtl.{command} ckpt="
    example = next((run.folder for run in runs if step_folders(run.folder)), runs[0].folder)
    shown = f"the last {len(runs)} of {len(folders)}, " if len(folders) > len(runs) else ""
    return "\n".join(
        [
            f"{given}say which model. Runs under {outputs} ({shown}newest first):",
            *_table(runs),
            "Type the folder of one, or latest:",
            f"  {begin}{in_one_line(shlex.quote(str(example)))}",
            f"  {begin}latest",
            f"To train another:\n{TO_MAKE_ONE}",
        ]
    )


def _table(runs: list[RunLine]) -> Iterator[str]:
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def read_run(folder: Path) -> RunLine:
    """What a run's own small files say of it. Files that are missing or damaged leave gaps."""
    result: dict[str, Any] = {}
    with suppress(OSError, CheckpointError):
        result = read_json(folder / RESULT)
    steps = [int(path.name.split("-")[1].partition(".")[0]) for path in step_folders(folder)]
    step, loss = result.get("step"), result.get("value")
    return RunLine(
        folder,
        name=in_one_line(str(read_config(folder).get("name") or folder.name), 40),
        state=in_one_line(str(result.get("state") or "unfinished"), 20),
        step=step if isinstance(step, int) else max(steps, default=None),
        best_loss=float(loss) if isinstance(loss, int | float) else None,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The config.yaml of a run or a checkpoint as plain values; empty when it is missing or is none."""
    with suppress(OSError, yaml.YAMLError, RecursionError, UnicodeDecodeError):
        file = folder / "config.yaml"
        if file.stat().st_size <= MOST_CONFIG_BYTES:
            contents = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)
            return contents if isinstance(contents, dict) else {}
    return {}


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML was built so: ten times as fast
