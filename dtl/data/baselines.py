"""Ways to answer questions without a model: what a model's scores have to be compared with.

Each is an `Answer` made from the training questions, and is scored as a model is.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dtl.data.documents import QuestionAnswer
from dtl.data.tasks import Answer, Pairs, exact_match, normalise
from dtl.registry import TASKS


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
