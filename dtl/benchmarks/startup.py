"""suite=startup: the time from the start of a process to its first step, which every trial of a sweep pays.

The peer is Hugging Face's Trainer, with a model of the same size and tokens that are already in memory.
"""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dtl.base.json_files import read_json
from dtl.benchmarks import trainer_peer
from dtl.benchmarks.config import SUITES
from dtl.benchmarks.measuring import MissingPeerError, Row, at_most, compared, in_turns, peer, skipped
from dtl.benchmarks.suite import MAX_CHARACTERS, Suite, Workplace, made_file, run_program, train_command
from dtl.commandline.overrides import quoted
from dtl.errors import DTLError
from dtl.tracking.metrics import METRICS

RUN = (
    *("model=small", "data=text", "tokenizer=bpe", "trainer=cpu", "tracker=local", "device=cpu", "data.seq_len=64"),
    *("trainer.max_epochs=null", "trainer.total_steps=2", "trainer.micro_batch_size=8", "trainer.grad_accum_steps=1"),
    *("trainer.log_every_steps=1", "trainer.eval_max_batches=1"),
)
TINY = ("model.dim=16", "model.n_heads=1", "model.n_layers=1", "tokenizer.vocab_size=300")
MAX_SECONDS = 6.0  # 4.5 was measured (docs/results.md)
POLL_SECONDS = 0.005


def first_step(place: Workplace) -> Iterator[Row]:
    """Yield one row: seconds to the end of the first step, with their parts in its note."""
    row = Row(
        "first_step",
        "process start to the end of the first step, model=small, cached data",
        "s",
        peer_name="transformers.Trainer, tokens in memory",
        goal=at_most(MAX_SECONDS, "s"),
    )
    try:
        peer("accelerate", "pip install accelerate (the Trainer needs it)")
    except MissingPeerError as error:
        yield skipped(row, str(error))
        return
    text, first = made_file(place, 200_000), place.folder / "first"
    run = [*RUN, *(TINY if place.settings.tiny else ()), f"data.path={quoted(str(text))}"]
    run.append(f"data.cache_dir={quoted(str(place.folder / 'cache'))}")
    run_program(_into(first, run), place.folder, "the run that fills the cache")
    model = read_json(first / "checkpoints" / "best" / "config.json")  # the peer has the same size
    size = [str(model[key]) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")]
    numbers = itertools.count()

    def ours() -> None:
        folder = place.folder / f"run-{next(numbers)}"
        _until(lambda: any(file.stat().st_size for file in folder.glob(METRICS)), _into(folder, run), place.folder)

    def theirs() -> None:
        done = place.folder / f"peer-{next(numbers)}"
        _until(done.exists, [sys.executable, str(Path(trainer_peer.__file__)), str(done), *size], place.folder)

    seconds = in_turns(ours, theirs, place.settings.rounds)
    yield replace(compared(row, seconds), note=_parts(place, run, min(seconds[0])))


SUITES.register("startup")(Suite({"first_step": first_step}))


def _parts(place: Workplace, run: Sequence[str], total: float) -> str:
    """Describe the parts of the fastest round, each the difference of two processes that stop one after the other."""

    def seconds(*arguments: str) -> float:
        measured = []
        for _ in range(place.settings.rounds):
            began = time.perf_counter()
            run_program([sys.executable, *arguments], place.folder, " ".join(arguments[:2]))
            measured.append(time.perf_counter() - began)
        return min(measured)  # other load only adds

    def imports(*modules: str) -> float:
        return seconds("-c", f"import {', '.join(modules)}")

    python = seconds("-c", "pass")
    composing = seconds("-m", "dtl.train", *run, "--cfg", "job")
    imported = [
        imports("dtl.train"),  # a part of composing
        imports("dtl.train", "torch"),
        imports("dtl.train", "torch._dynamo"),
        imports("dtl.train", "torch._dynamo", "dtl.runner.run"),
    ]
    torch, dynamo, other = (after - before for before, after in itertools.pairwise(imported))
    rest = total - composing - torch - dynamo - other
    return (
        f"the fastest: Python {python:.2f} s, Hydra and the checks of the config {composing - python:.2f} s, "
        f"import torch {torch:.2f} s, torch._dynamo, which torch imports for its first optimizer, {dynamo:.2f} s, "
        f"other imports {other:.2f} s, opening the data, building the model and the first step {rest:.2f} s"
    )


def _into(folder: Path, run: Sequence[str]) -> list[str]:
    return train_command(*run, f"hydra.run.dir={quoted(str(folder))}")


def _until(done: Callable[[], bool], command: Sequence[str], folder: Path) -> None:
    """Start a process, wait until `done()`, kill it. Raises DTLError when it ends before."""
    log = folder / "log.txt"
    with log.open("wb") as output, subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) as process:
        while not done():
            if process.poll() is not None:
                end = log.read_text(encoding="utf-8", errors="replace")[-MAX_CHARACTERS:]
                raise DTLError(f"{' '.join(command[1:4])}: ended before its first step: {end}")
            time.sleep(POLL_SECONDS)
        process.kill()
