"""Parsing of records into questions with answers, under their common names and shapes.

Supported are one question per record (question/answer, Alpaca's instruction/input/output, prompt/response,
prompt/completion, each with an optional context), SQuAD as published (articles of paragraphs of questions) and as on
the Hugging Face hub, and DTL's own facts: one answer, and paraphrases by split. Case and surrounding space of names
are ignored.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from dtl.data.config import SPLITS
from dtl.data.documents import QuestionAnswer
from dtl.data.local.files import text_of
from dtl.data.local.readers import Record
from dtl.errors import DataError

QUESTION = ("question", "instruction", "prompt", "input")
ANSWER = ("answer", "output", "response", "completion", "answers")
CONTEXT = ("context", "input")
TOPIC = ("topic", "category")
NESTED = ("data", "paragraphs", "qas")  # SQuAD's lists, outermost first
MAX_PLACES = 3  # named of the records left out for one reason

EMPTY_QUESTION = "an empty question"
EMPTY_ANSWER = "an empty answer"
NO_QUESTION = "no field for a question"
NO_ANSWER = "no field for an answer"
IMPOSSIBLE = "marked as unanswerable"


class PairReader:
    """Turns records into pairs by split, and counts the records without a pair by reason."""

    def __init__(self) -> None:
        self.n_pairs = 0
        self._skipped: dict[str, tuple[int, list[str]]] = {}  # reason -> how many, the first places
        self._lacking: str | None = None  # message on the first record without a needed field

    def pairs(self, record: Record) -> dict[str, list[QuestionAnswer]]:
        """Return the pairs in a record, by split; a record that names no split is for training.

        Raises DataError for a question or an answer that is not text.
        """
        by_split: dict[str, list[QuestionAnswer]] = {}
        for place, fields in _innermost(record.place, _by_plain_name(record.fields), {}):
            for split, pair in self._read(place, fields):
                by_split.setdefault(split, []).append(pair)
                self.n_pairs += 1
        return by_split

    def _read(self, place: str, fields: dict[str, Any]) -> Iterator[tuple[str, QuestionAnswer]]:
        if str(fields.get("is_impossible")).lower() == "true":  # a string in CSV
            return self._skip(IMPOSSIBLE, place)
        questions = _questions(fields, place)
        if questions is None:
            self._lacks(QUESTION, place, fields)
            return self._skip(NO_QUESTION, place)
        answer_name = _first_name(fields, ANSWER)
        if not answer_name:
            self._lacks(ANSWER, place, fields)
            return self._skip(NO_ANSWER, place)
        answers = _answers(fields, answer_name, place)
        if not answers:
            is_squad = isinstance(fields[answer_name], dict | list)  # which marks a question without answer so
            return self._skip(IMPOSSIBLE if is_squad else EMPTY_ANSWER, place)
        accepted = tuple(answers) if len(answers) > 1 else ()
        context_name = _first_name(fields, CONTEXT)
        is_context = context_name and context_name != _question_name(fields)
        context = text_of(fields[context_name], place).strip() if is_context else ""
        topic_name = _first_name(fields, TOPIC)
        topic = text_of(fields[topic_name], place) if topic_name else ""
        fact = text_of(fields.get("id"), place) or None
        for split, question in questions:
            if question.strip():
                yield split, QuestionAnswer(question.strip(), answers[0], topic, fact, context, accepted)
            else:
                self._skip(EMPTY_QUESTION, place)

    def _skip(self, reason: str, place: str) -> None:
        count, places = self._skipped.get(reason, (0, []))
        self._skipped[reason] = (count + 1, [*places, place][:MAX_PLACES])

    def _lacks(self, names: Sequence[str], place: str, fields: dict[str, Any]) -> None:
        present = ", ".join(fields) or "none"
        self._lacking = self._lacking or f"{place}: no field '{' or '.join(names)}'. Found the fields: {present}."

    def notes(self, origin: str) -> list[str]:
        """Return a line per reason for which records were left out, and one on the first record without a field."""
        notes = [
            f"{origin}: {count:,} x {reason}, left out: {', '.join(places)}"
            + (f" and {count - len(places):,} more." if count > len(places) else ".")
            for reason, (count, places) in self._skipped.items()
        ]
        return notes + ([self._lacking] if self._lacking else [])

    def require_some(self, origin: str) -> None:
        """Raises DataError when there was no pair and a needed field was missing, perhaps under another name."""
        if self._lacking and not self.n_pairs:
            n_records = sum(count for count, _ in self._skipped.values())
            raise DataError(
                f"{self._lacking}\n{origin}: {n_records:,} records, none of them a question with an answer."
            )


def _by_plain_name(fields: dict[str, Any]) -> dict[str, Any]:
    return {str(name).strip().casefold(): value for name, value in fields.items()}


def _innermost(place: str, fields: dict[str, Any], outside: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the questions in SQuAD's nesting, each with its paragraph's context; else the record itself."""
    if "context" in fields:
        outside = {**outside, "context": fields["context"]}
    for name in NESTED:
        children = fields.get(name)
        if isinstance(children, list) and all(isinstance(child, dict) for child in children):
            for number, child in enumerate(children):
                yield from _innermost(f"{place} {name}[{number}]", _by_plain_name(child), outside)
            return
    yield place, {**outside, **fields}


def _first_name(fields: dict[str, Any], names: Sequence[str]) -> str:
    """Return the first of the names with a value; else the first that is present; else an empty text."""
    present = [name for name in names if name in fields]
    return next((name for name in present if fields[name] not in (None, "", [])), present[0] if present else "")


def _questions(fields: dict[str, Any], place: str) -> list[tuple[str, str]] | None:
    """Return questions with their splits: several for a fact of DTL's, else one; None when no field has one."""
    by_split = {split: fields[split] for split in SPLITS if isinstance(fields.get(split), str | list)}
    if by_split:
        return [
            (split, text_of(question, place))
            for split, value in by_split.items()
            for question in (value if isinstance(value, list) else [value])
        ]
    name = _question_name(fields)
    return [("train", text_of(fields[name], place))] if name else None


def _question_name(fields: dict[str, Any]) -> str:
    return _first_name(fields, QUESTION)


def _answers(fields: dict[str, Any], name: str, place: str) -> list[str]:
    """Return the answer to learn, followed by the other accepted ones; each once, none empty."""
    values = _texts(fields[name])
    if "answers" in fields and name != "answers":
        values += _texts(fields["answers"])
    texts = [text_of(value, place).strip() for value in values]
    return list(dict.fromkeys(text for text in texts if text))


def _texts(value: Any) -> list[Any]:
    """Return the values of an answer field: one value, a list of them, or SQuAD's `text` next to `answer_start`."""
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if not isinstance(value, list):
        return [value]
    return [element["text"] if isinstance(element, dict) and "text" in element else element for element in value]
