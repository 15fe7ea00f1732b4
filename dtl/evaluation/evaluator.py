"""Evaluation of a checkpoint: the best one at the end of a run, within a fraction of its training, or any in full."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import torch

from dtl.base.display import Display, shown
from dtl.base.files import write_record
from dtl.base.progress import Progress
from dtl.base.runtime import autocast, choose_device, choose_precision
from dtl.base.units import in_units
from dtl.checkpoints.load import load_model, load_tokenizer
from dtl.config import RunConfig
from dtl.data.documents import QuestionAnswer
from dtl.data.prepare import PreparedData, prepare_data
from dtl.data.sources import SourcePlan
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.errors import ConfigError, DataError
from dtl.evaluation.config import EVALUATION_FILE, EvaluateConfig
from dtl.evaluation.detection import natural_questions, unanswerable_questions
from dtl.evaluation.measure import Plan, Report, measure
from dtl.evaluation.metrics import mean
from dtl.evaluation.tables import show_report

# All questions together take at most this fraction of the tokens trained on. Measured on 2 cores with the demo
# (2 layers, 600 facts): asking takes about half as long as training on as many tokens; with loading and the loss on
# held-out text, the end of a run takes a sixth of its training time.
MAX_FRACTION_OF_TRAINING = 0.25
MIN_QUESTIONS = 16  # of each split: a run of a few steps has metrics too
MAX_QUESTIONS = 2000  # of each split: the accuracy is then known to within 2 % (1.96 sqrt(0.25 / 2000) = 2.2 %)
MEASURED_PAIRS = 100  # of each split, for the mean length of a question
Question = TypeVar("Question")


def max_questions(available: Sequence[int], tokens_each: float, tokens_trained: int) -> int:
    """Return the maximum questions per split at the end of a run, so that all fit in a fraction of its training.

    `available` are the questions of each split; small splits leave their part to the others.
    """
    # From tokens and not from time, so that a run that was stopped and resumed reports the same metrics.
    left = MAX_FRACTION_OF_TRAINING * tokens_trained / max(1.0, tokens_each)
    most = MAX_QUESTIONS
    for n_splits, number in zip(range(len(available), 0, -1), sorted(available), strict=True):
        if number * n_splits > left:
            most = min(most, int(left / n_splits))
            break
        left -= number
    return max(MIN_QUESTIONS, most)


def _tokens_of_a_question(data: PreparedData) -> float:
    """Return the mean tokens of a question plus those of the longest answer: the maximum of asking it."""
    prompts = [
        data.prompt.text(pair.question, pair.context)
        for pairs in data.pairs.values()
        for pair in pairs[:MEASURED_PAIRS]
    ]
    return data.longest_answer() + mean([len(ids) for ids in data.tokenizer.encode_batch(prompts)]) if prompts else 0.0


@dataclass(frozen=True)
class AskedAtTheEnd:
    """Questions that a run asks at its end."""

    most: int  # of each split
    tokens_each: float
    unanswerable: Sequence[str]
    natural: Sequence[QuestionAnswer]
    near_misses: Sequence[str]
    of_splits: Sequence[int]  # asked of each split of the data, and of the natural ones: they have an expected answer

    @property
    def n(self) -> int:
        """All of them."""
        return sum(self.of_splits) + min(self.most, len(self.unanswerable)) + min(self.most, len(self.near_misses))


def questions_at_the_end(config: RunConfig, data: PreparedData, tokens_trained: int) -> AskedAtTheEnd:
    """Return what `evaluate_best` asks after training on so many tokens."""
    unanswerable = unanswerable_questions(None, config.data)
    # 460 questions beside the 3,300 of the facts: seconds, and the result of every run has the scores that count.
    natural, near_misses = natural_questions(config.data, data.pairs.get("train", ()))
    with_answer = [len(pairs) for pairs in (*data.pairs.values(), natural) if pairs]
    available = [*with_answer, *(len(asked) for asked in (unanswerable, near_misses) if asked)]
    tokens_each = _tokens_of_a_question(data)
    most = max_questions(available, tokens_each, tokens_trained)
    of_splits = [min(most, number) for number in with_answer]
    return AskedAtTheEnd(most, tokens_each, unanswerable, natural, near_misses, of_splits)


def evaluate_best(
    config: RunConfig,
    data: PreparedData,
    run_dir: Path,
    device: torch.device,
    precision: str,
    tokens_trained: int,
    log: Progress,
    at_once: int | None = None,
) -> Report:
    """Evaluate a run's best checkpoint on its own data and write evaluation.json.

    The same as `python -m dtl.evaluate ckpt=<run_dir>`, on at most `trainer.eval_max_batches` batches and
    `max_questions` and without worst cases and leakage of plain text. `at_once` is what its evaluations ended with
    (`dtl.training.evaluate`). May raise any error of a model or a disk.
    """
    checkpoint = run_dir / "checkpoints" / "best"
    asked = questions_at_the_end(config, data, tokens_trained)
    questions, unanswerable, natural, near_misses = asked.most, asked.unanswerable, asked.natural, asked.near_misses
    plan = Plan(
        batch_size=config.micro_batch_size,
        sequences_at_once=at_once,
        max_batches=config.trainer.eval_max_batches,
        questions=questions,
        unanswerable=evenly_spaced(unanswerable, questions),
        natural=evenly_spaced(natural, questions),
        near_misses=evenly_spaced(near_misses, questions),
        metrics=config.data.metrics,
        tasks=config.data.tasks,
        worst=0,
        seed=config.seed,
        mixed_precision=lambda: autocast(device, precision),
    )
    report = measure(load_model(checkpoint, device), data, plan, log)
    write_metrics(run_dir / EVALUATION_FILE, report, checkpoint, config, plan, data, device, precision)
    return report


def evenly_spaced(questions: Sequence[Question], most: int) -> Sequence[Question]:
    """Choose at most `most` questions at equal distances, since the list may be sorted by topic."""
    return [questions[n * len(questions) // most] for n in range(most)] if len(questions) > most else questions


def write_metrics(
    file: Path,
    report: Report,
    checkpoint: Path,
    config: RunConfig,
    plan: Plan,
    data: PreparedData,
    device: torch.device,
    precision: str,
) -> None:
    """Write all metrics and the scope of the measurement as JSON. Raises OSError."""
    scope = {
        "checkpoint": str(checkpoint),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "precision": precision,
        "batch_size": plan.batch_size,
        "max_batches": plan.max_batches,
        "questions": plan.questions,
        "data_fingerprint": data.fingerprint,
        "data": asdict(config.data),
    }
    write_record(file, report.as_values(**scope))


# --- any checkpoint -----------------------------------------------------------------------------------------------

NO_DETECTION = (
    "Confidence on questions without an answer in the data: skipped, there are none. Give some: unanswerable=FILE"
)
NO_VALIDATION = (
    "Confidence: not measured. It is calibrated on validation questions, and none are held out. To hold some out, "
    "train with data.validation_fraction=0.1"
)
NOT_CALIBRATED = (
    "Confidence on questions without an answer in the data: skipped. It is calibrated on validation questions, and "
    "this data has none."
)


@dataclass(frozen=True)
class TrainedOn:
    """What a checkpoint was trained on, where it is evaluated on other data."""

    run: RunConfig | None = None  # its data alone is read
    plans: Sequence[SourcePlan] = ()  # of its data, opened
    problem: str = ""  # why it is not available

    def prepared(self, tokenizer: Tokenizer, context: int, log: Progress) -> tuple[PreparedData | None, list[str]]:
        """Return the training data, None where it is not available, and notes for the user."""
        data, problem = None, self.problem
        if self.run is not None:
            try:
                seq_len = self.run.data.seq_len or context
                data = prepare_data(self.run.data, tokenizer, seq_len, self.run.seed, log, self.plans)
            except DataError as error:
                problem = str(error)
        return data, [
            "not the data of the run: all of it is for the test, apart from splits that it names.",
            "retrieval, majority and leakage compare with the training data of the checkpoint."
            if data
            else "no retrieval, majority and leakage: the training data of the checkpoint is not available. " + problem,
        ]


def all_for_test(data: PreparedData) -> PreparedData:
    """Return foreign data with the documents that name no split as a test split: nothing of it is for training."""
    rows = {
        source: {"test": splits["train"]} if set(splits) == {"train"} else splits
        for source, splits in data.rows.items()
    }
    pairs = {"test": data.pairs["train"]} if set(data.pairs) == {"train"} else data.pairs
    return replace(data, rows=rows, pairs=pairs)


def evaluate_checkpoint(
    checkpoint: Path,
    run: RunConfig,
    plans: Sequence[SourcePlan],
    settings: EvaluateConfig,
    out: Path | None,
    display: Display,
    trained_on: TrainedOn | None = None,
    recorded: str | None = None,
) -> Report:
    """Measure a checkpoint, show its metrics and write them to `out`. `plans` are the opened sources of the data;
    `trained_on` is given where that is foreign to the checkpoint: not the data of its run. `recorded` is the
    fingerprint of the run's data when it was trained.

    Raises DTLError for a device, data or checkpoint that cannot be used.
    """
    unanswerable = unanswerable_questions(settings.unanswerable, run.data)
    device, _ = choose_device(settings.device)
    precision, _ = choose_precision(settings.precision or run.trainer.precision, device)
    tokenizer = load_tokenizer(checkpoint)
    model = load_model(checkpoint, device)
    context = model.config.max_seq_len
    if run.data.seq_len is not None and run.data.seq_len > context:
        raise ConfigError(f"data.seq_len={run.data.seq_len}: longer than the model's context. Give {context} or less.")
    data = prepare_data(run.data, tokenizer, run.data.seq_len or context, run.seed, display.log, plans)
    training, notes = trained_on.prepared(tokenizer, context, display.log) if trained_on else (None, list[str]())
    data = all_for_test(data) if trained_on else data
    read = data if trained_on is None else training
    if recorded and read and read.fingerprint != recorded:
        notes.append("the training data is not the same as in the run: its files, or DTL's reading of them, changed.")
    display.screen(
        f"Evaluation of {shown(checkpoint)}",
        [
            ("model", f"{in_units(model.n_parameters())} parameters, context {context:,}, {device.type}, {precision}"),
            ("data", ", ".join(f"{plan.name} ({plan.config.kind})" for plan in plans)),
            *(("", note) for note in (*notes, *data.notes)),
        ],
    )
    natural, near_misses = natural_questions(run.data, data.pairs.get("train", ()))
    plan = Plan(
        batch_size=settings.batch_size,
        max_batches=settings.max_batches,
        questions=settings.questions,
        unanswerable=unanswerable,
        natural=natural,
        near_misses=near_misses,
        compare_text=[source.name for source in plans if source.config.traits.questions != "all"],
        leakage_tokens=settings.leakage_tokens,
        metrics=run.data.metrics,
        tasks=run.data.tasks,
        worst=settings.worst,
        seed=run.seed,
        foreign=trained_on is not None,
        trained_on=training,
        mixed_precision=lambda: autocast(device, precision),
    )
    report = measure(model, data, plan, display.log)
    lacking = NO_VALIDATION if trained_on is None else NOT_CALIBRATED
    show_report(display.console, report, NO_DETECTION if data.pairs.get("validation") else lacking)
    if out is not None:
        write_metrics(out, report, checkpoint, run, plan, data, device, precision)
    return report
