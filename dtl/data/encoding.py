"""Documents as token ids: one compact array, end to end, with the place where each document begins."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dtl.data.sources import Document

CHUNK_CHARACTERS = 1_000_000  # text encoded at a time: its Python lists of ids are dropped before the next


class Encoder(Protocol):
    """What is asked of a tokenizer here."""

    vocab_size: int
    eos_id: int

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class TokenDocuments:
    """Documents one after the other, each followed by the end token.

    tokens         (n_tokens,) uint16, or int32 for vocabularies above 65,536
    offsets        (n_documents + 1,) int64: document i is tokens[offsets[i] : offsets[i + 1]]
    answer_starts  (n_documents,) int32: tokens before the answer; 0 where the text is no question and answer
    """

    tokens: np.ndarray
    offsets: np.ndarray
    answer_starts: np.ndarray

    @property
    def n_documents(self) -> int:
        return len(self.answer_starts)


def encode_documents(documents: Iterable[Document], encoder: Encoder, max_tokens: int | None = None) -> TokenDocuments:
    """Encode documents, stopping after the chunk in which `max_tokens` is reached.

    The part before an answer and the answer are encoded apart from each other: whatever the tokenizer
    would merge across that border, the prompt's ids are those of the prompt alone, as in chat.
    """
    dtype = np.uint16 if encoder.vocab_size <= 2**16 else np.int32
    chunks: list[np.ndarray] = []
    lengths: list[int] = []
    answer_starts: list[int] = []
    n_tokens = 0
    for chunk in _chunks(documents):
        ids = iter(encoder.encode_batch([part for document in chunk for part in _parts(document)]))
        flat: list[list[int]] = []
        for document in chunk:
            parts = [next(ids) for _ in _parts(document)]
            answer_starts.append(len(parts[0]) if len(parts) == 2 else 0)
            lengths.append(sum(map(len, parts)) + 1)
            flat += [*parts, [encoder.eos_id]]
        chunks.append(np.fromiter(itertools.chain.from_iterable(flat), dtype))
        n_tokens += len(chunks[-1])
        if max_tokens is not None and n_tokens >= max_tokens:
            break
    return TokenDocuments(
        tokens=np.concatenate(chunks) if chunks else np.empty(0, dtype),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        answer_starts=np.array(answer_starts, np.int32),
    )


def _parts(document: Document) -> tuple[str, ...]:
    if document.answer_start is None:
        return (document.text,)
    return document.text[: document.answer_start], document.text[document.answer_start :]


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    n_characters = 0
    for document in documents:
        chunk.append(document)
        n_characters += len(document.text)
        if n_characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, n_characters = [], 0
    if chunk:
        yield chunk
