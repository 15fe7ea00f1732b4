"""Renders the report as one self-contained HTML file, without scripts or network."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from dtl.base.display import shown
from dtl.reports.canvas import FAINT, GREY, GROUND, INK, SERIES, VARIABLES, Drawing, Skipped
from dtl.reports.configurations import EXPERIMENT, Configuration, Samples, mean_and_spread
from dtl.reports.curves import peaks, speeds
from dtl.reports.findings import METHOD, Findings, format_p, unfinished
from dtl.reports.forecast import Forecast
from dtl.reports.metric import Metric, format_number
from dtl.reports.reading import Run
from dtl.reports.statistics import Comparison
from dtl.run_dir.record_checks import told_once

MAX_ROWS = 300  # of a table; the others are only counted
MAX_SENTENCES = 8
# Scores of questions that have a column where a run has them: head to key of result.json.
ANSWERS = {
    "validation": "exact_match/validation",
    "test": "exact_match/test",
    "natural": "exact_match/natural",
    "natural, BM25": "lookup/exact_match/natural",
    "natural answered": "abstention/coverage/natural",
    "right of these": "abstention/accuracy/natural",
    "near misses rejected": "abstention/refused/natural",
    "calibration error": "calibration_error/natural",
}
PAIRS = (INK, FAINT, GREY, GROUND, *SERIES)


@dataclass(frozen=True)
class Report:
    """Content of the page and of the terminal's summary."""

    title: str
    command: str  # that reproduces this report
    made: datetime
    runs: list[Run]
    configurations: list[Configuration]  # in the order of the table
    metric: Metric
    comparisons: list[Comparison]
    findings: Findings
    drawings: dict[str, list[Drawing] | Drawing | Skipped] = field(default_factory=dict)  # by section
    samples: Samples | None = None
    forecast: Forecast | None = None

    def all_drawings(self) -> list[Drawing]:
        """Return the drawings in the order of the page."""
        sections = (section if isinstance(section, list) else [section] for section in self.drawings.values())
        return [drawing for section in sections for drawing in section if isinstance(drawing, Drawing)]


def render(report: Report) -> str:
    """Return the page. Text from runs is escaped; only the drawings, made by DTL, are markup."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string((files("dtl.reports") / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        facts=facts(report),
        sections={title: _shown_in(drawings) for title, drawings in report.drawings.items()},
        rows=[configuration_row(group, report.metric) for group in report.configurations[:MAX_ROWS]],
        answers=answer_rows(report.configurations[:MAX_ROWS]),
        keys=[_breakable(key) for key in _shown_keys(report)],
        sentences=_sentences(report),
        comparisons=[_comparison_row(comparison) for comparison in report.comparisons[:MAX_ROWS]],
        problems=problems(report),
        failures=[_failure_row(run) for run in unfinished(report.runs)[:MAX_ROWS]],
        method=METHOD,
        forecast=report.forecast.rows() if report.forecast else [],
        most=MAX_ROWS,
        colours={"light": _variables(0), "dark": _variables(1)},
    )


def _shown_keys(report: Report) -> list[str]:
    """The settings that have a column; the recipe has none, since it begins the label."""
    return [key for key in report.configurations[0].settings if key != EXPERIMENT] if report.configurations else []


def _breakable(key: str) -> list[str]:
    """The parts of a key between which a heading may break: a column is then as wide as its values."""
    return re.findall(r"[^._/]+[._/]*", key)


def facts(report: Report) -> list[tuple[str, str]]:
    """Return the facts at the head of the report, as (name, value)."""
    finished = sum(run.finished for run in report.runs)
    n_seeds = sorted({len(group.finished) for group in report.configurations}) or [0]
    seeds = str(n_seeds[0]) if len(n_seeds) == 1 else f"{n_seeds[0]} to {n_seeds[-1]}"
    return [
        ("runs", f"{len(report.runs)}, {finished} finished"),
        ("configurations", f"{len(report.configurations)}, n = {seeds}"),
        ("metric", f"{report.metric.title}, {report.metric.better} is better"),
        ("made", f"{report.made:%Y-%m-%d %H:%M}"),
        ("by", report.command),
    ]


def configuration_row(group: Configuration, metric: Metric) -> dict[str, Any]:
    """Return a row of the table of configurations, as texts."""
    values = group.values(metric.key)
    mean, spread = mean_and_spread(values.values())
    return {
        "label": group.label,
        "settings": [value for key, value in group.settings.items() if key != EXPERIMENT],
        "mean": format_number(mean),
        "spread": format_number(spread, 2),
        "range": " to ".join(format_number(end(values.values())) for end in (min, max)) if len(values) > 1 else "-",
        "n": str(len(values)),
        "runs": f"{len(group.finished)} of {len(group.runs)}",
        "speed": f"{median(speeds(group)):,.0f}" if speeds(group) else "-",
        "memory": f"{max(peaks(group)):.2f}" if peaks(group) else "-",
    }


def answer_rows(configurations: Sequence[Configuration]) -> list[list[str]]:
    """Return the table of the questions that were answered, heads first; empty if no run was asked any."""
    keys = {head: key for head, key in ANSWERS.items() if any(group.values(key) for group in configurations)}
    if not keys:
        return []
    cells = ((_percent(group.values(key).values()) for key in keys.values()) for group in configurations)
    return [["configuration", *keys], *([group.label, *row] for group, row in zip(configurations, cells, strict=True))]


def _percent(fractions: Iterable[float]) -> str:
    mean, spread = mean_and_spread(fractions)
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "") + " %"


def _shown_in(drawings: list[Drawing] | Drawing | Skipped) -> dict[str, Any]:
    if isinstance(drawings, Skipped):
        return {"drawings": [], "skipped": drawings.reason}
    return {"drawings": drawings if isinstance(drawings, list) else [drawings], "skipped": None}


def _sentences(report: Report) -> list[tuple[str, bool]]:
    """Return (sentence, whether it names a better configuration), those that do first."""
    pairs = list(zip(report.findings.sentences, (each.better is not None for each in report.comparisons), strict=True))
    return sorted(pairs, key=lambda pair: not pair[1])[:MAX_SENTENCES]


def _comparison_row(comparison: Comparison) -> list[str]:
    return [
        comparison.first,
        comparison.second,
        f"{comparison.difference:+.3g}",
        f"{comparison.interval[0]:+.3g} to {comparison.interval[1]:+.3g}" if comparison.interval else "-",
        format_p(comparison.p)[2:].removeprefix("= ") if comparison.p is not None else "-",
        format_p(comparison.corrected)[2:].removeprefix("= ") if comparison.corrected is not None else "-",
        f"{comparison.n} {'pairs' if comparison.paired else 'unpaired'}",
        format_number(comparison.detectable, 3),
        comparison.better or "not shown",
    ]


def _failure_row(run: Run) -> dict[str, str]:
    return {
        "folder": place(run.folder),
        "overrides": " ".join(run.overrides),
        "state": run.state,
        "step": "-" if run.step is None else str(run.step),
        "reason": run.reason or "not recorded",
        "traceback": run.traceback[1] if run.traceback else "",
        "traceback_place": place(run.traceback[0]) if run.traceback else "",
    }


def problems(report: Report) -> list[str]:
    """Return the lines about records of runs that were changed or are damaged."""
    return told_once({place(run.folder): run.problems for run in report.runs})


def place(folder: Path) -> str:
    """Return a path as the user types it from the current folder."""
    return shown(folder.absolute())


def _variables(theme: int) -> dict[str, str]:
    by_light = {pair[0]: pair[theme] for pair in PAIRS}
    return {name: by_light[light] for light, name in VARIABLES.items()}
