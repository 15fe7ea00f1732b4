"""Findings of a report in words: a sentence per comparison, an overall verdict, and caveats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

from dtl.base.units import number_of
from dtl.reports.configurations import Configuration
from dtl.reports.metric import BEST_LOSS, BITS, Metric, bits_per_nat, format_number, not_comparable, same_tokenizer
from dtl.reports.reading import Run
from dtl.reports.statistics import MIN_SEEDS, Comparison
from dtl.run_dir.references import Point, Reference, compared, match

HELD_OUT = ("data", "data.validation_fraction", "data.test_fraction")  # in addition to the sources
METHOD = (
    "Runs that differ only in the seed are one configuration with n; only runs that finished are compared. "
    "Two configurations are compared by Student's paired t test over equal seeds, or by Welch's test where the seeds "
    "do not pair; p is two-sided and corrected by Holm's procedure over all comparisons of the table, so that on pure "
    "noise at most 5 % of such tables name any winner. The interval is that of one comparison alone. "
    f"“Better” requires n of at least {MIN_SEEDS} and a corrected p below 0.05. The smallest difference that could "
    "have been shown is computed from the measured spread, for a power of 0.8 at alpha = 0.05."
)


@dataclass(frozen=True)
class Findings:
    """Sentences about a table of configurations."""

    verdict: str
    sentences: list[str]  # one for each comparison, in their order
    notices: list[str]


def findings(
    runs: Sequence[Run],
    configurations: Sequence[Configuration],
    comparisons: Sequence[Comparison],
    metric: Metric,
    more: Sequence[str] = (),
) -> Findings:
    """Return the findings; `configurations` are in the order of the table, `more` are further notices."""
    sentences = [sentence(comparison, metric, len(comparisons)) for comparison in comparisons]
    overall = not_comparable(runs, metric) or verdict(configurations, comparisons)
    return Findings(overall, sentences, [*notices(runs, configurations, metric), *more])


def verdict(configurations: Sequence[Configuration], comparisons: Sequence[Comparison]) -> str:
    """Return the overall verdict, which names no winner that noise could explain."""
    if len(configurations) < 2:
        return "There is one configuration: nothing to compare."
    if not comparisons:
        return (
            "Nothing can be compared: this needs two configurations with at least two seeds each, and "
            f"{MIN_SEEDS} each to name a better one. The order of the table is no evidence."
        )
    wins: dict[str, int] = {}
    for comparison in comparisons:
        if comparison.better is not None:
            wins[comparison.better] = wins.get(comparison.better, 0) + 1
    best = next((label for label, count in wins.items() if count == len(configurations) - 1), None)
    if best is not None and len(configurations) > 2:
        return f"{best} is better than each of the {len(configurations) - 1} other configurations."
    shown = sum(wins.values())
    if best is not None:
        return f"{best} is better; the noise of the seeds does not explain it."
    if shown:
        return (
            f"{shown} of {len(comparisons)} comparisons show{'s' if shown == 1 else ''} a difference beyond the noise "
            "of the seeds. No configuration is better than all others."
        )
    few = max(comparison.n for comparison in comparisons)
    if few < MIN_SEEDS:
        return f"n = {few} is too small to name a better configuration: at least {MIN_SEEDS} seeds each."
    return "No comparison shows a difference that the noise of the seeds could not have made."


def sentence(comparison: Comparison, metric: Metric, n_comparisons: int) -> str:
    """Return the sentence on a comparison: difference, interval, p, n, and the smallest detectable difference."""
    first, second, interval = comparison.first, comparison.second, comparison.interval
    design = "pairs of equal seeds" if comparison.paired else "runs or more each, seeds not paired (Welch)"
    numbers = f"n = {comparison.n} {design}"
    if comparison.corrected is None or interval is None:
        return (
            f"{first} and {second}: difference in {metric.title} {comparison.difference:+.3g} without any spread over "
            f"the seeds, which leaves nothing to test against ({numbers})."
        )
    sign = 1.0
    if comparison.better == first:
        start = f"{first} is better than {second}"
    elif comparison.better == second:
        start, sign = f"{second} is better than {first}", -1.0
    elif comparison.n < MIN_SEEDS:
        start = f"{first} and {second}: too few seeds to name a better one"
    else:
        start = f"{first} and {second}: no difference beyond the noise of the seeds"
    low, high = sorted(sign * end for end in interval)
    corrected = format_p(comparison.corrected) + (f" after Holm over {n_comparisons}" if n_comparisons > 1 else "")
    return (
        f"{start}; difference in {metric.title} {sign * comparison.difference:+.3g} "
        f"(95 % interval {low:+.3g} to {high:+.3g}), {corrected}, {numbers}; "
        f"smallest difference that this n could have shown: {format_number(comparison.detectable, 3)}."
    )


def format_p(p: float) -> str:
    """Format a p-value as `p = 0.031` or `p < 0.0001`."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def notices(runs: Sequence[Run], configurations: Sequence[Configuration], metric: Metric) -> list[str]:
    """Return caveats that a reader needs to judge the table."""
    caveats = []
    others = sum(not run.finished for run in runs)
    if others:
        caveats.append(f"{others} of {len(runs)} runs did not finish; they are drawn thin and not compared.")
    single = sum(len(each.values(metric.key)) == 1 for each in configurations)
    if single and len(configurations) > 1:
        caveats.append(f"{single} of {len(configurations)} configurations have one seed: they cannot be compared.")
    without = sum(metric.key not in run.metrics for run in runs if run.finished)
    if without:
        why = " (nothing is held out of the data, or none was measured)" if metric.key == BEST_LOSS else ""
        caveats.append(f"{number_of('finished runs', without)} without {metric.title}{why}.")
    if any(map(_repeated, configurations)):
        caveats.append("Some seeds ran more than once in a configuration; each counts once, with its last run.")
    if _data_differs(runs):
        caveats.append(
            "Runs with equal seeds and equal settings of data and tokenizer saw different data: the data behind the "
            "settings changed between them, and their losses cannot be compared."
        )
    if metric.key == BITS and not same_tokenizer(run for run in runs if run.finished):
        caveats.append("Tokenizers differ: compared are bits per byte, which unlike losses do not depend on them.")
    if texts := _text_settings(configurations):
        caveats.append(
            f"Configurations differ in their data ({', '.join(texts)}): where the held-out texts differ, "
            "neither losses nor bits per byte can be compared."
        )
    mixed = sum(len({run.commit for run in each.finished if run.commit}) > 1 for each in configurations)
    if mixed:
        caveats.append(f"In {mixed} configurations the runs come from different commits of the code.")
    if any(len({run.confirms for run in each.finished}) == 2 for each in configurations):
        caveats.append("For the winner of a search only the fresh seeds count, not the run that won.")
    return caveats


# --- reference curves ---------------------------------------------------------------------------------------------

MAX_REFERENCES = 3  # that are drawn, with a sentence each


def matched(configurations: Sequence[Configuration], references: Sequence[Reference]) -> dict[str, Reference]:
    """Return the reference curve of each configuration that has one, by its label."""
    subjects = ((group.label, group.runs[0].subject) for group in configurations)
    found = ((label, match(references, subject)) for label, subject in subjects if subject is not None)
    return {label: reference for label, reference in found if reference is not None}


def first_of_each(
    configurations: Sequence[Configuration], references: Mapping[str, Reference]
) -> list[tuple[Configuration, Reference]]:
    """Return a few references, each with the first configuration of the table that it belongs to."""
    firsts: dict[object, tuple[Configuration, Reference]] = {}
    for group in configurations:
        if (reference := references.get(group.label)) is not None:
            firsts.setdefault(reference.key, (group, reference))
    return list(firsts.values())[:MAX_REFERENCES]


def beside_references(configurations: Sequence[Configuration], references: Mapping[str, Reference]) -> list[str]:
    """Return a sentence for each reference: the last validation loss, mean over the seeds, beside it."""
    sentences = []
    for group, reference in first_of_each(configurations, references):
        last, subject = _last_point(group), group.runs[0].subject
        if last is not None and subject is not None:
            sentences.append(compared(reference, subject, group.label, last))
    return sentences


def _last_point(group: Configuration) -> Point | None:
    """Return the means of the last evaluations: of the finished runs, while there are none of all."""
    runs = [run for run in group.finished or group.runs if len(run.validation.loss)]
    tokens, losses = (
        [float(values[-1]) for values in each]
        for each in ([run.validation.tokens for run in runs], [run.validation.loss for run in runs])
    )
    if not runs or not all(map(isfinite, tokens)):
        return None
    bits = [loss * factor for run, loss in zip(runs, losses, strict=True) if (factor := bits_per_nat(run))]
    return Point(fmean(tokens), fmean(losses), fmean(bits) if len(bits) == len(runs) else None)


def _data_differs(runs: Sequence[Run]) -> bool:
    """Return True if equal settings and seeds gave different tokens; another seed may hold out another part."""
    seen: dict[tuple[object, ...], set[str]] = {}
    for run in runs:
        if run.data is not None:
            settings = (item for item in sorted(run.config.items()) if item[0].startswith(("data.", "tokenizer.")))
            seen.setdefault((run.seed, *settings), set()).add(run.data)
    return any(len(fingerprints) > 1 for fingerprints in seen.values())


def _text_settings(configurations: Sequence[Configuration]) -> list[str]:
    """Return the differing settings that affect which text is held out."""
    keys = configurations[0].settings if configurations else {}
    return [key for key in keys if key in HELD_OUT or key.startswith("data.sources.")]


def _repeated(configuration: Configuration) -> bool:
    seeds = [run.seed for run in configuration.finished if run.seed is not None]
    return len(set(seeds)) < len(seeds)


def unfinished(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that failed, were pruned, killed or rejected; not those that are running or waiting."""
    return [run for run in runs if run.state not in ("finished", "running", "waiting")]
