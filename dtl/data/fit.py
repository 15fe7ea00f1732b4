"""Questions that fit a sequence: of a long one the context is cut, what cannot fit is left out; both are counted.

A question that is cut anywhere would teach its answer without the question, or without what it is answered from.
"""

import hashlib
import itertools
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from dtl.base.safe_text import in_one_line
from dtl.base.units import number_of
from dtl.data.documents import Document, QuestionAnswer, in_chunks
from dtl.data.documents import document as document_of
from dtl.data.tasks import UNSPACED, terms
from dtl.data.tokenizers.prompt import Prompt
from dtl.data.tokenizers.tokenizer import Tokenizer

CHUNK_CHARACTERS = 1_000_000  # text encoded at a time: its Python lists of ids are dropped before the next
# Of a context: a word with the space before it, or a part of a long one; some characters where there are no spaces.
_PIECE = re.compile(rf"\s*(?:[{UNSPACED}]{{1,4}}|[^\s{UNSPACED}]{{1,16}})")
MIN_CONTEXT = 8  # tokens of a context: fewer are no text to answer from


class FittedQuestions:
    """Documents that fit sequences of `seq_len` tokens, and counts of those that are changed or left out.

    The context of a question is cut to a window: in training one with the answer, at a place in it that is drawn by
    the question, else the one with most words of the question, as it is where the answer is not known. A question
    that leaves no room for its answer is left out. A long dialogue is split between its turns. The end of a long answer
    is left to the layout.
    """

    def __init__(self, prompt: Prompt, tokenizer: Tokenizer, seq_len: int) -> None:
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._limit = seq_len + 1  # tokens, the end token among them: the last of a sequence is only a target
        # questions, cut, lacking (the answer, held out), left out, continued (long answers), dialogues
        self.counts: Counter[str] = Counter()
        self.needed: dict[str, int] = {}  # by these: the shortest sequence that holds all of them
        self.example = ""  # a question that is left out

    def documents(self, documents: Iterable[Document], split: str) -> Iterator[Document]:
        """Yield the documents of a split in their order."""
        for chunk in in_chunks(documents, lambda document: len(document.text), CHUNK_CHARACTERS):
            # A token has at least a byte; some tokenizers put one more before a text.
            long = {
                number: document
                for number, document in enumerate(chunk)
                if document.answer_start is not None
                and len(document.text.encode("utf-8", "surrogatepass")) + 4 * max(1, len(document.turns)) > self._limit
            }
            turns = [turn for document in long.values() for turn in document.turns or (document,)]
            ids = iter(self._tokenizer.encode_batch([part for turn in turns for part in parts_of(turn)]))
            for number, document in enumerate(chunk):
                self.counts["questions"] += document.answer_start is not None
                if number not in long:
                    yield document
                    continue
                sizes = [(len(next(ids)), len(next(ids)) + 1) for _ in document.turns or (document,)]
                if sum(map(sum, sizes)) <= self._limit:
                    yield document
                elif document.turns:
                    yield from self._split(document, sizes)
                elif (fitted := self._fitted(document, *sizes[0], split)) is not None:
                    yield fitted

    def _count(self, what: str, n_tokens: int) -> None:
        self.counts[what] += 1
        self.needed[what] = max(self.needed.get(what, 0), n_tokens - 1)

    def _fitted(self, document: Document, n_asked: int, n_answer: int, split: str) -> Document | None:
        pair, n_tokens = document.pair, n_asked + n_answer
        # A source of one's own may write a question in another form.
        if pair and pair.context and document_of(pair, self._prompt).text == document.text:
            room = self._limit - n_answer
            window = cut_context(pair, self._prompt, self._tokenizer, room, by_answer=split == "train")
            if window is not None:
                self._count("cut", n_tokens)
                self.counts["lacking"] += split != "train" and not _holds_answer(pair, window)
                return document_of(replace(pair, context=window), self._prompt)
        elif n_asked <= self._limit // 2:
            self._count("continued", n_tokens)
            return document
        self._count("left out", n_tokens)
        self.example = self.example or (pair.question if pair else document.text[: document.answer_start])
        return None

    def _split(self, document: Document, sizes: Sequence[tuple[int, int]]) -> Iterator[Document]:
        """Yield the turns of a dialogue in as few documents as hold them; those that fit none are left out."""
        self.counts["dialogues"] += 1
        parts: list[list[Document]] = [[]]
        used = 0
        for turn, (n_asked, n_answer) in zip(document.turns, sizes, strict=True):
            if n_asked + n_answer > self._limit and n_asked > self._limit // 2:
                self._count("left out", n_asked + n_answer)
                self.example = self.example or turn.text[: turn.answer_start]
                continue
            if parts[-1] and used + n_asked + n_answer > self._limit:
                parts.append([])
                used = 0
            parts[-1].append(turn)
            used += n_asked + n_answer
        for number, turns in enumerate(parts):
            if turns:
                # A later part is no question by itself: it is not asked when a model is evaluated.
                pair = document.pair if number == 0 and turns[0] is document.turns[0] else None
                text = "\n".join(turn.text for turn in turns)
                yield Document(text, turns[0].answer_start, pair, tuple(turns))

    def notes(self, origin: str) -> list[str]:
        """Return messages for the user, one line each."""
        n, notes = self.counts, list[str]()
        sequence = f"a sequence of {self._limit - 1} tokens"
        if n["cut"]:
            lacking = f" In {n['lacking']:,} of the latter the answer is not in that part." if n["lacking"] else ""
            notes.append(
                f"{origin}: {n['cut']:,} of {number_of('questions', n['questions'])} are longer than {sequence} with "
                "their context: it is cut, in training around the answer, held out to the part with most words of the "
                f"question.{lacking} To keep all of it: data.seq_len={self.needed['cut']}"
            )
        if n["left out"]:
            notes.append(
                f"{origin}: {number_of('questions', n['left out'])} left out: longer than {sequence}, first "
                f"{in_one_line(self.example, 60)!r}. To keep them: data.seq_len={self.needed['left out']}"
            )
        if n["continued"]:
            notes.append(
                f"{origin}: {number_of('answers', n['continued'])} longer than {sequence}: the ends are learnt without "
                "the question, or cut off with data.layout=padded. To avoid it: "
                f"data.seq_len={self.needed['continued']}"
            )
        if n["dialogues"]:
            notes.append(
                f"{origin}: {number_of('dialogues', n['dialogues'])} longer than {sequence}: split between turns."
            )
        return notes


def cut_context(
    pair: QuestionAnswer, prompt: Prompt, tokenizer: Tokenizer, max_tokens: int, by_answer: bool
) -> str | None:
    """Return the window of a pair's context with which its prompt has at most `max_tokens`; None where none does.

    `by_answer`: one that holds the answer, where the context does. Otherwise the one with most words of the question,
    rare ones counting more; the answer plays no part in that.
    """
    pieces = _PIECE.findall(pair.context)
    starts = list(itertools.accumulate(map(len, tokenizer.encode_batch(pieces)), initial=0))
    room = max_tokens - len(tokenizer.encode(prompt.text(pair.question, ".")))
    while room >= MIN_CONTEXT:
        span = _answer_span(pair, pieces) if by_answer else None
        first, end = _around(pair, span, starts, room) if span else _nearest(pair, pieces, starts, room)
        window = "".join(pieces[first:end]).strip()
        excess = len(tokenizer.encode(prompt.text(pair.question, window))) - max_tokens
        if excess <= 0:
            return window if window and (span is None or _holds_answer(pair, window)) else None
        room -= excess
    return None


def _holds_answer(pair: QuestionAnswer, window: str) -> bool:
    text = " ".join(window.casefold().split())
    return any(" ".join(answer.casefold().split()) in text for answer in (pair.answer, *pair.accepted))


def _answer_span(pair: QuestionAnswer, pieces: Sequence[str]) -> tuple[int, int] | None:
    """Return the first and the last piece, excluded, that hold the answer; None where none do."""
    answers = [re.escape(answer).split("\\ ") for answer in (pair.answer, *pair.accepted) if answer.strip()]
    text = "".join(pieces)
    for words in answers:
        if match := re.search(r"\s+".join(words), text, re.IGNORECASE):
            ends = list(itertools.accumulate(map(len, pieces)))
            return bisect_right(ends, match.start()), bisect_left(ends, match.end()) + 1
    return None


def _around(pair: QuestionAnswer, span: tuple[int, int], starts: Sequence[int], room: int) -> tuple[int, int]:
    """Return a window with the span. Its place in the window is drawn: always in the middle it would be a hint."""
    spare = max(0, room - (starts[span[1]] - starts[span[0]]))
    drawn = hashlib.blake2b(pair.question.encode("utf-8", "surrogatepass"), digest_size=2).digest()
    before = spare * int.from_bytes(drawn) // 2**16
    first = bisect_left(starts, starts[span[0]] - before)
    end = max(span[1], bisect_right(starts, starts[first] + room) - 1)
    return bisect_left(starts, starts[end] - room), end


def _nearest(pair: QuestionAnswer, pieces: Sequence[str], starts: Sequence[int], room: int) -> tuple[int, int]:
    found = [set(terms(piece)) for piece in pieces]
    counts = Counter(itertools.chain.from_iterable(found))
    asked = set(terms(pair.question))
    weights = [sum(1 / counts[word] for word in words & asked) for words in found]
    sums = list(itertools.accumulate(weights, initial=0.0))
    windows = [(first, bisect_right(starts, starts[first] + room) - 1) for first in range(len(pieces))]
    return max(windows, key=lambda window: (round(sums[window[1]] - sums[window[0]], 9), -window[0]), default=(0, 0))


def parts_of(document: Document) -> tuple[str, ...]:
    """Return the texts that are encoded separately: the prompt and the answer, or the text."""
    if document.answer_start is None:
        return (document.text,)
    return document.text[: document.answer_start], document.text[document.answer_start :]
