"""Tokens a second and peak memory of each configuration."""

from collections.abc import Sequence
from statistics import median

from dtl.reports.canvas import MARKERS, SERIES, WIDTH, Drawing, Skipped, finish, new_figure
from dtl.reports.configurations import Configuration

MAX_ROWS = 24


def speeds(configuration: Configuration) -> list[float]:
    """Tokens a second of its runs: of each the median of what it logged."""
    return [run.tokens_per_second for run in configuration.runs if run.tokens_per_second is not None]


def peaks(configuration: Configuration) -> list[float]:
    """Peak memory of its runs, GiB."""
    return [run.peak_bytes / 2**30 for run in configuration.runs if run.peak_bytes is not None]


def speed_and_memory(configurations: Sequence[Configuration]) -> Drawing | Skipped:
    """Dots for runs, a bar for the median of a configuration."""
    from matplotlib.ticker import MaxNLocator

    measured = [one for one in configurations if speeds(one) or peaks(one)]
    if not measured:
        return Skipped("No run measured it.")
    shown = measured[:MAX_ROWS][::-1]
    figure = new_figure(WIDTH, 1.5 + 0.34 * len(shown))
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (panel, values_of, label) in enumerate(
        ((left, speeds, "tokens a second"), (right, peaks, "peak memory (GiB)"))
    ):
        for place, one in enumerate(shown):
            values = values_of(one)
            if values:
                panel.barh(place, median(values), color=SERIES[number][0], alpha=0.35, height=0.6)
                panel.plot(values, [place] * len(values), MARKERS[number], color=SERIES[number][0], markersize=4)
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter("{x:,g}")
        panel.grid(axis="y", visible=False)
    left.set_yticks(range(len(shown)), [one.label for one in shown])
    left.set_title("speed")
    right.set_title("memory")
    title = "Speed of training and peak memory"
    caption = "Bars: medians; dots: runs. Memory is the card's where there is one, else that of the process."
    if len(measured) > len(shown):
        caption += f" The first {len(shown)} of {len(measured)} configurations of the table."
    told = "; ".join(f"{one.label} {median(speeds(one)):.0f}" for one in shown[::-1] if speeds(one))
    return finish(figure, "speed", title, caption, f"{title}. Median tokens a second: {told}.")
