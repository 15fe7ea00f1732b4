"""The command `python -m dtl.bench`: how fast DTL is beside its peers, on this machine."""

import json
import time
from pathlib import Path

from omegaconf import DictConfig
from rich.text import Text

from dtl.benchmarks.config import SUITES, BenchConfig
from dtl.commandline.command import Command
from dtl.commandline.door import run_command
from dtl.config import typed_as
from dtl.display import Display, in_time, shown
from dtl.durable import write_atomically
from dtl.terminal.screen import quiet_when_gone

COMMAND = Command(
    "bench",
    BenchConfig,
    page="""\
python -m dtl.bench suite=data [rows=[...]] [wiki=FOLDER] [dump=FILE] [out=FILE] [key=value ...]

Measures DTL beside its peers, in this process or in processes alike, on the same input, taking turns: what slows the
machine slows both. A ratio is the median of the rounds, with the smallest and the largest below it. A peer that is
not installed makes a row that says how to install it. Measure on a quiet machine.

  python -m dtl.bench                                        two to three minutes on two cores
  python -m dtl.bench wiki=FOLDER dump=FILE.xml.bz2          on your own text
  python -m dtl.bench rows=[tokenising,waste] rounds=9
  python -m dtl.bench full=true out=data.json                the long measurements too; all figures to a file

suite=data: tokenising, dump (to prose), dump_memory (long: some 300 MB), loader, opening (a cache of 100 million
tokens, half a gigabyte of temporary files), waste (of padding).
""",
    free_text=("wiki", "dump", "out"),
)


def main() -> None:
    """Entry point of `python -m dtl.bench` and of the console script dtl-bench."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """Measure, show, write."""
    settings = typed_as(BenchConfig, composed)
    chosen = SUITES.get(settings.suite).chosen(settings)
    with quiet_when_gone(), Display() as display:
        from dtl.benchmarks.report import as_json, busy_warning, heading, machine, notes, table, versions
        from dtl.benchmarks.suite import measured

        began = time.perf_counter()
        of_machine, of_versions = machine(), versions()
        for line in heading(of_machine, of_versions):
            display.say(line)
        if warning := busy_warning(of_machine):
            display.warn(warning)
        if settings.tiny:
            display.warn("tiny=true: too little input to say anything of speed.")
        rows = list(measured(chosen, settings, lambda name: display.note(f"measuring {name}")))
        display.console.print(table(rows), soft_wrap=False)
        for line in notes(rows):
            display.note(line)
        display.console.print(Text(f"suite={settings.suite}: {in_time(time.perf_counter() - began)}.", style="dim"))
        if settings.out is not None:
            file = Path(settings.out).expanduser()
            write_atomically(file, json.dumps(as_json(settings, of_machine, of_versions, rows), indent=1) + "\n")
            display.note(f"All figures: {shown(file.absolute())}")


if __name__ == "__main__":
    main()
