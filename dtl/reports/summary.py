"""Summary of a report for the terminal: its table, its sentences, and the files that were written."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from dtl.base.display import Display, shown, table, table_console
from dtl.base.units import in_mib
from dtl.reports.canvas import Skipped
from dtl.reports.findings import unfinished
from dtl.reports.forecast import Forecast
from dtl.reports.page import Report, configuration_row, facts, place, problems

MAX_ROWS, MAX_SENTENCES, MAX_FAILURES = 20, 6, 12


def wide_display() -> Display:
    """Return a display whose tables do not wrap when the output is not a terminal."""
    return Display(table_console(soft_wrap=not sys.stdout.isatty()))


def show(report: Report, display: Display) -> None:
    """Print facts, table, sentences and failures. Texts from runs were made safe to print when they were read."""
    display.screen(report.title, facts(report)[:3])
    if report.configurations:
        display.console.print(_table(report))
        _rest(display, len(report.configurations) - MAX_ROWS, "configurations")
    display.print(report.findings.verdict)
    pairs = zip(report.comparisons, report.findings.sentences, strict=True)
    ranked = sorted(pairs, key=lambda pair: not pair[0].better)
    for _, sentence in ranked[:MAX_SENTENCES]:
        display.print(f"- {sentence}")
    _rest(display, len(ranked) - MAX_SENTENCES, "comparisons")
    for notice in report.findings.notices:
        display.note(notice)
    failed = unfinished(report.runs)
    for run in failed[:MAX_FAILURES]:
        display.print(f"{run.state}: {place(run.folder)}: {run.reason or 'no reason recorded'}")
        if run.traceback:
            display.note(f"  {place(run.traceback[0])}")
    _rest(display, len(failed) - MAX_FAILURES, "runs that did not finish")
    for section, drawings in report.drawings.items():
        if isinstance(drawings, Skipped):
            display.note(f"{section}: left out. {drawings.reason}")
    for problem in problems(report):
        display.warn(problem)
    if report.forecast is not None:
        _show_forecast(report.forecast, display)


def show_paths(written: Sequence[Path], display: Display) -> None:
    """Print the paths of the written files."""
    page, *pictures = (path.absolute() for path in written)
    display.print(f"Report: {shown(page)} ({in_mib(page.stat().st_size)})")
    if pictures:
        display.note(f"PNGs next to it: {', '.join(path.name for path in pictures)}")


def _table(report: Report) -> Table:
    names = {"label": "configuration", "mean": report.metric.title, "spread": "s.d."}
    names |= {"n": "n", "runs": "finished", "speed": "tok/s", "memory": "GiB"}
    rows = (configuration_row(group, report.metric) for group in report.configurations[:MAX_ROWS])
    cells = ([row[name] for name in names] for row in rows)
    first, *right = headers = list(names.values())
    return table(headers, cells, right, columns={first: {"overflow": "fold"}}, header_style="bold", padding=(0, 1))


def _show_forecast(forecast: Forecast, display: Display) -> None:
    headers, *rows = forecast.rows()
    display.print(f"Forecast of {forecast.name}, {forecast.unit}")
    display.console.print(table(headers, rows, right=headers))
    for sentence in forecast.sentences():
        display.print(sentence)


def _rest(display: Display, count: int, what: str) -> None:
    if count > 0:
        display.note(f"... {count} more {what} on the page.")
