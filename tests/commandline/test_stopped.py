"""A command that is stopped before it has begun: no traceback, no folder, the exit code of the signal."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dtl.train
from dtl.base.signals import STOP
from dtl.data.documents import Document
from dtl.registry import SOURCES

WORDS = "model.dim=16 model.n_layers=1 model.n_heads=2 tokenizer=byte tracker=local device=cpu"


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("module", ["yaml", "antlr4", "omegaconf"])  # imported early, later, by a library
def test_ctrl_c_during_the_imports(module: str, tmp_path: Path) -> None:
    """In a library that makes another error of it."""
    (tmp_path / f"{module}.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException:\n    raise ImportError('x')\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(dtl.__file__).parents[1])])
    ended = subprocess.run(
        [sys.executable, "-m", "dtl.train", "data=qa"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (ended.returncode, ended.stderr.strip()) == (130, "Stopped.")
    assert not (tmp_path / "outputs").exists()


class StoppingSource:
    """A source that is stopped as it is read, or as soon as it is named."""

    number = int(signal.SIGINT)
    at_once = False

    def __init__(self, name: str, source: object, data: object, seed: int) -> None:
        self.origin = name
        if self.at_once:
            signal.raise_signal(self.number)

    def splits(self) -> dict[str, Iterator[Document]]:
        return {"train": self.documents()}

    def documents(self) -> Iterator[Document]:
        yield Document("Roses are red. " * 99)
        signal.raise_signal(self.number)

    def notes(self) -> list[str]:
        return []


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("number", STOP)
def test_stopped_in_the_preparation_of_the_data(
    number: int,
    at_once: bool,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sources: Any = SOURCES
    monkeypatch.setitem(sources._parts, "stopping", StoppingSource)
    monkeypatch.setattr(StoppingSource, "number", int(number))
    monkeypatch.setattr(StoppingSource, "at_once", at_once)
    words = "~data.sources.qa data.sources.mine.kind=stopping"
    monkeypatch.setattr(sys, "argv", ["dtl.train", *WORDS.split(), *words.split(), f"data.cache_dir={elsewhere}/c"])
    with pytest.raises(SystemExit) as ended:
        dtl.train.main()
    shown = capfd.readouterr()
    assert ended.value.code == 128 + number, shown
    assert shown.err.strip() == "Stopped."
    assert not [path for path in (elsewhere / "outputs").rglob("*") if path.is_file()]
    assert not list((elsewhere / "outputs").glob("*/*"))


@pytest.mark.skipif(os.name == "nt", reason="fcntl")
@pytest.mark.parametrize("words", ["", "hydra.run.dir=outputs/own/run", "hydra.run.dir=theirs", "-m seed=1,2"])
def test_a_disk_that_is_full_before_the_first_file(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    """Hydra's own file is the first; the error of a write names no file. Nothing of the run is left."""

    def full(config: object, filename: str | Path, output_dir: Path = Path(), **_: object) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / filename).touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hydra.core.utils._save_config", full)
    monkeypatch.setattr("omegaconf.OmegaConf.save", full)
    Path("theirs").mkdir()
    Path("theirs/notes.txt").touch()
    monkeypatch.setattr(sys, "argv", ["dtl.train", *WORDS.split(), *words.split()])
    with pytest.raises(SystemExit) as ended:
        dtl.train.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"Error: {elsewhere}: the disk is full. Make room, or write elsewhere: " + (
        "hydra.run.dir=FOLDER.\n"
    )
    files = [str(path.relative_to(elsewhere)) for path in elsewhere.rglob("*")]
    assert sorted(files) in (["theirs", "theirs/notes.txt"], ["outputs", "theirs", "theirs/notes.txt"])
