"""Tasks: scores that say what a model can do, beside its loss.

A task is a function of a way to answer and of questions by split, registered under a name:
`@TASKS.register("my_score")`, asked for by `data.tasks=[my_score]`. It scores the best checkpoint at the end of a
run, and whenever `python -m dtl.evaluate` is called.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from dtl.data.documents import QuestionAnswer
from dtl.registry import TASKS

# The questions of pairs, each with its context where it has one, to the answers of the model.
Answer = Callable[[Sequence[QuestionAnswer]], list[str]]
Pairs = Mapping[str, Sequence[QuestionAnswer]]  # by split
Task = Callable[[Answer, Pairs], dict[str, float]]

# Names of tasks that every evaluation measures, whether `data.tasks` lists them or not.
MEASURED_ALWAYS = ("exact_match", "f1", "lookup")

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """SQuAD's normalisation (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces.

    An answer that consists of nothing else (`A`, `+`) is compared as it stands, in lower case.
    """
    plain = re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_PUNCTUATION))
    return " ".join(plain.split()) or answer.strip().lower()


def is_right(said: str, pair: QuestionAnswer) -> bool:
    """Whether the answer, or another that is accepted, was given exactly, after `normalise`."""
    return any(normalise(said) == normalise(expected) for expected in _expected(pair))


def token_f1(said: str, pair: QuestionAnswer) -> float:
    """Harmonic mean of precision and recall of the words said, in [0, 1], after `normalise`; of several accepted
    answers the best (Rajpurkar et al. 2016)."""
    return max(_f1(normalise(said).split(), normalise(expected).split()) for expected in _expected(pair))


def _expected(pair: QuestionAnswer) -> tuple[str, ...]:
    return pair.answer, *pair.accepted


def _f1(said: list[str], expected: list[str]) -> float:
    common = (Counter(said) & Counter(expected)).total()
    if not common:
        return float(said == expected)
    return 2 * common / (len(said) + len(expected))


@TASKS.register("exact_match")
def exact_match(answer: Answer, pairs: Pairs) -> dict[str, float]:
    """Share of questions answered exactly, after normalisation: `{"exact_match/train": 0.98, ...}`.

    `answer` is called once a split with all of its questions; a split without questions has no score.
    """
    return _mean_by_split("exact_match", is_right, answer, pairs)


@TASKS.register("f1")
def f1(answer: Answer, pairs: Pairs) -> dict[str, float]:
    """Mean token F1: `{"f1/train": 0.99, ...}`. Right words count where the answer as a whole is not right."""
    return _mean_by_split("f1", token_f1, answer, pairs)


def _mean_by_split(
    name: str, score: Callable[[str, QuestionAnswer], float], answer: Answer, pairs: Pairs
) -> dict[str, float]:
    scores: dict[str, float] = {}
    for split, of_split in pairs.items():
        if not of_split:
            continue
        given = answer(of_split)
        total = sum(score(said, pair) for said, pair in zip(given, of_split, strict=True))
        scores[f"{name}/{split}"] = total / len(of_split)
    return scores


def asked_once(answer: Answer, known: Iterable[tuple[QuestionAnswer, str]] = ()) -> Answer:
    """`answer` with a memory, in which `known` answers are already: several tasks ask the same questions."""
    remembered = {_asked(pair): said for pair, said in known}

    def from_memory(pairs: Sequence[QuestionAnswer]) -> list[str]:
        new = {_asked(pair): pair for pair in pairs if _asked(pair) not in remembered}
        if new:
            remembered.update(zip(new, answer(list(new.values())), strict=True))
        return [remembered[_asked(pair)] for pair in pairs]

    return from_memory


def _asked(pair: QuestionAnswer) -> tuple[str, str]:
    return pair.question, pair.context


# --- baselines ----------------------------------------------------------------------------------------------------
# Ways to answer questions without a model: what a model's scores have to be compared with.
#
# Each is an `Answer` made from the training questions, and is scored as a model is.


def look_up(training: Sequence[QuestionAnswer]) -> Answer:
    """The answer of the nearest training question by BM25 (Robertson et al. 1994; Lucene's form, k1 1.5, b 0.75).

    Words are compared after `normalise`. Of questions that are equally near the first counts; a question that has
    no word in common with any is answered by an empty text.
    """
    import bm25s  # only whoever asks for scores needs it

    words = [normalise(pair.question).split() for pair in training]
    if not any(words):
        return lambda pairs: [""] * len(pairs)
    index = bm25s.BM25()
    index.index(words, show_progress=False)

    def nearest(question: str) -> str:
        known = [word for word in normalise(question).split() if word in index.vocab_dict]
        if not known:
            return ""
        return training[int(np.argmax(index.get_scores(known)))].answer

    return lambda pairs: [nearest(pair.question) for pair in pairs]


def majority(training: Sequence[QuestionAnswer]) -> Answer:
    """Always the commonest answer; of several the one that comes first."""
    counts = Counter(normalise(pair.answer) for pair in training)
    commonest = max(counts, key=lambda answer: counts[answer], default=None)
    said = next((pair.answer for pair in training if normalise(pair.answer) == commonest), "")
    return lambda pairs: [said] * len(pairs)


@TASKS.register("lookup")
def lookup(answer: Answer, pairs: Pairs) -> dict[str, float]:
    """Exact match of `look_up` on the questions held out, beside the model's: `{"lookup/exact_match/test": 0.61}`."""
    held_out = {split: of_split for split, of_split in pairs.items() if split != "train"}
    scores = exact_match(look_up(pairs.get("train", ())), held_out)
    return {f"lookup/{name}": score for name, score in scores.items()}
