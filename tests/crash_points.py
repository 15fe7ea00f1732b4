"""Kills a save at each of its file-system calls in turn: `python crash_points.py all|changing <scenario> <folder>`.

A process of its own, since it forks: torch is imported once, with one thread. Prints a JSON object with the number
of points, how often each call was one, and what went wrong.
"""

import builtins
import io
import json
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoint_examples import save

from dtl.base.files import ASIDE, TEMPORARY, TRASH
from dtl.checkpoints import save as checkpoint
from dtl.checkpoints.listing import best_checkpoint, inspect, newest_valid
from dtl.checkpoints.upkeep import lock_run, publish_best, remove_leftovers, rotate, set_aside_later

CHANGING = ("replace", "rename", "mkdir", "link", "unlink", "remove", "rmdir", "chmod")
OTHERS = ("open", "scandir", "lstat", "stat", "fsync")  # a kill at one leaves what a kill at the next change leaves


class Points:
    """Counts file-system calls, and ends the process without a word at number `last`."""

    def __init__(self, last: int | None, others: bool) -> None:
        self.last = last
        self.others = others
        self.calls: list[str] = []
        self.lock = threading.Lock()

    def reached(self, call: str) -> bool:
        with self.lock:
            self.calls.append(call)
            return len(self.calls) == self.last

    def install(self) -> None:
        for name in CHANGING + OTHERS * self.others:
            setattr(os, name, self.wrapped(name, getattr(os, name)))
        builtins.open = io.open = self.opening(io.open)
        checkpoint.save_file = self.saving(checkpoint.save_file)  # pyright: ignore

    def wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.reached(name):
                os._exit(9)
            return call(*args, **kwargs)

        return counted

    def opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if (self.others or "w" in mode) and self.reached(f"io.open {mode}"):
                os._exit(9)
            return CountedFile(call(file, mode, *args, **kwargs), self)

        return counted

    def saving(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """safetensors writes in Rust: killed before, with half of the file there, and after."""

        def counted(tensors: Any, file: Path, metadata: Any) -> None:
            if self.reached("save_file"):
                os._exit(9)
            call(tensors, file, metadata)
            if self.reached("save_file, half"):
                os.truncate(file, file.stat().st_size // 2)
                os._exit(9)
            if self.reached("save_file, whole"):
                os._exit(9)

        return counted


class CountedFile:
    """An open file that may be killed with half of a write done."""

    def __init__(self, file: Any, points: Points) -> None:
        self._file, self._points = file, points

    def write(self, data: Any) -> int:
        if self._points.reached("write"):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            os._exit(9)
        return self._file.write(data)

    def __enter__(self) -> "CountedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# --- scenarios: how it stood before, what is killed, what may be the newest and the best afterwards ---------------


def advance(run_dir: Path) -> None:
    """A better step is saved, becomes the best, and the older one is rotated away."""
    publish_best(run_dir, save(run_dir, 20))
    rotate(run_dir, keep=1)


def replace(run_dir: Path) -> None:
    """The only checkpoint is saved again with another state."""
    save(run_dir, 10, best=0.5)


def rewind(run_dir: Path) -> None:
    """The run goes on from an earlier step."""
    set_aside_later(run_dir, 10)


def before_advance(run_dir: Path) -> None:
    publish_best(run_dir, save(run_dir, 10))


def before_replace(run_dir: Path) -> None:
    save(run_dir, 10)


def before_rewind(run_dir: Path) -> None:
    for step in (10, 20, 30):
        save(run_dir, step)


SCENARIOS = {
    "advance": (before_advance, advance, ["best", "step-00000020"]),
    "replace": (before_replace, replace, ["step-00000010"]),
    "rewind": (before_rewind, rewind, ["step-00000010", "step-00000020.lost", "step-00000030.lost"]),
}


def main(scenario: str, root: Path, others: bool) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # the kill of a process loses nothing that was written: be quick
    before, action, names_after = SCENARIOS[scenario]
    template, work = root / "template", root / "run"
    before(template)
    shutil.copytree(template, work)
    action(work)
    after = newest_valid(work)[0]
    whole = {inspect(folder).digest for folder in (template / "checkpoints").iterdir()} | {after.digest}

    calls = run_until(Points(None, others), template, work, action, root)
    failures: list[str] = []
    for last in range(1, len(calls) + 1):
        run_until(Points(last, others), template, work, action, root)
        try:
            check(work, whole, after.digest, action, names_after)
        except Exception as error:
            failures.append(f"{last} ({calls[last - 1]}): {type(error).__name__}: {error}")
    print(json.dumps({"points": len(calls), "calls": Counter(calls), "failures": failures}))


def run_until(points: Points, template: Path, work: Path, action: Callable[[Path], None], root: Path) -> list[str]:
    """Do the action on a fresh copy in a child that dies at call number `last`; returns the calls it came to."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(template, work)
    child = os.fork()
    if child == 0:
        report = os.open(root / "calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        points.install()
        try:
            action(work)
        finally:
            os.write(report, json.dumps(points.calls).encode())
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if points.last is None:
        return json.loads((root / "calls").read_text())
    if os.waitstatus_to_exitcode(status) != 9:
        raise SystemExit(
            f"The child that was to die at call {points.last} ended with {os.waitstatus_to_exitcode(status)}."
        )
    return []


def check(run_dir: Path, whole: set[str], after: str, action: Callable[[Path], None], names: list[str]) -> None:
    """After the kill: a whole state. After the sweep: the same, and no litter. Tried again: as if nothing had been."""
    newest, _ = newest_valid(run_dir)
    assert newest.digest in whole, "the newest is neither the older nor the newer state"  # every byte was read
    look_at_best(run_dir, whole, names)
    with lock_run(run_dir):
        warnings = remove_leftovers(run_dir)
        assert not warnings, warnings
        left = [path.name for path in (run_dir / "checkpoints").iterdir()]
        assert not [n for n in left if n.startswith((TEMPORARY, TRASH)) or n.endswith(ASIDE)], left
        assert newest_valid(run_dir)[0].digest == newest.digest, "the sweep changed the newest checkpoint"
        look_at_best(run_dir, whole, names)
        action(run_dir)
    left = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert left == names, left
    assert newest_valid(run_dir)[0].digest == after


def look_at_best(run_dir: Path, whole: set[str], names: list[str]) -> None:
    best = best_checkpoint(run_dir)
    if "best" in names:
        assert best is not None and best.problem is None and best.digest in whole, f"best: {best}"


if __name__ == "__main__":
    main(sys.argv[2], Path(sys.argv[3]), others=sys.argv[1] == "all")
