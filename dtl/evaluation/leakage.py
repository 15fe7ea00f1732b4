"""Leakage of held-out data into training data: word 13-grams (Brown et al. 2020, appendix C), equal questions."""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dtl.data.documents import QuestionAnswer
from dtl.data.tasks import WORD, normalise
from dtl.data.tokenizers.tokenizer import Tokenizer

N_WORDS = 13
CHUNK_TOKENS = 200_000  # decoded at a time
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that nothing is lost modulo 2**64


@dataclass(frozen=True)
class TextLeakage:
    """Number of 13-grams of a held-out split that occur in the training text too."""

    source: str
    split: str
    ngrams: int
    found: int
    training_tokens: int  # compared with

    @property
    def fraction(self) -> float:
        return self.found / self.ngrams if self.ngrams else 0.0


@dataclass(frozen=True)
class QuestionLeakage:
    """Number of questions of a held-out split that occur, after `normalise`, among the training questions too."""

    split: str
    questions: int
    found: int
    examples: tuple[str, ...]
    contexts: int = 0  # different ones of these questions
    contexts_found: int = 0  # of them, in the training questions too


def question_leakage(
    held_out: Mapping[str, Sequence[QuestionAnswer]], training: Sequence[QuestionAnswer], n_examples: int = 3
) -> list[QuestionLeakage]:
    """Compare each held-out split with the training questions. Of a question with a context both must be the same."""
    taught = {_asked(pair) for pair in training}
    taught_contexts = {context for _, context in taught}
    result = []
    for split, pairs in held_out.items():
        if pairs:
            asked = [_asked(pair) for pair in pairs]
            same = [pair.question for pair, key in zip(pairs, asked, strict=True) if key in taught]
            contexts = {context for _, context in asked} - {""}
            found = len(contexts & taught_contexts)
            result.append(QuestionLeakage(split, len(pairs), len(same), tuple(same[:n_examples]), len(contexts), found))
    return result


def _asked(pair: QuestionAnswer) -> tuple[str, str]:
    return normalise(pair.question), " ".join(pair.context.split())


def text_leakage(
    source: str,
    held_out_tokens: Mapping[str, np.ndarray],
    training: np.ndarray,
    tokenizer: Tokenizer,
    max_training_tokens: int | None,
) -> list[TextLeakage]:
    """Compare each held-out split of a source with the first `max_training_tokens` (None = all) of training text.

    Needs 8 bytes of memory per word of the held-out splits, and one chunk of the training text at a time.
    """
    held_out = {split: ngrams(words(ids, tokenizer)) for split, ids in held_out_tokens.items()}
    wanted = np.unique(np.concatenate([*held_out.values(), np.empty(0, np.uint64)]))
    seen = np.zeros(len(wanted), bool)
    training = training[:max_training_tokens]
    for chunk in _ngram_chunks(words(training, tokenizer)):
        at = np.searchsorted(wanted, chunk)
        at, chunk = at[at < len(wanted)], chunk[at < len(wanted)]
        seen[at[wanted[at] == chunk]] = True
    return [
        TextLeakage(source, split, len(hashes), int(seen[np.searchsorted(wanted, hashes)].sum()), len(training))
        for split, hashes in held_out.items()
    ]


def words(tokens: np.ndarray, tokenizer: Tokenizer) -> Iterator[list[str]]:
    """Yield the lower-case words of a token array in chunks, which end between words."""
    rest = ""
    for start in range(0, len(tokens), CHUNK_TOKENS):
        # The end token decodes to nothing; `_decoded` replaces it, or it would join the words before and after it.
        text = rest + _decoded(tokens[start : start + CHUNK_TOKENS], tokenizer)
        cut = max((match.end() for match in re.finditer(r"\s", text[-1000:])), default=0) + max(0, len(text) - 1000)
        yield WORD.findall(text[:cut].lower())
        rest = text[cut:]
    yield WORD.findall(rest.lower())


def _decoded(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    ends = np.flatnonzero(tokens == tokenizer.eos_id)
    return "\n".join(tokenizer.decode(piece.tolist()) for piece in np.split(tokens, ends))


def ngrams(chunks: Iterable[list[str]]) -> np.ndarray:
    """Return the hashes of all 13-grams, (n_words - 12,) uint64."""
    return np.concatenate([*_ngram_chunks(chunks), np.empty(0, np.uint64)])


def _ngram_chunks(chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
    before = np.empty(0, np.uint64)  # the last words of a chunk begin 13-grams that end in the next
    for chunk in chunks:
        hashes = np.array([zlib.crc32(word.encode("utf-8", "replace")) for word in chunk], np.uint64)
        hashes = np.concatenate([before, hashes])
        n = len(hashes) - N_WORDS + 1
        if n > 0:
            ngram = np.zeros(n, np.uint64)
            for k in range(N_WORDS):
                ngram = ngram * _FACTOR + (hashes[k : k + n] + np.uint64(1)) * _FACTOR
            yield ngram
        before = hashes[max(0, len(hashes) - N_WORDS + 1) :]
