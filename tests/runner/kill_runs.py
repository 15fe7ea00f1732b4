"""Kills training runs at random moments, starts them again until they end, and compares their ends with that of a run
that nobody killed: `python kill_runs.py <folder> <kills> <seed> [nothing_held_out]`.

A process of its own, since it forks: torch is imported once, with one thread, and computes nothing before a fork.
Prints a JSON object with what it did, and the parts in which ends differed.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what the first optimizer step imports, which takes longer than a whole run here
from tiny_runs import outcome, start_or_go_on, tiny_config, write_pairs

import dtl.run_dir.provenance
from dtl.config import RunConfig

SECONDS_FOR_A_RUN = 120.0


def in_a_child(action: Callable[[], object], errors: Path) -> int:
    """Start a child that does something and ends; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        action()
        status = 0
    except BaseException:
        errors.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def forked(config: RunConfig, run_dir: Path) -> int:
    """Start or continue the run in a child; its process id."""
    return in_a_child(lambda: start_or_go_on(config, run_dir), run_dir.parent / "error.txt")


def ended(child: int) -> bool:
    """Return True when the child has ended by itself. Raises RuntimeError when it failed."""
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid and status:
        raise RuntimeError(f"A run failed, see error.txt: {status}")
    return bool(pid)


def unfinished(run_dir: Path) -> set[str]:
    """Return the files of a save in progress, or of a killed one."""
    return {path.name for path in (run_dir / "checkpoints").glob(".t*")}


def killed(child: int, run_dir: Path, in_a_save: bool, dice: random.Random, seconds: float) -> bool:
    """Kill the child at a random moment, or inside one of its first saves. False when it ended before."""
    began, seen = time.monotonic(), unfinished(run_dir)
    after, n_saves = dice.uniform(0, seconds), len(seen) + dice.randint(1, 6)
    while time.monotonic() - began < (SECONDS_FOR_A_RUN if in_a_save else after):
        if ended(child):
            return False
        seen |= unfinished(run_dir)
        if in_a_save and len(seen) >= n_saves:
            time.sleep(dice.uniform(0, dice.choice((0.001, 0.004, 0.02))))  # a save takes some milliseconds
            break
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main(folder: Path, n_kills: int, seed: int, validation: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    dtl.run_dir.provenance._packages = lambda: ""  # it lists what is installed, at length
    dice = random.Random(seed)
    config = tiny_config(write_pairs(folder / "pairs.jsonl", validation=validation), total_steps=24)
    began = time.monotonic()
    os.waitpid(forked(config, folder / "whole"), 0)
    seconds = time.monotonic() - began
    expected = outcome(folder / "whole")
    kills: list[dict[str, Any]] = []
    runs = 0
    differing: list[str] = []
    while len(kills) < n_kills:
        runs += 1
        run_dir = folder / f"killed-{runs}"
        while True:
            child = forked(config, run_dir)
            if len(kills) < n_kills and killed(child, run_dir, len(kills) % 2 == 0, dice, seconds * 0.7):
                steps = sorted(path.name for path in run_dir.glob("checkpoints/step-*"))
                kills.append({"in_a_save": bool(unfinished(run_dir)), "newest": steps[-1] if steps else None})
                continue
            while len(kills) == n_kills and not ended(child):
                time.sleep(0.005)
            break
        found = outcome(run_dir)
        differing += [f"{run_dir.name}: {part}" for part in expected if found[part] != expected[part]]
    return {"kills": kills, "runs": runs, "differing": differing}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "nothing_held_out" not in sys.argv)))
