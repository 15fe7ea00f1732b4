"""The report of a benchmark: machine, versions, table, JSON."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

import dtl
from dtl.base.display import table
from dtl.base.runtime import choose_device
from dtl.base.system import processor_name, usable_cores
from dtl.base.units import in_percent, in_unit
from dtl.benchmarks.config import BenchConfig
from dtl.benchmarks.measuring import PERCENT, Ratio, Row
from dtl.diagnostics.software import installed_version

PACKAGES = ("torch", "numpy", "tokenizers", "tiktoken", "transformers", "mwxml", "mwparserfromhell", "gensim")
BUSY = 0.25  # load average per usable core above which other programs disturb a measurement
NOTHING = "-"


def machine(device: str) -> dict[str, Any]:
    """Return the processor, its cores and load, the system, and the device of models.

    `load` is None where the system does not report it. Raises ConfigError when the device is not available.
    """
    chosen, _ = choose_device(device)
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, DTL and the installed libraries that are measured."""
    installed = {name: version for name in PACKAGES if (version := installed_version(name)) is not None}
    return {"python": platform.python_version(), "dtl": dtl.__version__} | installed


def heading(machine_info: dict[str, Any], package_versions: dict[str, str]) -> list[str]:
    """Return the lines above the table."""
    load = "load unknown" if machine_info["load"] is None else f"load average {machine_info['load']:.2f}"
    threads = machine_info["omp_num_threads"]
    return [
        f"{machine_info['processor']}, {machine_info['cores']} cores usable, {load}, {machine_info['system']}",
        f"models on: {machine_info['device']}, torch's threads: {machine_info['torch_threads']}"
        + (f", OMP_NUM_THREADS={threads}" if threads else ""),
        ", ".join(f"{name} {version}" for name, version in package_versions.items()),
    ]


def busy_warning(machine_info: dict[str, Any]) -> str | None:
    """Return a warning about the results when other programs are running; None on an idle machine."""
    load, cores = machine_info["load"], machine_info["cores"]
    if load is None or load <= BUSY * cores:
        return None
    return (
        f"the machine is busy (load average {load:.2f} on {cores} cores): times are too long, ratios uncertain, and "
        "programs with several processes appear too slow. Close other programs and measure again."
    )


def table_of(rows: Sequence[Row]) -> Table:
    """Return the table of all rows, for a console of 80 columns or more."""
    columns = {"what": {"ratio": 1, "min_width": 16}, **{key: {"overflow": "fold"} for key in ("ours", "the peer's")}}
    headers = [*columns, "ratio", "goal", "reached"]
    style = {"header_style": "bold", "padding": (0, 1, 1, 0)}
    return table(headers, map(_cells, rows), headers[1:], columns=columns, **style)


def _cells(row: Row) -> list[str | Text]:
    goal = row.goal.words if row.goal is not None else NOTHING
    if row.skipped is not None:
        return [_what(row), NOTHING, NOTHING, NOTHING, goal, "skipped"]
    reached = {True: Text("yes", "green"), False: Text("no", "bold red"), None: ""}[row.reached]
    values = [in_unit(value, row.unit) for value in (row.ours, row.peer)]
    return [_what(row), *values, ratio_in_words(row.ratio), goal, reached]


def notes(rows: Sequence[Row]) -> list[str]:
    """Return the notes of the rows, a line each, to be shown below the table."""
    return [f"{row.name}: {row.note}" for row in rows if row.note and row.skipped is None]


def _what(row: Row) -> Text:
    text = Text(row.what)
    if row.peer_name:
        text.append(f"\ncompared with: {row.peer_name}", "dim")
    if row.skipped is not None:
        text.append(f"\nskipped: {row.skipped}", "yellow")
    return text


def ratio_in_words(ratio: Ratio | None) -> str:
    """Format the median, with the range of the rounds below it."""
    if ratio is None:
        return NOTHING
    if ratio.unit == PERCENT:
        return f"{in_percent(ratio.median)} %\n{in_percent(ratio.least)} to {in_percent(ratio.most)}"
    return f"{ratio.median:.2f} x\n{ratio.least:.2f} to {ratio.most:.2f}"


def as_json(
    settings: BenchConfig, machine_info: dict[str, Any], package_versions: dict[str, str], rows: Sequence[Row]
) -> dict[str, Any]:
    """Return everything that was shown, as plain values, and the ratios by name of their row."""
    shown = [asdict(row) | {"reached": row.reached} for row in rows]
    ratios = {row.name: _ratio(row) for row in rows if row.peer_name}
    return {
        "settings": asdict(settings), "machine": machine_info, "versions": package_versions, "ratios": ratios,
        "rows": shown,
    }  # fmt: skip


def _ratio(row: Row) -> dict[str, Any]:
    """The median of the rounds with its range, above 1 where DTL is better, and the goal as shown.

    A percentage, ours of the peer's, is turned round: a loader of a hundredth of a step is 100 times as fast as it.
    """
    ratio, goal, words = row.ratio, row.goal, row.goal and row.goal.words
    found: dict[str, float | None] = {"ratio": None, "low": None, "high": None}
    if ratio is not None:
        found = {"ratio": ratio.median, "low": ratio.least, "high": ratio.most}
        if ratio.unit == PERCENT:
            values = (ratio.median, ratio.most, ratio.least)
            found = {name: 1 / value if value else None for name, value in zip(found, values, strict=True)}
            words = f">= {1 / goal.bound:g} x" if goal is not None else None
    return found | {"n": row.rounds, "goal": words, "reached": row.reached, "skipped": row.skipped}
