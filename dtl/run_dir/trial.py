"""The process of a trial: an ordinary `python -m dtl.train` that belongs to a sweep.

The sweep has the other end of its standard input. When that end closes, because the sweep stops the trial or was
killed, the trial saves its state and ends: no trial outlives its sweep, on any operating system.
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
from dtl.run_dir.sweep_records import ERROR, TRACEBACK, SweepFolder

# Environment variables that make a process a trial.
FOLDER = "DTL_TRIAL_FOLDER"  # folder for its error.json and traceback.txt
SWEEP, NUMBER = "DTL_SWEEP", "DTL_TRIAL"  # its group and number in the tracker
SECONDS_TO_SAVE = 120.0  # time for a trial to save its state after it is stopped
SECONDS_TO_END = 10.0  # additional time before it exits without saving
NO_LOSS_TO_SEARCH = (
    "hydra/sweeper=dtl_optuna: a search compares validation losses, and nothing is held out of this data. Set "
    "data.validation_fraction=0.1, or run a grid, -m alone, and compare the training questions: dtl.report "
    "metric=exact_match/train"
)


def current_trial() -> tuple[str, int] | None:
    """The sweep's name and the trial's number of this process; None when it is not a trial."""
    return (os.environ[SWEEP], int(os.environ[NUMBER])) if FOLDER in os.environ else None


def in_search() -> bool:
    """Return True in the process of a trial whose sweep is a search, which needs its validation loss."""
    if FOLDER not in os.environ:
        return False
    record = SweepFolder(Path(os.environ[FOLDER]).parent).read()
    return record is not None and record.kind == "search"


@contextmanager
def as_trial() -> Iterator[None]:
    """Wrap a command: in a trial's process, end it with its sweep and write down its error."""
    if FOLDER not in os.environ:
        yield
        return
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    try:
        yield
    except SystemExit as stop:
        if stop.code not in (None, 0) and not (Path(os.environ[FOLDER]) / ERROR).exists():
            note_error(stop, f"sys.exit({stop.code!r}), without a message")
        raise


def note_error(error: BaseException, message: str) -> None:
    """Write error.json and traceback.txt of this process's trial; does nothing when it is not a trial."""
    if FOLDER not in os.environ:
        return
    folder = Path(os.environ[FOLDER])
    note = {"type": type(error).__name__, "message": message}
    with suppress(OSError):  # the error may be a full disk
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
    # To the main thread, so that it wakes from a sleep, too.
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()
