"""Storage of documents and tokens, in memory or in the files of a cache entry, with one interface for both.

Texts are files of JSON lines, readable by eye, of which memory holds one document at a time; tokens are plain .npy
arrays, memory-mapped.
"""

import json
import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, overload

import numpy as np

from dtl.data.documents import Document, QuestionAnswer

# --- tokens of documents ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenDocuments:
    """Tokens of documents, end to end, each document followed by the end token.

    tokens         (n_tokens,) uint16, or int32 for vocabularies above 65,536
    offsets        (n_documents + 1,) int64: document i is tokens[offsets[i] : offsets[i + 1]]
    turns          (n_turns + 1,) int64: the same of the turns of dialogues; any other document is one turn
    answer_starts  (n_turns,) int32: tokens before the answer; 0 where there is no answer
    """

    tokens: np.ndarray
    offsets: np.ndarray
    turns: np.ndarray
    answer_starts: np.ndarray

    @property
    def n_documents(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class EncodedChunk:
    """Tokens of some consecutive documents, end tokens included."""

    tokens: np.ndarray  # (n_tokens,) of the vocabulary's dtype
    lengths: np.ndarray  # (n_documents,) int64
    turn_lengths: np.ndarray  # (n_turns,) int64
    answer_starts: np.ndarray  # (n_turns,) int32


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest type for the ids of a vocabulary: 2 bytes up to 65,536 entries."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)


def offsets_of(lengths: Sequence[np.ndarray]) -> np.ndarray:
    """Return where each of consecutive spans begins, and the end of the last, (n_spans + 1,) int64."""
    return np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]))]).astype(np.int64)


# --- texts and tokens, in memory or on disk -----------------------------------------------------------------------


class Texts(Sequence[Document]):
    """The documents of a split, and their lengths, which are known without reading them."""

    characters: np.ndarray  # (n_documents,) int64

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
        if isinstance(index, slice):
            return [self.at(number) for number in range(*index.indices(len(self)))]
        return self.at(range(len(self))[index])

    def __len__(self) -> int:
        return len(self.characters)

    def at(self, number: int) -> Document:
        """Return document `number`, counted from 0."""
        raise NotImplementedError


class TextsInMemory(Texts):
    """Documents in a list."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents
        self.characters = np.array([len(document.text) for document in documents], np.int64)

    def at(self, number: int) -> Document:
        return self.documents[number]


class TextsOnDisk(Texts):
    """Documents in the lines of a file."""

    def __init__(self, file: Path, offsets: np.ndarray, characters: np.ndarray) -> None:
        """`offsets` (n_documents + 1,) int64: the byte at which each line begins."""
        self.file = file
        self.offsets = offsets
        self.characters = characters

    def __iter__(self) -> Iterator[Document]:
        with self.file.open("rb") as stream:
            yield from map(_from_line, stream)

    def at(self, number: int) -> Document:
        with self.file.open("rb") as stream:
            stream.seek(int(self.offsets[number]))
            return _from_line(stream.readline())


class Chosen(Texts):
    """A selection of the documents of a split, in its own order."""

    def __init__(self, texts: Texts, order: np.ndarray) -> None:
        self.texts = texts
        self.order = order
        self.characters = np.asarray(texts.characters)[order]

    def at(self, number: int) -> Document:
        return self.texts[int(self.order[number])]


def sample(texts: Texts, n_characters: float, seed: int) -> Chosen:
    """Return documents in an order drawn by the seed, up to the one that reaches `n_characters`."""
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    reached = np.cumsum(np.asarray(texts.characters)[order])
    return Chosen(texts, np.array(order[: int(np.searchsorted(reached, n_characters)) + 1], np.int64))


class TextWriter(Protocol):
    """Takes the documents of a source, split by split."""

    def begin(self, split: str) -> None:
        """Create a split, which exists even if it gets no document."""
        ...

    def add(self, split: str, document: Document) -> None: ...

    def texts(self) -> Mapping[str, Sequence[Document]]:
        """Return the documents added so far, by split; afterwards only `replace` may follow."""
        ...

    def replace(self, splits: Mapping[str, Iterable[Document]]) -> None:
        """Replace the documents of these splits by others, which may be read from the old ones."""
        ...


class MemoryWriter:
    """Stores documents in lists."""

    def __init__(self) -> None:
        self.splits: dict[str, list[Document]] = {}

    def begin(self, split: str) -> None:
        self.splits.setdefault(split, [])

    def add(self, split: str, document: Document) -> None:
        self.splits[split].append(document)

    def texts(self) -> dict[str, TextsInMemory]:
        return {split: TextsInMemory(documents) for split, documents in self.splits.items()}

    def replace(self, splits: Mapping[str, Iterable[Document]]) -> None:
        self.splits |= {split: list(documents) for split, documents in splits.items()}


class DiskWriter:
    """Writes documents to files in a folder: `<split>.jsonl`, and arrays of their offsets and lengths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, _LineFile] = {}

    def begin(self, split: str) -> None:
        if split not in self._files:
            self._files[split] = _LineFile(self.folder / f"{split}.jsonl")

    def add(self, split: str, document: Document) -> None:
        self._files[split].add(document)

    def texts(self) -> dict[str, TextsOnDisk]:
        return {split: file.closed() for split, file in self._files.items()}

    def replace(self, splits: Mapping[str, Iterable[Document]]) -> None:
        for split, documents in splits.items():
            new = _LineFile(self.folder / f"{split}.new")
            for document in documents:
                new.add(document)
            new.closed()
            self._files[split + ".new"] = new
        for split in splits:
            new = self._files.pop(split + ".new")
            new.path = new.path.replace(self.folder / f"{split}.jsonl")
            self._files[split] = new

    def close(self) -> None:
        """Close the files, and write the offsets and lengths of their lines."""
        for split, texts in self.texts().items():
            np.save(self.folder / f"{split}.offsets.npy", texts.offsets, allow_pickle=False)
            np.save(self.folder / f"{split}.characters.npy", texts.characters, allow_pickle=False)

    def abandon(self) -> None:
        """Close the files after an error."""
        for file in self._files.values():
            file.stream.close()


class _LineFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream: BinaryIO = path.open("wb")
        self.offsets = array("q", [0])
        self.characters = array("q")

    def add(self, document: Document) -> None:
        line = _to_line(document)
        self.stream.write(line)
        self.offsets.append(self.offsets[-1] + len(line))
        self.characters.append(len(document.text))

    def closed(self) -> TextsOnDisk:
        self.stream.close()
        return TextsOnDisk(self.path, np.array(self.offsets, np.int64), np.array(self.characters, np.int64))


def _to_fields(document: Document) -> dict[str, Any]:
    fields: dict[str, Any] = {"text": document.text}
    if document.answer_start is not None:
        fields["answer_start"] = document.answer_start
    if document.pair is not None:
        fields["pair"] = asdict(document.pair)
    if document.turns:
        fields["turns"] = [_to_fields(turn) for turn in document.turns]
    return fields


def _to_line(document: Document) -> bytes:
    fields = _to_fields(document)
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _from_line(line: bytes) -> Document:
    return _from_fields(json.loads(line.decode("utf-8", "surrogatepass")))


def _from_fields(fields: dict[str, Any]) -> Document:
    turns = tuple(map(_from_fields, fields.get("turns", ())))
    made_of: dict[str, Any] | None = fields.get("pair")
    if made_of is None:
        return Document(fields["text"], fields.get("answer_start"))
    # JSON has no tuple.
    lists: dict[str, Any] = {name: tuple(value) for name, value in made_of.items() if isinstance(value, list)}
    return Document(fields["text"], fields.get("answer_start"), QuestionAnswer(**(made_of | lists)), turns)


def read_texts(folder: Path, splits: Iterable[str]) -> dict[str, Texts]:
    """Return the texts written by a DiskWriter. Raises OSError or ValueError for missing or incomplete files."""
    return {
        split: TextsOnDisk(
            folder / f"{split}.jsonl", _array(folder, f"{split}.offsets"), _array(folder, f"{split}.characters")
        )
        for split in splits
    }


def write_tokens(folder: Path, split: str, chunks: Iterable[EncodedChunk], dtype: np.dtype) -> None:
    """Write chunks as they arrive: `<split>.tokens.npy`, `.offsets.npy`, `.turns.npy`, `.answer_starts.npy`.

    Raises OSError.
    """
    lengths, turn_lengths, answer_starts = list[np.ndarray](), list[np.ndarray](), [np.empty(0, np.int32)]
    n_tokens = 0
    with (folder / f"{split}.tokens.npy").open("wb") as stream:
        header_size = _write_header(stream, 0, dtype)
        for chunk in chunks:
            chunk.tokens.tofile(stream)
            n_tokens += len(chunk.tokens)
            lengths.append(chunk.lengths)
            turn_lengths.append(chunk.turn_lengths)
            answer_starts.append(chunk.answer_starts)
        stream.seek(0)
        # numpy leaves room in the header for the first axis to grow.
        assert _write_header(stream, n_tokens, dtype) == header_size
    np.save(folder / f"{split}.offsets.npy", offsets_of(lengths), allow_pickle=False)
    np.save(folder / f"{split}.turns.npy", offsets_of(turn_lengths), allow_pickle=False)
    np.save(folder / f"{split}.answer_starts.npy", np.concatenate(answer_starts), allow_pickle=False)


def _write_header(stream: BinaryIO, n_tokens: int, dtype: np.dtype) -> int:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n_tokens,)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.tell()


def read_tokens(folder: Path, split: str) -> TokenDocuments:
    """Return the tokens written by `write_tokens`, memory-mapped: pages are read on use and shared by processes."""
    return TokenDocuments(
        tokens=_array(folder, f"{split}.tokens"),
        offsets=_array(folder, f"{split}.offsets"),
        turns=_array(folder, f"{split}.turns"),
        answer_starts=_array(folder, f"{split}.answer_starts"),
    )


def _array(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
