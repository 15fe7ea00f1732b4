"""Documents out of any dataset of the Hugging Face hub that has a column of text, at one commit of it.

The commit is asked for once and remembered, so that texts in the cache need no hub.
"""

import json
import random
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dtl.base.files import MANIFEST, read_manifest, write_atomically
from dtl.base.json_files import read_json
from dtl.base.network import hub_endpoint, require_hub, without_password
from dtl.data.collect import entry_name, text_code
from dtl.data.config import SPLITS, SourceConfig
from dtl.data.documents import Document, article
from dtl.data.hub.stream import HubStream
from dtl.data.local.files import SPLIT_WORDS, text_of
from dtl.errors import CheckpointError, DataError, did_you_mean

# --- commits ------------------------------------------------------------------------------------------------------
# Which commit of a hub's dataset is read: asked for once, then remembered beside the texts that are made of it.


NEWEST = "main"  # the hub's name for the newest commit
FOLDER = "hub"  # in the cache: a small file for each dataset
DEADLINE_S = 10.0  # for the hub's answer; whether it answers at all has been asked before


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit's full sha, which needs no hub to be known."""
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def remembered(cache: Path, dataset: str) -> str | None:
    """The sha of the commit that earlier starts with this cache used; None when there was none."""
    try:
        sha = read_json(_file(cache, dataset)).get("sha")
    except (OSError, CheckpointError):  # missing or damaged: the hub is asked again
        return None
    return sha if isinstance(sha, str) and is_commit(sha) else None


def remember(cache: Path, dataset: str, sha: str) -> None:
    """Use this commit from now on. A cache that cannot be written is no error: the next start asks again."""
    with suppress(OSError):
        (cache / FOLDER).mkdir(parents=True, exist_ok=True)
        write_atomically(_file(cache, dataset), json.dumps({"dataset": dataset, "sha": sha}) + "\n")


def _file(cache: Path, dataset: str) -> Path:
    return cache / FOLDER / f"{dataset.replace('/', '--')}.json"


def ask_for_commit(dataset: str, revision: str, key: str) -> str:
    """The sha of the commit that the hub has under this name now. `key` is where its settings stand, for messages.

    Raises DataError when there is no such dataset or revision, when it may not be read, or when the hub fails.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        sha = HfApi().dataset_info(dataset, revision=revision, timeout=DEADLINE_S).sha
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{key}={dataset}: the hub has no such dataset, or it is private. Look for it at "
            f"{without_password(hub_endpoint())}/datasets; a private one needs `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(
            f"{dataset}: has no revision '{revision}'. Give a branch, a tag or a commit's sha, or none."
        ) from error
    except HFValidationError as error:
        raise DataError(f"{key}={dataset}: is no name of a dataset, such as roneneldan/TinyStories.") from error
    except Exception as error:  # whatever its network, proxy and parser raise
        raise DataError(
            f"{dataset}: the hub did not say its revision ({type(error).__name__}: "
            f"{without_password(str(error))[:200]}). Try again."
        ) from error
    if not is_commit(sha):
        raise DataError(f"{dataset}: the hub named '{sha}' as its revision, which is no commit. Try again.")
    return str(sha)


# --- WikiText -----------------------------------------------------------------------------------------------------
# WikiText as plain prose (Merity et al., 2016): its rows are lines, cut into words with marks of their own.


_TITLE = re.compile(r"\s*= ([^=]+) =\s*")  # a line of its own; sections have more signs: = = History = =
_SECTION = re.compile(r"\s*(?:= ){2,}([^=]+?)(?: =){2,}\s*")
_JOINED = re.compile(r" ?@([-,.])@ ?")  # "mid @-@ air", "1 @,@ 900", "3 @.@ 5"
_BEFORE = re.compile(r" (?=[,.;:!?%)\]}](?:\s|$|[)\"',.;:]))")  # no space before these ...
_AFTER = re.compile(r"(?<=[(\[{$£€#]) ")  # ... nor after these
_CLITIC = re.compile(r" (?='(?:s|t|re|ve|m|ll|d)\b)| (?=n't\b)")
_QUOTED = re.compile(r'" ([^"]*?) "')


def articles(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Title and text of each article, from lines in their order. What comes before the first title has none."""
    title, paragraphs = "", list[str]()
    for line in lines:
        found = _TITLE.fullmatch(line)
        if found:
            if paragraphs:
                yield title, "\n".join(paragraphs)
            title, paragraphs = natural(found[1]), []
        elif line.strip():
            paragraphs.append(natural(line))
    if paragraphs:
        yield title, "\n".join(paragraphs)


def natural(line: str) -> str:
    """One line as it was before it was cut into words: `It was 3 @.@ 5 m , he said .` to `It was 3.5 m, he said.`"""
    section = _SECTION.fullmatch(line)
    text = section[1] if section else line.strip()
    text = _JOINED.sub(r"\1", text)
    text = _QUOTED.sub(r'"\1"', text)
    return _AFTER.sub("", _BEFORE.sub("", _CLITIC.sub("", text)))


# --- texts --------------------------------------------------------------------------------------------------------


SHUFFLE_BUFFER = 1000  # documents among which a stream is shuffled
# How a row becomes a document; without data.sources.<name>.rows the dataset's name says it, else a row is a text.
KNOWN_ROWS = {"wikimedia/wikipedia": "article", "salesforce/wikitext": "wikitext", "wikitext": "wikitext"}


@dataclass(frozen=True)
class HubWish:
    """What is wanted of the hub, and how to speak of it."""

    dataset: str
    subset: str | None
    source: SourceConfig
    reader: type  # the class of the source, whose code makes the texts
    key: str  # the setting that names the dataset: "data.path"
    settings: str  # where the source's other settings stand: "data.sources.hub"
    ways_on: str  # how to do without the hub
    cache: Path
    commit: str | None = None  # dataset@sha, as a run read it; a revision of `source` goes before it
    order_seed: int | None = None  # draws the order where only a part is read


class HubTexts:
    """A dataset of the hub: its documents by split, and which commit they are of.

    Raises DataError when the hub is needed and does not answer, and when it has no such dataset.
    """

    def __init__(self, wish: HubWish) -> None:
        self._wish = wish
        self._asked = False
        self._notes: list[str] = []
        self.sha = self._commit()
        subset = f" {wish.subset}" if wish.subset else ""
        self.origin = f"{wish.dataset}{subset} (hub, commit {self.sha[:12]})"
        if not self._is_cached():
            self.require_hub()

    def _commit(self) -> str:
        wish, revision = self._wish, self._wish.source.revision
        known = revision if is_commit(revision) else None
        if revision is None:
            dataset, _, kept = (wish.commit or "").rpartition("@")
            known = kept if dataset == wish.dataset else remembered(wish.cache, wish.dataset)
        if known is not None:
            return known
        self.require_hub()
        sha = ask_for_commit(wish.dataset, revision or NEWEST, wish.key)
        if revision in (None, NEWEST):
            remember(wish.cache, wish.dataset, sha)
        return sha

    def require_hub(self) -> None:
        """Asks once whether the hub answers. Raises DataError within 5 seconds when it does not."""
        if not self._asked:
            wish = self._wish
            before = remembered(wish.cache, wish.dataset)
            way_on = wish.ways_on
            if wish.source.revision is not None and before is not None:
                way_on = f"{wish.settings}.revision=null takes the commit of earlier starts ({before[:12]})\n{way_on}"
            require_hub(f"{wish.dataset}{f' ({wish.subset})' if wish.subset else ''}", way_on)
        self._asked = True

    def _is_cached(self) -> bool:
        """True when text of this commit, made by this code, is cached: then reading says if more is needed."""
        for entry in self._wish.cache.glob(f"{entry_name('*')}/{MANIFEST}"):
            with suppress(OSError, CheckpointError):
                facts = read_manifest(entry.parent).facts
                if facts.get("origin") == self.origin and facts.get("code") == self._code:
                    return self._code is not None
        return False

    @cached_property
    def _code(self) -> str | None:
        return text_code(self._wish.source.kind, self._wish.reader)

    def fingerprint(self) -> str:
        """Equal for equal documents: the dataset, the commit, and what is taken of it."""
        source = self._wish.source
        taken = [self._wish.subset, self.column, self.rows, sorted(source.splits.items())]
        return f"{self._wish.dataset}@{self.sha} {taken}"

    @property
    def commit(self) -> str:
        """What is read, for `data.commits`."""
        return f"{self._wish.dataset}@{self.sha}"

    @property
    def column(self) -> str:
        """The column with the text."""
        return self._wish.source.column or "text"

    @property
    def rows(self) -> str:
        """What a row is: text | article | wikitext."""
        return self._wish.source.rows or KNOWN_ROWS.get(self._wish.dataset.lower(), "text")

    def splits(self) -> dict[str, Iterator[Document]]:
        """Documents by split; they are downloaded as they are asked for."""
        self.require_hub()
        wish = self._wish
        stream = HubStream(wish.dataset, wish.subset, self.sha, self.origin, wish.settings)
        chosen = self._chosen(stream.columns)
        for name in chosen.values():
            columns = stream.columns[name]
            if columns and self.column not in columns:
                raise stream.no_column(self.column, columns)
        return {split: self._documents(stream, name, split, chosen) for split, name in chosen.items()}

    def _chosen(self, names: Collection[str]) -> dict[str, str]:
        """Our splits, and what the dataset calls them."""
        wish = self._wish
        given = wish.source.splits
        if given:
            for split, name in given.items():
                if name not in names:
                    raise DataError(
                        f"{wish.settings}.splits.{split}={name}: {self.origin} has no such split. "
                        f"It has {', '.join(names)}.{did_you_mean(name, names)}"
                    )
            return {split: given[split] for split in SPLITS if split in given}
        found: dict[str, str] = {}
        for name in names:
            if name.lower() in SPLIT_WORDS:
                found.setdefault(SPLIT_WORDS[name.lower()], name)
        if "train" not in found:
            raise DataError(
                f"{self.origin}: none of its splits is named as one to train on. Found: {', '.join(names)}. "
                f"Say which: {wish.settings}.splits={{train: {next(iter(names), 'NAME')}}}"
            )
        unread = [name for name in names if name not in found.values()]
        if unread:
            self._notes.append(f"{self.origin}: not read: {', '.join(unread)} ({wish.settings}.splits names others).")
        return {split: found[split] for split in SPLITS if split in found}

    def _documents(self, stream: HubStream, name: str, split: str, chosen: Collection[str]) -> Iterator[Document]:
        seed = self._wish.order_seed if split == "train" else None
        if self.rows == "wikitext":  # lines: their order is the text
            from dtl.data.hub.texts import articles

            lines = (self._text(text) for (text,) in stream.rows(name, [self.column], None, SHUFFLE_BUFFER))
            texts = (article(title, text) for title, text in articles(lines))
            yield from texts if seed is None else shuffled(texts, seed, SHUFFLE_BUFFER)
        else:
            columns = [self.column, *(["title"] if self.rows == "article" else [])]
            for text, *title in stream.rows(name, columns, seed, SHUFFLE_BUFFER):
                yield article(self._text(title[0]) if title else "", self._text(text))
        if split == [*chosen][-1]:
            stream.end()

    def _text(self, value: Any) -> str:
        return text_of(value, f"{self.origin}, column {self.column}")

    def notes(self) -> list[str]:
        """Which commit the documents are of."""
        wish = self._wish
        return [
            f"{wish.dataset}: read at commit {self.sha}; {wish.settings}.revision={NEWEST} takes the newest.",
            *self._notes,
        ]


def shuffled(documents: Iterable[Document], seed: int, buffer_size: int) -> Iterator[Document]:
    """The documents in an order that the seed draws, each moved by about `buffer_size` places."""
    draw = random.Random(seed)
    held: list[Document] = []
    for arrived in documents:
        if len(held) < buffer_size:
            held.append(arrived)
            continue
        place = draw.randrange(buffer_size)
        yield held[place]
        held[place] = arrived
    draw.shuffle(held)
    yield from held
