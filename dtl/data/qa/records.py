"""Parsing of records into questions with answers, under their common names and shapes.

Supported are one question per record (question/answer, Alpaca's instruction/input/output, prompt/response,
prompt/completion, each with an optional context), SQuAD as published (articles of paragraphs of questions) and as on
the Hugging Face hub, DTL's own facts: one answer, and paraphrases by split, and chats (`dtl.data.chats`). Case and
surrounding space of names are ignored.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dtl.base.units import number_of
from dtl.data.chats import MESSAGES, Message, chats_in, messages_in, turns_of
from dtl.data.config import SPLITS
from dtl.data.documents import AsRead, QuestionAnswer
from dtl.data.local.files import either, quoted_name, text_of
from dtl.data.local.readers import Record
from dtl.errors import DataError

QUESTION = ("question", "questions", "instruction", "prompt", "input")
ANSWER = ("answer", "output", "response", "completion", "chosen", "answers", "answerkey")
CONTEXT = ("context", "input")
TOPIC = ("topic", "category")
CHOICES = ("choices", "options")
LETTERS = "ABCDEFGHIJ"
MARKED = ("text", "chosen", "conversation", "dialogue", "dialog", "chat")  # may hold a chat as a text with markers
NESTED = ("data", "paragraphs", "qas")  # SQuAD's lists, outermost first
EXAMPLE = '{"question": "...", "answer": "..."}'
OTHER_DELIMITERS = "~^#:=/\\§¦"  # that a table is written with by hand; a line `sep=~` before it makes them known
MAX_PLACES = 3  # named of the records left out for one reason

EMPTY_QUESTION = "an empty question"
EMPTY_ANSWER = "an empty answer"
NO_QUESTION = "no field for a question"
NO_ANSWER = "no field for an answer"
NO_TURN = "a chat without an answer"
IMPOSSIBLE = "marked as unanswerable"


Turns = tuple[QuestionAnswer, ...]  # of a dialogue; one of most records


class PairReader:
    """Turns records into pairs by split, and counts the records without a pair by reason.

    `columns` are names that the records use, by DTL's: `{"question": "frage", "answer": "antwort"}` (data.qa.columns).
    """

    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self.n_pairs = 0
        self._own = {name: (column.strip().casefold(),) for name, column in (columns or {}).items()}
        self._question: Sequence[str] = self._own.get("question", QUESTION)
        self._answer: Sequence[str] = self._own.get("answer", ANSWER)
        self._context: Sequence[str] = self._own.get("context", CONTEXT)
        self._topic: Sequence[str] = self._own.get("topic", TOPIC)
        self._id = self._own.get("id", ("id",))[0]
        self._choices: Sequence[str] = self._own.get("choices", CHOICES)
        self._n_choices = self._n_labels = 0  # records with choices; with the number or letter of one as the answer
        self._forms: Counter[str] = Counter()  # what the records were recognised as
        self._chats: Counter[int] = Counter()  # with one turn, with several
        self._left_out_of_chats: Counter[str] = Counter()
        self._skipped: dict[str, tuple[int, list[str]]] = {}  # reason -> how many, the first places
        self._lacking: tuple[str, str] | None = None  # the first record without a needed field: its place, a message

    def pairs(self, record: Record) -> dict[str, list[Turns]]:
        """Return the pairs in a record, by split, each by itself or as a turn of a dialogue; a record that names no
        split is for training.

        Raises DataError for a question or an answer that is not text.
        """
        fields = _by_plain_name(record.fields)
        if chats := self._chats_in(fields):
            dialogues = [turns for chat in chats if (turns := self._turns(chat, record.place, fields))]
            return {"train": dialogues} if dialogues else {}
        by_split: dict[str, list[Turns]] = {}
        for place, innermost in _innermost(record.place, fields, {}):
            for split, pair in self._read(place, innermost):
                by_split.setdefault(split, []).append((pair,))
                self.n_pairs += 1
        return by_split

    def _chats_in(self, fields: dict[str, Any]) -> list[list[Message]]:
        if "question" in self._own:
            return []
        messages = messages_in(fields, self._own.get("messages", MESSAGES))
        if messages is not None:
            return [messages]
        if _first_name(fields, self._question):
            return []
        texts = (fields[name] for name in self._own.get("messages", MARKED) if isinstance(fields.get(name), str))
        return next((chats for text in texts if (chats := chats_in(text))), [])

    def _turns(self, chat: list[Message], place: str, fields: dict[str, Any]) -> Turns:
        turns = turns_of(chat, self._left_out_of_chats)
        if not turns:
            self._skip(NO_TURN, place)
            return ()
        self._chats[len(turns) > 1] += 1
        self.n_pairs += len(turns)
        fact = text_of(fields.get(self._id), place) or None
        return tuple(
            QuestionAnswer(text_of(asked, place), text_of(answer, place), fact=fact) for asked, answer in turns
        )

    def _read(self, place: str, fields: dict[str, Any]) -> Iterator[tuple[str, QuestionAnswer]]:
        if str(fields.get("is_impossible")).lower() == "true":  # a string in CSV
            return self._skip(IMPOSSIBLE, place)
        questions, question_name = self._questions(fields, place)
        if questions is None:
            self._lacks(self._question, place, fields)
            return self._skip(NO_QUESTION, place)
        answer_name = _first_name(fields, self._answer)
        if not answer_name:
            self._lacks(self._answer, place, fields)
            return self._skip(NO_ANSWER, place)
        answers = _answers(fields, answer_name, place)
        if not answers:
            is_squad = isinstance(fields[answer_name], dict | list)  # which marks a question without answer so
            return self._skip(IMPOSSIBLE if is_squad else EMPTY_ANSWER, place)
        choices = _choices(fields, self._choices, isinstance(fields[answer_name], int))
        self._n_choices += bool(choices)
        if len(answers) == 1 and (label := choices.get(answers[0])) and answers[0] not in choices.values():
            answers = [label]
            self._n_labels += 1
        accepted = tuple(answers) if len(answers) > 1 else ()
        context_name = _first_name(fields, self._context)
        is_context = context_name and context_name != question_name
        context = text_of(fields[context_name], place).strip() if is_context else ""
        topic_name = _first_name(fields, self._topic)
        topic = text_of(fields[topic_name], place) if topic_name else ""
        fact = text_of(fields.get(self._id), place) or None
        given = {"question": question_name, "context": context_name if context else "", "answer": answer_name}
        self._forms[", ".join(f"{what} '{name}'" for what, name in given.items() if name)] += 1
        for split, question in questions:
            if question.strip():
                if "choices" in self._own and choices:
                    question = f"{question.strip()} Choices: {'; '.join(dict.fromkeys(choices.values()))}."
                yield split, QuestionAnswer(question.strip(), answers[0], topic, fact, context, accepted)
            else:
                self._skip(EMPTY_QUESTION, place)

    def _questions(self, fields: dict[str, Any], place: str) -> tuple[list[tuple[str, str]] | None, str]:
        """Return questions with their splits, several for a fact of DTL's, else one, and the name of their field; None
        when no field has one."""
        by_split = {split: fields[split] for split in SPLITS if isinstance(fields.get(split), str | list)}
        if by_split and "question" not in self._own:
            questions = [
                (split, text_of(question, place))
                for split, value in by_split.items()
                for question in (value if isinstance(value, list) else [value])
            ]
            return questions, " ".join(by_split)
        name = _first_name(fields, self._question)
        if not name:
            return None, ""
        value = fields[name]
        # A list of questions has one answer; beside a list of answers they would be pairs, so that is an error.
        are_wordings = isinstance(value, list) and not isinstance(fields.get(_first_name(fields, self._answer)), list)
        return [("train", text_of(question, place)) for question in (value if are_wordings else [value])], name

    def _skip(self, reason: str, place: str) -> None:
        count, places = self._skipped.get(reason, (0, []))
        self._skipped[reason] = (count + 1, [*places, place][:MAX_PLACES])

    def _lacks(self, names: Sequence[str], place: str, fields: dict[str, Any]) -> None:
        present = (", ".join(fields) or "none").rstrip(".")
        lacking = f"no field {either(names)}. Found the fields: {present}.{_columns_to_give(fields, place)}"
        self._lacking = self._lacking or (place, lacking)

    def notes(self, origin: str) -> list[str]:
        """Return what the records were recognised as, a line per reason for which records were left out, and one on
        the first record without a field."""
        forms = "; ".join(
            f"{form} ({number_of('records', count)})" for form, count in self._forms.most_common(MAX_PLACES)
        )
        notes: list[str] = [AsRead(f"{origin}: read as {forms}.")] if forms else []
        if self._chats:
            ways = {False: "with one turn as pairs", True: "with several turns as documents in the chat template"}
            read = ", ".join(f"{self._chats[several]:,} {way}" for several, way in ways.items() if self._chats[several])
            left_out = ", ".join(f"{count:,} x {reason}" for reason, count in self._left_out_of_chats.most_common())
            notes.append(AsRead(f"{origin}: read as chats: {read}."))
            notes += [f"{origin}: left out of the chats: {left_out}."] if left_out else []
        if self._n_choices and "choices" not in self._own:
            notes.append(
                f"{origin}: {number_of('records', self._n_choices)} with choices, which are not in the questions, "
                "though some may need them. To put them in: 'data.qa.columns={choices: choices}'"
            )
        if self._n_labels:
            notes.append(
                f"{origin}: {number_of('answers', self._n_labels)} given as the number or letter of a choice, read as "
                "its text."
            )
        notes += [f"{origin}: {count:,} x {what}." for count, what in self._reasons(origin)]
        return notes + ([f"{origin}: {_within(self._lacking[0], origin)}: {self._lacking[1]}"] if self._lacking else [])

    def _reasons(self, origin: str) -> list[tuple[int, str]]:
        """Return how many records were left out for each reason, and the reason with the first places."""
        reasons = []
        for reason, (count, places) in self._skipped.items():
            more = f" and {count - len(places):,} more" if count > len(places) else ""
            first = ", ".join(_within(place, origin) for place in places)
            reasons.append((count, f"{reason}, left out: {first}{more}"))
        return reasons

    def require_some(self, origin: str) -> None:
        """Raises DataError when there was no pair in the records: a field that is missing, perhaps under another name,
        or the reasons why they were left out."""
        if self.n_pairs or not self._skipped:
            return
        n_records = sum(count for count, _ in self._skipped.values())
        if self._lacking:
            why = f"{_within(self._lacking[0], origin)}: {self._lacking[1]}"
        else:
            why = "; ".join(f"{count:,} x {what}" for count, what in self._reasons(origin)) + "."
        raise DataError(f"{origin}: no question with an answer in {number_of('records', n_records)}. {why}")


def _within(place: str, origin: str) -> str:
    """The place of a record in what `origin` names, whose path is not repeated: `line 3`, `record 3`; in a folder
    `a.jsonl:3`."""
    path = origin.partition("=")[2].rstrip("/")
    if place == path:  # a .txt is one record
        return "the text"
    if not path or not place.startswith((f"{path}:", f"{path} (", f"{path}/")):
        return place
    rest = place[len(path) :]
    if rest.startswith(":"):
        return f"line {rest[1:]}"
    return rest[1:] if rest.startswith("/") else re.sub(r"^ \((.*?)\)", r"\1", rest)


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


def _columns_to_give(fields: dict[str, Any], place: str) -> str:
    """Return advice for a record whose fields have other names: the setting, where possible ready to paste."""
    is_table = bool(re.search(r"\.(csv|tsv)\b[^/]*$", place, re.IGNORECASE))
    if is_table and len(fields) == 1:
        return _one_column(*fields)
    texts = {name: str(value).strip() for name, value in fields.items() if isinstance(value, str | int | float)}
    words = [name for name, text in texts.items() if text and not re.fullmatch(r"[\d.-]*", text)]
    if any(name.endswith("?") for name in fields):
        return " The first line must name the columns, for example: question,answer"
    if len(texts) < 2 or not words:
        table = "" if is_table or ".json" in place else " A table needs a name that ends in .csv or .tsv."
        plain = " Plain text is read with data=text data.path=FILE." if "text" in fields else ""
        return f" A record has a question and an answer: {EXAMPLE}.{table}{plain}"
    asked = next((name for name in words if texts[name].endswith(("?", "？"))), words[0])  # noqa: RUF001
    after = [*texts][[*texts].index(asked) + 1 :]
    before = [name for name in words if name != asked]
    answer = (after or before or ["NAME"])[0]
    return f" Name them: 'data.qa.columns={{question: {quoted_name(asked)}, answer: {quoted_name(answer)}}}'"


def _one_column(header: str) -> str:
    """Return advice for a table whose first line has none of the delimiters that are recognised."""
    mark = next((mark for mark in OTHER_DELIMITERS if mark in header), None)
    if mark is None:
        return " A table has a delimiter, one of , ; | and tab, and its first line names the columns: question,answer"
    lines = f"sep={mark}" if "answer" in header else f"sep={mark} and question{mark}answer"
    count = "two lines" if " and " in lines else "line"
    return f" For columns that {mark} separates, write before the first line the {count} {lines}"


def _first_name(fields: dict[str, Any], names: Sequence[str]) -> str:
    """Return the first of the names with a value; else the first that is present; else an empty text."""
    present = [name for name in names if name in fields]
    return next((name for name in present if fields[name] not in (None, "", [])), present[0] if present else "")


def _choices(fields: dict[str, Any], names: Sequence[str], by_number: bool) -> dict[str, str]:
    """Return the choices of a question by the labels that its answer may have; empty for none.

    A list of texts (labels: letters, or `by_number` numbers from 0 on), of objects with label and text, an object of
    texts by label, or one with a list of each, as of ARC.
    """
    value = next((fields[name] for name in names if isinstance(fields.get(name), list | dict)), None)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        labels = value.get("label")
        pairs = list(zip(labels if isinstance(labels, list) else LETTERS, value["text"], strict=False))
    elif isinstance(value, dict):
        pairs = list(value.items())
    elif value and all(isinstance(choice, dict) and "text" in choice for choice in value):
        pairs = [(choice.get("label"), choice["text"]) for choice in value]
    else:
        pairs = list(zip(itertools.count() if by_number else LETTERS, value or (), strict=False))
    return {str(label): str(text).strip() for label, text in pairs if isinstance(text, str | int | float)}


def _answers(fields: dict[str, Any], name: str, place: str) -> list[str]:
    """Return the answer to learn, followed by the other accepted ones; each once, none empty."""
    values = _texts(fields[name])
    if "answers" in fields and name != "answers":
        values += _texts(fields["answers"])
    texts = [_answer(value, place).strip() for value in values]
    return list(dict.fromkeys(text for text in texts if text))


def _answer(value: Any, place: str) -> str:
    """Return an answer as text: true and false as JSON writes them."""
    return str(value).lower() if isinstance(value, bool) else text_of(value, place)


def _texts(value: Any) -> list[Any]:
    """Return the values of an answer field: one value, a list of them, or SQuAD's `text` next to `answer_start`."""
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if not isinstance(value, list):
        return [value]
    return [element["text"] if isinstance(element, dict) and "text" in element else element for element in value]
