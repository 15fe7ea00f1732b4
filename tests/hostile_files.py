"""Files of all kinds that another could have put into a folder, and every reader of a folder."""

import importlib
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from dtl.base import json_files
from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.load import load_tokenizer, load_training_state, read_model_config
from dtl.data.tokenizers.prompt import has_learnt_questions_alone
from dtl.errors import DTLError
from dtl.reports.reading import read_run
from dtl.run_dir.own_config import with_data_found
from dtl.run_dir.state import read_run_state, resume_command
from dtl.run_dir.sweep_records import SweepFolder
from dtl.sweeps.table import status_of
from dtl.terminal.loading import read_facts
from dtl.tracking.metrics import read_metrics, truncate_metrics

ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)


def sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(2**40)


KINDS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "endless": lambda file: file.symlink_to("/dev/zero"),
    "sparse": sparse,
    "folder": lambda file: file.mkdir(),
    "loop": lambda file: file.symlink_to(file.name),
    "brackets": lambda file: file.write_text("[" * 60_000),
    "nested": lambda file: file.write_text('{"a":' * 60_000),
    "wide": lambda file: file.write_text('{"step":1,"a":[' + "[]," * 20_000 + "0]}"),
    "aliases": lambda file: file.write_text(ALIASES),
    "digits": lambda file: file.write_text(f'{{"step": {"9" * 4299}, "value": {"9" * 4299}, "seed": -{"9" * 4299}}}\n'),
    "latin-1": lambda file: file.write_bytes('{"state": "é"}'.encode("latin-1")),
    "types": lambda file: file.write_text(
        '{"state": [[1]], "sessions": [[1]], "overrides": [[1]], "flags": [[1]], "train": [[1]], "trainer": [[1]], '
        '"data": [[1]], "files": [[1]], "step": [[1]], "dtl": [[1]], "name": [[1]], "value": [[1]], "seed": [[1]]}'
    ),
}  # fmt: skip


def read_all(run: Path) -> None:
    """Every reader of a folder that another could have made. Only errors for users may leave it."""
    best = run / "checkpoints" / "best"
    config = read_run_state(run) and json_files.read_yaml_or_empty(run / "config.yaml")
    readers: list[Callable[[], object]] = [
        lambda: read_run(run),
        lambda: resume_command(run),
        lambda: with_data_found(config, run),
        lambda: status_of(SweepFolder(run)),
        lambda: find_checkpoint(str(run), run),
        lambda: find_checkpoint(str(run), run, prefer="newest"),
        lambda: read_model_config(best),
        lambda: load_tokenizer(best),
        lambda: load_training_state(best),
        lambda: read_facts(best),
        lambda: has_learnt_questions_alone(best),
        lambda: truncate_metrics(run, 0),
        lambda: read_metrics(run),
    ]
    for reader in readers:
        with suppress(DTLError, OSError):
            reader()


def printed_by(name: str, word: str, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> str:
    """Run a command of DTL on a word, without input; it says something, and that is no traceback."""
    monkeypatch.setattr(sys, "argv", [f"dtl-{name}", word])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with suppress(SystemExit):
        importlib.import_module(f"dtl.{name}").main()
    printed = "".join(capture.readouterr())
    assert printed and "Traceback" not in printed, printed
    return printed
