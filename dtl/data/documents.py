"""What every source yields: a text to learn, and the question and answer that it may have been made of."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class QuestionAnswer:
    """A question in one wording, and its answer."""

    question: str
    answer: str  # the one to learn
    topic: str = ""
    fact: str | None = None  # id of the fact that several wordings ask for: "geography-001"
    context: str = ""  # a text in which the answer stands, shown to the model before the question
    accepted: tuple[str, ...] = ()  # all answers that count as right, `answer` among them; empty: it alone


@dataclass(frozen=True)
class Document:
    """A text to learn. The end token is added when it becomes tokens."""

    text: str
    answer_start: int | None = None  # character where the answer begins, its leading space included
    pair: QuestionAnswer | None = None  # the question and answer that the text was made of


def article(title: str, text: str) -> Document:
    """The title, an empty line, and the text; the text alone where one of them is empty."""
    title = title.strip()
    return Document(f"{title}\n\n{text}" if title and text.strip() else text)


# --- a question and its answer as a text --------------------------------------------------------------------------


def prompt(question: str, context: str = "", *, lower_case: bool = False) -> str:
    """The text after which the model writes its answer. It ends without a space: the answer brings its own,
    since byte-level tokenizers join a space to the word that follows it. A context is a text to answer from.

    `lower_case` is `data.lower_case_questions` of the model's training: to a tokenizer "Jeans" and "jeans" have
    nothing in common, and people type both.
    """
    question = question.strip().lower() if lower_case else question.strip()
    asked = f"Question: {question}\nAnswer:"
    return f"Context: {context.strip()}\n{asked}" if context.strip() else asked


def document(pair: QuestionAnswer, *, lower_case: bool = False) -> Document:
    """The pair as a text to learn, with the place where its answer begins. For `lower_case` see `prompt`."""
    asked = prompt(pair.question, pair.context, lower_case=lower_case)
    return Document(f"{asked} {pair.answer.strip()}", answer_start=len(asked), pair=pair)


# --- several at a time --------------------------------------------------------------------------------------------
# Items in lists of about equal weight, for work that is cheaper by the dozen.


Item = TypeVar("Item")


def in_chunks(items: Iterable[Item], weight: Callable[[Item], int], enough: int) -> Iterator[list[Item]]:
    """Consecutive items, each list ending with the one that brings its weight to `enough`; the last may be lighter."""
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
