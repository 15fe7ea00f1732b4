"""Documents, which every source yields: a text to learn and, where it was made of one, its question and answer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dtl.data.tokenizers.prompt import Prompt, space_after


class AsRead(str):
    """A note on how something was read, among notes on problems with it."""


@dataclass(frozen=True)
class QuestionAnswer:
    """A question in one wording, and its answer."""

    question: str
    answer: str  # the one to learn
    topic: str = ""
    fact: str | None = None  # id of the fact that several paraphrases ask for: "geography-001"
    context: str = ""  # a text that contains the answer, given to the model before the question
    accepted: tuple[str, ...] = ()  # all answers that count as right, `answer` among them; empty: it alone


@dataclass(frozen=True)
class Document:
    """A text to learn. The end token is added when it becomes tokens."""

    text: str
    answer_start: int | None = None  # character where the answer begins, its leading space included
    pair: QuestionAnswer | None = None  # the question and answer that the text was made of; of a dialogue the first
    turns: tuple["Document", ...] = ()  # of a dialogue: its questions with answers, an end token after each


def article(title: str, text: str) -> Document:
    """Return a document of the title, an empty line, and the text; of the text alone where one of them is empty."""
    title = title.strip()
    return Document(f"{title}\n\n{text}" if title and text.strip() else text)


def document(pair: QuestionAnswer, prompt: Prompt) -> Document:
    """Return the pair as a text to learn, with the place where its answer begins."""
    asked = prompt.text(pair.question, pair.context)
    return Document(f"{asked}{space_after(asked)}{pair.answer.strip()}", answer_start=len(asked), pair=pair)


def dialogue(pairs: Sequence[QuestionAnswer], prompt: Prompt) -> Document:
    """Return one or several pairs as a text to learn: each question after all turns before it, as in a chat."""
    turns = tuple(document(pair, prompt) for pair in pairs)
    if len(turns) == 1:
        return turns[0]
    return Document("\n".join(turn.text for turn in turns), turns[0].answer_start, turns[0].pair, turns)


# --- chunks -------------------------------------------------------------------------------------------------------

Item = TypeVar("Item")


def in_chunks(items: Iterable[Item], weight: Callable[[Item], int], enough: int) -> Iterator[list[Item]]:
    """Yield lists of consecutive items, each ending with the item that brings its weight to `enough`."""
    chunk: list[Item] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += weight(item)
        if total >= enough:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk
