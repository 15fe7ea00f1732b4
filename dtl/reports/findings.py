"""What may be said: one sentence for each comparison, one for all of them, and what to keep in mind."""

from collections.abc import Sequence
from dataclasses import dataclass

from dtl.reports.configurations import Configuration
from dtl.reports.metric import BITS, Metric, cut_alike, not_comparable, shown_number
from dtl.reports.reading import Run
from dtl.reports.statistics import ENOUGH, Comparison

HELD_OUT = ("data", "data.validation_fraction", "data.test_fraction")  # beside the sources
METHOD = (
    "Runs that differ only in the seed are one configuration with n; only runs that finished are compared. "
    "Two configurations are compared by Student's paired t test over equal seeds, or by Welch's test where the seeds "
    "do not pair; p is two-sided and corrected by Holm's procedure over all comparisons of the table, so that on pure "
    "noise at most 5 % of such tables name any winner. The interval is that of one comparison alone. "
    f"“Better” is written from n = {ENOUGH} on, when the corrected p is below 0.05. The smallest difference that could "
    "have been shown is computed from the spread that was measured, for a power of 0.8 at alpha = 0.05."
)


@dataclass(frozen=True)
class Findings:
    """Sentences about a table of configurations."""

    verdict: str
    sentences: list[str]  # one for each comparison, in their order
    notices: list[str]


def findings(
    runs: Sequence[Run], configurations: Sequence[Configuration], comparisons: Sequence[Comparison], metric: Metric
) -> Findings:
    """`configurations` in the order of the table."""
    sentences = [sentence(one, metric, len(comparisons)) for one in comparisons]
    told = not_comparable(runs, metric) or verdict(configurations, comparisons)
    return Findings(told, sentences, notices(runs, configurations, metric))


def verdict(configurations: Sequence[Configuration], comparisons: Sequence[Comparison]) -> str:
    """What all comparisons come to. No winner that the noise could have made."""
    if len(configurations) < 2:
        return "There is one configuration: nothing to compare."
    if not comparisons:
        return (
            f"Nothing can be compared: it needs two configurations with at least two seeds each, and {ENOUGH} each to "
            "name a better one. Order in the table says nothing."
        )
    wins: dict[str, int] = {}
    for one in comparisons:
        if one.better is not None:
            wins[one.better] = wins.get(one.better, 0) + 1
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
    few = max(one.n for one in comparisons)
    if few < ENOUGH:
        return f"n = {few} is too small to name a better configuration: at least {ENOUGH} seeds each."
    return "No comparison shows a difference that the noise of the seeds could not have made."


def sentence(one: Comparison, metric: Metric, n_comparisons: int) -> str:
    """Difference, interval, p, n, and what this n could have shown."""
    numbers = f"n = {one.n} {'pairs of equal seeds' if one.paired else 'runs or more each, seeds not paired (Welch)'}"
    if one.p is None or one.corrected is None or one.interval is None:
        return (
            f"{one.first} and {one.second}: difference in {metric.title} {one.difference:+.3g} without any spread over "
            f"the seeds, which leaves nothing to test against ({numbers})."
        )
    sign = 1.0
    if one.better == one.first:
        start = f"{one.first} is better than {one.second}"
    elif one.better == one.second:
        start, sign = f"{one.second} is better than {one.first}", -1.0
    elif one.n < ENOUGH:
        start = f"{one.first} and {one.second}: too few seeds to name a better one"
    else:
        start = f"{one.first} and {one.second}: no difference beyond the noise of the seeds"
    low, high = sorted(sign * end for end in one.interval)
    corrected = f"{shown_p(one.corrected)}" + (f" after Holm over {n_comparisons}" if n_comparisons > 1 else "")
    return (
        f"{start}; difference in {metric.title} {sign * one.difference:+.3g} "
        f"(95 % interval {low:+.3g} to {high:+.3g}), {corrected}, {numbers}; "
        f"smallest difference that this n could have shown: {shown_number(one.detectable, 3)}."
    )


def shown_p(p: float) -> str:
    """As `p = 0.031` or `p < 0.0001`."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def notices(runs: Sequence[Run], configurations: Sequence[Configuration], metric: Metric) -> list[str]:
    """What a reader should know before believing the table."""
    found = []
    others = sum(not run.finished for run in runs)
    if others:
        found.append(f"{others} of {len(runs)} runs did not finish; they are drawn thin and not compared.")
    single = sum(len(one.values(metric.key)) == 1 for one in configurations)
    if single and len(configurations) > 1:
        found.append(f"{single} of {len(configurations)} configurations have one seed: they cannot be compared.")
    without = sum(metric.key not in run.figures for run in runs if run.finished)
    if without:
        found.append(f"{without} finished runs have no {metric.title}.")
    if any(one.runs and _repeated(one) for one in configurations):
        found.append("Some seeds ran more than once in a configuration; each counts once, with its last run.")
    if _other_data(runs):
        found.append(
            "Runs with equal seeds and equal settings of data and tokenizer saw different data: what lies behind the "
            "settings has changed between them, and their losses do not compare."
        )
    if metric.key == BITS and not cut_alike(run for run in runs if run.finished):
        found.append("Tokenizers differ: compared are bits per byte, which do not depend on them as losses do.")
    if texts := _of_the_text(configurations):
        found.append(
            f"Configurations differ in their data ({', '.join(texts)}): where the held-out text is another one, "
            "neither losses nor bits per byte compare."
        )
    mixed = sum(len({run.commit for run in one.finished if run.commit}) > 1 for one in configurations)
    if mixed:
        found.append(f"In {mixed} configurations the runs come from different commits of the code.")
    if any(_chosen_apart(one) for one in configurations):
        found.append("Of the winner of a search only the fresh seeds count, not the run that made it the winner.")
    return found


def _other_data(runs: Sequence[Run]) -> bool:
    """Whether equal settings meant different tokens. Another seed may hold out another part."""
    seen: dict[tuple[object, ...], set[str]] = {}
    for run in runs:
        if run.data is not None:
            settings = (item for item in sorted(run.config.items()) if item[0].startswith(("data.", "tokenizer.")))
            seen.setdefault((run.seed, *settings), set()).add(run.data)
    return any(len(fingerprints) > 1 for fingerprints in seen.values())


def _of_the_text(configurations: Sequence[Configuration]) -> list[str]:
    """The settings in which configurations differ and that decide which text is held out."""
    keys = configurations[0].settings if configurations else {}
    return [key for key in keys if key in HELD_OUT or key.startswith("data.sources.")]


def _repeated(configuration: Configuration) -> bool:
    seeds = [run.seed for run in configuration.finished if run.seed is not None]
    return len(set(seeds)) < len(seeds)


def _chosen_apart(configuration: Configuration) -> bool:
    return len({run.confirms for run in configuration.finished}) == 2


def unfinished(runs: Sequence[Run]) -> list[Run]:
    """What failed, was pruned, killed or refused; not what still runs or waits."""
    return [run for run in runs if run.state not in ("finished", "running", "waiting")]
