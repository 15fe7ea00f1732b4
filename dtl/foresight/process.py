"""What a training process needs besides its tensors, measured in small processes of its own, once a machine.

The base: Python, torch and all that a run imports. The libraries' pages: what the first steps, an evaluation and a
checkpoint add, whatever the model's size. The heap: DTL lets glibc keep freed pages (`keep_freed_memory`), so that
the holes between tensors count as well.
"""

import contextlib
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dtl import __version__
from dtl.base.system import processor_name, resident_memory
from dtl.config import RunConfig, to_dict
from dtl.data.cache import Cache, Entry, cache_folder, key_of

# Real steps need a little more than a replay of their tensors: the median of 27 settings, of 0.88 to 1.6.
HEAP_FACTOR = 1.08
GAPS_UNKNOWN = (
    "The gaps between tensors could not all be measured, perhaps for want of memory: up to as much as the tensors need "
    "is missing from the sum."
)
BEGINNINGS = 8  # of a heap
BLOCK, HOLES = 4096, 30  # bytes that malloc makes 4112 of, 16 more than a multiple of 64; blocks that are freed
TIMEOUT_S = 120.0
TINY = ("model.dim=32", "model.n_layers=1", "model.n_heads=2", "data.seq_len=32", "trainer.micro_batch_size=2")


class NotCachedError(Exception):
    """Data that would have to be read or prepared first."""


class ReplayFailedError(Exception):
    """How far the heap grows is not known, or of one of two depths only: nothing that a cache should keep."""


class OnlyCached(Cache):
    """A cache that is read and never filled. Raises NotCachedError for an entry that it does not have."""

    def get(self, name: str, build: Callable[[Path], dict[str, Any]]) -> Entry | None:
        if (entry := self._open(name)) is None:
            raise NotCachedError(name)
        return entry


def not_prepared(cache_dir: str | None) -> str:
    """Return the note on data that is not known; where it can never be found, the rule that says why."""
    place = cache_folder(cache_dir)
    file = next((path for path in (place, *place.parents) if path.exists() and not path.is_dir()), None)
    shapes = "shapes come from the configuration, with a loss on each token."
    if file is None:
        return f"The data is not prepared yet: {shapes}"
    return f"data.cache_dir={cache_dir}: must be a folder, and {file} is a file. No prepared data is kept: {shapes}"


# --- the heap -----------------------------------------------------------------------------------------------------


def heap_growth(allocations: Iterable[tuple[int, int, bool]]) -> float | None:
    """Return the bytes that glibc's heap grows by for these allocations; None with another C library, or on failure.

    They are made by the real malloc, in processes of their own, and never written to: they take addresses, no memory.
    """
    if not has_mallinfo():
        return None
    from dtl.base.runtime import KEEPS_FREED  # imports torch, which the child does without

    numbers = array("q", (number for allocation in allocations for number in allocation))
    try:
        answer = _child("replay", json.dumps([*KEEPS_FREED.items()]), data=numbers.tobytes())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return None if answer is None else HEAP_FACTOR * float(answer)


def has_mallinfo() -> bool:
    """Return True where the C library has glibc's malloc, and tells how large its heap is."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")


class _MallInfo(ctypes.Structure):
    # In the order of /usr/include/malloc.h.
    _fields_ = [("arena", ctypes.c_size_t), *((f"unused_{number}", ctypes.c_size_t) for number in range(9))]


def replays(numbers: "array[int]", settings: Iterable[tuple[int, int]]) -> list[int]:
    """Return what `replay` returns in each of `BEGINNINGS` forks of this process, without those that failed.

    Which hole a block falls into is a matter of luck: where a heap begins elsewhere, it grows by up to a fifth more or
    less.
    """
    grown: list[int | None] = []
    for beginning in range(BEGINNINGS):
        reading, writing = os.pipe()
        if not (process := os.fork()):
            try:
                os.write(writing, json.dumps(replay(numbers, settings, beginning)).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as out:
            answer = out.read()
        os.waitpid(process, 0)
        grown.append(json.loads(answer) if answer else None)
    return [growth for growth in grown if growth is not None]


def replay(numbers: "array[int]", settings: Iterable[tuple[int, int]], beginning: int) -> int | None:
    """Make allocations as `heap_growth` describes, with these settings of mallopt, in a heap that begins in one of
    `BEGINNINGS` ways; return by how many bytes it has grown, None when an allocation failed."""
    libc = _malloc_of_glibc()
    for parameter, value in settings:
        libc.mallopt(parameter, value)
    addresses = array("Q", bytes(8 * (1 + max(numbers[::3], default=0))))
    _fill_holes(libc)
    _begin(libc, beginning)
    before = libc.mallinfo2().arena
    for number, n_bytes, is_tensor in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        if n_bytes < 0:
            libc.free(addresses[number])
            continue
        address = libc.aligned_alloc(64, n_bytes) if is_tensor else libc.malloc(n_bytes)
        if address is None:
            return None
        addresses[number] = address
    return libc.mallinfo2().arena - before


def _malloc_of_glibc() -> Any:
    """Return the C library with the types of the functions that a replay calls."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _MallInfo
    libc.malloc.restype = libc.aligned_alloc.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.aligned_alloc.argtypes = [ctypes.c_size_t], [ctypes.c_size_t] * 2
    libc.free.argtypes = [ctypes.c_void_p]
    return libc


def _fill_holes(libc: Any) -> None:
    """Allocate what the start of Python has left free in the heap: it would be used first, more or less of it."""
    for size in (1 << exponent for exponent in range(22, 6, -1)):
        arena = libc.mallinfo2().arena
        while libc.malloc(size) is not None and libc.mallinfo2().arena == arena:
            pass


def _begin(libc: Any, beginning: int) -> None:
    """Let the heap end at another of the four multiples of 16 below the 64 of tensors, and have small holes or none."""
    blocks = [libc.malloc(BLOCK) for _ in range(2 * HOLES * (beginning // 4))]
    for block in blocks[::2]:
        libc.free(block)
    for _ in range(beginning % 4):
        libc.malloc(BLOCK)


# --- the base -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of a training process besides its tensors and data."""

    base: int  # before the first step
    libraries: int  # added by the first steps, an evaluation, samples and a checkpoint
    preparing: int  # of the base, what preparing a few sentences added: the modules for it

    @property
    def total(self) -> int:
        return self.base + self.libraries


def machine_facts(tracker: str, precision: str) -> dict[str, Any]:
    """Return what the memory of the libraries depends on, for the key under which it is remembered."""
    import torch

    return {
        "what": [field.name for field in fields(ProcessMemory)],
        "dtl": __version__,
        "torch": str(torch.__version__),
        "python": sys.version,
        "machine": [platform.platform(), processor_name(), torch.get_num_threads()],
        "tracker": tracker,
        "precision": precision,
    }


def start_calibration(tracker: str, precision: str) -> "subprocess.Popen[bytes]":
    """Start a process that trains a tiny model for two steps, in a temporary folder, and measures itself."""
    return start_child("calibrate", tracker, precision)


def calibrated(process: "subprocess.Popen[bytes]") -> ProcessMemory | None:
    """Wait for what `start_calibration` started; None when it failed, or where a process cannot measure itself."""
    try:
        out, _ = process.communicate(timeout=TIMEOUT_S)
        answer = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError, subprocess.SubprocessError):
        process.kill()
        return None
    return None if answer is None else ProcessMemory(*answer)


def process_memory(
    tracker: str, precision: str, cache: Cache, log: Callable[[str], None]
) -> Callable[[], ProcessMemory | None]:
    """Begin to measure what a process needs, unless that is remembered; return what waits for it."""
    name = f"memory-{key_of(**machine_facts(tracker, precision))}"
    with contextlib.suppress(NotCachedError):
        known = OnlyCached(cache.folder).get(name, lambda folder: {})
        if known is not None:
            return lambda: ProcessMemory(**known.facts)
    log("measuring what Python and torch need on this machine, once")
    child = start_calibration(tracker, precision)

    def wait() -> ProcessMemory | None:
        measured = calibrated(child)
        if measured is not None:
            cache.get(name, lambda folder: asdict(measured))
        return measured

    return wait


def _calibrate(tracker: str, precision: str) -> list[int] | None:
    """Train a tiny model as a run does; return the numbers of `ProcessMemory`."""
    if resident_memory() is None:
        return None
    import dtl.runner.build
    from dtl.commandline.compose import compose
    from dtl.runner.run import train
    from dtl.training.trainer import Trainer

    seen: list[int] = []

    def note() -> None:
        seen.append(resident_memory() or 0)

    _call_around(dtl.runner.build, "prepare_data", note, note)
    _call_around(Trainer, "steps", note)
    with tempfile.TemporaryDirectory(prefix="dtl-plan-") as folder:
        text = Path(folder) / "text.txt"
        text.write_text(" ".join(str(number * 7919) for number in range(4000)))
        words = [f"data.path={text}", f"data.cache_dir={folder}", "tokenizer=byte", "tracker=local", *TINY]
        config = compose("data=text", *words, "trainer.total_steps=2", f"trainer.precision={precision}", "device=cpu")
        if tracker == "wandb":
            import wandb  # pyright: ignore[reportUnusedImport]  # noqa: F401
        train(config, Path(folder) / "run")
    peak = resident_memory("VmHWM") or 0
    before, prepared, base = seen
    return [base, max(0, peak - base), prepared - before]


def _call_around(owner: Any, name: str, before: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
    """Let a function call others when it begins and returns. For a process that does nothing else."""
    function = getattr(owner, name)

    def calling(*arguments: Any, **named: Any) -> Any:
        before()
        result = function(*arguments, **named)
        after()
        return result

    setattr(owner, name, calling)


def start_child(*words: str, module: str = "dtl.foresight.process") -> "subprocess.Popen[bytes]":
    """Start a process that calls `main(words)` of a module, its input and output by pipes. It ends with this one."""
    program = f"import sys; from dtl.base.signals import end_with_parent; end_with_parent({os.getpid()}); "
    program += f"from {module} import main; main(sys.argv[1:])"
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def timing(config: RunConfig, real: bool, compose_seconds: float) -> Iterator[Callable[[], dict[str, Any] | None]]:
    """Begin to time a run (`dtl.foresight.time.main`), with its real depth or with others, whose command had taken
    `compose_seconds` of the processor when it knew its config; give what waits for it.

    No step is taken before that is called, as what this process computes until then would slow them. It returns the
    values of a `Forecast`, None where it failed. The process ends with the context.
    """
    names = {item.name for item in fields(RunConfig)}  # the settings of a plan are more
    values = {name: value for name, value in to_dict(config).items() if name in names}
    child = start_child(json.dumps(real), str(compose_seconds), module="dtl.foresight.time")
    assert child.stdin is not None and child.stdout is not None
    out, end = child.stdout, child.stdin
    try:
        with contextlib.suppress(OSError):  # it may have ended already
            end.write(json.dumps(values).encode() + b"\n")
            end.flush()

        def wait() -> dict[str, Any] | None:
            with contextlib.suppress(OSError):
                end.close()
            lines = out.read().splitlines()
            return None if child.wait() or not lines else json.loads(lines[-1])

        yield wait
    finally:
        child.kill()
        child.wait()
        out.close()
        with contextlib.suppress(OSError):
            end.close()


def _child(*words: str, data: bytes) -> Any:
    process = start_child(*words)
    try:
        out, _ = process.communicate(data, timeout=TIMEOUT_S)
    finally:
        process.kill()
    return json.loads(out) if process.returncode == 0 else None


def main(words: list[str]) -> None:
    """The child: replay allocations from standard input, or calibrate; print JSON."""
    if words[0] == "replay":
        numbers = array("q")
        numbers.frombytes(sys.stdin.buffer.read())
        grown = replays(numbers, json.loads(words[1]))
        print(json.dumps(sum(grown) / len(grown) if grown else None))
    else:
        _, tracker, precision = words
        print("\n" + json.dumps(_calibrate(tracker, precision)))
