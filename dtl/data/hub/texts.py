"""The source `hub`: any dataset of the Hugging Face hub with a column of text, at one commit.

The hub is asked for the commit once and the cache stores it, so that cached texts need no hub.
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
from dtl.base.units import number_of
from dtl.data.cache import cache_folder, create_cache_folder
from dtl.data.collect import entry_name, text_code
from dtl.data.config import SPLITS, DataConfig, SourceConfig
from dtl.data.documents import AsRead, Document, article
from dtl.data.hub.stream import HubStream
from dtl.data.local.files import SPLIT_WORDS, text_of
from dtl.data.sources import order_seed, path_key
from dtl.errors import CheckpointError, DataError, did_you_mean
from dtl.registry import SOURCES

# --- commits ------------------------------------------------------------------------------------------------------

NEWEST = "main"  # the hub's name for the newest commit
FOLDER = "hub"  # in the cache: a small file for each dataset
DEADLINE_S = 10.0  # for the hub's answer, after `require_hub` has checked that it answers at all


def is_commit(revision: str | None) -> bool:
    """Return True for a commit's full sha, which needs no hub to resolve."""
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def remembered(cache: Path, dataset: str) -> str | None:
    """Return the sha of the commit that earlier starts with this cache used; None when there was none."""
    try:
        sha = read_json(_file(cache, dataset)).get("sha")
    except (OSError, CheckpointError):  # missing or damaged: the hub is asked again
        return None
    return sha if isinstance(sha, str) and is_commit(sha) else None


def remember(cache: Path, dataset: str, sha: str) -> None:
    """Store the commit to use from now on. A read-only cache is no error: the next start asks the hub again."""
    with suppress(OSError):
        create_cache_folder(cache)
        (cache / FOLDER).mkdir(exist_ok=True)
        write_atomically(_file(cache, dataset), json.dumps({"dataset": dataset, "sha": sha}) + "\n")


def _file(cache: Path, dataset: str) -> Path:
    return cache / FOLDER / f"{dataset.replace('/', '--')}.json"


def ask_for_commit(dataset: str, revision: str, key: str) -> str:
    """Return the sha of the commit that a revision names on the hub now. `key` is the dataset's setting, for messages.

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
        raise DataError(f"{key}={dataset}: not the name of a dataset, such as roneneldan/TinyStories.") from error
    except Exception as error:  # whatever its network, proxy and parser raise
        raise DataError(
            f"{dataset}: the hub did not return a commit ({type(error).__name__}: "
            f"{without_password(str(error))[:200]}). Try again."
        ) from error
    if not is_commit(sha):
        raise DataError(f"{dataset}: the hub returned '{sha}', which is not a commit. Try again.")
    return str(sha)


# --- WikiText -----------------------------------------------------------------------------------------------------
# WikiText to plain prose (Merity et al. 2016): its rows are lines, tokenized into words with marks such as ` @-@ `.

_TITLE = re.compile(r"\s*= ([^=]+) =\s*")  # a line of its own; sections have more signs: = = History = =
_SECTION = re.compile(r"\s*(?:= ){2,}([^=]+?)(?: =){2,}\s*")
_JOINED = re.compile(r" ?@([-,.])@ ?")  # "mid @-@ air", "1 @,@ 900", "3 @.@ 5"
_BEFORE = re.compile(r" (?=[,.;:!?%)\]}](?:\s|$|[)\"',.;:]))")  # no space before these ...
_AFTER = re.compile(r"(?<=[(\[{$£€#]) ")  # ... nor after these
_CLITIC = re.compile(r" (?='(?:s|t|re|ve|m|ll|d)\b)| (?=n't\b)")
_QUOTED = re.compile(r'" ([^"]*?) "')


def articles(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield title and text of each article, from lines in order. Text before the first title has an empty title."""
    title, paragraphs = "", list[str]()
    for line in lines:
        heading = _TITLE.fullmatch(line)
        if heading:
            if paragraphs:
                yield title, "\n".join(paragraphs)
            title, paragraphs = natural(heading[1]), []
        elif line.strip():
            paragraphs.append(natural(line))
    if paragraphs:
        yield title, "\n".join(paragraphs)


def natural(line: str) -> str:
    """Return a line without WikiText's tokenization: `It was 3 @.@ 5 m , he said .` to `It was 3.5 m, he said.`"""
    section = _SECTION.fullmatch(line)
    text = section[1] if section else line.strip()
    text = _JOINED.sub(r"\1", text)
    text = _QUOTED.sub(r'"\1"', text)
    return _AFTER.sub("", _BEFORE.sub("", _CLITIC.sub("", text)))


# --- texts --------------------------------------------------------------------------------------------------------

SHUFFLE_BUFFER = 1000  # documents among which a stream is shuffled
# The kind of rows of known datasets, without data.sources.<name>.rows; a row of any other dataset is a text.
KNOWN_ROWS = {"wikimedia/wikipedia": "article", "salesforce/wikitext": "wikitext", "wikitext": "wikitext"}


@dataclass(frozen=True)
class HubDatasetSpec:
    """The dataset of the hub to read, and its settings for messages."""

    dataset: str
    subset: str | None
    source: SourceConfig
    reader: type  # the class of the source, whose code makes the texts
    key: str  # the setting that names the dataset: "data.path"
    settings: str  # prefix of the source's other settings: "data.sources.hub"
    alternatives: str  # ways to do without the hub
    cache: Path
    commit: str | None = None  # dataset@sha, as a run recorded it; a revision of `source` takes precedence
    order_seed: int | None = None  # draws the order where only a part is read


class HubTexts:
    """A dataset of the hub at one commit: its documents by split.

    Raises DataError when the hub is needed and does not answer, and when it has no such dataset.
    """

    def __init__(self, spec: HubDatasetSpec) -> None:
        self._spec = spec
        self._asked = False
        self._notes: list[str] = []
        self._n_numbers = 0  # read as texts
        self.sha = self._commit()
        subset = f" {spec.subset}" if spec.subset else ""
        self.origin = f"{spec.dataset}{subset} (hub, commit {self.sha[:12]})"
        if not self._is_cached():
            self.require_hub()

    def _commit(self) -> str:
        spec, revision = self._spec, self._spec.source.revision
        known = revision if is_commit(revision) else None
        if revision is None:
            dataset, _, kept = (spec.commit or "").rpartition("@")
            known = kept if dataset == spec.dataset else remembered(spec.cache, spec.dataset)
        if known is not None:
            return known
        self.require_hub()
        sha = ask_for_commit(spec.dataset, revision or NEWEST, spec.key)
        if revision in (None, NEWEST):
            remember(spec.cache, spec.dataset, sha)
        return sha

    def require_hub(self) -> None:
        """Checks once that the hub answers. Raises DataError within 5 seconds when it does not."""
        if not self._asked:
            spec = self._spec
            before = remembered(spec.cache, spec.dataset)
            alternatives = spec.alternatives
            if spec.source.revision is not None and before is not None:
                alternatives = (
                    f"{spec.settings}.revision=null takes the commit of earlier starts ({before[:12]})\n{alternatives}"
                )
            require_hub(f"{spec.dataset}{f' ({spec.subset})' if spec.subset else ''}", alternatives)
        self._asked = True

    def _is_cached(self) -> bool:
        """Return True when text of this commit, made by this code, is cached; reading then shows if more is needed."""
        for entry in self._spec.cache.glob(f"{entry_name('*')}/{MANIFEST}"):
            with suppress(OSError, CheckpointError):
                facts = read_manifest(entry.parent).facts
                if facts.get("origin") == self.origin and facts.get("code") == self._code:
                    return self._code is not None
        return False

    @cached_property
    def _code(self) -> str | None:
        return text_code(self._spec.source.kind, self._spec.reader)

    def fingerprint(self) -> str:
        """Return a text that is equal for equal documents: the dataset, the commit, and the parts that are read."""
        source = self._spec.source
        taken = [self._spec.subset, self.column, self.rows, sorted(source.splits.items())]
        return f"{self._spec.dataset}@{self.sha} {taken}"

    @property
    def commit(self) -> str:
        """The dataset and its commit, for `data.commits`."""
        return f"{self._spec.dataset}@{self.sha}"

    @property
    def column(self) -> str:
        """The column with the text."""
        return self._spec.source.column or "text"

    @property
    def rows(self) -> str:
        """The kind of rows: text | article | wikitext."""
        return self._spec.source.rows or KNOWN_ROWS.get(self._spec.dataset.lower(), "text")

    def splits(self) -> dict[str, Iterator[Document]]:
        """Return documents by split, downloaded as they are read."""
        self.require_hub()
        spec = self._spec
        stream = HubStream(spec.dataset, spec.subset, self.sha, self.origin, spec.settings)
        chosen = self._chosen(stream.columns)
        for name in chosen.values():
            columns = stream.columns[name]
            if columns and self.column not in columns:
                raise stream.no_column(self.column, columns)
        return {split: self._documents(stream, name, split, chosen) for split, name in chosen.items()}

    def _chosen(self, names: Collection[str]) -> dict[str, str]:
        """Return the dataset's names of the splits, by DTL's names."""
        spec = self._spec
        given = spec.source.splits
        if given:
            for split, name in given.items():
                if name not in names:
                    raise DataError(
                        f"{spec.settings}.splits.{split}={name}: {self.origin} has no such split. "
                        f"It has {', '.join(names)}.{did_you_mean(name, names)}"
                    )
            return {split: given[split] for split in SPLITS if split in given}
        by_split: dict[str, str] = {}
        for name in names:
            if name.lower() in SPLIT_WORDS:
                by_split.setdefault(SPLIT_WORDS[name.lower()], name)
        if "train" not in by_split:
            raise DataError(
                f"{self.origin}: none of its splits is named like a training split. Found: {', '.join(names)}. "
                f"Name it: {spec.settings}.splits={{train: {next(iter(names), 'NAME')}}}"
            )
        unread = [name for name in names if name not in by_split.values()]
        if unread:
            self._notes.append(f"{self.origin}: not read: {', '.join(unread)} ({spec.settings}.splits selects others).")
        return {split: by_split[split] for split in SPLITS if split in by_split}

    def _documents(self, stream: HubStream, name: str, split: str, chosen: Collection[str]) -> Iterator[Document]:
        seed = self._spec.order_seed if split == "train" else None
        if self.rows == "wikitext":  # the rows are lines, whose order matters: only articles are shuffled
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
        if isinstance(value, int | float) and value == value:
            self._n_numbers += 1
        return text_of(value, f"{self.origin}, column {self.column}")

    def notes(self) -> list[str]:
        """Return messages for the user: the commit, and the splits that are not read."""
        spec = self._spec
        return [
            AsRead(f"{spec.dataset}: read at commit {self.sha}; {spec.settings}.revision={NEWEST} takes the newest."),
            *self._notes,
            *(
                [f"{self.origin}: {number_of('numbers', self._n_numbers)} in column {self.column!r}, read as digits."]
                if self._n_numbers
                else []
            ),
        ]


def shuffled(documents: Iterable[Document], seed: int, buffer_size: int) -> Iterator[Document]:
    """Yield the documents in an order drawn by the seed, each moved by about `buffer_size` places."""
    draw = random.Random(seed)
    buffer: list[Document] = []
    for arrived in documents:
        if len(buffer) < buffer_size:
            buffer.append(arrived)
            continue
        place = draw.randrange(buffer_size)
        yield buffer[place]
        buffer[place] = arrived
    draw.shuffle(buffer)
    yield from buffer


# --- the source -----------------------------------------------------------------------------------------------------


@SOURCES.register("hub")
class HubSource(HubTexts):
    """Documents of a dataset of the hub; `path` is its name, owner/name."""

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        key = path_key(data, name)
        if source.path is None or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source.path):
            raise DataError(
                f"{key}={source.path}: kind=hub needs the name of a dataset of the Hugging Face hub, for example "
                f"{key}=roneneldan/TinyStories. Files of your own: data=text data.path=FILE_OR_FOLDER."
            )
        alternatives = "Without the hub: the dataset's files from elsewhere, read with data=text data.path=FOLDER"
        spec = hub_dataset_spec(type(self), name, source, source.path, source.subset, data, seed, alternatives)
        super().__init__(spec)


def hub_dataset_spec(
    reader: type,
    name: str,
    source: SourceConfig,
    dataset: str,
    subset: str | None,
    data: DataConfig,
    seed: int,
    alternatives: str,
) -> HubDatasetSpec:
    """Return the spec of a source's dataset of the hub; for the arguments see `HubDatasetSpec`."""
    return HubDatasetSpec(
        dataset=dataset,
        subset=subset,
        source=source,
        reader=reader,
        key=path_key(data, name),
        settings=f"data.sources.{name}",
        alternatives=alternatives,
        cache=cache_folder(data.cache_dir),
        commit=data.commits.get(name),
        order_seed=order_seed(data, name, seed),
    )
