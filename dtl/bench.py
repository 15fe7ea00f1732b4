"""The command `python -m dtl.bench`: how fast DTL is beside its peers, on this machine."""

import json
import time
from pathlib import Path

from omegaconf import DictConfig
from rich.text import Text

from dtl.base.display import Display, quiet_when_gone, shown
from dtl.base.files import write_atomically
from dtl.base.units import in_time
from dtl.benchmarks.config import SUITES, BenchConfig
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.config import typed_as

COMMAND = Command(
    "bench",
    BenchConfig,
    page="""\
python -m dtl.bench suite=data|generation|questions|search|startup [rows=[...]] [out=FILE] [key=value ...]

Measures DTL beside its peers, in this process or in processes alike, on the same input, taking turns: what slows the
machine slows both. A ratio is the median of the rounds, with the smallest and the largest below it. A peer that is
not installed makes a row that says how to install it. Measure on a quiet machine.

  python -m dtl.bench                                        two to three minutes on two cores
  python -m dtl.bench wiki=FOLDER dump=FILE.xml.bz2          on your own text
  python -m dtl.bench rows=[tokenising,waste] rounds=9
  python -m dtl.bench full=true out=data.json                the long measurements too; all figures to a file
  python -m dtl.bench suite=generation                       two to three minutes on two cores
  python -m dtl.bench suite=generation rows=[modern] rounds=6 generation.batch_size=4

suite=data: tokenising, dump (to prose), dump_memory (long: some 300 MB), loader, waste (of padding).

suite=generation: modern, classic (a text continued beside Hugging Face's generate, on the same random weights; it
fails when the two write different tokens).

suite=questions: qa_full (unseen wordings answered after five minutes of training, beside Hugging Face's GPT-2 after
the same time; a round is a seed, twelve minutes each on two cores).

suite=search: asha (what pruning saves of a search's steps, and what it costs in loss; a round is a seed).

suite=startup: first_step (from the start of a process to its first step, and what that time consists of).
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
        from dtl.benchmarks.report import as_json, busy_warning, heading, machine, notes, table_of, versions
        from dtl.benchmarks.suite import measured

        began = time.perf_counter()
        of_machine, of_versions = machine(settings.device), versions()
        for line in heading(of_machine, of_versions):
            display.say(line)
        if warning := busy_warning(of_machine):
            display.warn(warning)
        if settings.tiny:
            display.warn("tiny=true: too little input to say anything of speed.")
        rows = []
        try:
            for row in measured(chosen, settings, lambda name: display.note(f"measuring {name}")):
                rows.append(row)
        finally:  # also what was measured before a failure, or before Ctrl-C
            if rows:
                display.console.print(table_of(rows), soft_wrap=False)
            for line in notes(rows):
                display.note(line)
        display.console.print(Text(f"suite={settings.suite}: {in_time(time.perf_counter() - began)}.", style="dim"))
        if settings.out is not None:
            file = Path(settings.out).expanduser()
            write_atomically(file, json.dumps(as_json(settings, of_machine, of_versions, rows), indent=1) + "\n")
            display.note(f"All figures: {shown(file.absolute())}")


if __name__ == "__main__":
    main()
