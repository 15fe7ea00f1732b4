"""Tasks: scores of what a model can do, in addition to its loss.

A task is a function of an answering function and of questions by split, registered under a name:
`@TASKS.register("my_score")`, selected by `data.tasks=[my_score]`. It scores the best checkpoint at the end of a run,
and whenever `python -m dtl.evaluate` is called.
"""

import re
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from dtl.data.documents import QuestionAnswer
from dtl.registry import TASKS

# From pairs, of which only questions and contexts are used, to the model's answers.
Answer = Callable[[Sequence[QuestionAnswer]], list[str]]
Pairs = Mapping[str, Sequence[QuestionAnswer]]  # by split
Task = Callable[[Answer, Pairs], dict[str, float]]

# Names of tasks that every evaluation measures, whether `data.tasks` lists them or not.
MEASURED_ALWAYS = ("exact_match", "f1", "lookup")

# Scripts without spaces between words: each of their characters counts as a word, as in MLQA (Lewis et al. 2020):
# Thai, Lao, Myanmar, Khmer, Chinese, Japanese.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3005-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")  # of a text
_TERM = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")  # of a normalised text


class _Punctuation(dict[int, int | None]):
    """Table for `str.translate` without the punctuation of any script, nor invisible marks of direction and joining."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        dropped = character in string.punctuation or unicodedata.category(character)[0] == "P"
        self[code] = None if dropped or unicodedata.category(character) == "Cf" else code
        return self[code]


_PUNCTUATION = _Punctuation()


def normalise(answer: str) -> str:
    """SQuAD's normalisation (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces.

    Beyond ASCII: Unicode's form NFKC (composed letters, full width as plain) and the punctuation of all scripts. An
    answer that would become empty (`A`, `+`) is only lower-cased.
    """
    lower = unicodedata.normalize("NFKC", answer).lower()
    plain = re.sub(r"\b(a|an|the)\b", " ", lower.translate(_PUNCTUATION))
    return " ".join(plain.split()) or lower.strip()


def terms(text: str) -> list[str]:
    """Return the words of a text after `normalise`; in scripts without spaces its characters."""
    return _TERM.findall(normalise(text))


def is_right(given: str, pair: QuestionAnswer) -> bool:
    """Return True when the given answer equals one of the accepted answers after `normalise`."""
    return any(normalise(given) == normalise(expected) for expected in _expected(pair))


def token_f1(given: str, pair: QuestionAnswer) -> float:
    """Return the harmonic mean of precision and recall of the given words, in [0, 1], after `normalise`; with several
    accepted answers the best (Rajpurkar et al. 2016)."""
    return max(_f1(terms(given), terms(expected)) for expected in _expected(pair))


def _expected(pair: QuestionAnswer) -> tuple[str, ...]:
    return pair.answer, *pair.accepted


def _f1(given: list[str], expected: list[str]) -> float:
    common = (Counter(given) & Counter(expected)).total()
    if not common:
        return float(given == expected)
    return 2 * common / (len(given) + len(expected))


@TASKS.register("exact_match")
def exact_match(answer: Answer, pairs: Pairs) -> dict[str, float]:
    """Return the fraction of questions answered exactly, after `normalise`: `{"exact_match/train": 0.98, ...}`.

    `answer` is called once per split with all of its questions; a split without questions has no score.
    """
    return _mean_by_split("exact_match", is_right, answer, pairs)


@TASKS.register("f1")
def f1(answer: Answer, pairs: Pairs) -> dict[str, float]:
    """Return the mean token F1: `{"f1/train": 0.99, ...}`. It also credits answers that are only partly right."""
    return _mean_by_split("f1", token_f1, answer, pairs)


def _mean_by_split(
    name: str, score: Callable[[str, QuestionAnswer], float], answer: Answer, pairs: Pairs
) -> dict[str, float]:
    scores: dict[str, float] = {}
    for split, split_pairs in pairs.items():
        if split_pairs:
            total = sum(score(given, pair) for given, pair in zip(answer(split_pairs), split_pairs, strict=True))
            scores[f"{name}/{split}"] = total / len(split_pairs)
    return scores


def asked_once(answer: Answer, known: Iterable[tuple[QuestionAnswer, str]] = ()) -> Answer:
    """Return `answer` with a memory that starts with `known`, since several tasks ask the same questions."""
    remembered = {_asked(pair): given for pair, given in known}

    def from_memory(pairs: Sequence[QuestionAnswer]) -> list[str]:
        new = {_asked(pair): pair for pair in pairs if _asked(pair) not in remembered}
        if new:
            remembered.update(zip(new, answer(list(new.values())), strict=True))
        return [remembered[_asked(pair)] for pair in pairs]

    return from_memory


def _asked(pair: QuestionAnswer) -> tuple[str, str]:
    return pair.question, pair.context


# --- baselines ----------------------------------------------------------------------------------------------------
# Answers without a model, to compare a model's scores with. Each is an `Answer` built from the training questions.
# BM25 is hard to beat: 96.3 % of the shipped test paraphrases, against 95.6 % by qa_full (experiments/README.md).


def bm25_baseline(training: Sequence[QuestionAnswer]) -> Answer:
    """Answer with the nearest training question by BM25 (Robertson et al. 1994; Lucene's form, k1 1.5, b 0.75).

    Words are compared after `normalise`. Of equally near questions the first counts; a question without a word in
    common with any gets an empty answer.
    """
    with warnings.catch_warnings():  # of its progress bar in a notebook without widgets, which it does not show here
        warnings.filterwarnings("ignore", message="IProgress not found")
        import bm25s  # imported here: only scores need it

    words = [terms(pair.question) for pair in training]
    if not any(words):
        return lambda pairs: [""] * len(pairs)
    index = bm25s.BM25()
    index.index(words, show_progress=False)

    def nearest(question: str) -> str:
        known = [word for word in terms(question) if word in index.vocab_dict]
        if not known:
            return ""
        return training[int(np.argmax(index.get_scores(known)))].answer

    return lambda pairs: [nearest(pair.question) for pair in pairs]


def majority(training: Sequence[QuestionAnswer]) -> Answer:
    """Always answer with the most frequent training answer; of several, with the first."""
    counts = Counter(normalise(pair.answer) for pair in training)
    most_frequent = max(counts, key=lambda answer: counts[answer], default=None)
    answer = next((pair.answer for pair in training if normalise(pair.answer) == most_frequent), "")
    return lambda pairs: [answer] * len(pairs)


@TASKS.register("lookup")
def lookup(answer: Answer, pairs: Pairs) -> dict[str, float]:
    """Return exact match of `bm25_baseline` on held-out questions: `{"lookup/exact_match/test": 0.61}`."""
    held_out = {split: split_pairs for split, split_pairs in pairs.items() if split != "train"}
    scores = exact_match(bm25_baseline(pairs.get("train", ())), held_out)
    return {f"lookup/{name}": score for name, score in scores.items()}
