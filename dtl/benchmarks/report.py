"""What a benchmark shows and writes: the machine, the versions, the table, the JSON."""

import importlib.metadata
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
from dtl.base.units import in_percent, in_unit
from dtl.benchmarks.config import BenchConfig
from dtl.benchmarks.measuring import PERCENT, Ratio, Row
from dtl.diagnostics.machine import SYSTEM, processor, usable_cores

PACKAGES = ("torch", "numpy", "tokenizers", "tiktoken", "transformers", "mwxml", "mwparserfromhell", "gensim")
BUSY = 0.25  # load average for each usable core above which other programs are in the way
NOTHING = "-"


def machine(device: str) -> dict[str, Any]:
    """Processor, cores, how busy they are at this moment, and what models compute on.

    `load` is None where the system does not tell. Raises ConfigError when there is no such device.
    """
    chosen, _ = choose_device(device)
    cpuinfo = SYSTEM / "proc/cpuinfo"
    name = processor(cpuinfo.read_text(errors="replace"))[0] if cpuinfo.exists() else ""
    return {
        "processor": name or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type,
    }


def versions() -> dict[str, str]:
    """Versions of Python, DTL, and what is measured; those that are not installed are left out."""
    found = {"python": platform.python_version(), "dtl": dtl.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def heading(of_machine: dict[str, Any], of_versions: dict[str, str]) -> list[str]:
    """The lines above the table."""
    load = "load unknown" if of_machine["load"] is None else f"load average {of_machine['load']:.2f}"
    threads = of_machine["omp_num_threads"]
    return [
        f"{of_machine['processor']}, {of_machine['cores']} cores usable, {load}, {of_machine['system']}",
        f"models on: {of_machine['device']}, torch's threads: {of_machine['torch_threads']}"
        + (f", OMP_NUM_THREADS={threads}" if threads else ""),
        ", ".join(f"{name} {version}" for name, version in of_versions.items()),
    ]


def busy_warning(of_machine: dict[str, Any]) -> str | None:
    """What to think of the figures when other programs are running; None on a quiet machine."""
    load, cores = of_machine["load"], of_machine["cores"]
    if load is None or load <= BUSY * cores:
        return None
    return (
        f"the machine is busy (load average {load:.2f} on {cores} cores): times are too long, ratios uncertain, and "
        "what works with several processes seems slower than it is. Close other programs and measure again."
    )


def table_of(rows: Sequence[Row]) -> Table:
    """All rows, for a console of 80 columns or more."""
    columns = {"what": {"ratio": 1, "min_width": 16}, **{key: {"overflow": "fold"} for key in ("ours", "the peer's")}}
    headers = [*columns, "ratio", "goal", "reached"]
    look = {"header_style": "bold", "padding": (0, 1, 1, 0)}
    return table(headers, map(_cells, rows), headers[1:], columns=columns, **look)


def _cells(row: Row) -> list[str | Text]:
    goal = row.goal.words if row.goal is not None else NOTHING
    if row.skipped is not None:
        return [_what(row), NOTHING, NOTHING, NOTHING, goal, "skipped"]
    reached = {True: Text("yes", "green"), False: Text("no", "bold red"), None: ""}[row.reached]
    figures = [in_unit(value, row.unit) for value in (row.ours, row.peer)]
    return [_what(row), *figures, ratio_in_words(row.ratio), goal, reached]


def notes(rows: Sequence[Row]) -> list[str]:
    """What else is known of the rows, a line each, to be shown below the table."""
    return [f"{row.name}: {row.note}" for row in rows if row.note and row.skipped is None]


def _what(row: Row) -> Text:
    text = Text(row.what)
    if row.peer_name:
        text.append(f"\nbeside: {row.peer_name}", "dim")
    if row.skipped is not None:
        text.append(f"\nskipped: {row.skipped}", "yellow")
    return text


def ratio_in_words(ratio: Ratio | None) -> str:
    """The median, and below it the range of the rounds."""
    if ratio is None:
        return NOTHING
    if ratio.unit == PERCENT:
        return f"{in_percent(ratio.median)} %\n{in_percent(ratio.least)} to {in_percent(ratio.most)}"
    return f"{ratio.median:.2f} x\n{ratio.least:.2f} to {ratio.most:.2f}"


def as_json(
    settings: BenchConfig, of_machine: dict[str, Any], of_versions: dict[str, str], rows: Sequence[Row]
) -> dict[str, Any]:
    """Everything that was shown, in plain values."""
    shown = [asdict(row) | {"reached": row.reached} for row in rows]
    return {"settings": asdict(settings), "machine": of_machine, "versions": of_versions, "rows": shown}
