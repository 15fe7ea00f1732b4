"""Plot of learning rates against the metric: a panel per rate that varies, a line per combination of the rest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from dtl.reports.canvas import DASHES, INK, MARKERS, SERIES, WIDTH, Drawing, Skipped, finish, new_figure
from dtl.reports.configurations import Configuration, as_number, short_labels
from dtl.reports.metric import Metric, format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES = {
    "optimizer.lr": "learning rate",
    "optimizer.matrix_lr": "learning rate of the matrices",
    "optimizer.embedding_lr": "learning rate of the embeddings",
}
ANY = "*"  # in a label: the setting that varies along the line
CHARACTERS = 110  # of tick labels side by side on the full width of the page
MAX_IN_TEXT = 20  # means in the text for screen readers


@dataclass(frozen=True)
class Line:
    """Configurations that differ only in one rate; or, in a random search, all configurations with that rate."""

    rate: str  # its key
    others: dict[str, str] | None  # the other settings, the rate's as ANY; None: they vary too, no line is drawn
    members: list[Configuration]

    def at(self, member: Configuration) -> float:
        """Return the rate of a member."""
        return rate_of(member, self.rate) or math.nan


def rates_against_metric(configurations: Sequence[Configuration], metric: Metric) -> Drawing | Skipped:
    """Draw means over the seeds and a dot per run; only dots if the other settings vary with the rate.

    A combination with a single rate is left out if others have several.
    """
    lines = [line for rate in RATES for line in _lines(configurations, rate)]
    if not lines:
        return Skipped("No learning rate varies.")
    if not any(group.values(metric.key) for line in lines for group in line.members):
        return Skipped("No finished run has the metric.")
    shown = lines[: len(SERIES)]
    rates = list(dict.fromkeys(line.rate for line in shown))
    figure = new_figure(WIDTH if len(rates) > 1 else WIDTH * 0.75, 4.4)
    panels = dict(zip(rates, figure.subplots(1, len(rates), sharey=True, squeeze=False)[0], strict=True))
    unfinished = False
    for number, (line, label) in enumerate(zip(shown, _labels(shown), strict=True)):
        _draw_line(panels[line.rate], number, label, line, metric)
        unfinished |= _draw_unfinished(panels[line.rate], line)
    for rate, panel in panels.items():
        tried = sorted({line.at(group) for line in shown if line.rate == rate for group in line.members})
        _scale(panel, tried, CHARACTERS // max(2, len(rates)))
        panel.set_xlabel(f"{RATES[rate]} ({rate})")
    panels[rates[0]].set_ylabel(metric.label)
    if any(panel.get_legend_handles_labels()[1] for panel in panels.values()):
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    title = f"Learning rate against {metric.title}"
    caption = f"Lines: means over the seeds; dots: runs. {metric.better.capitalize()} is better."
    if any(line.others is None for line in shown):
        caption += " Dots without a line: the other settings vary too."
    if unfinished:
        caption += " Crosses at the edge: unfinished runs at that rate."
    if len(lines) > len(shown):
        caption += f" The first {len(shown)} of {len(lines)} combinations of the other settings."
    return finish(figure, "learning_rate", title, caption, f"{title}. {_alternative_text(shown, metric)}.")


def rate_of(configuration: Configuration, rate: str) -> float | None:
    """Return the learning rate under this key; None if the optimizer has no such rate above zero."""
    number = as_number(configuration.runs[0].config.get(rate))
    return number if number is not None and number > 0 else None


def _lines(configurations: Sequence[Configuration], rate: str) -> list[Line]:
    rated = [group for group in configurations if rate_of(group, rate) is not None and rate in group.settings]
    rated.sort(key=lambda group: rate_of(group, rate) or math.nan)
    series: dict[tuple[tuple[str, str], ...], list[Configuration]] = {}
    for group in rated:
        series.setdefault(tuple((group.settings | {rate: ANY}).items()), []).append(group)

    def vary(members: Sequence[Configuration]) -> bool:
        return len({rate_of(group, rate) for group in members}) > 1

    lines = [Line(rate, dict(others), members) for others, members in series.items() if vary(members)]
    return lines if lines or not vary(rated) else [Line(rate, None, rated)]


def _labels(lines: Sequence[Line]) -> list[str]:
    """Return labels that distinguish the lines, by other rates only if nothing else differs; empty for one line."""
    joined = [dict(sorted(line.others.items(), key=lambda item: item[0] in RATES)) for line in lines if line.others]
    labels = iter(short_labels(joined, [""] * len(joined)))
    return [next(labels) if line.others else "" for line in lines]


def _draw_line(panel: "Axes", number: int, label: str, line: Line, metric: Metric) -> None:
    colour = SERIES[number][0]
    means = [(line.at(group), mean) for group in line.members if (mean := _mean(group, metric)) is not None]
    dots = [(line.at(group), value) for group in line.members for value in group.values(metric.key).values()]
    if means:
        look = {"color": colour, "marker": MARKERS[number], "linestyle": DASHES[number] if line.others else "none"}
        panel.plot(*zip(*means, strict=True), label=label or None, **look)
        panel.plot(*zip(*dots, strict=True), color=colour, marker=".", linestyle="none", alpha=0.6)


def _draw_unfinished(panel: "Axes", line: Line) -> bool:
    places = [line.at(group) for group in line.members for run in group.runs if not run.finished]
    panel.plot(places, [0.98] * len(places), transform=panel.get_xaxis_transform(), color=INK[0], marker="x", ls="none")
    return bool(places)


def _scale(panel: "Axes", rates: Sequence[float], width: int) -> None:
    """Set a logarithmic axis, with a tick for each rate if the numbers fit side by side in `width` characters."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panel.set_xscale("log")
    if rates[-1] < 50 * rates[0]:
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the default writes powers as mathematics
    panel.xaxis.set_minor_formatter(NullFormatter())
    decades = math.log(rates[-1] / rates[0])
    gaps = [math.log(after / before) / decades * width for before, after in pairwise(rates)]
    if min(gaps) > max(len(f"{rate:g}") for rate in rates):
        panel.set_xticks(rates)
        panel.minorticks_off()


def _alternative_text(lines: Sequence[Line], metric: Metric) -> str:
    means = [
        f"{line.rate} {line.at(group):g}: {format_number(_mean(group, metric))}"
        for line in lines
        for group in line.members
    ]
    return f"Means by rate: {'; '.join(means[:MAX_IN_TEXT])}"


def _mean(configuration: Configuration, metric: Metric) -> float | None:
    values = configuration.values(metric.key).values()
    return sum(values) / len(values) if values else None
