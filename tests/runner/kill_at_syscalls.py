"""Kills training runs at the system calls of a save, resumes them, and compares their ends with that of a run that
nobody killed: `python kill_at_syscalls.py <folder> <most kills per call>`. Needs strace.

Other tests kill at Python's calls; here the kernel stops the process as it enters a call, in whichever thread, and
also where safetensors writes by itself. A process of its own, since it forks: torch is imported once, with one thread.
strace is attached to the child at its first save. Prints a JSON object: kills by call, and what differed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what the first optimizer step imports
from kill_runs import in_a_child
from tiny_runs import outcome, start, start_or_go_on, tiny_config, write_pairs

import dtl.run_dir.provenance
import dtl.runner.session

# A `?` is for what a processor does not have: arm64 has no open and no rename.
CALLS = {
    "openat": "?open,openat",
    "write": "write,?pwrite64,?writev",
    "fsync": "fsync,?fdatasync",
    "rename": "?rename,?renameat,renameat2",
    "unlink": "?unlink,unlinkat,?rmdir",
    "mkdir": "?mkdir,mkdirat",
    "link": "?link,linkat",
    "ftruncate": "ftruncate",
}
PATIENCE_S = 120.0


def stops_at_its_first_save(action: Callable[[], object]) -> None:
    """Do it, but wait for a tracer at the first save."""
    save = dtl.runner.session.save_checkpoint

    def waiting(*args: Any, **kwargs: Any) -> Any:
        dtl.runner.session.save_checkpoint = save
        os.kill(os.getpid(), signal.SIGSTOP)
        return save(*args, **kwargs)

    dtl.runner.session.save_checkpoint = waiting
    action()


def traced(child: int, *options: str) -> int:
    """Attach strace to a child when it has stopped, let it go on, and return how it ended, negative by a signal."""
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        raise RuntimeError(f"The run ended before its first save: {status}")
    with subprocess.Popen(["strace", "-f", "-qq", *options, "-p", str(child)], stderr=subprocess.PIPE) as strace:
        began = time.monotonic()
        while not is_traced(child):
            if strace.poll() is not None or time.monotonic() - began > PATIENCE_S:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                assert strace.stderr is not None
                raise RuntimeError(f"strace cannot attach: {strace.stderr.read().decode()}")
            time.sleep(0.001)
        os.kill(child, signal.SIGCONT)
        while True:
            _, status = os.waitpid(child, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                return os.waitstatus_to_exitcode(status)


def is_traced(process: int) -> bool:
    """True when each thread of the process has a tracer."""
    with suppress(FileNotFoundError):
        states = [(thread / "status").read_text() for thread in Path(f"/proc/{process}/task").iterdir()]
        return all(re.search(r"^TracerPid:\t[1-9]", state, re.MULTILINE) for state in states)
    return False


def number_of_calls(log: Path) -> dict[str, int]:
    """The most calls of each kind that one thread has made: strace counts them by thread."""
    kinds = {name.strip("?"): kind for kind, names in CALLS.items() for name in names.split(",")}
    found = re.findall(r"^(\d+) +(\w+)\(", log.read_text(errors="replace"), re.MULTILINE)
    by_thread = Counter((thread, kinds[name]) for thread, name in found if name in kinds)
    return {kind: max((n for (_, of), n in by_thread.items() if of == kind), default=0) for kind in CALLS}


def main(folder: Path, most: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    dtl.run_dir.provenance._packages = lambda: ""  # it lists what is installed, at length
    config = tiny_config(write_pairs(folder / "pairs.jsonl"), total_steps=8)
    errors, template, work = folder / "error.txt", folder / "template", folder / "run"

    def begin() -> None:
        config.trainer.stop_after_steps = 3
        start(config, template)

    def go_on() -> None:
        start_or_go_on(config, work)

    def done(action: Callable[[], object]) -> None:
        if os.waitpid(in_a_child(action, errors), 0)[1]:
            raise RuntimeError(errors.read_text())

    done(begin)
    shutil.copytree(template, work)
    child = in_a_child(lambda: stops_at_its_first_save(go_on), errors)
    log = folder / "calls.txt"
    code = traced(child, "-o", str(log), "-e", f"trace={','.join(CALLS.values())}")
    if code:
        raise RuntimeError(f"The traced run ended with {code}: {errors.read_text() if errors.exists() else ''}")
    expected, calls = outcome(work), number_of_calls(log)
    kills, differing = Counter[str](), []
    for kind, n_calls in calls.items():
        for number in sorted({1 + n * n_calls // most for n in range(min(most, n_calls))}):
            shutil.rmtree(work)
            shutil.copytree(template, work)
            child = in_a_child(lambda: stops_at_its_first_save(go_on), errors)
            inject = f"inject={CALLS[kind]}:signal=SIGKILL:when={number}"
            code = traced(child, "-o", os.devnull, "-e", f"trace={CALLS[kind]}", "-e", inject)
            kills[kind] += code == -signal.SIGKILL
            done(go_on)
            found = outcome(work)
            differing += [f"{kind} {number}: {part}" for part in expected if found[part] != expected[part]]
    return {"calls": calls, "kills": kills, "differing": differing}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
