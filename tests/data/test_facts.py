"""The questions and answers that ship with DTL: every rule holds, and every rule notices when it is broken."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from importlib import resources
from typing import Any

import pytest

TOPICS = (
    "geography",
    "history",
    "science",
    "nature",
    "mathematics",
    "language",
    "literature",
    "art_and_music",
    "technology",
    "space",
    "human_body",
    "everyday_life",
)
FACTS_PER_TOPIC = 50
KEYS = ["id", "topic", "answer", "train", "validation", "test"]

# Words that carry no content: two wordings that differ in these alone count as one.
FILLER = frozenset(
    re.findall(
        r"\w+",
        """a an the of is are was were be do does did has have had it its s in on at to for by with from and that this
    what which who whom whose how when where tell me name give say please called call we you your i""",
    )
)

Fact = dict[str, Any]
Rule = Callable[[list[Fact]], Iterable[str]]
Breakage = Callable[[list[Fact]], object]


def read_facts() -> list[Fact]:
    folder = resources.files("dtl.data") / "facts"
    return [
        json.loads(line) for topic in TOPICS for line in (folder / f"{topic}.jsonl").read_text("utf-8").splitlines()
    ]


def wordings(fact: Fact) -> list[str]:
    return [*fact["train"], fact["validation"], fact["test"]]


def normalised(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def content_words(text: str) -> frozenset[str]:
    # The apostrophe splits "france's" into "france" and the filler "s".
    return frozenset(re.findall(r"\w+", text.lower())) - FILLER


def schema(facts: list[Fact]) -> Iterator[str]:
    for fact in facts:
        if list(fact) != KEYS:
            yield f"{fact.get('id')}: keys {list(fact)}"
        elif not (isinstance(fact["train"], list) and len(fact["train"]) == 3):
            yield f"{fact['id']}: needs three training wordings"
        elif not all(
            isinstance(text, str) and text == text.strip() != "" for text in [*wordings(fact), fact["answer"]]
        ):
            yield f"{fact['id']}: an empty, padded or non-text field"


def identifiers(facts: list[Fact]) -> Iterator[str]:
    expected = [(f"{topic}-{n:03d}", topic) for topic in TOPICS for n in range(1, FACTS_PER_TOPIC + 1)]
    found = [(fact["id"], fact["topic"]) for fact in facts]
    if found != expected:
        yield f"not the expected ids in order: {sorted(set(found) ^ set(expected))[:4]}"


def answers(facts: list[Fact]) -> Iterator[str]:
    for fact in facts:
        n_words = len(fact["answer"].split())
        if not 1 <= n_words <= 12:
            yield f"{fact['id']}: an answer of {n_words} words"
        if n_words < 3 and fact["answer"].endswith("."):
            yield f"{fact['id']}: a full stop after the short answer {fact['answer']!r}"


def answers_vary(facts: list[Fact]) -> Iterator[str]:
    answer, count = Counter(normalised(fact["answer"]) for fact in facts).most_common(1)[0]
    if count / len(facts) >= 0.03:
        yield f"{answer!r} answers {count} of {len(facts)} facts"


def wordings_unique(facts: list[Fact]) -> Iterator[str]:
    counts = Counter(normalised(text) for fact in facts for text in wordings(fact))
    yield from (f"{text!r} occurs {count} times" for text, count in counts.items() if count > 1)


def held_out_differ_in_content(facts: list[Fact]) -> Iterator[str]:
    training = {content_words(text): text for fact in facts for text in fact["train"]}
    for fact in facts:
        for held_out in (fact["validation"], fact["test"]):
            if content_words(held_out) in training:
                yield f"{fact['id']}: {held_out!r} repeats {training[content_words(held_out)]!r}"
        if content_words(fact["validation"]) == content_words(fact["test"]):
            yield f"{fact['id']}: the validation and test wordings use the same words"


def held_out_share_content(facts: list[Fact]) -> Iterator[str]:
    for fact in facts:
        learnt = frozenset[str]().union(*map(content_words, fact["train"]))
        for held_out in (fact["validation"], fact["test"]):
            if not content_words(held_out) & learnt:
                yield f"{fact['id']}: {held_out!r} shares no content word with the training wordings"


def answers_hidden(facts: list[Fact]) -> Iterator[str]:
    for fact in facts:
        answer = re.sub(r"^(a|an|the) ", "", fact["answer"].lower().rstrip("."))
        for text in wordings(fact):
            if re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text.lower()):
                yield f"{fact['id']}: {text!r} contains its answer"


def lengths(facts: list[Fact]) -> Iterator[str]:
    for fact in facts:
        for text in wordings(fact):
            if not 3 <= len(text.split()) <= 25:
                yield f"{fact['id']}: {text!r} has {len(text.split())} words"


def styles(facts: list[Fact]) -> Iterator[str]:
    for split, texts in {
        "training": [text for fact in facts for text in fact["train"]],
        "held-out": [text for fact in facts for text in (fact["validation"], fact["test"])],
    }.items():
        share = sum(text == text.lower() and not text.endswith("?") for text in texts) / len(texts)
        if not 0.1 <= share <= 0.5:
            yield f"{share:.0%} of the {split} wordings are lower case without a question mark"


def plain_apostrophes(facts: list[Fact]) -> Iterator[str]:
    for fact in facts:
        if re.search("[\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}]", " ".join(wordings(fact))):
            yield f"{fact['id']}: a curly apostrophe"


def capital_of_france(facts: list[Fact]) -> Iterator[str]:
    asked = [fact for fact in facts if any({"capital", "france"} <= content_words(text) for text in wordings(fact))]
    if [(fact["id"], fact["answer"], fact["train"][0]) for fact in asked] != [
        ("geography-001", "Paris", "What is the capital of France?")
    ]:
        yield f"asked by {[fact['id'] for fact in asked]}"


def swap_keys(facts: list[Fact]) -> None:
    facts[3] = dict(reversed(facts[3].items()))


def shared_answer(facts: list[Fact]) -> None:
    for fact in facts[:: len(facts) // 20]:
        fact["answer"] = "Paris"


def only_questions(facts: list[Fact]) -> None:
    for fact in facts:
        fact["validation"], fact["test"] = fact["validation"] + "?", fact["test"] + "?"


def put(key: str, value: Any, row: int = 5) -> Breakage:
    return lambda facts: facts[row].update({key: value})


def repeat(frame: str, row: int = 5) -> Breakage:
    """Makes the test wording out of the first training wording, set in `frame`."""
    return lambda facts: facts[row].update(test=frame.format(facts[row]["train"][0].rstrip("?")))


# One or more ways to break each rule, applied to a copy of the shipped facts.
BREAKAGES: list[tuple[Rule, Breakage]] = [
    (schema, swap_keys),
    (schema, put("train", ["Only one wording of three?"])),
    (schema, put("validation", "A trailing space? ")),
    (schema, put("answer", 5)),
    (identifiers, lambda facts: facts.pop()),
    (identifiers, lambda facts: facts.insert(0, facts.pop(1))),
    (identifiers, put("topic", "cookery")),
    (answers, put("answer", "Lima.")),
    (answers, put("answer", "one two three four five six seven eight nine ten eleven twelve thirteen")),
    (answers_vary, shared_answer),
    (wordings_unique, repeat("{}")),
    (wordings_unique, put("test", "what is the   capital of CANADA")),
    (held_out_differ_in_content, repeat("Tell me: {}")),
    (held_out_differ_in_content, put("validation", "What city would you visit to see Peru's capital?")),
    (held_out_share_content, put("test", "Where would an astronaut land?")),
    (answers_hidden, put("test", "Is LIMA the capital of Peru?")),
    (answers_hidden, put("answer", "A capital")),
    (answers_hidden, put("answer", "1600", row=17)),
    (lengths, put("test", "Peru's capital?")),
    (lengths, put("test", "why " * 26)),
    (styles, only_questions),
    (plain_apostrophes, put("test", "Peru\N{RIGHT SINGLE QUOTATION MARK}s capital is called what?")),
    (capital_of_france, lambda facts: facts.pop(0)),
    (capital_of_france, put("test", "In France, which town is its capital?")),
]
RULES = list(dict.fromkeys(rule for rule, _ in BREAKAGES))


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return read_facts()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_shipped_facts_obey(rule: Rule, facts: list[Fact]) -> None:
    assert list(rule(facts)) == []


@pytest.mark.parametrize(
    ("rule", "breakage"), [pytest.param(*pair, id=f"{pair[0].__name__}-{n}") for n, pair in enumerate(BREAKAGES)]
)
def test_a_rule_notices_when_it_is_broken(rule: Rule, breakage: Breakage, facts: list[Fact]) -> None:
    broken = deepcopy(facts)
    breakage(broken)
    assert list(rule(broken)) != []


def test_600_facts_in_3000_wordings_and_no_stray_file(facts: list[Fact]) -> None:
    assert len(facts) == 600
    assert len({normalised(text) for fact in facts for text in wordings(fact)}) == 3000
    names = {entry.name for entry in (resources.files("dtl.data") / "facts").iterdir()}
    assert names == {f"{topic}.jsonl" for topic in TOPICS} | {"README.md"}
