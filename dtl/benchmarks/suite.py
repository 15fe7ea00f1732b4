"""Suites, measurements by name that each yield rows, with the input texts and the programs that they share."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from dtl.benchmarks.config import BenchConfig
from dtl.benchmarks.made_text import made_articles, write_made_dump
from dtl.benchmarks.measuring import MissingPeerError, Row
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document
from dtl.data.sources import plan_sources
from dtl.errors import ConfigError, DTLError, did_you_mean


@dataclass(frozen=True)
class Workplace:
    """The input of a measurement: the settings, and a folder that is removed at the end."""

    settings: BenchConfig
    folder: Path
    log: Callable[[str], None] = lambda line: None  # of what takes minutes


Measurement = Callable[[Workplace], Iterator[Row]]


@dataclass(frozen=True)
class Suite:
    """Measurements in order. Those in `long` run only with full=true or by name.

    A suite of your own, in a module of plugins=: `SUITES.register("mine")(Suite({"sorting": sorting}))`.
    """

    measurements: Mapping[str, Measurement]
    long: frozenset[str] = frozenset()

    def chosen(self, settings: BenchConfig) -> dict[str, Measurement]:
        """Return the measurements that the settings select. Raises ConfigError for an unknown name."""
        for name in settings.rows:
            if name not in self.measurements:
                known = list(self.measurements)
                raise ConfigError(
                    f"rows=[{name}]: suite={settings.suite} has no such measurement. Known: {', '.join(known)}."
                    f"{did_you_mean(name, known)}"
                )
        if settings.rows:
            return {name: self.measurements[name] for name in self.measurements if name in settings.rows}
        return {name: measure for name, measure in self.measurements.items() if settings.full or name not in self.long}


def measured(chosen: Mapping[str, Measurement], settings: BenchConfig, log: Callable[[str], None]) -> Iterator[Row]:
    """Yield the rows of the chosen measurements; `log` says what is measured."""
    with tempfile.TemporaryDirectory(prefix="dtl-bench-", ignore_cleanup_errors=True) as folder:
        for name, measure in chosen.items():
            log(f"measuring {name}")
            own = Path(folder) / name
            own.mkdir()
            yield from measure(Workplace(settings, own, log))


# --- inputs -------------------------------------------------------------------------------------------------------

MEGABYTE = 1_000_000
VOCABULARY, TINY_VOCABULARY = 50_257, 257  # GPT-2's; with tiny=true


def documents(place: Workplace, n_characters: int) -> list[Document]:
    """Return articles up to `n_characters`, given or synthetic, with the title first as in data=wiki."""
    settings = place.settings
    if settings.wiki is None:
        return [Document(f"{title}\n\n{text}") for title, text in made_articles(n_characters, settings.seed)]
    config = DataConfig(sources={"wiki": SourceConfig(kind="wiki", path=settings.wiki)})
    taken: list[Document] = []
    n_taken = 0
    for document in plan_sources(config, settings.seed)[0].source.splits()["train"]:
        taken.append(document)
        n_taken += len(document.text)
        if n_taken >= n_characters:
            break
    return taken


def made_file(place: Workplace, n_characters: int) -> Path:
    """Write a text file of synthetic articles, for data=text."""
    file = place.folder / "made.txt"
    articles = made_articles(n_characters, place.settings.seed)
    file.write_text("\n\n".join(body for _, body in articles), encoding="utf-8")
    return file


def made_articles_file(place: Workplace, n_characters: int) -> Path:
    """Write synthetic articles as data=wiki reads them, for data.path."""
    file = place.folder / "made.jsonl"
    articles = made_articles(n_characters, place.settings.seed)
    file.write_text("".join(json.dumps({"title": title, "text": text}) + "\n" for title, text in articles))
    return file


def text_name(place: Workplace) -> str:
    """Return a few words about the text of `documents`."""
    return "synthetic text" if place.settings.wiki is None else f"text of {place.settings.wiki}"


def dump(place: Workplace, n_characters: int) -> Path:
    """Return the given dump, or write a synthetic one of about `n_characters` of wikitext."""
    if place.settings.dump is not None:
        return Path(place.settings.dump).expanduser()
    file = place.folder / "made.xml.bz2"
    write_made_dump(file, n_characters, place.settings.seed)
    return file


# --- programs -----------------------------------------------------------------------------------------------------

ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
MAX_CHARACTERS = 2000  # of the output of a failed program


def train_command(*overrides: str) -> list[str]:
    """Return the command `python -m dtl.train` with this Python."""
    return [sys.executable, "-m", "dtl.train", *overrides]


Work = TypeVar("Work")  # dataclasses of plain values
Done = TypeVar("Done")


def in_rotation(work: Work, sides: Sequence[str], rounds: int, run: Callable[[Work], Done]) -> dict[str, list[Done]]:
    """Run the work of each side in each round, another one first each time, so that other load slows all alike.

    `work.side` names the side. Returns what each side did in the rounds.
    """
    done: dict[str, list[Done]] = {side: [] for side in sides}
    for number in range(rounds):
        at = number % len(sides)
        for side in [*sides[at:], *sides[:at]]:
            done[side].append(run(replace(cast(Any, work), side=side)))
    return done


def run_side(module: str, work: Any, done: type[Done], failed: str) -> Done:
    """Run `python -m module WORK`, one thread bound to a core where the system can; what it prints as JSON at its end.

    Raises DTLError that begins with `failed` when it fails.
    """
    on_one_core = []
    if hasattr(os, "sched_getaffinity") and shutil.which("taskset"):
        on_one_core = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
    command = [*on_one_core, sys.executable, "-m", module, json.dumps(asdict(work))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD)
    if ended.returncode:
        raise DTLError(f"{failed}: {ended.stderr.strip()[-MAX_CHARACTERS:]}")
    return done(**json.loads(ended.stdout.splitlines()[-1]))


def missing_peer(ask: Callable[[], object]) -> str | None:
    """Return how to install a peer that `ask` does not find; None where it does."""
    try:
        ask()
    except MissingPeerError as error:
        return str(error)
    return None


def run_program(command: Sequence[str], folder: Path, what: str) -> None:
    """Run a command in a folder. Raises DTLError that `what` failed, with the end of its output."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DTLError(f"{what} failed: {(done.stderr or done.stdout).strip()[-MAX_CHARACTERS:]}")
