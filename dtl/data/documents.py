"""What every source yields: a text to learn, and the question and answer that it may have been made of."""

from dataclasses import dataclass


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
