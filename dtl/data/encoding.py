"""Documents as token ids: one compact array, end to end, with the place where each document begins."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dtl.data.chunks import in_chunks
from dtl.data.documents import Document

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


@dataclass(frozen=True)
class EncodedChunk:
    """Some consecutive documents as tokens, end tokens included."""

    tokens: np.ndarray  # (n_tokens,) of the vocabulary's dtype
    lengths: np.ndarray  # (n_documents,) int64
    answer_starts: np.ndarray  # (n_documents,) int32
    n_characters: int


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type for the ids of a vocabulary: 2 bytes where they suffice."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)


def encode_chunks(
    documents: Iterable[Document], encoder: Encoder, max_tokens: int | None = None
) -> Iterator[EncodedChunk]:
    """Encode documents, a chunk of them at a time, stopping after the chunk in which `max_tokens` is reached.

    The part before an answer and the answer are encoded apart from each other: whatever the tokenizer
    would merge across that border, the prompt's ids are those of the prompt alone, as in chat.
    """
    dtype = token_dtype(encoder.vocab_size)
    n_tokens = 0
    for chunk in in_chunks(documents, lambda document: len(document.text), CHUNK_CHARACTERS):
        ids = iter(encoder.encode_batch([part for document in chunk for part in _parts(document)]))
        flat: list[list[int]] = []
        lengths: list[int] = []
        answer_starts: list[int] = []
        for document in chunk:
            parts = [next(ids) for _ in _parts(document)]
            answer_starts.append(len(parts[0]) if len(parts) == 2 else 0)
            lengths.append(sum(map(len, parts)) + 1)
            flat += [*parts, [encoder.eos_id]]
        tokens = np.fromiter(itertools.chain.from_iterable(flat), dtype, sum(lengths))
        n_characters = sum(len(document.text) for document in chunk)
        yield EncodedChunk(tokens, np.array(lengths, np.int64), np.array(answer_starts, np.int32), n_characters)
        n_tokens += len(tokens)
        if max_tokens is not None and n_tokens >= max_tokens:
            break


def encode_documents(documents: Iterable[Document], encoder: Encoder, max_tokens: int | None = None) -> TokenDocuments:
    """Encode documents into memory; see `encode_chunks`."""
    return joined(encode_chunks(documents, encoder, max_tokens), token_dtype(encoder.vocab_size))


def joined(chunks: Iterable[EncodedChunk], dtype: np.dtype) -> TokenDocuments:
    """The chunks end to end."""
    kept = list(chunks)
    lengths = np.concatenate([np.empty(0, np.int64), *(chunk.lengths for chunk in kept)])
    return TokenDocuments(
        tokens=np.concatenate([np.empty(0, dtype), *(chunk.tokens for chunk in kept)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        answer_starts=np.concatenate([np.empty(0, np.int32), *(chunk.answer_starts for chunk in kept)]),
    )


def _parts(document: Document) -> tuple[str, ...]:
    if document.answer_start is None:
        return (document.text,)
    return document.text[: document.answer_start], document.text[document.answer_start :]
