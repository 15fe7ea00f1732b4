"""Measurement of a model on its data, and the report with all its metrics."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dtl.base.json_files import plain
from dtl.base.progress import Pace, Progress
from dtl.base.units import number_of
from dtl.data.batches import epoch_order
from dtl.data.documents import QuestionAnswer
from dtl.data.prepare import PreparedData
from dtl.data.tasks import MEASURED_ALWAYS, asked_once, bm25_baseline, majority
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
from dtl.evaluation.detection import NATURAL, Detection, detect
from dtl.evaluation.leakage import QuestionLeakage, TextLeakage, question_leakage, text_leakage
from dtl.evaluation.text import MixedPrecision, TextScores, count_token_bytes, text_scores
from dtl.generation.conversation import GreedyAnswer, answer_greedily, prompts_of
from dtl.model.transformer import TransformerLM
from dtl.registry import TASKS


@dataclass(frozen=True)
class Plan:
    """Scope of a measurement."""

    batch_size: int = 8  # sequences of text
    sequences_at_once: int | None = None  # fewer of them, where the memory is known to be too little for a batch
    questions_at_once: int = 64
    max_batches: int | None = None
    questions: int | None = None  # maximum of each split
    unanswerable: Sequence[str] = ()
    natural: Sequence[QuestionAnswer] = ()  # asked as one more split, for evaluation alone
    near_misses: Sequence[str] = ()
    compare_text: Sequence[str] = ()  # sources of plain text, to compare with their own training text
    leakage_tokens: int | None = None
    metrics: Sequence[str] = ()  # registered names of additional means over target tokens
    tasks: Sequence[str] = ()  # registered names of additional scores (`dtl.data.tasks`)
    worst: int = 10
    seed: int = 0  # chooses the questions when not all are asked
    foreign: bool = False  # the data is not what the model was trained on
    trained_on: PreparedData | None = None  # the training data, if the measured data is foreign; None: not available
    mixed_precision: MixedPrecision = nullcontext


@dataclass(frozen=True)
class Report:
    """Metrics; lists are empty where there was nothing to measure. Field names are keys of evaluation.json."""

    text: list[TextScores]
    answers: list[AnswerScores] = field(default_factory=list)
    detection: Detection | None = None
    worst: list[WrongAnswer] = field(default_factory=list)
    question_leakage: list[QuestionLeakage] = field(default_factory=list)
    text_leakage: list[TextLeakage] = field(default_factory=list)
    tasks: dict[str, float] = field(default_factory=dict)  # scores of the additional tasks in data.tasks

    def metrics(self) -> dict[str, float]:
        """Return the main metrics by name for a tracker: `test/bits_per_byte`, `exact_match/test`, `lookup/f1/test`."""
        metrics: dict[str, float] = {}
        first = self.text[0].source if self.text else None
        for text in self.text:
            name = text.split if text.source == first else f"{text.source}/{text.split}"
            metrics |= {
                f"{name}/loss": text.loss,
                f"{name}/perplexity": text.perplexity,
                f"{name}/bits_per_byte": text.bits_per_byte,
                f"{name}/tokens_per_second": text.tokens_per_second,
                **{f"{name}/{metric}": value for metric, value in text.metrics.items()},
            }
        for answers in self.answers:
            if answers.topic != ALL_TOPICS:
                continue
            by_prefix = {"": answers.model, "lookup/": answers.look_up, "majority/": answers.majority}
            for prefix, scores in by_prefix.items():
                metrics[f"{prefix}exact_match/{answers.split}"] = scores.exact_match
                metrics[f"{prefix}f1/{answers.split}"] = scores.f1
            metrics[f"gold_bits_per_byte/{answers.split}"] = answers.gold_bits_per_byte
        if self.detection:
            metrics |= {f"auc/{split}": area for split, area in self.detection.area_under_roc.items()}
            metrics |= {f"calibration_error/{split}": e for split, e in self.detection.calibration_error.items()}
            for split, abstention in self.detection.by_split().items():
                metrics |= {
                    f"abstention/coverage/{split}": abstention.coverage,
                    f"abstention/refused/{split}": abstention.refused,
                    f"abstention/accuracy/{split}": abstention.accuracy_answered,
                }
        return metrics | self.tasks

    def as_values(self, **extra: Any) -> dict[str, Any]:
        """Return the `extra` keys and all metrics as values of JSON; NaN and infinity become None."""
        return plain({**extra, **asdict(self)})


def measure(model: TransformerLM, data: PreparedData, plan: Plan, log: Progress) -> Report:
    """Measure all that `plan` asks for. Metrics do not depend on the batch size, except speed.

    Retrieval, majority and leakage are those of the training data: without it there are none.
    """
    trained_on = plan.trained_on if plan.foreign else data
    tokenizer = data.tokenizer
    token_bytes = count_token_bytes(tokenizer)
    if any(rows.keys() - {"train"} for rows in data.rows.values()):
        log("... loss on the held-out text")
    scope = (plan.batch_size, plan.max_batches, plan.mixed_precision, plan.metrics)
    text = text_scores(model, data.rows, token_bytes, *scope, log, plan.sequences_at_once)
    compared: list[TextLeakage] = []
    for source in plan.compare_text if trained_on else ():
        if data.rows[source].keys() - {"train"}:
            log(f"... {source}: held-out text that occurs in the training text")
        tokens = {split: rows.tokens for split, rows in data.rows[source].items()}
        own = [rows["train"].tokens for rows in plan.trained_on.rows.values()] if plan.trained_on else [tokens["train"]]
        training = np.concatenate([each[: plan.leakage_tokens] for each in own]) if len(own) > 1 else own[0]
        held_out = {split: ids for split, ids in tokens.items() if split != "train"}
        compared += text_leakage(source, held_out, training, tokenizer, plan.leakage_tokens)
    if not any(data.pairs.values()):
        return Report(text, text_leakage=compared)
    taught = trained_on.pairs.get("train", ()) if trained_on else ()
    asked, detection = _ask_all(model, data, taught, token_bytes, plan, log)
    tasks = _task_scores(model, data, asked, plan, log)
    hardest = "test" if asked.get("test") else "validation" if asked.get("validation") else "train"
    return Report(
        text,
        answers=answer_scores(asked),
        detection=detection,
        worst=worst_cases(hardest, asked.get(hardest, ()), plan.worst),
        question_leakage=question_leakage(
            {split: pairs for split, pairs in data.pairs.items() if split != "train"}, taught
        )
        if taught
        else [],
        text_leakage=compared,
        tasks=tasks,
    )


def _ask_all(
    model: TransformerLM,
    data: PreparedData,
    taught: Sequence[QuestionAnswer],
    token_bytes: np.ndarray,
    plan: Plan,
    log: Progress,
) -> tuple[dict[str, list[Asked]], Detection | None]:
    tokenizer = data.tokenizer
    longest = data.longest_answer()
    baselines = (bm25_baseline(taught), majority(taught)) if taught else None
    asked: dict[str, list[Asked]] = {}

    def ask(what: str, prompts: Sequence[str]) -> list[GreedyAnswer]:
        log(f"... {what}")
        return answer_greedily(model, tokenizer, prompts, longest, plan.questions_at_once, Pace(what, log).count)

    with plan.mixed_precision():
        to_ask = {**data.pairs, NATURAL: plan.natural}
        for split, pairs in chosen_questions(to_ask, plan.questions, plan.seed).items():
            prompts = prompts_of(model, tokenizer, data.prompt, pairs, longest)
            answers = ask(number_of(f"{split} questions", len(pairs)), prompts)
            scored = Pace(f"{split}: expected answers", log).count
            gold = likelihoods(model, tokenizer, pairs, token_bytes, plan.questions_at_once, data.prompt, scored)
            asked[split] = with_baselines(pairs, answers, gold, baselines)
        without = [*plan.unanswerable, *plan.near_misses]
        prompts = [data.prompt.text(question) for question in without]
        answers = ask(f"{len(without):,} questions without an answer in the data", prompts) if without else []
    return asked, detect(asked, answers[: len(plan.unanswerable)], answers[len(plan.unanswerable) :])


def _task_scores(
    model: TransformerLM,
    data: PreparedData,
    asked: Mapping[str, Sequence[Asked]],
    plan: Plan,
    log: Progress,
) -> dict[str, float]:
    """Score the tasks that are not in every report, on the same questions, so that known answers are reused."""

    def ask(pairs: Sequence[QuestionAnswer]) -> list[str]:
        longest = data.longest_answer()
        prompts = prompts_of(model, data.tokenizer, data.prompt, pairs, longest)
        answers = answer_greedily(model, data.tokenizer, prompts, longest, plan.questions_at_once)
        return [answer.text for answer in answers]

    answer = asked_once(ask, [(q.pair, q.answer.text) for questions in asked.values() for q in questions])
    scores: dict[str, float] = {}
    with plan.mixed_precision():
        for name in plan.tasks:
            if name not in MEASURED_ALWAYS:
                log(f"... {name}")
                scores |= TASKS.get(name)(answer, {s: [q.pair for q in questions] for s, questions in asked.items()})
    return scores


def chosen_questions(
    pairs: Mapping[str, Sequence[QuestionAnswer]], most: int | None, seed: int
) -> dict[str, list[QuestionAnswer]]:
    """Choose at most `most` pairs of each non-empty split by the seed, in their original order."""
    return {
        split: [split_pairs[i] for i in sorted(epoch_order(seed, 0, len(split_pairs))[:most].tolist())]
        for split, split_pairs in pairs.items()
        if split_pairs
    }
