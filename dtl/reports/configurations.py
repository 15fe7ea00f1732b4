"""Groups runs into configurations, which differ in more than the seed, and labels them by those differences."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from dtl.reports.reading import Run

# Settings that do not affect training: runs that differ only in these are the same configuration.
_UNIMPORTANT = ("seed", "name", "debug", "resume", "plugins", "data.cache_dir", "data.verify", "data.tasks")
_UNIMPORTANT_PARTS = ("tracker.", "sweep.", "sampling.")
_BOOKKEEPING = ("keep", "profile", "save_every_steps", "save_every_epochs", "log_every_steps", "stop_after_steps")
UNIMPORTANT = {*_UNIMPORTANT, *(f"trainer.{key}" for key in (*_BOOKKEEPING, "sample_every_evals"))}
MAX_IN_A_LABEL = 5
MAX_WITH_COMMON = 3  # words in a label that may be those of most configurations
ABSENT = "-"
EXPERIMENT = "experiment"  # config group of recipes: its name is a better label than the keys that it sets


@dataclass(frozen=True)
class Configuration:
    """Runs whose settings are equal except for the seed."""

    label: str  # short and unique: the settings that distinguish it
    settings: dict[str, str]  # the keys in which configurations differ
    runs: list[Run]

    @property
    def finished(self) -> list[Run]:
        """Runs that ended by themselves."""
        return [run for run in self.runs if run.finished]

    def values(self, metric: str) -> dict[Hashable, float]:
        """Return the metric by seed; of several runs with one seed the last counts.

        The run that won a search was selected for its value, which biases it: it does not count if other runs
        confirm it with fresh seeds.
        """
        measured = [run for run in self.finished if metric in run.metrics]
        if any(run.confirms for run in measured):
            measured = [run for run in measured if run.confirms]
        return {run.folder if run.seed is None else run.seed: run.metrics[metric] for run in measured}


def group_runs(runs: Sequence[Run]) -> list[Configuration]:
    """Group the runs. A run without a config (rejected before it began) belongs to no group."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        if run.config:
            groups.setdefault(tuple(sorted(_relevant_settings(run).items())), []).append(run)
    keys = _keys_that_differ([group[0] for group in groups.values()])
    labels = short_labels(
        [_settings(group[0], keys) for group in groups.values()], [group[0].name for group in groups.values()]
    )
    return [
        Configuration(label, _settings(group[0], keys), group)
        for label, group in zip(labels, groups.values(), strict=True)
    ]


def sort_by_mean(configurations: Iterable[Configuration], metric: str, higher: bool) -> list[Configuration]:
    """Sort by the mean of the metric, configurations without a value last. The order ignores the noise."""

    def place(configuration: Configuration) -> tuple[bool, float]:
        values = configuration.values(metric).values()
        return (not values, (-fmean(values) if higher else fmean(values)) if values else 0.0)

    return sorted(configurations, key=place)


def mean_and_spread(values: Iterable[float]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation; None if there are too few values."""
    values = list(values)
    return (fmean(values) if values else None), (stdev(values) if len(values) > 1 else None)


def as_number(value: str | None) -> float | None:
    """Return a setting as a number; None if it is not a finite number."""
    try:
        number = float(value or ABSENT)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _relevant_settings(run: Run) -> dict[str, str]:
    return {
        key: value
        for key, value in run.config.items()
        if key not in UNIMPORTANT and not key.startswith(_UNIMPORTANT_PARTS)
    }


def _keys_that_differ(firsts: Sequence[Run]) -> list[str]:
    """Return the differing keys, with config groups in place of the keys that they set: `model` for width and depth."""
    configs = [_relevant_settings(run) for run in firsts]
    everything = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in everything if len({config.get(key) for config in configs}) > 1]
    typed = {word.partition("=")[0].lstrip("+~") for run in firsts for word in run.overrides}
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


def _settings(run: Run, keys: Sequence[str]) -> dict[str, str]:
    return {key: run.config.get(key) or run.choices.get(key, ABSENT) for key in keys}


def short_labels(settings: Sequence[dict[str, str]], names: Sequence[str]) -> list[str]:
    """Return labels such as `model=small lr=0.001`: the fewest keys that distinguish all `settings`, shortened to
    their last parts where unambiguous; numbered if still equal. A recipe's name stands for what it sets: runs of one
    recipe are distinguished from each other alone. `names` are the labels if nothing differs."""
    recipes = [values.get(EXPERIMENT, ABSENT) for values in settings]
    labels = [""] * len(settings)
    for recipe in dict.fromkeys(recipes):
        places = [place for place, own in enumerate(recipes) if own == recipe]
        rows = [{key: value for key, value in settings[place].items() if key != EXPERIMENT} for place in places]
        for place, words in zip(places, _without_common(_words(rows)), strict=True):
            labels[place] = " ".join([*[recipe] * (recipe != ABSENT), *words]) or names[place]
    counts: Counter[str] = Counter()
    for place, label in enumerate(labels):
        counts[label] += 1
        labels[place] = label if counts[label] == 1 else f"{label} ({counts[label]})"
    return labels


def _words(rows: Sequence[dict[str, str]]) -> list[list[str]]:
    """Return the words that distinguish the rows. Rows that share the first MAX_IN_A_LABEL get further ones, which the
    others do not need."""
    keys = _distinguishing_keys(rows)
    if not keys:
        return [[] for _ in rows]
    ends = [key.rpartition(".")[2] for key in keys]
    short = {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}
    words = [[f"{short[key]}={_brief(row[key])}" for key in keys if not _says_nothing(key, row[key])] for row in rows]
    for equal in {tuple(own): None for own in words}:
        places = [place for place, own in enumerate(words) if tuple(own) == equal]
        left = [{key: value for key, value in rows[place].items() if key not in keys} for place in places]
        for place, more in zip(places, _words(left), strict=True):
            words[place] = [*words[place], *more]
    return words


def _says_nothing(key: str, value: str) -> bool:
    """True for a setting that a run lacks, and for the file of a source that it does not read."""
    return value == ABSENT or (value == "null" and key.endswith(".path"))


def _without_common(words: Sequence[list[str]]) -> Sequence[list[str]]:
    """Return long labels without the words that most of them share, as in a report of many kinds of runs. A label that
    has only such words keeps the first of them."""
    if max(map(len, words)) <= MAX_WITH_COMMON:
        return words
    counts = Counter(word for own in words for word in own)
    short = [[word for word in own if 2 * counts[word] <= len(words)] or own[:MAX_IN_A_LABEL] for own in words]
    return short if len(set(map(tuple, short))) == len(set(map(tuple, words))) else words


def _distinguishing_keys(settings: Sequence[dict[str, str]]) -> list[str]:
    """Return keys that distinguish the configurations: greedily those that split them most, until each is alone.
    Config groups come first (`model`), which readers know by name, then the other keys."""
    keys = list(settings[0]) if settings else []
    chosen: list[str] = []

    def n_parts(*more: str) -> int:
        return len({tuple(_brief(values[name]) for name in (*chosen, *more)) for values in settings})

    for candidates in ([key for key in keys if "." not in key], keys):
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

MAX_COLUMNS, MAX_PROMPTS = 4, 5


@dataclass(frozen=True)
class Samples:
    """Rows of a prompt and one text per column; None if a run had another prompt."""

    columns: list[str]
    seed: int | None  # of the runs, if they share one
    rows: list[tuple[str, list[str | None]]]


def side_by_side(configurations: Sequence[Configuration]) -> Samples | None:
    """Return the last samples of one run of each of the first configurations; None if there are none.

    Prompts come from the held-out text, which depends on the seed: runs with the most frequent seed are taken.
    """
    candidates = [(each.label, runs) for each in configurations if (runs := [run for run in each.runs if run.samples])]
    candidates = candidates[:MAX_COLUMNS]
    if not candidates:
        return None
    counts = Counter(run.seed for _, runs in candidates for run in {run.seed: run for run in runs}.values())
    most_frequent = counts.most_common(1)[0][0]
    chosen: list[tuple[str, Run]] = [
        (label, next((run for run in runs if run.seed == most_frequent), runs[0])) for label, runs in candidates
    ]
    prompts = Counter(prompt for _, run in chosen for prompt in run.samples)
    rows = [
        (prompt, [text.strip() if (text := run.samples.get(prompt)) is not None else None for _, run in chosen])
        for prompt, _ in prompts.most_common(MAX_PROMPTS)
    ]
    same = len({run.seed for _, run in chosen}) == 1
    return Samples([label for label, _ in chosen], most_frequent if same else None, rows)
