"""Loss curves against steps, tokens and training time: means over the seeds, and their range; speed and memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from dtl.base.safe_text import in_one_line
from dtl.base.units import number_of
from dtl.reports.canvas import DASHES, GREY, INK, MARKERS, SERIES, WIDTH, Drawing, Skipped, finish, new_figure
from dtl.reports.configurations import Configuration
from dtl.reports.findings import first_of_each
from dtl.reports.metric import NATS, bits_per_nat, same_tokenizer, to_bits_per_byte
from dtl.reports.reading import Curve, Run
from dtl.run_dir.references import Reference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 24  # of the plot of speeds
MAX_LABEL = 48  # characters
MAX_POINTS = 300  # of a mean
MAX_IN_GREY = 60  # curves behind those in colour
POINTS_IN_GREY = 60


@dataclass(frozen=True)
class Band:
    """Curves of several seeds on one axis; arrays of one length."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def band(curves: Sequence[tuple[np.ndarray, np.ndarray]], points: int = MAX_POINTS) -> Band | None:
    """Return mean and range of curves (x, y), x rising, where all of them overlap; None if they do not.

    The result has the x of the longest curve, at most `points` of them; other curves are interpolated linearly.
    """
    curves = [(x[np.isfinite(x)], y[np.isfinite(x)]) for x, y in curves]
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if begin > end:
        return None
    places = max((x for x, _ in curves), key=len)
    places = np.unique([begin, *places[(places > begin) & (places < end)], end])
    if len(places) > points:
        places = places[np.linspace(0, len(places) - 1, points).round().astype(int)]
    values = np.stack([np.interp(places, x, y) for x, y in curves])
    return Band(places, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Return a running mean whose window shrinks at both ends."""
    if window < 2 or len(values) < 3:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    low, high = np.maximum(centre - window // 2, 0), np.minimum(centre + window // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


@dataclass(frozen=True)
class _Axis:
    name: str  # one of reading.AXES
    title: str
    label: str
    factor: float = 1.0


_STEPS = _Axis("step", "Loss against optimizer steps", "optimizer steps")


def loss_curves(
    configurations: Sequence[Configuration], references: Mapping[str, Reference] | None = None
) -> list[Drawing] | Skipped:
    """Draw the loss against steps, tokens and time. `configurations` are in the order of the table, `references` are
    the curves of some of them, by label."""
    measured = [each for each in configurations if any(len(run.training.loss) for run in each.runs)]
    if not measured:
        return Skipped("No run has a training loss.")
    unit, note = NATS, ""
    runs = [run for each in measured for run in each.runs]
    if not same_tokenizer(runs):
        scaled = to_bits_per_byte(runs)
        if scaled is None:
            note = "The tokenizers differ: losses per token cannot be compared. "
        else:
            unit = "bits per byte"
            note = "Bits per byte since the tokenizers differ, by the bytes per token of the validation text. "
            left = iter(scaled)
            measured = [replace(each, runs=[next(left) for _ in each.runs]) for each in measured]
    lines = [
        line
        for group, reference in first_of_each(measured[: len(SERIES)], references or {})
        if (line := _reference_line(reference, group, measured, references or {}, unit)) is not None
    ]
    return [_loss_against(axis, measured, unit, note, lines) for axis in _axes(measured)]


def _axes(configurations: Sequence[Configuration]) -> list[_Axis]:
    ends = {"tokens": 0.0, "seconds": 0.0}
    for run in (run for configuration in configurations for run in configuration.runs):
        for name in ends:
            ends[name] = max(ends[name], *(run.training.axis(name)[-1:].tolist() or [0.0]))
    units = ((1e9, " (billions)"), (1e6, " (millions)"), (1e3, " (thousands)"), (0.0, ""))
    tokens, tokens_unit = next((size or 1.0, unit) for size, unit in units if ends["tokens"] >= size)
    times = ((3600.0, "h"), (60.0, "min"), (0.0, "s"))
    seconds, unit = next((size or 1.0, unit) for size, unit in times if ends["seconds"] >= 2 * size)
    return [
        _STEPS,
        _Axis("tokens", "Loss against tokens seen", f"tokens seen{tokens_unit}", 1 / tokens),
        _Axis("seconds", "Loss against wall-clock time of training", f"training time ({unit})", 1 / seconds),
    ]


def _loss_against(
    axis: _Axis, measured: Sequence[Configuration], unit: str, note: str, references: Sequence["_ReferenceLine"]
) -> Drawing:
    figure = new_figure(WIDTH, 4.6)
    left, right = figure.subplots(1, 2, sharex=True)
    coloured, grey = measured[: len(SERIES)], measured[len(SERIES) :][:MAX_IN_GREY]
    for panel, which in ((left, "training"), (right, "validation")):
        for configuration in grey:
            _draw_mean(panel, axis, which, configuration, {"color": GREY[0], "lw": 0.7, "alpha": 0.6}, POINTS_IN_GREY)
        for number, configuration in enumerate(coloured):
            _draw(panel, axis, which, configuration, number)
        if which == "validation":
            references = [line for line in references if line.draw(panel, axis)]
        _dress(panel, axis, which, unit)
    name_series(figure, coloured, [line.label for line in references])
    left_out = len(measured) - len(coloured)
    caption = "Lines: means over the seeds; bands: from the lowest seed to the highest. "
    caption += "Thin lines that end in a cross: runs that did not finish. Training loss is a running mean. "
    caption += note
    if axis.name == "seconds":
        caption += "Time is that of training alone, without evaluation, sampling and saving; "
        caption += "of several seeds it is the median at each step. "
    caption += "".join(f"Grey: the {line}. " for line in references)
    if left_out:
        caption += f"In colour the first {len(coloured)} configurations of the table, in grey {len(grey)} more. "
    ends = "; ".join(_ending(configuration) for configuration in coloured)
    return finish(
        figure, f"loss_{axis.name}", axis.title, caption.strip(), f"{axis.title}. Last validation loss, {unit}: {ends}."
    )


def name_series(figure: "Figure", configurations: Sequence[Configuration], references: Sequence[str] = ()) -> None:
    """Add a legend below the plots: colour, dash, marker and n of each configuration, and the reference curves."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=SERIES[number][0], linestyle=DASHES[number], marker=MARKERS[number], markersize=4)
        for number in range(len(configurations))
    ]
    handles += [Line2D([], [], **REFERENCE_LOOK) for _ in references]
    labels = [f"{each.label} ({number_of('runs', len(each.finished))})" for each in configurations]
    labels += references
    columns = 1 if max(map(len, labels)) > 70 or len(labels) == 1 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)


def _ending(configuration: Configuration) -> str:
    last = [float(run.validation.loss[-1]) for run in configuration.finished if len(run.validation.loss)]
    return f"{configuration.label} {np.mean(last):.4g}" if last else f"{configuration.label} none"


def _curve(run: Run, which: str) -> Curve:
    return run.training if which == "training" else run.validation


def _xy(axis: _Axis, which: str, run: Run) -> tuple[np.ndarray, np.ndarray]:
    curve = _curve(run, which)
    loss = smoothed(curve.loss, len(curve.loss) // 40) if which == "training" else curve.loss
    return curve.axis(axis.name) * axis.factor, loss


def _over_seeds(axis: _Axis, which: str, runs: Sequence[Run], points: int) -> Band | None:
    """Return mean and range at equal steps; on the other axes each step is placed at the median of the seeds.

    Means at equal times would end with the fastest seed, and one run on a busy machine would distort all.
    """
    mean_band = band([_xy(_STEPS, which, run) for run in runs], points)
    if mean_band is None or axis.name == _STEPS.name:
        return mean_band
    curves = [_curve(run, which) for run in runs]
    places = [np.interp(mean_band.x, curve.step, curve.axis(axis.name)) for curve in curves if len(curve.step)]
    places = [place for place in places if np.isfinite(place).all()]
    return replace(mean_band, x=np.median(places, axis=0) * axis.factor) if places else None


def _draw_mean(
    panel: "Axes", axis: _Axis, which: str, group: Configuration, look: dict[str, Any], points: int
) -> Band | None:
    drawn = _over_seeds(axis, which, group.finished, points)
    if drawn is not None:
        panel.plot(drawn.x, drawn.mean, **look)
    return drawn


def _draw(panel: "Axes", axis: _Axis, which: str, configuration: Configuration, number: int) -> None:
    """Draw one configuration in its colour: mean, band, and its unfinished runs."""
    colour = SERIES[number][0]
    look: dict[str, Any] = {"color": colour, "linestyle": DASHES[number]}
    if which == "validation":
        look |= {"marker": MARKERS[number], "markersize": 4}
    drawn = _draw_mean(panel, axis, which, configuration, look, MAX_POINTS)
    if drawn is not None and which == "validation" and len(drawn.x) > 25:
        panel.lines[-1].set_markevery(len(drawn.x) // 12)
    if drawn is not None and len(configuration.finished) > 1:
        panel.fill_between(drawn.x, drawn.low, drawn.high, color=colour, alpha=0.18, linewidth=0)
    for run in configuration.runs:
        x, y = _xy(axis, which, run)
        if not run.finished and len(x):
            panel.plot(x, y, color=colour, linestyle=DASHES[number], lw=0.7, alpha=0.8)
            panel.plot(x[-1:], y[-1:], color=colour, marker="x", markersize=6, linestyle="none")


def _dress(panel: "Axes", axis: _Axis, which: str, unit: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panel.set_title(f"{which} loss")
    panel.set_xlabel(axis.label)
    panel.set_ylabel(f"loss ({unit})")
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in panel.lines]
    values = np.concatenate(curves) if curves else np.array([])
    if not values.size:
        panel.text(0.5, 0.5, "nothing was measured", transform=panel.transAxes, ha="center", color=INK[0])
    elif values.min() > 0 and values.max() > 4 * values.min():
        panel.set_yscale("log")
        wide = values.max() > 50 * values.min()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else (1, 1.5, 2, 3, 4, 6)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())


# --- reference curves ---------------------------------------------------------------------------------------------

REFERENCE_LOOK: dict[str, Any] = {"color": GREY[0], "lw": 1.1, "zorder": 1}  # behind the run's own curve


@dataclass(frozen=True)
class _ReferenceLine:
    """A reference curve over the tokens of the runs that it belongs to."""

    reference: Reference
    tokens: np.ndarray
    loss: np.ndarray  # in the unit of the plot
    steps_per_token: float  # of the runs
    note: str  # how its loss was converted

    @property
    def label(self) -> str:
        return in_one_line(f"reference {self.reference.name}: {self.reference.text}", 2 * MAX_LABEL)

    def __str__(self) -> str:
        return f"reference {self.reference.name}, {self.reference.origin}; {self.note}"

    def draw(self, panel: "Axes", axis: _Axis) -> bool:
        """Draw the curve where the axis allows it; of the time it knows nothing."""
        if axis.name == "seconds":
            return False
        scale = self.steps_per_token if axis.name == _STEPS.name else axis.factor
        panel.plot(self.tokens * scale, self.loss, **REFERENCE_LOOK)
        return True


def _reference_line(
    reference: Reference,
    group: Configuration,
    measured: Sequence[Configuration],
    references: Mapping[str, Reference],
    unit: str,
) -> _ReferenceLine | None:
    """Return the part of a curve that lies beside its runs, in the unit of the plot; None where there is none."""
    runs = [run for each in measured if references.get(each.label) is reference for run in each.runs]
    curves = [curve for run in runs for curve in (run.validation, run.training) if np.isfinite(curve.tokens).any()]
    if not curves or (subject := group.runs[0].subject) is None:
        return None
    end = max(curve.tokens[-1] for curve in curves)
    begin = min([end / 10, *(run.validation.tokens[0] for run in runs if len(run.validation.tokens))])
    known = [point.tokens for point in reference.points]
    places = [begin, *(tokens for tokens in known if begin < tokens < end), end]
    points = [reference.at(tokens) for tokens in places if known[0] <= tokens <= known[-1]]
    factor = next((each for run in group.runs if (each := bits_per_nat(run))), None)
    if reference.has_vocabulary_of(subject) and unit == NATS:
        loss, note = [point.loss for point in points], "its vocabulary is that of the runs"
    elif unit != NATS:
        loss, note = [point.bits for point in points], "in its bits per byte"
    else:  # losses per token of another vocabulary: where the plot has nats, those of equal bits per byte
        loss = [point.bits / factor if point.bits and factor else None for point in points]
        why = "the runs' vocabulary is not known" if subject.vocabulary is None else "its vocabulary is another one"
        note = f"{why}: drawn where its bits per byte are those of the runs"
    if len(points) < 2 or None in loss:
        return None
    curve = curves[0]
    return _ReferenceLine(
        reference,
        np.array([point.tokens for point in points]),
        np.array(loss, dtype=float),
        float(curve.step[-1] / curve.tokens[-1]),
        note,
    )


# --- speed and memory -----------------------------------------------------------------------------------------------


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
