"""Everything that is measured of a model on its data, as one value."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dtl.data.batches import epoch_order
from dtl.data.documents import QuestionAnswer
from dtl.data.prepare import PreparedData
from dtl.data.tasks import MEASURED_ALWAYS, asked_once, look_up, majority
from dtl.evaluation.answers import (
    ALL_TOPICS,
    AnswerScores,
    Asked,
    WrongAnswer,
    answer_scores,
    likelihoods,
    with_baselines,
    worst_cases,
)
from dtl.evaluation.detection import Detection, detect
from dtl.evaluation.leakage import QuestionLeakage, TextLeakage, question_leakage, text_leakage
from dtl.evaluation.text import MixedPrecision, TextScores, text_scores, token_bytes
from dtl.generation.conversation import answer_greedily
from dtl.model.transformer import TransformerLM
from dtl.registry import TASKS

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure, and how much of it."""

    batch_size: int = 8  # rows of text
    questions_at_once: int = 64
    max_batches: int | None = None
    questions: int | None = None  # of each split at most
    unanswerable: Sequence[str] = ()
    compare_text: Sequence[str] = ()  # sources of plain text, to be compared with their own training text
    leakage_tokens: int | None = None
    tasks: Sequence[str] = ()  # registered names of further scores (`dtl.data.tasks`)
    worst: int = 10
    seed: int = 0  # chooses the questions where not all are asked
    mixed_precision: MixedPrecision = nullcontext


@dataclass(frozen=True)
class Report:
    """The figures; lists are empty where there was nothing to measure."""

    text: list[TextScores]
    answers: list[AnswerScores] = field(default_factory=list)
    detection: Detection | None = None
    worst: list[WrongAnswer] = field(default_factory=list)
    question_leakage: list[QuestionLeakage] = field(default_factory=list)
    text_leakage: list[TextLeakage] = field(default_factory=list)
    tasks: dict[str, float] = field(default_factory=dict)  # scores of plugins

    def figures(self) -> dict[str, float]:
        """The chief figures by name, for a tracker: `test/bits_per_byte`, `exact_match/test`, `lookup/f1/test`."""
        found: dict[str, float] = {}
        first = self.text[0].source if self.text else None
        for text in self.text:
            name = text.split if text.source == first else f"{text.source}/{text.split}"
            found |= {
                f"{name}/loss": text.loss,
                f"{name}/perplexity": text.perplexity,
                f"{name}/bits_per_byte": text.bits_per_byte,
                f"{name}/tokens_per_second": text.tokens_per_second,
            }
        for answers in self.answers:
            if answers.topic != ALL_TOPICS:
                continue
            beside = {"": answers.model, "lookup/": answers.look_up, "majority/": answers.majority}
            for prefix, scores in beside.items():
                found[f"{prefix}exact_match/{answers.split}"] = scores.exact_match
                found[f"{prefix}f1/{answers.split}"] = scores.f1
            found[f"gold_bits_per_byte/{answers.split}"] = answers.gold_bits_per_byte
        if self.detection:
            found |= {f"auc/{split}": area for split, area in self.detection.area_under_roc.items()}
            found["abstention/threshold"] = self.detection.threshold
            for split, made in (("validation", self.detection.validation), ("test", self.detection.test)):
                if made is not None:
                    found |= {
                        f"abstention/coverage/{split}": made.coverage,
                        f"abstention/refused/{split}": made.refused,
                    }
                    found[f"abstention/accuracy/{split}"] = made.accuracy_answered
        return found | self.tasks

    def to_json(self, **beside: Any) -> str:
        """All figures, and what is given `beside` them; null for what is no finite number."""
        return json.dumps({**beside, **_finite(asdict(self))}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def measure(model: TransformerLM, data: PreparedData, plan: Plan, say: Progress) -> Report:
    """Measure all of it. `say` is told what is being done. The figures do not depend on the batch size."""
    tokenizer = data.tokenizer
    of_token = token_bytes(tokenizer)
    say("loss on the held-out text")
    text = text_scores(model, data.rows, of_token, plan.batch_size, plan.max_batches, plan.mixed_precision)
    compared: list[TextLeakage] = []
    for source in plan.compare_text:
        say(f"{source}: held-out text that training saw")
        tokens = {split: rows.tokens for split, rows in data.rows[source].items()}
        compared += text_leakage(source, tokens, tokenizer, plan.leakage_tokens)
    if not any(data.pairs.values()):
        return Report(text, text_leakage=compared)
    asked, detection = _ask_all(model, data, of_token, plan, say)
    tasks = _scores_of_tasks(model, data, asked, plan, say)
    hardest = "test" if asked.get("test") else "validation" if asked.get("validation") else "train"
    return Report(
        text,
        answers=answer_scores(asked),
        detection=detection,
        worst=worst_cases(hardest, asked.get(hardest, ()), plan.worst),
        question_leakage=question_leakage(data.pairs),
        text_leakage=compared,
        tasks=tasks,
    )


def _ask_all(
    model: TransformerLM, data: PreparedData, of_token: np.ndarray, plan: Plan, say: Progress
) -> tuple[dict[str, list[Asked]], Detection | None]:
    tokenizer = data.tokenizer
    longest = data.longest_answer()
    training = data.pairs.get("train", ())
    baselines = look_up(training), majority(training)
    asked: dict[str, list[Asked]] = {}
    with plan.mixed_precision():
        for split, pairs in chosen_questions(data.pairs, plan.questions, plan.seed).items():
            say(f"{len(pairs):,} {split} questions")
            prompts = [data.prompt(pair.question, pair.context) for pair in pairs]
            answers = answer_greedily(model, tokenizer, prompts, longest, plan.questions_at_once)
            gold = likelihoods(model, tokenizer, pairs, of_token, plan.questions_at_once, data.lower_case_questions)
            asked[split] = with_baselines(pairs, answers, gold, baselines)
        if plan.unanswerable:
            say(f"{len(plan.unanswerable):,} questions without an answer in the data")
        prompts = [data.prompt(question) for question in plan.unanswerable]
        without = answer_greedily(model, tokenizer, prompts, longest, plan.questions_at_once)
    return asked, detect(asked, without)


def _scores_of_tasks(
    model: TransformerLM, data: PreparedData, asked: Mapping[str, Sequence[Asked]], plan: Plan, say: Progress
) -> dict[str, float]:
    """The tasks that are not measured anyway, on the questions that were asked: their answers are known."""

    def ask(pairs: Sequence[QuestionAnswer]) -> list[str]:
        prompts = [data.prompt(pair.question, pair.context) for pair in pairs]
        longest = data.longest_answer()
        return [one.text for one in answer_greedily(model, data.tokenizer, prompts, longest, plan.questions_at_once)]

    answer = asked_once(ask, [(one.pair, one.answer.text) for of_split in asked.values() for one in of_split])
    scores: dict[str, float] = {}
    with plan.mixed_precision():
        for name in plan.tasks:
            if name not in MEASURED_ALWAYS:
                say(name)
                scores |= TASKS.get(name)(answer, {s: [one.pair for one in of_split] for s, of_split in asked.items()})
    return scores


def chosen_questions(
    pairs: Mapping[str, Sequence[QuestionAnswer]], most: int | None, seed: int
) -> dict[str, list[QuestionAnswer]]:
    """Of each split at most so many, chosen by the seed, in their own order. Splits without any are left out."""
    return {
        split: [of_split[i] for i in sorted(epoch_order(seed, 0, len(of_split))[:most].tolist())]
        for split, of_split in pairs.items()
        if of_split
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
