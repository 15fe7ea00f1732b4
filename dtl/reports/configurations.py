"""Runs that differ only in the seed are one configuration with n; what tells configurations apart names them."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from dtl.reports.reading import Run

# Settings that change nothing of what is learnt: runs that differ in these alone are the same configuration.
_UNIMPORTANT = ("seed", "name", "debug", "resume", "plugins", "data.cache_dir", "data.verify", "data.tasks")
_UNIMPORTANT_PARTS = ("tracker.", "sweep.", "sampling.")
_OF_BOOKKEEPING = ("keep", "profile", "save_every_steps", "save_every_epochs", "log_every_steps", "stop_after_steps")
UNIMPORTANT = {*_UNIMPORTANT, *(f"trainer.{key}" for key in (*_OF_BOOKKEEPING, "sample_every_evals"))}
MAX_IN_A_LABEL = 5
ABSENT = "-"
EXPERIMENT = "experiment"  # the config group of recipes: a name that says more than the keys that a recipe sets


@dataclass(frozen=True)
class Configuration:
    """What several runs have in common but for the seed."""

    label: str  # unique, short: what tells it from the others
    settings: dict[str, str]  # the keys in which configurations differ
    runs: list[Run]

    @property
    def finished(self) -> list[Run]:
        """Runs that went to their end."""
        return [run for run in self.runs if run.finished]

    def values(self, metric: str) -> dict[Hashable, float]:
        """The metric of each seed. A seed that ran twice counts once, the last of them.

        The run that made this configuration the winner of a search was chosen for its value: where others confirm it
        with fresh seeds, it does not count.
        """
        measured = [run for run in self.finished if metric in run.figures]
        if any(run.confirms for run in measured):
            measured = [run for run in measured if run.confirms]
        return {run.folder if run.seed is None else run.seed: run.figures[metric] for run in measured}


def configurations_of(runs: Sequence[Run]) -> list[Configuration]:
    """The runs in groups. A run without a config (refused before it began) belongs to none."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        if run.config:
            groups.setdefault(tuple(sorted(_what_matters(run).items())), []).append(run)
    keys = _keys_that_differ([group[0] for group in groups.values()])
    labels = short_labels(
        [_settings(group[0], keys) for group in groups.values()], [group[0].name for group in groups.values()]
    )
    return [
        Configuration(label, _settings(group[0], keys), group)
        for label, group in zip(labels, groups.values(), strict=True)
    ]


def by_mean(configurations: Iterable[Configuration], metric: str, higher: bool) -> list[Configuration]:
    """Sorted by the mean of the metric, those without a value last. The order alone says nothing of noise."""

    def place(configuration: Configuration) -> tuple[bool, float]:
        values = configuration.values(metric).values()
        return (not values, (-fmean(values) if higher else fmean(values)) if values else 0.0)

    return sorted(configurations, key=place)


def mean_and_spread(values: Iterable[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where there are too few."""
    values = list(values)
    return (fmean(values) if values else None), (stdev(values) if len(values) > 1 else None)


def as_number(value: str | None) -> float | None:
    """A setting as a number; None where it is none, or not finite."""
    try:
        number = float(value or ABSENT)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _what_matters(run: Run) -> dict[str, str]:
    return {
        key: value
        for key, value in run.config.items()
        if key not in UNIMPORTANT and not key.startswith(_UNIMPORTANT_PARTS)
    }


def _keys_that_differ(firsts: Sequence[Run]) -> list[str]:
    """Keys, and config groups in place of the keys that they decide: `model` for its width, depth and heads."""
    configs = [_what_matters(run) for run in firsts]
    everything = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in everything if len({config.get(key) for config in configs}) > 1]
    typed = {_key_of(word) for run in firsts for word in run.overrides}
    groups = []
    for group in dict.fromkeys(group for run in firsts for group in run.choices if group != EXPERIMENT):
        names = [run.choices.get(group, ABSENT) for run in firsts]
        section = group.replace("/", ".") + "."
        decided = [
            key
            for key in differing
            if key.startswith(section)
            and key not in typed
            and len({(name, config.get(key)) for name, config in zip(names, configs, strict=True)}) == len(set(names))
        ]
        if len(set(names)) > 1 and decided:
            groups.append(group)
            differing = [key for key in differing if key not in decided]
    recipes = [EXPERIMENT] if len({run.choices.get(EXPERIMENT, ABSENT) for run in firsts}) > 1 else []
    return [*recipes, *groups, *differing]


def _key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _settings(run: Run, keys: Sequence[str]) -> dict[str, str]:
    return {key: run.config.get(key) or run.choices.get(key, ABSENT) for key in keys}


def short_labels(settings: Sequence[dict[str, str]], names: Sequence[str]) -> list[str]:
    """`model=small lr=0.001`: as few keys as tell all `settings` apart, by their last parts where these are
    unambiguous; numbered where that is not enough. `names` where nothing differs."""
    keys = _telling(settings)
    ends = [key.rpartition(".")[2] for key in keys]
    short = {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}
    made: list[str] = []
    for one, name in zip(settings, names, strict=True):
        words = [f"{short[key]}={_brief(one[key])}" for key in keys]
        if EXPERIMENT in keys and one[EXPERIMENT] != ABSENT:
            words[keys.index(EXPERIMENT)] = _brief(one[EXPERIMENT])
        label = " ".join(words) or name
        made.append(label if label not in made else f"{label} ({len(made) + 1})")
    return made


def _telling(settings: Sequence[dict[str, str]]) -> list[str]:
    """Keys by which configurations can be told apart: those that split them most, until all are alone. First of the
    recipe, then of the config groups (`model`), which people think in, then of the rest."""
    keys = list(settings[0]) if settings else []
    chosen: list[str] = []

    def n_parts(*more: str) -> int:
        return len({tuple(_brief(one[name]) for name in (*chosen, *more)) for one in settings})

    for candidates in ([key for key in keys if key == EXPERIMENT], [key for key in keys if "." not in key], keys):
        while candidates and len(chosen) < MAX_IN_A_LABEL:
            best = max(candidates, key=n_parts)
            if n_parts(best) == n_parts():
                break
            chosen.append(best)
    return [key for key in keys if key in chosen]


def _brief(value: str) -> str:
    value = Path(value).name if "/" in value and len(value) > 24 else value
    return value if len(value) <= 24 else f"{value[:21]}..."


# --- samples side by side -----------------------------------------------------------------------------------------
# Texts of several configurations after the same prompts, side by side.


MAX_COLUMNS, MAX_PROMPTS = 4, 5


@dataclass(frozen=True)
class Samples:
    """`rows` of a prompt and one text for each of `columns`; None where a run was not asked that."""

    columns: list[str]
    seed: int | None  # of the runs, when it is one
    rows: list[tuple[str, list[str | None]]]


def side_by_side(configurations: Sequence[Configuration]) -> Samples | None:
    """The last samples of one run of each of the first configurations; None when there are none.

    Prompts come from the held-out part, which goes by the seed: runs of the commonest seed are taken.
    """
    candidates = [(one.label, runs) for one in configurations if (runs := [run for run in one.runs if run.samples])]
    candidates = candidates[:MAX_COLUMNS]
    if not candidates:
        return None
    counts = Counter(run.seed for _, runs in candidates for run in {run.seed: run for run in runs}.values())
    commonest = counts.most_common(1)[0][0]
    chosen: list[tuple[str, Run]] = [
        (label, next((run for run in runs if run.seed == commonest), runs[0])) for label, runs in candidates
    ]
    asked = Counter(prompt for _, run in chosen for prompt in run.samples)
    rows = [
        (prompt, [text.strip() if (text := run.samples.get(prompt)) is not None else None for _, run in chosen])
        for prompt, _ in asked.most_common(MAX_PROMPTS)
    ]
    same = len({run.seed for _, run in chosen}) == 1
    return Samples([label for label, _ in chosen], commonest if same else None, rows)
