"""The faults that DTL promises to survive, and the tests that hold each promise: `docs/reliability.md` is its table.

A test says which faults it is about by `@pytest.mark.fault("kill", ...)`, with the names below.
tests/test_fault_matrix.py fails for a fault without a test and for a page that is not up to date. To write the page
anew: `python tests/fault_matrix.py`, or, with new figures of `make torture`,
`python tests/fault_matrix.py outputs/torture.json`.
"""

import ast
import json
import sys
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "reliability.md"
FIGURES = TESTS / "torture.json"  # what `make torture` counted, when its figures were last published
BEGIN, END = "<!-- {}: written by tests/fault_matrix.py -->", "<!-- end of {} -->"

# name: (what happens, what holds then), in sections
FAULTS: dict[str, dict[str, tuple[str, str]]] = {
    "Kills and signals": {
        "kill": ("SIGKILL at any moment of a run", "the resumed run ends bit for bit like one that never stopped"),
        "kill-in-save": ("a kill at any file system call of a save", "a whole checkpoint is there, old or new"),
        "power-cut": ("power cut: what was not flushed is gone", "files are flushed before they get their names"),
        "signal": ("Ctrl-C, SIGTERM or SIGHUP", "saved, exit code 130, 143 or 129; the resume is exact"),
        "two-signals": ("a second signal", "stops at once, and nothing is damaged"),
        "stop-in-step": ("a stop between two micro-batches", "the step's beginning is saved, and the resume is exact"),
        "console": ("the console goes away or is full", "training goes on, or saves and ends; no step is lost"),
    },
    "Disks": {
        "disk-full": ("the disk is full at a save", "the older checkpoints stay; needed, free and kept are said"),
        "disk-foreseen": ("the disk will not hold what is to come", "said before the first step"),
        "disk-full-log": ("the disk is full for metrics and records", "one warning, and training goes on"),
        "deletions": ("files of a run are deleted or replaced while it trains", "it goes on, or ends in a sentence"),
        "read-only": ("a folder that cannot be written", "refused before anything is read or built"),
    },
    "Checkpoints": {
        "truncated": ("a checkpoint file that was cut off", "named, and the newest valid checkpoint is used"),
        "bit-flip": ("flipped or zeroed bytes", "found by SHA-256, named, never loaded"),
        "rotation": ("rotation at a bad moment", "the best, the newest and the damaged ones are never deleted"),
        "wrong-shape": ("weights that do not fit config.json", "named, and nothing is allocated"),
        "formats": ("a checkpoint of a newer DTL", "asks for an upgrade"),
        "swapped-tokenizer": ("another tokenizer of the same size", "refused"),
        "record-damage": (
            "damaged records of a run, a sweep, an evaluation",
            "never believed; what counts on them says so",
        ),
        "config-of-run": ("a run's config.yaml was changed", "found by the checkpoint's own, and named"),
    },
    "Numbers": {
        "nan": ("a loss or a gradient that is not finite", "stopped before the weights, with a record of the step"),
        "fp16-overflow": ("fp16 gradients overflow", "skipped and counted; the run ends when it does not recover"),
        "nan-best": ("an evaluation that is not finite", "is never the best"),
        "out-of-memory-step": (
            "out of memory at any point of a step",
            "taken again with half the sequences at once, and exact; half an update is never continued or saved",
        ),
        "out-of-memory": ("too little memory for one sequence", "the setting that fits next is named"),
        "eval-out-of-memory": ("too little memory in an evaluation", "halved batches, and the same loss"),
        "eval-memory": ("a long evaluation", "keeps no logits"),
        "machine-changed": ("resumed with other threads, torch or device", "the field that differs is named"),
    },
    "Data": {
        "no-data": ("missing, empty or too little data", "said before a model is built, with path and need"),
        "bad-text": ("malformed UTF-8, NUL, surrogates, line ends, a 100 MB line", "read, counted and said"),
        "cut-data": ("a file that was cut off", "named; nothing half is cached"),
        "cache": ("killed builders, several builders", "one whole entry, the same tokens"),
        "cache-damage": ("a damaged cache entry", "found, named and built anew; never trained on"),
        "cache-foreign": ("other people's files beside the cache", "are never touched"),
        "data-changed": ("the data changed before a resume", "refused, with both fingerprints"),
        "data-order": ("resumes anywhere in an epoch", "every row is seen exactly as without a stop"),
    },
    "Networks": {
        "no-network": ("no network", "training and chat work; a download fails within seconds, saying so"),
        "wandb": ("a W&B server that is slow, dies or refuses", "training never waits; metrics.jsonl is complete"),
        "wandb-resume": ("a resumed run in W&B", "the same run, no step twice and none missing"),
    },
    "Runs side by side": {
        "two-in-one": ("two processes in one run folder", "the second is refused, naming the first"),
        "clock": ("clocks that jump, equal times of files", "order comes from step numbers"),
        "sweep": ("a trial crashes, hangs, is killed or runs out of memory", "is one row; the others go on"),
        "sweep-kill": ("the sweep itself is killed", "the same command goes on, no trial is lost or run twice"),
        "early-exit": ("a trial that ends early with exit code 0", "is not finished, and its loss does not count"),
    },
    "Folders and texts of others": {
        "hostile-model": ("model folders made to harm", "a sentence, bounded time and memory; no code runs"),
        "hostile-config": ("configs made to harm", "no code runs, nothing is interpolated, no path is taken from them"),
        "hostile-listing": ("huge, deep, endless or special files in a run", "bounded reading, and one row says so"),
        "names": ("names and paths that lead elsewhere", "refused"),
        "terminal": ("escape sequences in any text", "are shown, never obeyed"),
        "html": ("markup in any text of a report", "stays text; the page runs no script"),
        "secrets": ("keys and passwords in settings, variables, texts", "are in no file, on no screen"),
        "prompts": ("huge, empty or broken prompts", "answered or refused at once"),
        "broken-utf8": ("tokens that are no whole character", "are held back, never shown broken"),
        "chat-interrupt": ("Ctrl-C or a closed input in the chat", "ends the answer, or the chat, without a trace"),
    },
    "Settings": {
        "wrong-setting": ("a wrong key, type or value", "one message with the remedy, nothing left behind"),
        "extremes": ("extreme values", "refused by their bounds, or they run"),
        "torchrun": ("several processes by torchrun", "refused by name"),
    },
}


def named_faults() -> dict[str, list[str]]:
    """Return the tests of each fault that a marker names, as `folder/file.py::test`, read from their source."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        place = path.relative_to(TESTS).as_posix()
        for node in module.body:
            if isinstance(node, ast.FunctionDef):
                for name in _faults_in(node.decorator_list):
                    found[name].append(f"{place}::{node.name}")
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
                for name in _faults_in([node.value]):
                    found[name].append(place)
    return dict(found)


def _faults_in(marks: list[ast.expr]) -> list[str]:
    calls = [node for mark in marks for node in ast.walk(mark) if isinstance(node, ast.Call)]
    names = [argument for call in calls if ast.unparse(call.func) == "pytest.mark.fault" for argument in call.args]
    return [ast.literal_eval(name) for name in names]


def matrix() -> str:
    """Return the table of the faults and their tests."""
    tests, lines = named_faults(), []
    for section, faults in FAULTS.items():
        lines += [f"### {section}", "", "| fault | what holds | tests |", "|---|---|---|"]
        for name, (fault, holds) in faults.items():
            files: defaultdict[str, list[str]] = defaultdict(list)
            for test in tests.get(name, []):
                file, _, function = test.partition("::")
                files[file].append(function)
            links = [
                f"[{file}](../tests/{file})"
                + "".join(f" {'' if n == 0 else '· '}`{test}`" for n, test in enumerate(there) if test)
                for file, there in files.items()
            ]
            lines.append(f"| {fault} | {holds} | {'<br>'.join(links)} |")
        lines.append("")
    return "\n".join(lines)


def figures() -> str:
    """Return the table of what `make torture` tried and how much of it failed."""
    counted = json.loads(FIGURES.read_text(encoding="utf-8"))
    rows = [f"| {what} | {tried:,} | {failed} |" for what, (tried, failed) in sorted(counted.items())]
    return "\n".join(["| what | tried | failed |", "|---|---|---|", *rows, ""])


def page() -> str:
    """Return the page with both tables as they should be."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (("figures", figures()), ("matrix", matrix())):
        before, begin, rest = text.partition(BEGIN.format(name))
        text = f"{before}{begin}\n\n{table}\n{END.format(name)}{rest.partition(END.format(name))[2]}"
    return text


if __name__ == "__main__":
    if len(sys.argv) > 1:
        FIGURES.write_text(Path(sys.argv[1]).read_text(encoding="utf-8"), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
