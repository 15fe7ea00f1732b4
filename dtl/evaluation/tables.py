"""A report of the evaluation as a person reads it: a table for each question that it answers."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from dtl.base.display import table, table_console
from dtl.base.safe_text import in_one_line
from dtl.base.units import in_units
from dtl.evaluation.answers import ALL_TOPICS, AnswerScores
from dtl.evaluation.detection import Detection
from dtl.evaluation.metrics import Abstention
from dtl.evaluation.report import Report

MAX_CHARACTERS = 60  # of a text in a table
MAX_COLUMNS = 1000
BY_WHOM = ("\nexact", "\nF1", "look-up\nexact", "\nF1", "majority\nexact", "\nF1")  # the model's own come first
LONG_TEXTS = ("question", "said", "expected")  # the columns that are folded in a narrow terminal


def show_report(console: Console, report: Report, why_no_detection: str) -> None:
    """Print all tables that have something to say."""
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
            "Wrong answers of which the model is surest",
            ["topic", "question", "said", "expected", "p of a token"],
            [
                [wrong.topic, *map(_short, (wrong.question, wrong.said, wrong.expected)), f"{wrong.probability:.2f}"]
                for wrong in report.worst
            ],
        )
    for name, score in report.tasks.items():
        console.print(Text(f"{name}  {score:.4g}"))
    for line in _leakage(report):
        console.print(Text(line))


def show_main_figures(console: Console, report: Report) -> None:
    """What the end of a run shows: the same tables, without topics and single questions."""
    _show_text(console, report)
    _show_answers(console, report.answers)
    if report.detection:
        _show_detection(console, report.detection)


def _show_text(console: Console, report: Report) -> None:
    _show(
        console,
        "Held-out text",
        ["source", "split", "loss", "perplexity", "bits/byte", "targets", "tokens/s"],
        [
            [
                text.source,
                text.split,
                f"{text.loss:.4f}",
                f"{text.perplexity:.2f}",
                f"{text.bits_per_byte:.4f}",
                f"{text.targets:,}",
                in_units(text.tokens_per_second),
            ]
            for text in report.text
        ],
    )


def _show_answers(console: Console, answers: Sequence[AnswerScores]) -> None:
    _show(
        console,
        "Questions (exact match and token F1 after SQuAD's normalisation)",
        ["\nwordings", "\nasked", *BY_WHOM, "gold\nbits/byte"],
        [
            [
                scores.split,
                f"{scores.questions:,}",
                *(_percent(value) for by in (scores.model, scores.look_up, scores.majority) for value in _both(by)),
                f"{scores.gold_bits_per_byte:.3f}",
            ]
            for scores in answers
            if scores.topic == ALL_TOPICS
        ],
    )


def _show_topics(console: Console, answers: Sequence[AnswerScores]) -> None:
    topics = sorted({scores.topic for scores in answers} - {ALL_TOPICS})
    splits = list(dict.fromkeys(scores.split for scores in answers))
    found = {(scores.topic, scores.split): scores for scores in answers}
    _show(
        console,
        "Exact match by topic, and of the look-up",
        ["topic", *(column for split in splits for column in (split, "look-up"))],
        [
            [topic, *(cell for split in splits for cell in _model_and_look_up(found.get((topic, split))))]
            for topic in topics
        ],
    )


def _both(scores) -> tuple[float, float]:
    return scores.exact_match, scores.f1


def _model_and_look_up(scores: AnswerScores | None) -> tuple[str, str]:
    if scores is None:
        return "", ""
    return _percent(scores.model.exact_match), _percent(scores.look_up.exact_match)


def _show_detection(console: Console, detection: Detection) -> None:
    areas = ", ".join(f"{area:.3f} ({split})" for split, area in detection.area_under_roc.items())
    rows: list[tuple[str, Abstention | None]] = [("validation", detection.validation), ("test", detection.test)]
    _show(
        console,
        f"Confidence tells answerable from unanswerable questions: area under the ROC curve {areas}\n"
        f"Answering from a mean log-probability of {detection.threshold:.3f} on, chosen on validation",
        ["\nwordings", "\nasked", "\nanswered", "right\nof these", "right\nof all", "\nunanswerable", "\nrefused"],
        [
            [
                split,
                f"{made.answerable:,}",
                _percent(made.coverage),
                _percent(made.accuracy_answered),
                _percent(made.accuracy_without),
                f"{made.unanswerable:,}",
                _percent(made.refused),
            ]
            for split, made in rows
            if made is not None
        ],
    )


def _leakage(report: Report) -> Iterator[str]:
    for found in report.question_leakage:
        line = f"{found.found:,} of {found.questions:,} {found.split} questions are training questions too"
        examples = "; ".join(map(_short, found.examples))
        yield f"Leakage: {line}{': ' + examples if examples else ''}."
    for text in report.text_leakage:
        yield (
            f"Leakage: {text.share:.2%} of the 13-word runs of {text.source} {text.split} occur in "
            f"{in_units(text.training_tokens)} training tokens ({text.found:,} of {text.ngrams:,})."
        )


def _show(console: Console, title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    console.print(Text(f"\n{title}", style="bold"))
    is_figure = [all(cell[:1].isdigit() or cell[:1] in ("-", "", "n") for cell in of) for of in zip(*rows, strict=True)]
    right = [name for name, figures in zip(names, is_figure, strict=True) if figures]
    every, wide = {"no_wrap": True, "overflow": "fold"}, {key: {"no_wrap": False} for key in LONG_TEXTS}
    if not console.is_terminal:  # in a file or a pipe a line is as long as it is
        console = table_console(file=console.file, width=MAX_COLUMNS)
    console.print(table(names, (map(in_one_line, row) for row in rows), right, every, wide), crop=False)


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _short(text: str) -> str:
    line = in_one_line(text)
    return line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 3]}..."
