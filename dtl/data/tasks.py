"""Tasks: scores that say what a model can do, beside its loss.

A task is a function of a way to answer and of questions by split, registered under a name:
`@TASKS.register("my_score")`, asked for by `data.tasks=[my_score]`.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence

from dtl.data.qa import QuestionAnswer
from dtl.registry import TASKS

Answer = Callable[[list[str]], list[str]]  # questions to the answers of the model
Task = Callable[[Answer, Mapping[str, Sequence[QuestionAnswer]]], dict[str, float]]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """SQuAD's normalisation (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces.

    An answer that consists of nothing else (`A`, `+`) is compared as it stands, in lower case.
    """
    plain = re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_PUNCTUATION))
    return " ".join(plain.split()) or answer.strip().lower()


@TASKS.register("exact_match")
def exact_match(answer: Answer, pairs: Mapping[str, Sequence[QuestionAnswer]]) -> dict[str, float]:
    """Share of questions answered exactly, after normalisation: `{"exact_match/train": 0.98, ...}`.

    `answer` is called once a split with all of its questions; a split without questions has no score.
    """
    scores: dict[str, float] = {}
    for split, of_split in pairs.items():
        if not of_split:
            continue
        given = answer([pair.question for pair in of_split])
        right = sum(normalise(said) == normalise(pair.answer) for said, pair in zip(given, of_split, strict=True))
        scores[f"exact_match/{split}"] = right / len(of_split)
    return scores
