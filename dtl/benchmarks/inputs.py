"""What the measurements are given: a person's own text or made text, and the size of a vocabulary."""

from pathlib import Path

from dtl.benchmarks.made_text import made_articles, write_made_dump
from dtl.benchmarks.suite import Workplace
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document
from dtl.data.sources import open_sources

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
    for document in open_sources(config, settings.seed)["wiki"].splits()["train"]:
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
