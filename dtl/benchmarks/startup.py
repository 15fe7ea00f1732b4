"""suite=startup: what a trial of a sweep costs before it learns: from the start of its process to its first step.

Beside it Hugging Face's Trainer, with a model of the same size and tokens that are ready in memory.
"""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from dtl.benchmarks import trainer_peer
from dtl.benchmarks.config import SUITES
from dtl.benchmarks.made_text import made_articles
from dtl.benchmarks.measuring import MissingPeerError, Row, at_most, compared, in_turns, peer, skipped
from dtl.benchmarks.suite import Suite, Workplace
from dtl.errors import DTLError
from dtl.tracking import METRICS

RUN = (
    *("model=small", "data=text", "tokenizer=bpe", "trainer=cpu", "tracker=local", "device=cpu", "data.seq_len=64"),
    *("trainer.max_epochs=null", "trainer.total_steps=2", "trainer.micro_batch_size=8", "trainer.grad_accum_steps=1"),
    *("trainer.log_every_steps=1", "trainer.eval_max_batches=1"),
)
TINY = ("model.dim=16", "model.n_heads=1", "model.n_layers=1", "tokenizer.vocab_size=300")
MOST_SECONDS = 6.0
SECONDS_BETWEEN_LOOKS = 0.005


def first_step(place: Workplace) -> Iterator[Row]:
    """One row: seconds to the end of the first step. Its note says what they consist of."""
    row = Row(
        "first_step",
        "process start to the end of the first step, model=small, cached data",
        "s",
        peer_name="transformers.Trainer, tokens in memory",
        goal=at_most(MOST_SECONDS, "s"),
    )
    try:
        peer("accelerate", "pip install accelerate (the Trainer needs it)")
    except MissingPeerError as error:
        yield skipped(row, str(error))
        return
    text = place.folder / "made.txt"
    text.write_text("\n\n".join(body for _, body in made_articles(200_000, place.settings.seed)), encoding="utf-8")
    run = [*RUN, *(TINY if place.settings.tiny else ()), f"data.path='{text}'"]
    run.append(f"data.cache_dir='{place.folder / 'cache'}'")
    _completed([sys.executable, "-m", "dtl.train", *run, f"hydra.run.dir='{place.folder / 'first'}'"], place.folder)
    numbers = itertools.count()

    def ours() -> None:
        folder = place.folder / f"run-{next(numbers)}"
        command = [sys.executable, "-m", "dtl.train", *run, f"hydra.run.dir='{folder}'"]
        _until(lambda: _has_content(folder / METRICS), command, place.folder)

    def theirs() -> None:
        done = place.folder / f"peer-{next(numbers)}"
        size = ("16", "1", "1", "300") if place.settings.tiny else ("256", "4", "6", "8192")
        _until(done.exists, [sys.executable, str(Path(trainer_peer.__file__)), str(done), *size], place.folder)

    seconds = in_turns(ours, theirs, place.settings.rounds)
    yield replace(compared(row, seconds), note=_made_of(place, run, median(seconds[0])))


SUITES.register("startup")(Suite({"first_step": first_step}))


def _made_of(place: Workplace, run: Sequence[str], whole: float) -> str:
    """The parts of the time, each measured alone in processes that go a little further than the one before."""

    def seconds(*arguments: str) -> float:
        measured = []
        for _ in range(place.settings.rounds):
            began = time.perf_counter()
            _completed([sys.executable, *arguments], place.folder)
            measured.append(time.perf_counter() - began)
        return median(measured)

    python = seconds("-c", "pass")
    composing = seconds("-m", "dtl.train", *run, "--cfg", "job") - python
    torch = seconds("-c", "import torch") - python
    other = seconds("-c", "import dtl.train, dtl.run") - python - torch
    rest = whole - python - composing - torch - other
    return (
        f"Python {python:.2f} s, Hydra and the checks of the config {composing:.2f} s, import torch {torch:.2f} s, "
        f"other imports {other:.2f} s, opening the data, building the model and the first step {rest:.2f} s"
    )


def _has_content(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _until(sign: Callable[[], bool], command: Sequence[str], folder: Path) -> None:
    """Start a process, wait for a sign of it, end it. Raises DTLError when it ends without."""
    log = folder / "log.txt"
    with log.open("wb") as output, subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) as process:
        while not sign():
            if process.poll() is not None:
                raise DTLError(f"{' '.join(command[1:4])}: ended before its first step: {_end_of(log)}")
            time.sleep(SECONDS_BETWEEN_LOOKS)
        process.kill()


def _completed(command: Sequence[str], folder: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise DTLError(f"{' '.join(command[1:4])}: failed: {(done.stderr or done.stdout)[-600:]}")


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-600:]
