"""A trial's own process: an ordinary `python -m dtl.train` that knows of the sweep above it.

The sweep holds the other end of standard input. When that end closes, because the sweep stops the trial or because
it was killed, the trial saves its state and ends: no trial outlives its sweep, on any system.
"""

import _thread
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dtl.base.files import write_atomically
from dtl.run_dir.sweep_records import ERROR, TRACEBACK

# Environment variables that make a process a trial.
FOLDER = "DTL_TRIAL_FOLDER"  # where it says what ended it
SWEEP, NUMBER = "DTL_SWEEP", "DTL_TRIAL"  # its names in the tracker
SECONDS_TO_SAVE = 120.0  # what a trial has to save its state in after it was told to stop
SECONDS_TO_END = 10.0  # what it has after that, before it is killed


def trial_of() -> tuple[str, int] | None:
    """Name of the sweep and number of the trial that this process is; None where it is none."""
    return (os.environ[SWEEP], int(os.environ[NUMBER])) if FOLDER in os.environ else None


@contextmanager
def as_trial() -> Iterator[None]:
    """Around a command's work: where this process is a trial, end with its sweep and leave a note of an error."""
    if FOLDER not in os.environ:
        yield
        return
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    try:
        yield
    except SystemExit as stop:
        if stop.code not in (None, 0) and not (Path(os.environ[FOLDER]) / ERROR).exists():
            note_error(stop, f"sys.exit({stop.code!r}), without saying why")
        raise


def note_error(error: BaseException, message: str) -> None:
    """error.json and traceback.txt of the trial that this process is; nothing where it is none."""
    if FOLDER not in os.environ:
        return
    folder = Path(os.environ[FOLDER])
    note = {"type": type(error).__name__, "message": message}
    with suppress(OSError):  # the disk may be what failed
        write_atomically(folder / TRACEBACK, "".join(traceback.format_exception(error)))
        write_atomically(folder / ERROR, json.dumps(note) + "\n")


def _end_with_the_sweep() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    _interrupt()  # as Ctrl-C does: the run saves, then ends
    time.sleep(SECONDS_TO_SAVE)
    _interrupt()  # as the second Ctrl-C: it ends without saving
    time.sleep(SECONDS_TO_END)
    os._exit(1)


def _interrupt() -> None:
    # To the main thread, so that it wakes even from a sleep.
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()
