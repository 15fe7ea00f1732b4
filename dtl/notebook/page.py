"""The notebook's page, experiments/README.md: questions, verdicts and tables, put together from the files beside it.

    experiment/<page>.md                a question, its verdict, and what a person has to say; its first paragraphs
                                        that begin with **Asked.** and **Verdict.** go on the page
    experiment/<page>.results.jsonl     records, a line each (dtl/notebook/records.py)
    experiment/<page>.png               a picture, where there is one
    experiment/<page>[-<variant>].yaml  the recipes; those of one page answer one question together

Pure functions of these files: a test holds the committed page against them. Imports no torch.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dtl.errors import DataError

PAGE = "README.md"
MAX_ROWS = 12  # of a table: the rest is in the file
INTRODUCTION = """\
# The laboratory notebook

A recipe is `experiment/<name>.yaml`, run with `python -m dtl.train experiment=<name>`; recipes whose names differ
behind a dash answer one question together. What was asked and what came out stands in `experiment/<name>.md`, the runs
line by line in `experiment/<name>.results.jsonl`. Negative results stay. A row is a configuration, n its runs with
different seeds; ± is their standard deviation. Where n is 1, differences may be seed noise.

This page is written by `python -m dtl.report runs=... record=true`, which adds finished runs to the records, and by
`make notebook` after a change of the texts. Do not edit it.
"""
# Scores that a table shows where its records have them: key, title, and how a value is written.
_SCORES = {
    "exact_match/validation": "validation wordings",
    "exact_match/test": "test wordings",
    "lookup/exact_match/test": "look-up (test)",
    "validation/bits_per_byte": "bits a byte",
    "test/loss": "test loss",
}


def page_of(recipe: str) -> str:
    """The page that a recipe belongs to: `vocabulary` for `vocabulary-8k`."""
    return recipe.partition("-")[0]


def results_file(notebook: Path, page: str) -> Path:
    """Where the records of a page are."""
    return notebook / "experiment" / f"{page}.results.jsonl"


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a file, in its order; none where there is no file.

    Raises DataError for a line that is no record, OSError for a file that cannot be read.
    """
    if not file.exists():
        return []
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}:{number}: no JSON ({error}). Mend or remove the line.") from error
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("date", "recipe")):
            raise DataError(f"{file}:{number}: no record, which has at least a date and a recipe. Mend the line.")
        records.append(record)
    return records


def notebook_page(notebook: Path) -> str:
    """The text of README.md. Raises DataError for a damaged file of records."""
    folder = notebook / "experiment"
    pages = {page_of(file.stem) for file in folder.glob("*.yaml")} | {file.stem for file in folder.glob("*.md")}
    records = {page: read_records(results_file(notebook, page)) for page in sorted(pages)}
    newest_first = sorted(
        records, key=lambda page: max((one["date"] for one in records[page]), default=""), reverse=True
    )
    return "\n".join([INTRODUCTION, *(_section(folder, page, records[page]) for page in newest_first)])


def _section(folder: Path, page: str, records: Sequence[dict[str, Any]]) -> str:
    text = folder / f"{page}.md"
    blocks = _blocks(text)
    title = blocks[0].removeprefix("# ") if blocks else "not written up yet"
    link = f"[`{page}`](experiment/{page}.{'md' if blocks else 'yaml'})"
    parts = [f"## {link}: {title}"]
    for word in ("**Asked.**", "**Verdict.**"):
        parts += [block for block in blocks if block.startswith(word)][:1]
    parts.append(_table(page, records) if records else "No run is recorded yet.")
    if (folder / f"{page}.png").is_file():
        parts.append(f"![{title}](experiment/{page}.png)")
    return "\n\n".join(parts) + "\n"


def _blocks(file: Path) -> list[str]:
    """The paragraphs of a text."""
    if not file.is_file():
        return []
    return [block.strip("\n") for block in file.read_text(encoding="utf-8").split("\n\n") if block.strip()]


# --- the table of a page ----------------------------------------------------------------------------------------------


def _table(page: str, records: Sequence[dict[str, Any]]) -> str:
    groups: dict[tuple[str, Any, Any], list[dict[str, Any]]] = {}
    for record in reversed(sorted(records, key=lambda one: one["date"])):  # of one day the last written first
        alike = (_label(page, record), record.get("configuration"), record.get("device"))
        groups.setdefault(alike, []).append(record)
    scores = [key for key in _SCORES if any(key in one.get("figures", {}) for one in records)]
    if "exact_match/test" in scores:  # what counts there are answers
        scores = [key for key in scores if "exact_match" in key]
    titles = [_SCORES[key] for key in scores]
    header = ["configuration", "n", "validation loss", *titles, "steps", "seconds", "when, on"]
    rows = [_row(label, group, scores) for (label, *_), group in list(groups.items())[:MAX_ROWS]]
    lines = [f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows]]
    more = len(groups) - MAX_ROWS
    if more > 0:
        lines.append(f"\n{more} older ones are in [{page}.results.jsonl](experiment/{page}.results.jsonl).")
    return "\n".join(lines)


def _label(page: str, record: dict[str, Any]) -> str:
    """What a person wrote, else the recipe, where it is not the page's own, and what was typed beside it."""
    if record.get("label"):
        return str(record["label"])
    recipe = record["recipe"]
    words = [*([recipe] if recipe != page else []), *record.get("overrides", [])]
    return f"`{' '.join(words)}`" if words else "as it stands"


def _row(label: str, records: Sequence[dict[str, Any]], scores: Sequence[str]) -> list[str]:
    """`records` are of one configuration, newest first. A seed that ran twice counts once, the last of them."""
    group = list({one.get("seed", -place): one for place, one in reversed(list(enumerate(records)))}.values())
    last = records[0]
    shares = [_spread((one.get("figures", {}).get(key) for one in group), "exact_match" in key) for key in scores]
    made = f"{last['date'][:10]}, {last.get('device') or 'not known'}"
    if last.get("threads"):
        made += f", {last['threads']} thread{'s' if last['threads'] != 1 else ''}"
    if last.get("commit"):
        made += f", `{str(last['commit'])[:7]}`{' and changes' if last.get('dirty') else ''}"
    note = f"; {last['note']}" if last.get("note") else ""
    cells = [
        label + note,
        str(len(group)),
        _spread((one.get("val_loss") for one in group), False),
        *shares,
        _one_or_range(one.get("steps") for one in group),
        _one_or_range(one.get("seconds") for one in group),
        made + (" (by hand)" if last.get("by_hand") else ""),
    ]
    return [cell.replace("|", "\\|") for cell in cells]


def _spread(values: Iterable[float | None], percent: bool) -> str:
    known = [100 * value if percent else value for value in values if value is not None]
    if not known:
        return ""
    digits, unit = (1, " %") if percent else (4, "")
    deviation = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{fmean(known):.{digits}f}{deviation}{unit}"


def _one_or_range(values: Iterable[float | None]) -> str:
    known = sorted({round(value) for value in values if value is not None})
    if not known:
        return ""
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"
