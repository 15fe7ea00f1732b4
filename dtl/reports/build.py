"""Builds a report from run folders, and writes it as report.html and PNGs."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.base.files import write_atomically
from dtl.base.units import number_of
from dtl.errors import ConfigError, DTLError, did_you_mean
from dtl.reports.config import ReportConfig

if TYPE_CHECKING:
    from dtl.reports.canvas import Drawing, Skipped
    from dtl.reports.configurations import Configuration
    from dtl.reports.forecast import Forecast
    from dtl.reports.metric import Metric
    from dtl.reports.page import Report
    from dtl.reports.reading import Run
    from dtl.run_dir.references import Reference

NEEDED = ("matplotlib", "scipy", "jinja2")
PAGE = "report.html"
FORECAST = "Forecast"
# Every PNG that a report can have: those of an earlier report in the same folder are removed.
PICTURES = (
    "loss_step",
    "loss_tokens",
    "loss_seconds",
    "learning_rate",
    "parallel_coordinates",
    "importance",
    "speed",
    "forecast",
)


def check_packages() -> None:
    """Raises DTLError, with the packages to install, before anything is imported or read."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DTLError(
            f"dtl.report needs {', '.join(missing)}: pip install {' '.join(missing)}\n"
            "Everything that reports use: pip install 'dtl[report]', in a checkout pip install -e '.[report]'"
        )


def build(
    settings: ReportConfig, folders: Sequence[Path], title: str, command: str, log: Callable[[str], None]
) -> "Report":
    """Read, group and compare the runs, and draw the plots. `log` gets a line before each slow step.

    Raises ConfigError if no run has the metric, or the runs do not allow the forecast.
    """
    from dtl.reports.configurations import group_runs, side_by_side, sort_by_mean
    from dtl.reports.findings import beside_references, findings, matched
    from dtl.reports.forecast import forecast_of
    from dtl.reports.metric import Metric, metric_for, not_comparable
    from dtl.reports.page import Report
    from dtl.reports.reading import read_run
    from dtl.reports.statistics import compare_all

    log(f"reading {number_of('runs', len(folders))}")
    runs = [read_run(folder) for folder in folders]
    is_default = settings.metric is None and settings.higher_is_better is None
    asked = None if is_default else Metric(settings.metric_key(), settings.prefers_higher())
    metric = metric_for(runs, asked)
    _check_metric(metric.key, runs)
    forecast = None if settings.forecast is None else forecast_of(runs, settings.forecast, settings.forecast_size())
    configurations = sort_by_mean(group_runs(runs), metric.key, metric.higher_is_better)
    curves, notices = _curves(settings)
    references = matched(configurations, curves)
    values = {configuration.label: configuration.values(metric.key) for configuration in configurations}
    comparisons = [] if not_comparable(runs, metric) else compare_all(values, metric.higher_is_better)
    log("drawing")
    return Report(
        title=title,
        command=command,
        made=datetime.now(),
        runs=runs,
        configurations=configurations,
        metric=metric,
        comparisons=comparisons,
        findings=findings(
            runs, configurations, comparisons, metric, [*beside_references(configurations, references), *notices]
        ),
        drawings=_drawings(configurations, metric, forecast, references),
        forecast=forecast,
        samples=side_by_side(configurations),
    )


def _curves(settings: ReportConfig) -> tuple[list["Reference"], list[str]]:
    """Return the known reference curves, and a notice where their file is damaged: the report does without them."""
    from dtl.run_dir.references import curves_file, read_references

    try:
        return read_references(curves_file(settings.curves)), []
    except ConfigError as error:
        return [], [str(error)]


def _drawings(
    configurations: Sequence["Configuration"],
    metric: "Metric",
    forecast: "Forecast | None",
    references: Mapping[str, "Reference"],
) -> dict[str, "list[Drawing] | Drawing | Skipped"]:
    """Return the drawings by the title of their section."""
    from dtl.reports.canvas import style
    from dtl.reports.curves import loss_curves, speed_and_memory
    from dtl.reports.forecast import draw_forecast
    from dtl.reports.parameters import importance, parallel_coordinates
    from dtl.reports.rates import rates_against_metric

    with style():
        return {
            **({} if forecast is None else {FORECAST: draw_forecast(forecast)}),
            "Loss": loss_curves(configurations, references),
            "Learning rate": rates_against_metric(configurations, metric),
            "Parallel coordinates": parallel_coordinates(configurations, metric),
            "Importance of settings": importance(configurations, metric),
            "Speed and memory": speed_and_memory(configurations),
        }


def _check_metric(key: str, runs: Sequence["Run"]) -> None:
    known = sorted({name for run in runs for name in run.metrics})
    if key != "value" and key not in known:
        raise ConfigError(
            f"metric={key}: no run has it in its result.json.{did_you_mean(key, known)} "
            f"{'Known: ' + ', '.join(known) if known else 'None has any metric.'}"
        )


def write(report: "Report", folder: Path) -> list[Path]:
    """Write report.html and a PNG for each drawing; return the paths, the page first. Raises OSError."""
    from dtl.reports.page import render

    folder.mkdir(parents=True, exist_ok=True)
    is_reports_own = (folder / PAGE).exists()
    page = render(report)
    written = []
    for drawing in report.all_drawings():
        write_atomically(folder / f"{drawing.name}.png", drawing.png)
        written.append(folder / f"{drawing.name}.png")
    for name in PICTURES:
        if is_reports_own and folder / f"{name}.png" not in written:  # of an earlier report
            with suppress(FileNotFoundError):
                (folder / f"{name}.png").unlink()
    write_atomically(folder / PAGE, page)  # last: the page never names a missing picture
    return [folder / PAGE, *written]
