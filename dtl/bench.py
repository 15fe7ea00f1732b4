"""The command `python -m dtl.bench`: speed of DTL compared with its peers, on this machine."""

import json
import time
from pathlib import Path

from omegaconf import DictConfig
from rich.text import Text

from dtl.base.display import Display, exit_when_output_closes, shown
from dtl.base.files import write_atomically
from dtl.base.units import in_time
from dtl.benchmarks.config import SUITES, BenchConfig
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.config import typed_as

COMMAND = Command(
    "bench",
    BenchConfig,
    usage="""\
python -m dtl.bench [suite=...] [rows=[...]] [out=FILE] [key=value ...]
Measures DTL and its peers on the same input, in alternating rounds.
Measure on an idle machine.

  python -m dtl.bench                           two to three minutes, two cores
  python -m dtl.bench suite=step quick=true     three minutes at most
  python -m dtl.bench suite=all quick=true      every suite, one by one
  python -m dtl.bench wiki=FOLDER dump=FILE.xml.bz2   on your own text
  python -m dtl.bench suite=learn data.path=tinyshakespeare.txt wiki=FOLDER
  python -m dtl.bench rows=[tokenising,waste] rounds=9
  python -m dtl.bench full=true out=data.json   long ones too, in a file

Suites: foresight, generate, learn, memory, questions, search, startup, step,
text, all.
""",
    details="""\
The sides of a comparison run in this process or in identical processes, so that other load slows both. A ratio is the
median of the rounds, with the minimum and maximum below it. The row of a peer that is not installed shows how to
install it.

suite=text: tokenising, encode_bpe (DTL's encoder compared with tokenizers', each a process of its own), dump (to
prose, compared with mwparserfromhell and gensim), dump_memory (long: some 300 MB), loader, waste (of padding).

suite=generate: modern, classic (continuing a text, compared with Hugging Face's generate on the same random
weights; fails when the two generate different tokens); generate, batch8 (as chat and generate compute, one and eight
texts, compared with Hugging Face and llama.cpp, each side a process of its own).

suite=learn: characters (time to the loss of nanoGPT's published configuration, compared with it, with a better learning
rate and with modded-nanogpt's recipe; of data.path), articles (time to the loss that Hugging Face's model reaches in
five minutes; of wiki). Each side trains two lengths with complete schedules in a process of its own on one thread, and
the time to the loss lies on the line through both, over the logarithm of time. A round is a seed: half an hour each.
quick=true and synthetic text show that everything runs, not how fast a recipe learns.

suite=questions: qa_full (answers to unseen paraphrases after five minutes of training, compared with Hugging Face's
GPT-2 after the same time; a round is a seed, twelve minutes each on two cores).

suite=search: asha (steps of a search that pruning saves, and its cost in loss; a round is a seed).

suite=step: bf16, fp32 (an optimizer step, compared with nanoGPT's and Hugging Face's models in a bare loop), qa (the
same for packed questions and padded ones). Each side is a process of its own on one thread; on a CPU its seconds are
those of the processor. suite=memory: bf16 (peak memory of that process).

out=FILE has every row, and under "ratios" by name of the row: ratio (> 1: DTL is better), low, high, n, goal, reached,
skipped.

suite=foresight: memory (error of the peak memory that dtl.plan shows, compared with runs in fresh processes).

suite=startup: first_step (time from the start of a process to its first step, by parts), outside_wiki, outside_qa (the
part of the processor's time that a run of 300 steps with the defaults spends outside of its steps, without the
evaluation at the end: the ratio is the part allowed by the part measured; quick=true takes fewer steps and evaluations,
and multiplies their times).
""",
)


def main() -> None:
    """Entry point of `python -m dtl.bench` and of the console script dtl-bench."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """Measure, show and write the results."""
    settings = typed_as(BenchConfig, composed)
    chosen = [(each, SUITES.get(each.suite).chosen(each)) for each in settings.of_each_suite()]
    with exit_when_output_closes(), Display() as display:
        from dtl.benchmarks.results import as_json, busy_warning, heading, machine, notes, table_of, versions
        from dtl.benchmarks.suite import measured

        began = time.perf_counter()
        machine_info, package_versions = machine(settings.device), versions()
        for line in heading(machine_info, package_versions):
            display.print(line)
        if warning := busy_warning(machine_info):
            display.warn(warning)
        if settings.tiny:
            display.warn("tiny=true: too little input to measure speed.")
        rows = []
        try:
            for each, measurements in chosen:
                for row in measured(measurements, each, display.note):
                    rows.append(row)
        finally:  # also the rows measured before a failure or Ctrl-C
            if rows:
                display.console.print(table_of(rows), soft_wrap=False)
            for line in notes(rows):
                display.note(line)
        display.console.print(Text(f"suite={settings.suite}: {in_time(time.perf_counter() - began)}.", style="dim"))
        if settings.out is not None:
            file = Path(settings.out).expanduser()
            write_atomically(file, json.dumps(as_json(settings, machine_info, package_versions, rows), indent=1) + "\n")
            display.note(f"All results: {shown(file.absolute())}")


if __name__ == "__main__":
    main()
