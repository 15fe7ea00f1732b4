"""Texts of several configurations after the same prompts, side by side."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dtl.reports.configurations import Configuration
from dtl.reports.reading import Run

MOST_COLUMNS, MOST_PROMPTS = 4, 5


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
    candidates = candidates[:MOST_COLUMNS]
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
        for prompt, _ in asked.most_common(MOST_PROMPTS)
    ]
    same = len({run.seed for _, run in chosen}) == 1
    return Samples([label for label, _ in chosen], commonest if same else None, rows)
