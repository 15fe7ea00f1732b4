"""Starts builders of one cache entry at once and kills some of them: `python cache_builder.py`, a round for a line.

A round is {cache, log, pause_s: between the files of an entry, kill_after_s: a number or null for each builder, die_at:
null or the number of the file-system call at which each ends}; the answer is {process id: exit code}. Builders write
what they begin and what they open to the log. They are forked: what they import is paid for once.
"""

import hashlib
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dtl.base.files import verify_manifest
from dtl.data.cache import Cache

ENTRY = f"thing-{0:032x}"
N_FILES = 7
CHANGES = ("open", "replace", "mkdir", "rmdir", "unlink", "fsync")
PATIENCE_S = 30.0  # builders that take longer are stuck: killed, with an exit code that tells


def build_slowly(folder: Path, log: Path, pause_s: float) -> None:
    def tell(**event: Any) -> None:
        with log.open("a") as file:
            file.write(json.dumps({"process": os.getpid(), **event}) + "\n")

    def build(into: Path) -> dict[str, object]:
        tell(began=True)
        for number in range(N_FILES):
            (into / f"{number}.bin").write_bytes(bytes([number]) * 10_007)
            time.sleep(pause_s)
        return {"built_by": os.getpid()}

    cache = Cache(folder)
    entry = cache.get(ENTRY, build)
    assert entry is not None, cache.notes
    verify_manifest(entry.folder)
    found = b"".join(file.read_bytes() for file in sorted(entry.folder.glob("*.bin")))
    tell(opened=hashlib.sha256(found).hexdigest(), built_by=entry.facts["built_by"])


def end_at_call(number: int) -> None:
    """From now on, end without a word at the call of this number."""
    calls = itertools.count(1)

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == number:
                os._exit(9)
            return call(*args, **kwargs)

        return counted

    for name in CHANGES:
        setattr(os, name, wrapped(getattr(os, name)))


def started(asked: dict[str, Any], gate: tuple[int, int]) -> int:
    """The id of a process that begins when nobody holds the gate's writing end open any longer."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.close(gate[1])
        os.read(gate[0], 1)
        if asked["die_at"] is not None:
            end_at_call(asked["die_at"])
        build_slowly(Path(asked["cache"]), Path(asked["log"]), asked["pause_s"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_codes(processes: Sequence[int], kill_after_s: Sequence[float | None]) -> dict[int, int]:
    """Kill each at its moment, wait for all; negative: the signal that ended it."""
    began = time.monotonic()
    moments = [PATIENCE_S if after is None else after for after in kill_after_s]
    codes: dict[int, int] = {}
    while len(codes) < len(processes):
        for process, moment in zip(processes, moments, strict=True):
            if process not in codes:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    codes[process] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() - began > moment:
                    os.kill(process, signal.SIGABRT if moment == PATIENCE_S else signal.SIGKILL)
        time.sleep(0.001)
    return codes


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        gate = os.pipe()
        processes = [started(asked, gate) for _ in asked["kill_after_s"]]
        os.close(gate[1])
        print(json.dumps(exit_codes(processes, asked["kill_after_s"])), flush=True)
        os.close(gate[0])


if __name__ == "__main__":
    main()
