"""The natural wordings and near misses that ship with DTL: every rule holds, and notices when it is broken."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from importlib import resources
from typing import Any

import pytest
from test_facts import FILLER, TOPICS, content_words, normalised, read_facts, wordings

from dtl.data.tasks import normalise

Questions = dict[str, list[dict[str, Any]]]  # natural, near_misses, unanswerable
Rule = Callable[[Questions], Iterable[str]]
FACTS = {fact["id"]: fact for fact in read_facts()}
SHIPPED = {normalised(text) for fact in FACTS.values() for text in wordings(fact)}
SHIPPED_WORDS = {word for text in SHIPPED for word in text.split()}
MAX_SAME_SKELETON, MAX_SAME_BEGINNING = 0.04, 0.03  # of all natural wordings


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (resources.files("dtl.data") / name).read_text("utf-8").splitlines()]


def skeleton(text: str) -> str:
    """The words without content in their order, runs of content as one blank; keywords alone keep their words."""
    if not set(normalised(text).split()) & FILLER:
        return text
    kept = [word if word in FILLER else "_" for word in normalised(text).split()]
    return " ".join(word for place, word in enumerate(kept) if word != "_" or kept[place - 1 : place] != ["_"])


def enough(questions: Questions) -> Iterator[str]:
    if len(questions["natural"]) < 300 or len({q["id"] for q in questions["natural"]}) < 300:
        yield f"{len(questions['natural'])} natural wordings"
    if len(questions["near_misses"]) != 100:
        yield f"{len(questions['near_misses'])} near misses"
    by_topic = Counter(q["topic"] for q in questions["natural"])
    yield from (f"{topic}: {by_topic[topic]} natural wordings" for topic in TOPICS if by_topic[topic] < 25)


def schema(questions: Questions) -> Iterator[str]:
    for q in questions["natural"]:
        if list(q) != ["id", "topic", "question", "answers"] or q["topic"] != FACTS[q["id"]]["topic"]:
            yield f"{q}: keys or topic"
    yield from (f"{q}: keys" for q in questions["near_misses"] if list(q) != ["question"])
    yield from (f"{q}: spaces" for name in questions for q in questions[name] if q["question"] != q["question"].strip())


def answers_are_taught(questions: Questions) -> Iterator[str]:
    for q in questions["natural"]:
        if q["answers"][0] != FACTS[q["id"]]["answer"]:
            yield f"{q['question']!r}: {q['answers'][0]!r} is not the answer that is taught"
        if len({normalise(answer) for answer in q["answers"]}) != len(q["answers"]):
            yield f"{q['question']!r}: equal answers after normalisation"
        # Normalised, 1/2 is 12: an answer of 12 would be right.
        yield from (f"{q['question']!r}: {a!r}" for a in q["answers"][1:] if re.search(r"[/.]\d", a))


def answers_are_hidden(questions: Questions) -> Iterator[str]:
    for q in questions["natural"]:
        padded = f" {normalise(q['question'])} "
        yield from (f"{q['question']!r} contains {a!r}" for a in q["answers"] if f" {normalise(a)} " in padded)


def all_different(questions: Questions) -> Iterator[str]:
    counts = Counter(normalised(q["question"]) for name in questions for q in questions[name])
    yield from (f"{text!r} occurs {count} times" for text, count in counts.items() if count > 1 or not text)
    yield from (f"{text!r} is a shipped paraphrase" for text in counts if text in SHIPPED)


def near_misses_are_not_taught(questions: Questions) -> Iterator[str]:
    """A near miss has a word that no wording of a single fact has, so that no fact answers it."""
    for fact in FACTS.values():
        taught = frozenset[str]().union(*map(content_words, wordings(fact)))
        for q in questions["near_misses"]:
            if content_words(q["question"]) <= taught:
                yield f"{q['question']!r} asks for {fact['id']}"


def near_misses_are_near(questions: Questions) -> Iterator[str]:
    taught = frozenset[str]().union(*(content_words(text) for fact in FACTS.values() for text in wordings(fact)))
    yield from (q["question"] for q in questions["near_misses"] if not content_words(q["question"]) & taught)


def no_template(questions: Questions) -> Iterator[str]:
    texts = [q["question"] for q in questions["natural"]]
    for most, key in ((MAX_SAME_SKELETON, skeleton), (MAX_SAME_BEGINNING, lambda text: text.lower().split()[:2])):
        common, count = Counter(str(key(text)) for text in texts).most_common(1)[0]
        if count > most * len(texts):
            yield f"{count} of {len(texts)}: {common}"


def styles(questions: Questions) -> Iterator[str]:
    """As people type: fractions of keywords, long questions, lower case without a mark, and words not seen before."""
    texts = [q["question"] for q in questions["natural"]]
    found = {
        "keywords": sum(len(text.split()) <= 4 for text in texts),
        "long": sum(len(text.split()) >= 13 for text in texts),
        "well written": sum(text[0].isupper() and text.endswith(("?", ".")) for text in texts),
        "careless": sum(text == text.lower() and not text.endswith("?") for text in texts),
        "new words": sum(not set(normalised(text).split()) <= SHIPPED_WORDS for text in texts),
    }
    least = {"keywords": 0.15, "long": 0.1, "well written": 0.1, "careless": 0.4, "new words": 0.4}
    yield from (f"{name}: {found[name]} of {len(texts)}" for name in least if found[name] < least[name] * len(texts))


def change(name: str, key: str, value: object, row: int = 6) -> Callable[[Questions], object]:
    return lambda questions: questions[name][row].update({key: value})


def rewrite(how: Callable[[str], str]) -> Callable[[Questions], object]:
    return lambda questions: [q.update(question=how(q["question"])) for q in questions["natural"]]


BREAKAGES: list[tuple[Rule, Callable[[Questions], object]]] = [
    (enough, lambda questions: questions["near_misses"].pop()),
    (enough, lambda questions: questions["natural"].clear()),
    (schema, change("natural", "topic", "cookery")),
    (schema, change("near_misses", "answer", "Lisbon")),
    (schema, change("near_misses", "question", "capital of portugal ")),
    (answers_are_taught, change("natural", "answers", ["Nobody"])),
    (answers_are_taught, lambda questions: questions["natural"][6]["answers"].append("the edvard MUNCH")),
    (answers_are_taught, lambda questions: questions["natural"][6]["answers"].append("1/2")),
    (answers_are_hidden, change("natural", "question", "is it edvard munch")),
    (all_different, change("natural", "question", "what is the   capital of CANADA")),
    (all_different, lambda questions: questions["natural"].append(questions["unanswerable"][0])),
    (near_misses_are_not_taught, change("near_misses", "question", "scream painter please")),
    (near_misses_are_near, change("near_misses", "question", "glimp the frobbly what")),
    (no_template, rewrite(lambda text: f"what is the {text.split()[-1]}")),
    (no_template, rewrite(lambda text: f"tell me {text}")),
    (styles, rewrite(str.capitalize)),
    (styles, rewrite(lambda text: f"please {text} if you can and want to")),
]


@pytest.fixture(scope="module")
def questions() -> Questions:
    return {name: read(f"{name}.jsonl") for name in ("natural", "near_misses", "unanswerable")}


@pytest.mark.parametrize("rule", dict(BREAKAGES), ids=lambda rule: rule.__name__)
def test_the_shipped_questions_obey(rule: Rule, questions: Questions) -> None:
    assert list(rule(questions)) == []


@pytest.mark.parametrize(("rule", "breakage"), [pytest.param(*pair, id=pair[0].__name__) for pair in BREAKAGES])
def test_a_rule_notices_when_it_is_broken(rule: Rule, breakage: Callable, questions: Questions) -> None:
    broken = deepcopy(questions)
    breakage(broken)
    assert list(rule(broken)) != []
