"""The report as one HTML file that needs nothing else: no network, no script, no second file."""

from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from dtl.base.display import shown
from dtl.reports.canvas import FAINT, GREY, GROUND, INK, SERIES, VARIABLES, Drawing, Skipped
from dtl.reports.configurations import Configuration, Samples, mean_and_spread
from dtl.reports.findings import METHOD, Findings, shown_p, unfinished
from dtl.reports.metric import Metric, shown_number
from dtl.reports.reading import Run
from dtl.reports.speed import peaks, speeds
from dtl.reports.statistics import Comparison

MAX_ROWS = 300  # of a table; the rest is counted
MAX_SENTENCES = 8
PAIRS = (INK, FAINT, GREY, GROUND, *SERIES)


@dataclass(frozen=True)
class Report:
    """Everything that the page and the terminal show."""

    title: str
    command: str  # that makes this report again
    made: datetime
    runs: list[Run]
    configurations: list[Configuration]  # in the order of the table
    metric: Metric
    comparisons: list[Comparison]
    findings: Findings
    drawings: dict[str, list[Drawing] | Drawing | Skipped] = field(default_factory=dict)  # section to what it shows
    samples: Samples | None = None

    def all_drawings(self) -> list[Drawing]:
        """In the order of the page."""
        found = [one for shown in self.drawings.values() for one in (shown if isinstance(shown, list) else [shown])]
        return [one for one in found if isinstance(one, Drawing)]


def render(report: Report) -> str:
    """The page. What comes from runs is escaped; only the drawings, made here, are markup."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string((files("dtl.reports") / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        facts=facts(report),
        sections={title: _shown_in(drawings) for title, drawings in report.drawings.items()},
        rows=[configuration_row(one, report.metric) for one in report.configurations[:MAX_ROWS]],
        keys=list(report.configurations[0].settings) if report.configurations else [],
        sentences=_sentences(report),
        comparisons=[_comparison_row(one) for one in report.comparisons[:MAX_ROWS]],
        failures=[_failure_row(run) for run in unfinished(report.runs)[:MAX_ROWS]],
        method=METHOD,
        most=MAX_ROWS,
        colours={"light": _variables(0), "dark": _variables(1)},
    )


def facts(report: Report) -> list[tuple[str, str]]:
    """What was looked at, in a few words."""
    finished = sum(run.finished for run in report.runs)
    n_seeds = sorted({len(one.finished) for one in report.configurations}) or [0]
    seeds = str(n_seeds[0]) if len(n_seeds) == 1 else f"{n_seeds[0]} to {n_seeds[-1]}"
    return [
        ("runs", f"{len(report.runs)}, {finished} finished"),
        ("configurations", f"{len(report.configurations)}, n = {seeds}"),
        ("metric", f"{report.metric.title}, {report.metric.better} is better"),
        ("made", f"{report.made:%Y-%m-%d %H:%M}"),
        ("by", report.command),
    ]


def configuration_row(one: Configuration, metric: Metric) -> dict[str, Any]:
    """A row of the table of configurations, as texts."""
    values = one.values(metric.key)
    mean, spread = mean_and_spread(values.values())
    return {
        "label": one.label,
        "settings": list(one.settings.values()),
        "mean": shown_number(mean),
        "spread": shown_number(spread, 2),
        "range": f"{shown_number(min(values.values()))} to {shown_number(max(values.values()))}"
        if len(values) > 1
        else "-",
        "n": str(len(values)),
        "runs": f"{len(one.finished)} of {len(one.runs)}",
        "speed": f"{median(speeds(one)):,.0f}" if speeds(one) else "-",
        "memory": f"{max(peaks(one)):.2f}" if peaks(one) else "-",
    }


def _shown_in(drawings: list[Drawing] | Drawing | Skipped) -> dict[str, Any]:
    if isinstance(drawings, Skipped):
        return {"drawings": [], "skipped": drawings.reason}
    return {"drawings": drawings if isinstance(drawings, list) else [drawings], "skipped": None}


def _sentences(report: Report) -> list[tuple[str, bool]]:
    """Those that name a better one first; each with whether it does."""
    told = list(zip(report.findings.sentences, (one.better is not None for one in report.comparisons), strict=True))
    return sorted(told, key=lambda pair: not pair[1])[:MAX_SENTENCES]


def _comparison_row(one: Comparison) -> list[str]:
    return [
        one.first,
        one.second,
        f"{one.difference:+.3g}",
        f"{one.interval[0]:+.3g} to {one.interval[1]:+.3g}" if one.interval else "-",
        shown_p(one.p)[2:].removeprefix("= ") if one.p is not None else "-",
        shown_p(one.corrected)[2:].removeprefix("= ") if one.corrected is not None else "-",
        f"{one.n} {'pairs' if one.paired else 'unpaired'}",
        shown_number(one.detectable, 3),
        one.better or "not shown",
    ]


def _failure_row(run: Run) -> dict[str, str]:
    return {
        "folder": place(run.folder),
        "overrides": " ".join(run.overrides),
        "state": run.state,
        "step": "-" if run.step is None else str(run.step),
        "reason": run.reason or "its files do not say",
        "traceback": run.traceback[1] if run.traceback else "",
        "traceback_place": place(run.traceback[0]) if run.traceback else "",
    }


def place(folder: Path) -> str:
    """A folder as a person types it from here."""
    return shown(folder.absolute())


def _variables(theme: int) -> dict[str, str]:
    by_light = {pair[0]: pair[theme] for pair in PAIRS}
    return {name: by_light[light] for light, name in VARIABLES.items()}
