"""Plot of tokens per second and peak memory of each configuration."""

from collections.abc import Sequence
from statistics import median

from dtl.base.safe_text import in_one_line
from dtl.reports.canvas import MARKERS, SERIES, WIDTH, Drawing, Skipped, finish, new_figure
from dtl.reports.configurations import Configuration

MAX_ROWS = 24
MAX_LABEL = 48  # characters


def speeds(configuration: Configuration) -> list[float]:
    """Return the tokens per second of its runs, of each run the median that it logged."""
    return [run.tokens_per_second for run in configuration.runs if run.tokens_per_second is not None]


def peaks(configuration: Configuration) -> list[float]:
    """Return the peak memory of its runs, GiB."""
    return [run.peak_bytes / 2**30 for run in configuration.runs if run.peak_bytes is not None]


def speed_and_memory(configurations: Sequence[Configuration]) -> Drawing | Skipped:
    """Draw a dot for each run, and a bar for the median of each configuration."""
    from matplotlib.ticker import MaxNLocator

    measured = [group for group in configurations if speeds(group) or peaks(group)]
    if not measured:
        return Skipped("No run logged speed or memory.")
    shown = measured[:MAX_ROWS][::-1]
    figure = new_figure(WIDTH, 1.5 + 0.34 * len(shown))
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (panel, values_of, label) in enumerate(
        ((left, speeds, "tokens per second"), (right, peaks, "peak memory (GiB)"))
    ):
        for place, group in enumerate(shown):
            values = values_of(group)
            if values:
                panel.barh(place, median(values), color=SERIES[number][0], alpha=0.35, height=0.6)
                panel.plot(values, [place] * len(values), MARKERS[number], color=SERIES[number][0], markersize=4)
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter("{x:,g}")
        panel.grid(axis="y", visible=False)
    # A longer label would leave the panels no room: matplotlib then gives up the layout.
    left.set_yticks(range(len(shown)), [in_one_line(group.label, MAX_LABEL) for group in shown])
    left.set_title("speed")
    right.set_title("memory")
    title = "Speed of training and peak memory"
    caption = "Bars: medians; dots: runs. Memory is that of the GPU if there is group, else that of the process."
    if len(measured) > len(shown):
        caption += f" The first {len(shown)} of {len(measured)} configurations of the table."
    medians = "; ".join(f"{group.label} {median(speeds(group)):.0f}" for group in shown[::-1] if speeds(group))
    return finish(figure, "speed", title, caption, f"{title}. Median tokens per second: {medians}.")
