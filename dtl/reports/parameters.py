"""Plots of the effect of settings: parallel coordinates, and importance by Optuna."""

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dtl.reports.canvas import GROUND, INK, SERIES, WIDTH, Drawing, Skipped, finish, new_figure
from dtl.reports.configurations import Configuration, as_number
from dtl.reports.metric import Metric, format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_AXES = 8  # of parallel coordinates
MAX_LINES = 300
MIN_RUNS = 20  # with fewer, importance is mostly noise
# PED-ANOVA: Watanabe, Bansal and Hutter 2023, arXiv:2304.10255.
BEST_FRACTION, BEST_RUNS = 0.1, 5  # its default is the best tenth; here with at least five runs in it


# --- parallel coordinates -----------------------------------------------------------------------------------------


def parallel_coordinates(configurations: Sequence[Configuration], metric: Metric) -> Drawing | Skipped:
    """Draw a line for each finished run through its settings to its metric."""
    measured = [(group.settings, value) for group in configurations for value in group.values(metric.key).values()]
    keys = list(configurations[0].settings) if configurations else []
    keys = [key for key in keys if len({settings[key] for settings, _ in measured}) > 1][:MAX_AXES]
    lines = [([settings[key] for key in keys], value) for settings, value in measured]
    if not keys or len({value for _, value in lines}) < 2:
        return Skipped("This plot needs finished runs of at least two configurations.")
    lines = lines[:MAX_LINES]
    scales = [_Scale([settings[place] for settings, _ in lines]) for place in range(len(keys))]
    low, high = min(value for _, value in lines), max(value for _, value in lines)
    figure = new_figure(WIDTH, 4.4)
    panel = figure.subplots()
    for settings, value in sorted(lines, key=lambda line: line[1], reverse=not metric.higher_is_better):
        height = (value - low) / (high - low)
        goodness = height if metric.higher_is_better else 1 - height
        heights = [scale.height(setting) for scale, setting in zip(scales, settings, strict=True)]
        colour = SERIES[0][0] if goodness >= 0.5 else SERIES[1][0]
        panel.plot(
            [*heights, height],
            color=colour,
            lw=0.6 + 2.2 * goodness**3,
            ls="-" if goodness >= 0.5 else "--",
            alpha=0.75,
        )
    for place, scale in enumerate(scales):
        _draw_axis(panel, place, scale.ticks())
    values = ((0.0, low), (0.5, (low + high) / 2), (1.0, high))
    _draw_axis(panel, len(keys), [(place, format_number(value)) for place, value in values])
    names = [key if len(keys) < 5 else key.rpartition(".")[2] for key in keys]
    panel.set_xticks(range(len(keys) + 1), [*names, metric.title])
    panel.set_yticks([])
    panel.set_xlim(-0.25, len(keys) + 0.35)
    panel.grid(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_visible(False)
    panel.tick_params(length=0)
    title = f"Which settings lead to which {metric.title}"
    caption = (
        f"A line for each of {len(lines)} finished runs. The thicker, the {metric.better} (better) its {metric.title}; "
        "blue and solid: the better half of the range, orange and dashed: the worse half."
    )
    return finish(
        figure, "parallel_coordinates", title, caption, f"{title}: {', '.join(keys)}. The table has the same values."
    )


class _Scale:
    """Axis of one setting: numbers by value, logarithmic if they span a decade; other values at equal distances."""

    def __init__(self, values: Sequence[str]) -> None:
        distinct = list(dict.fromkeys(values))
        numbers = {value: number for value in distinct if (number := as_number(value)) is not None}
        self.places: dict[str, float]
        if len(numbers) == len(distinct):
            ordered = sorted(distinct, key=lambda value: numbers[value])
            use = math.log if numbers[ordered[0]] > 0 and numbers[ordered[-1]] >= 10 * numbers[ordered[0]] else float
            self.places = {value: float(use(numbers[value])) for value in ordered}
        else:
            self.places = {value: float(place) for place, value in enumerate(sorted(distinct))}
        self.low, self.high = min(self.places.values()), max(self.places.values())

    def height(self, value: str) -> float:
        """Return the height of a value in [0, 1]; the middle if there is only one value."""
        return (self.places[value] - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Return (height, text) of at most seven ticks."""
        values = list(self.places)
        step = math.ceil(len(values) / 7)
        return [(self.height(value), value if len(value) <= 18 else f"{value[:15]}...") for value in values[::step]]


def _draw_axis(panel: "Axes", place: int, ticks: Sequence[tuple[float, str]]) -> None:
    behind = {"facecolor": GROUND[0], "edgecolor": "none", "alpha": 0.8, "pad": 1}
    panel.plot([place, place], [0, 1], color=INK[0], lw=1, zorder=3)
    for height, text in ticks:
        panel.plot([place - 0.02, place + 0.02], [height, height], color=INK[0], lw=1, zorder=3)
        panel.text(place + 0.04, height, text, va="center", fontsize=9, zorder=4, bbox=behind)


# --- importance ---------------------------------------------------------------------------------------------------


def importance(configurations: Sequence[Configuration], metric: Metric) -> Drawing | Skipped:
    """Draw how much each setting decides whether a finished run is among the best."""
    keys = list(configurations[0].settings) if configurations else []
    finished = [
        (group.settings, run.metrics[metric.key])
        for group in configurations
        for run in group.finished
        if metric.key in run.metrics
    ]
    if not keys or len(finished) < MIN_RUNS:
        return Skipped(f"This plot needs {MIN_RUNS} finished runs that differ in a setting; there are {len(finished)}.")
    try:
        fractions = importances(keys, finished, metric.higher_is_better)
    except ImportError:
        return Skipped("Optuna is not installed: pip install optuna")
    shown = list(fractions.items())[:MAX_AXES][::-1]
    figure = new_figure(WIDTH * 0.75, 1.2 + 0.42 * len(shown))
    panel = figure.subplots()
    panel.barh([key for key, _ in shown], [fraction for _, fraction in shown], color=SERIES[0][0], height=0.6)
    for place, (_, fraction) in enumerate(shown):
        panel.text(fraction + 0.01, place, f"{fraction:.0%}", va="center")
    panel.set_xlim(0, 1.12 * max(fraction for _, fraction in shown) or 1)
    panel.grid(axis="y", visible=False)
    panel.set_xlabel("fraction of importance (all settings together: 1)")
    title = f"Which settings decide the {metric.title}"
    caption = (
        f"PED-ANOVA (Optuna) on {len(finished)} finished runs: how much a setting predicts whether a run is among the "
        "best. It shows no direction, and with so few runs the order is a hint, not a finding."
    )
    values = ", ".join(f"{key} {fraction:.0%}" for key, fraction in fractions.items())
    return finish(figure, "importance", title, caption, f"{title}: {values}.")


def importances(keys: Sequence[str], runs: Sequence[tuple[dict[str, str], float]], higher: bool) -> dict[str, float]:
    """Return the importance of each key, adding up to 1, the largest first. Raises ImportError without Optuna."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    distributions = {key: _distribution([settings[key] for settings, _ in runs]) for key in keys}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize" if higher else "minimize")
        optuna.logging.set_verbosity(verbosity)
        for settings, value in runs:
            chosen = {
                key: settings[key] if hasattr(distributions[key], "choices") else float(settings[key]) for key in keys
            }
            study.add_trial(optuna.create_trial(params=chosen, distributions=distributions, value=value))
        fraction = max(BEST_FRACTION, min(0.5, BEST_RUNS / len(runs)))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=fraction)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _distribution(values: Sequence[str]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = [number for value in values if (number := as_number(value)) is not None]
    if len(numbers) < len(values):
        return CategoricalDistribution(sorted(set(values)))
    return FloatDistribution(min(numbers), max(numbers), log=min(numbers) > 0 and max(numbers) >= 10 * min(numbers))
