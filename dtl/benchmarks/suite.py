"""What a suite is: measurements by name, each of which gives one or several rows."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtl.benchmarks.config import BenchConfig
from dtl.benchmarks.made_text import made_articles, write_made_dump
from dtl.benchmarks.measuring import Row
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document
from dtl.data.sources import plan_sources
from dtl.errors import ConfigError, DTLError, did_you_mean


@dataclass(frozen=True)
class Workplace:
    """What a measurement is given: the settings, and a folder that is removed at the end."""

    settings: BenchConfig
    folder: Path


Measurement = Callable[[Workplace], Iterator[Row]]


@dataclass(frozen=True)
class Suite:
    """Measurements in their order. `long` names those that are left out unless asked for.

    One of your own, in a module that plugins= names: `SUITES.register("mine")(Suite({"sorting": sorting}))`.
    """

    measurements: Mapping[str, Measurement]
    long: frozenset[str] = frozenset()

    def chosen(self, settings: BenchConfig) -> dict[str, Measurement]:
        """The measurements that the settings ask for. Raises ConfigError for a name that is not there."""
        for name in settings.rows:
            if name not in self.measurements:
                known = list(self.measurements)
                raise ConfigError(
                    f"rows=[{name}]: suite={settings.suite} has no such measurement. Known: {', '.join(known)}."
                    f"{did_you_mean(name, known)}"
                )
        if settings.rows:
            return {name: self.measurements[name] for name in self.measurements if name in settings.rows}
        return {name: made for name, made in self.measurements.items() if settings.full or name not in self.long}


def measured(chosen: Mapping[str, Measurement], settings: BenchConfig, say: Callable[[str], None]) -> Iterator[Row]:
    """The rows of the chosen measurements, as they are made; `say` is told the name of each before it begins."""
    with tempfile.TemporaryDirectory(prefix="dtl-bench-", ignore_cleanup_errors=True) as folder:
        for name, measure in chosen.items():
            say(name)
            own = Path(folder) / name
            own.mkdir()
            yield from measure(Workplace(settings, own))


# --- inputs -------------------------------------------------------------------------------------------------------
# What the measurements are given: a person's own text or made text, and the size of a vocabulary.


MEGABYTE = 1_000_000
VOCABULARY, TINY_VOCABULARY = 50_257, 257  # GPT-2's; with tiny=true


def documents(place: Workplace, n_characters: int) -> list[Document]:
    """Articles up to the one that reaches so many characters, title first as data=wiki gives them."""
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
    """A text file of made articles, for data=text."""
    file = place.folder / "made.txt"
    articles = made_articles(n_characters, place.settings.seed)
    file.write_text("\n\n".join(body for _, body in articles), encoding="utf-8")
    return file


def text_named(place: Workplace) -> str:
    """Which text that is, in a few words."""
    return "made text" if place.settings.wiki is None else f"text of {place.settings.wiki}"


def dump(place: Workplace, n_characters: int) -> Path:
    """The dump that was given, or a made one of about so many characters of wikitext."""
    if place.settings.dump is not None:
        return Path(place.settings.dump).expanduser()
    file = place.folder / "made.xml.bz2"
    write_made_dump(file, n_characters, place.settings.seed)
    return file


# --- programs -----------------------------------------------------------------------------------------------------
# Programs that a suite runs as a person would, each in a process of its own.


MAX_CHARACTERS = 2000  # of what a failed program wrote


def train_command(*overrides: str) -> list[str]:
    """`python -m dtl.train` with this Python."""
    return [sys.executable, "-m", "dtl.train", *overrides]


def run_program(command: Sequence[str], folder: Path, what: str) -> None:
    """Run it to its end in a folder. Raises DTLError that `what` failed, with the end of what it wrote."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DTLError(f"{what} failed: {(done.stderr or done.stdout).strip()[-MAX_CHARACTERS:]}")
