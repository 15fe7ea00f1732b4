"""Tables of an evaluation report for the terminal."""

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from dtl.base.display import table, table_console
from dtl.base.safe_text import in_one_line
from dtl.base.units import in_units
from dtl.evaluation.answers import ALL_TOPICS, AnswerScores
from dtl.evaluation.config import MIN_PROBABILITY
from dtl.evaluation.detection import NATURAL, Detection
from dtl.evaluation.measure import Report

MAX_CHARACTERS = 60  # of a text in a table
MAX_COLUMNS = 1000
SCORE_COLUMNS = tuple(f"{who}\n{score}" for who in ("model", "BM25", "majority") for score in ("exact", "F1"))
SCORES = (
    "exact: equals an accepted answer after SQuAD's normalisation. F1: of its words with the answer's. BM25: the "
    "answer to the nearest training question. majority: always the most frequent answer. bits/byte: of the expected "
    "answer, by the model."
)
MAIN_SCORES = (
    "exact: the share that is right. F1: words in common with the right answer. BM25: the share that the answer to the "
    "nearest training question gets right."
)
NATURAL_SCORES = " natural: wordings as people type them, never used to train, tune or choose."
ABSTENTION = (
    "answered: with a confidence of at least {threshold:.0%}, calibrated on validation to be the probability of a "
    "right answer. unanswerable: questions without an answer in the data{near}. ROC area: how well the confidence "
    "separates the two kinds; 0.5 is chance. calibration error: of the confidence, were half of the questions "
    "unanswerable."
)
LONG_TEXTS = ("question", "answer", "expected")  # columns that are folded in a narrow terminal


def show_report(console: Console, report: Report, why_no_detection: str) -> None:
    """Print all tables that are not empty."""
    _show_text(console, report)
    if report.answers:
        _show_answers(console, report.answers)
        _show_topics(console, report.answers)
        if report.detection:
            _show_detection(console, report.detection)
        else:
            console.print(Text(why_no_detection, style="dim"))
        _show(
            console,
            "Wrong answers with the highest confidence",
            ["topic", "question", "answer", "expected", "p per token"],
            [
                [wrong.topic, *map(_short, (wrong.question, wrong.said, wrong.expected)), f"{wrong.probability:.2f}"]
                for wrong in report.worst
            ],
        )
    if not report.text and not report.answers:
        console.print(Text("Nothing is held out of this text, so there is no loss. To measure another: data.path=FILE"))
    for name, score in report.tasks.items():
        console.print(Text(f"{name}  {score:.4g}"))
    for line in _leakage(report):
        console.print(Text(line))


def show_main_metrics(console: Console, report: Report) -> None:
    """Print what the end of a run shows: the loss, and the questions that were answered exactly."""
    _show_text(console, report)
    every_topic = [scores for scores in report.answers if scores.topic == ALL_TOPICS]
    _show(
        console,
        "Questions",
        ["wordings", "asked", "right", "exact", "F1", "BM25"],
        [
            [
                scores.split,
                f"{scores.questions:,}",
                f"{round(scores.model.exact_match * scores.questions):,}",
                *map(_percent, (scores.model.exact_match, scores.model.f1, scores.look_up.exact_match)),
            ]
            for scores in every_topic
        ],
        MAIN_SCORES + (NATURAL_SCORES if any(scores.split == NATURAL for scores in every_topic) else ""),
    )


def _show_text(console: Console, report: Report) -> None:
    metrics = list(report.text[0].metrics) if report.text else []
    _show(
        console,
        "Held-out text",
        ["source", "split", "loss", "perplexity", "bits/byte", *metrics, "targets", "tokens/s"],
        [
            [
                text.source,
                text.split,
                f"{text.loss:.4f}",
                f"{text.perplexity:.2f}",
                f"{text.bits_per_byte:.4f}",
                *(f"{value:.4f}" for value in text.metrics.values()),
                f"{text.targets:,}",
                in_units(text.tokens_per_second),
            ]
            for text in report.text
        ],
    )


def _show_answers(console: Console, answers: Sequence[AnswerScores]) -> None:
    every_topic = [scores for scores in answers if scores.topic == ALL_TOPICS]
    _show(
        console,
        "Questions",
        ["\nwordings", "\nasked", *SCORE_COLUMNS, "answer\nbits/byte"],
        [
            [
                scores.split,
                f"{scores.questions:,}",
                *(_percent(x) for s in (scores.model, scores.look_up, scores.majority) for x in (s.exact_match, s.f1)),
                _number(scores.gold_bits_per_byte),
            ]
            for scores in every_topic
        ],
        SCORES + (NATURAL_SCORES if any(scores.split == NATURAL for scores in every_topic) else ""),
    )


def _show_topics(console: Console, answers: Sequence[AnswerScores]) -> None:
    topics = sorted({scores.topic for scores in answers} - {ALL_TOPICS})
    splits = list(dict.fromkeys(scores.split for scores in answers if scores.split != "train")) or ["train"]
    by_cell = {(scores.topic, scores.split): scores for scores in answers}
    _show(
        console,
        "Exact match by topic, of the model and of retrieval (BM25)",
        ["topic", *(column for split in splits for column in (split, f"{split}\nBM25"))],
        [
            [topic, *(cell for split in splits for cell in _model_and_bm25(by_cell.get((topic, split))))]
            for topic in topics
        ],
    )


def _model_and_bm25(scores: AnswerScores | None) -> tuple[str, str]:
    if scores is None:
        return "", ""
    return _percent(scores.model.exact_match), _percent(scores.look_up.exact_match)


def _show_detection(console: Console, detection: Detection) -> None:
    _show(
        console,
        "Questions that are answered, by confidence",
        [
            "\nwordings", "\nasked", "\nanswered", "right\nof these", "un-\nanswerable", "\nrejected", "ROC\narea",
            "calibration\nerror",
        ],
        [
            [
                split,
                f"{abstention.answerable:,}",
                _percent(abstention.coverage),
                _percent(abstention.accuracy_answered),
                f"{abstention.unanswerable:,}",
                _percent(abstention.refused),
                _number(detection.area_under_roc[split]),
                _percent(detection.calibration_error[split]),
            ]
            for split, abstention in detection.by_split().items()
        ],
        ABSTENTION.format(threshold=MIN_PROBABILITY, near="; natural: near misses" if detection.natural else ""),
    )  # fmt: skip


def _leakage(report: Report) -> Iterator[str]:
    for leak in report.question_leakage:
        line = f"{leak.found:,} of {leak.questions:,} {leak.split} questions are training questions too"
        examples = "; ".join(map(_short, leak.examples))
        yield f"Leakage: {line}{': ' + examples if examples else ''}."
        if leak.contexts_found:
            yield (
                f"Leakage: {leak.contexts_found:,} of the {leak.contexts:,} contexts of {leak.split} questions are "
                "those of training questions too."
            )
    for text in report.text_leakage:
        yield (
            f"Leakage: {text.fraction:.2%} of the 13-grams of {text.source} {text.split} occur in "
            f"{in_units(text.training_tokens)} training tokens ({text.found:,} of {text.ngrams:,})."
        )


def _show(
    console: Console, title: str, names: Sequence[str], rows: Sequence[Sequence[str]], explanation: str = ""
) -> None:
    if not rows:
        return
    console.print(Text(f"\n{title}", style="bold"))
    columns = zip(names, zip(*rows, strict=True), strict=True)
    right = [name for name, cells in columns if all(c[:1].isdigit() or c[:1] in ("-", "", "n") for c in cells)]
    every, wide = {"no_wrap": True, "overflow": "fold"}, {key: {"no_wrap": False} for key in LONG_TEXTS}
    if not console.is_terminal:  # in a file or a pipe a line is as long as it is
        console = table_console(file=console.file, width=MAX_COLUMNS)
    console.print(table(names, (map(in_one_line, row) for row in rows), right, every, wide), crop=False)
    if explanation:
        console.print(Text(explanation, style="dim"))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{fraction:.1%}"


def _short(text: str) -> str:
    line = in_one_line(text)
    return line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 3]}..."
