"""Forecast of a larger model's loss from the finished runs of several sizes: which runs count, the law, the plot.

Every run counts with its last validation loss, at the end of its own schedule: one that is cut early has a higher loss
than its size can reach. Runs of the forecast's own size are left out of the fit, and the forecast is held against them.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from dtl.base.units import in_percent, in_units, number_of
from dtl.errors import ConfigError
from dtl.reports.canvas import DASHES, GREY, INK, MARKERS, SERIES, WIDTH, Drawing, finish, new_figure
from dtl.reports.configurations import EXPERIMENT, UNIMPORTANT, group_runs
from dtl.reports.metric import NATS, same_tokenizer, to_bits_per_byte, tokenizer_of
from dtl.reports.reading import Run
from dtl.reports.scaling import LEVEL, Scaling, scaling_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_SIZES, MIN_RANGE = 4, 4.0  # three numbers are fitted, and a narrow range of sizes does not show the bend
MAX_AHEAD = 8.0  # times the largest size of the fit
MAX_HALF_WIDTH = 0.05  # of the interval, as a fraction of the forecast: a wider one helps no decision
SAME = 0.1  # relative difference of tokens, or of tokens a parameter, that counts as none
SAME_SIZE = 0.02
ONCE, MAX_EPOCHS = 1.01, 4  # more than 4 are worth less than new text (Muennighoff et al. 2023, arXiv:2305.16264)
BITS_PER_BYTE = "bits per byte"
# What sizes differ in, as they must, and what does not change a loss.
_OF_SIZE = ("model", EXPERIMENT, "trainer.total_steps", "trainer.micro_batch_size", "trainer.grad_accum_steps")


@dataclass(frozen=True)
class Size:
    """Runs of one size: their last validation losses, by seed."""

    n: int  # parameters without embeddings
    losses: dict[Hashable, float]
    tokens: float  # of training, mean over the seeds

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.losses.values())


@dataclass(frozen=True)
class Forecast:
    """Loss of a model of `target` parameters, with what it was computed from."""

    name: str  # of the model, or its number of parameters
    target: float  # parameters without embeddings
    unit: str
    sizes: list[Size]  # of the fit, rising
    scaling: Scaling
    measured: Size | None  # runs of the target's own size, which were not fitted
    length: str  # of the runs, and so of the one that is forecast
    notes: list[str]

    @property
    def loss(self) -> float:
        """The forecast."""
        return float(self.scaling.law(self.target))

    @property
    def interval(self) -> tuple[float, float]:
        """The interval for one run."""
        low, high = self.scaling.interval(self.target)
        return float(low), float(high)

    @property
    def naive(self) -> float:
        """The forecast without a floor."""
        return float(self.scaling.naive(self.target))

    def rows(self) -> list[list[str]]:
        """Return the table of the fit, heads first; the last row is the forecast."""
        head = ["parameters", "seeds", "measured", "fitted", "off by", "naive line", "off by"]
        return [head, *(self._row(size.n, size) for size in self.sizes), self._row(self.target, self.measured)]

    def _row(self, n: float, size: Size | None) -> list[str]:
        laws = (float(self.scaling.law(n)), float(self.scaling.naive(n)))
        off = ["" if size is None else f"{100 * (loss / size.mean - 1):+.2f} %" for loss in laws]
        seeds, measured = ("-", "-") if size is None else (str(len(size.losses)), f"{size.mean:.4f}")
        return [in_units(n), seeds, measured, f"{laws[0]:.4f}", off[0], f"{laws[1]:.4f}", off[1]]

    def sentences(self) -> Iterator[str]:
        """Yield the forecast in words, with what it rests on."""
        (low, high), law = self.interval, self.scaling.law
        yield (
            f"{self.name}, {in_units(self.target)} parameters without embeddings, {self.target / self.sizes[-1].n:.1f} "
            f"times the largest of the fit: {self.loss:.3f} {self.unit}, {in_percent(LEVEL)} % interval of one run "
            f"{low:.3f} to {high:.3f}. A straight line, without a floor: {self.naive:.3f}; through the two largest "
            f"sizes {float(self.scaling.last_two(self.target)):.3f}."
        )
        if self.measured is not None:
            errors = [in_percent(abs(loss / self.measured.mean - 1)) for loss in (self.loss, self.naive)]
            where = "within" if low <= self.measured.mean <= high else "outside"
            yield (
                f"Measured ({number_of('runs', len(self.measured.losses))}, not fitted): {self.measured.mean:.3f}, "
                f"{where} the interval. The forecast is off by {errors[0]} %, the straight line by {errors[1]} %."
            )
        noise = "the spread over the seeds" if self.scaling.from_seeds else "what the law leaves over"
        yield (
            f"Law: {float(law.floor):.3g} + {float(law.factor):.3g} (N / {in_units(law.scale)})^-"
            f"{float(law.exponent):.2g}. Noise of a run: {100 * self.scaling.noise:.2g} %, from {noise}. "
            f"All runs, and so the forecast, with {self.length}."
        )
        yield from self.notes


def forecast_of(runs: Sequence[Run], name: str, target: float | None) -> Forecast:
    """Return the forecast for a preset, or for `target` parameters.

    Raises ConfigError where the runs do not allow one: data that differ, text read too often, lengths that differ, too
    few sizes, too large a model, too much noise.
    """
    usable, notes = _usable(runs, name)
    _check_data(usable, name)
    usable, unit = _in_one_unit(usable, name)
    target = target or _parameters_of(name, usable)
    notes += _check_epochs(usable, name)
    sizes, more = _sizes(usable)
    length, tokens = _length(sizes, name, target)
    available = max((run.tokens or 0.0) / run.epochs for run in usable if run.epochs)
    if tokens > ONCE * available:
        more.append(
            f"The forecast is for {in_units(tokens)} tokens of new text; that of the runs has {in_units(available)}."
        )
    fitted = [size for size in sizes if size.n < target * (1 - SAME_SIZE)]
    measured = [size for size in sizes if abs(size.n / target - 1) <= SAME_SIZE]
    larger = len(sizes) - len(fitted) - len(measured)
    if larger:
        more.append(f"Larger than that of the forecast, and not fitted: {number_of('sizes', larger)}.")
    _check_sizes(fitted, name, target)
    scaling = scaling_of([size.n for size in fitted], [list(size.losses.values()) for size in fitted], MIN_SIZES)
    forecast = Forecast(name, target, unit, fitted, scaling, measured[0] if measured else None, length, [*notes, *more])
    _check_noise(forecast)
    return forecast


# --- which runs count ---------------------------------------------------------------------------------------------


def _usable(runs: Sequence[Run], name: str) -> tuple[list[Run], list[str]]:
    """Return the runs that count, and a note for each reason for which others do not. Raises ConfigError for none."""
    reasons: dict[str, int] = {}
    usable = []
    for run in runs:
        reason = _why_not(run)
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            usable.append(run)
    notes = [f"Left out: {number_of('runs', count)}, {reason}." for reason, count in reasons.items()]
    if not usable:
        raise ConfigError(f"forecast={name}: no run can be used. {' '.join(notes)} Give runs= of a finished sweep.")
    return usable, notes


def _why_not(run: Run) -> str:
    horizon = run.config.get("trainer.total_steps", "null")
    if not run.finished:
        return "not finished"
    if run.n_parameters is None or run.tokens is None or run.epochs is None or run.data is None:
        return "of a version of DTL that did not record size, tokens and data"
    if run.step != run.last_step or horizon not in ("null", str(run.step)):
        return "ended before its schedule did"
    if not len(run.validation.step) or run.validation.step[-1] != run.step:
        return "without a validation loss at its last step"
    return ""


def _check_data(runs: Sequence[Run], name: str) -> None:
    """Raise ConfigError unless all runs have the same text and validate on the same part of it."""
    differing = _differing(runs, ("data.",))
    if differing:
        raise ConfigError(
            f"forecast={name}: the runs differ in {', '.join(differing)}, and losses on different data follow no "
            "common law. Give runs= of one sweep, in which only the size varies."
        )
    seen: dict[tuple[Hashable, ...], set[tuple[str | None, ...]]] = {}
    for run in runs:  # the seed decides what is held out, and the tokenizer what a token is
        batches, micro = (run.config.get(f"trainer.{key}", "") for key in ("eval_max_batches", "micro_batch_size"))
        validated = (batches, "" if batches == "null" else micro)
        seen.setdefault((run.seed, tokenizer_of(run)), set()).add((run.data, *validated))
    different = [seed for (seed, _), found in seen.items() if len(found) > 1]
    if different:
        raise ConfigError(
            f"forecast={name}: the runs with seed={different[0]} have different data, or validate on different parts "
            "of it (the fingerprint in run.json, trainer.eval_max_batches times trainer.micro_batch_size). Give runs= "
            "of one sweep, whose files do not change meanwhile."
        )


def _in_one_unit(runs: Sequence[Run], name: str) -> tuple[list[Run], str]:
    """Return the runs with comparable losses, and their unit: bits per byte where the vocabularies differ."""
    if same_tokenizer(runs):
        return list(runs), NATS
    scaled = to_bits_per_byte(runs)
    if scaled is None:
        raise ConfigError(
            f"forecast={name}: the runs have different vocabularies, whose losses do not compare, and no bits per byte "
            "in their result.json. Give runs= with one vocabulary."
        )
    return scaled, BITS_PER_BYTE


def _check_epochs(runs: Sequence[Run], name: str) -> list[str]:
    """Return a note where text was read more than once. Raises ConfigError where it was read too often."""
    most = max(run.epochs or 0.0 for run in runs)
    if most > MAX_EPOCHS:
        raise ConfigError(
            f"forecast={name}: a run read its text {most:.1f} times. The law holds for new text, and more than "
            f"{MAX_EPOCHS} times are worth less. Give more text, or a smaller trainer.tokens_per_parameter."
        )
    repeated = f"Text was read up to {most:.1f} times: the law is one of new text, and the forecast may be too low."
    return [repeated] if most > ONCE else []


def _sizes(runs: Sequence[Run]) -> tuple[list[Size], list[str]]:
    """Return the sizes, rising, and notes; of several configurations of one size the one with the lowest mean."""
    found: dict[int, list[tuple[Size, Run]]] = {}
    for group in group_runs(runs):
        n = group.runs[0].n_parameters or 0
        losses: dict[Hashable, float] = {
            run.folder if run.seed is None else run.seed: float(run.validation.loss[-1]) for run in group.runs
        }
        losses = dict(sorted(losses.items(), key=str))  # the same sums, whatever the order of the runs
        size = Size(n, losses, fmean(run.tokens or 0.0 for run in group.runs))
        found.setdefault(n, []).append((size, group.runs[0]))
    best = [min(found[n], key=lambda entry: entry[0].mean) for n in sorted(found)]
    several = sum(len(each) > 1 for each in found.values())
    notes = []
    if several:
        notes.append(f"Of {number_of('sizes', several)} there are several configurations: the best mean counts.")
    also = [key for key in _differing([run for _, run in best]) if not key.startswith(_OF_SIZE)]
    if also:
        notes.append(f"The sizes also differ in {', '.join(also[:5])}.")
    return [size for size, _ in best], notes


def _differing(runs: Sequence[Run], prefixes: tuple[str, ...] = ("",)) -> list[str]:
    """Return the settings with these prefixes in which the runs differ, without those that change no loss."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key.startswith(prefixes))
    free = ("data.recommended.", "tracker.", "sampling.", "sweep.")
    kept = [key for key in keys if key not in UNIMPORTANT and not key.startswith(free)]
    return [key for key in kept if len({run.config.get(key) for run in runs}) > 1]


def _length(sizes: Sequence[Size], name: str, target: float) -> tuple[str, float]:
    """Return the length that the sizes have in common, and its tokens for `target`. Raises ConfigError for none."""
    tokens, ratios = [size.tokens for size in sizes], [size.tokens / size.n for size in sizes]
    if max(ratios) <= (1 + SAME) * min(ratios):
        return f"{fmean(ratios):.2g} tokens a parameter", fmean(ratios) * target
    if max(tokens) <= (1 + SAME) * min(tokens):
        return f"{in_units(fmean(tokens))} tokens", fmean(tokens)
    raise ConfigError(
        f"forecast={name}: the sizes have {min(ratios):.2g} to {max(ratios):.2g} tokens a parameter, and "
        f"{in_units(min(tokens))} to {in_units(max(tokens))} tokens; one of the two must be equal within "
        f"{in_percent(SAME)} %. Train with trainer.tokens_per_parameter=5, or one trainer.tokens= for all."
    )


def _check_sizes(fitted: Sequence[Size], name: str, target: float) -> None:
    """Raise ConfigError for sizes that do not carry a forecast as far as `target`."""
    largest = fitted[-1].n if fitted else 0
    if len(fitted) < MIN_SIZES or largest < MIN_RANGE * fitted[0].n:
        have = ", ".join(in_units(size.n) for size in fitted) or "none"
        raise ConfigError(
            f"forecast={name}: needs at least {MIN_SIZES} sizes below its own, {in_units(target)}, over a factor of "
            f"{MIN_RANGE:g}; there are: {have} parameters without embeddings. Train further sizes."
        )
    if target > MAX_AHEAD * largest:
        raise ConfigError(
            f"forecast={name}: {in_units(target)} parameters without embeddings are {target / largest:.1f} times the "
            f"largest of the runs, {in_units(largest)}. Beyond {MAX_AHEAD:g} times nothing is shown. Train a size of "
            f"{in_units(target / MAX_AHEAD)} or more, or ask for a smaller one: forecast={MAX_AHEAD * largest:.0f}"
        )


def _check_noise(forecast: Forecast) -> None:
    """Raise ConfigError where the interval is too wide to be of use."""
    low, high = forecast.interval
    width = max(high / forecast.loss - 1, 1 - low / forecast.loss)
    if width > MAX_HALF_WIDTH:
        scaling = forecast.scaling
        source = "the spread over the seeds" if scaling.from_seeds else "what the law leaves over"
        raise ConfigError(
            f"forecast={forecast.name}: the noise does not allow it. With {100 * scaling.noise:.2g} % a run (from "
            f"{source}) the interval is {low:.3f} to {high:.3f}, {100 * width:.0f} % from the forecast of "
            f"{forecast.loss:.3f}; shown are at most {in_percent(MAX_HALF_WIDTH)} %. Train more seeds "
            "(seed=1,2,3), more sizes, or larger ones."
        )


def _parameters_of(name: str, runs: Sequence[Run]) -> float:
    """Return the parameters of a preset without embeddings, with the architecture of the runs."""
    import torch

    from dtl.base.paths import choices
    from dtl.model.presets import load_preset
    from dtl.model.transformer import TransformerLM

    config: Mapping[str, str] = runs[0].config
    if config.get("model.tie_embeddings") == "false":
        raise ConfigError(
            f"forecast={name}: the runs have model.tie_embeddings=false, and a head that is not tied counts as its "
            "vocabulary is large. Give the number of parameters instead, such as forecast=20e6."
        )
    block = config.get("model.arch.block", "")
    arch = {"arch": block} if block in choices("model/arch") else {}
    with torch.device("meta"):
        return TransformerLM(load_preset(name, **arch), vocab_size=2).n_parameters(embeddings=False)


# --- the plot -----------------------------------------------------------------------------------------------------


def draw_forecast(forecast: Forecast) -> Drawing:
    """Draw sizes, law, interval, naive line and forecast, both axes logarithmic."""
    figure = new_figure(WIDTH * 0.75, 4.6)
    panel = figure.subplots()
    scaling, target = forecast.scaling, forecast.target
    n = np.geomspace(scaling.n[0], target, 100)
    low, high = scaling.interval(n)
    band = {"color": SERIES[0][0], "alpha": 0.15, "lw": 0, "label": f"{in_percent(LEVEL)} % interval of one run"}
    panel.fill_between(n, low, high, **band)
    panel.plot(n, scaling.law(n), color=SERIES[0][0], label="floor + power law")
    panel.plot(n, scaling.naive(n), color=SERIES[1][0], linestyle=DASHES[1], label="straight line, no floor")
    dots = [(size.n, loss) for size in forecast.sizes for loss in size.losses.values()]
    panel.plot(*zip(*dots, strict=True), color=INK[0], marker=MARKERS[0], ls="none", label="runs of the fit")
    ends = [[forecast.loss - forecast.interval[0]], [forecast.interval[1] - forecast.loss]]
    panel.errorbar([target], [forecast.loss], ends, color=SERIES[0][0], fmt=MARKERS[3], capsize=4, label="forecast")
    if forecast.measured is not None:
        losses = list(forecast.measured.losses.values())
        look = {"color": INK[0], "marker": MARKERS[6], "ls": "none", "zorder": 3}
        panel.plot([forecast.measured.n] * len(losses), losses, label="measured, not fitted", **look)
    _logarithmic(panel, forecast.unit)
    panel.axvline(scaling.n[-1], color=GREY[0], lw=0.8, ls=":")
    panel.legend(fontsize=9)
    title = f"Forecast of {forecast.name}"
    caption = "Dotted: the largest size of the fit. " + " ".join(forecast.sentences())
    rows = "; ".join(f"{row[0]}: {row[2]}, fitted {row[3]}" for row in forecast.rows()[1:])
    return finish(figure, "forecast", title, caption, f"{title}. Loss by parameters without embeddings: {rows}.")


def _logarithmic(panel: "Axes", unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, StrMethodFormatter

    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda n, _: in_units(n)))
    panel.yaxis.set_major_locator(LogLocator(subs=tuple(np.arange(1, 10, 0.5))))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the default writes powers as mathematics
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("parameters without embeddings")
    panel.set_ylabel(f"validation loss ({unit})")
