"""The process that reads a dataset of the hub; `dtl.data.hub.stream` starts it as a script and kills it when done.

The libraries used here retry for many minutes in threads that keep a process from ending: a separate process can be
killed. It speaks JSON lines, described in `main`, and imports nothing of DTL.
"""

import json
import os
import signal
import sys
import time
from typing import Any, TextIO

FLUSH_S = 0.5  # rows are sent at least this often


def main() -> None:
    """Answer requests: first {dataset, subset, sha, attempts, pause_s}, answered with {splits: {name: columns}}.

    Then any number of {split, columns, seed, buffer}, each answered with {row: values} ... and {end: true}.
    An error is {error: its type, message: its text}, and ends the process.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent process
    try:
        splits = _load(json.loads(sys.stdin.readline()))
        _send(answers, splits={name: rows.column_names for name, rows in splits.items()})
        answers.flush()
        for line in sys.stdin:
            _read(splits, json.loads(line), answers)
            answers.flush()
    except BrokenPipeError:
        pass  # the parent no longer reads
    except Exception as error:
        _send(answers, error=type(error).__name__, message=str(error))
        answers.flush()
    os._exit(0)  # without waiting for the libraries' threads


def _load(request: dict[str, Any]) -> dict[str, Any]:
    from datasets import config, disable_progress_bars, load_dataset, logging

    logging.set_verbosity_error()
    disable_progress_bars()
    config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = request["attempts"]
    config.STREAMING_READ_RETRY_INTERVAL = config.STREAMING_OPEN_RETRY_INTERVAL = request["pause_s"]
    splits = load_dataset(request["dataset"], request["subset"], revision=request["sha"], streaming=True)
    return {str(name): rows for name, rows in splits.items()}


def _read(splits: dict[str, Any], request: dict[str, Any], answers: TextIO) -> None:
    rows = splits[request["split"]]
    if request["seed"] is not None:
        rows = rows.shuffle(seed=request["seed"], buffer_size=request["buffer"])
    flushed = time.monotonic()
    for row in rows:
        missing = [column for column in request["columns"][:1] if column not in row]
        if missing:
            return _send(answers, splits={request["split"]: list(row)})
        _send(answers, row=[_plain(row.get(column)) for column in request["columns"]])
        if time.monotonic() - flushed > FLUSH_S:
            answers.flush()
            flushed = time.monotonic()
    return _send(answers, end=True)


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold; any other as a list, so that it is not taken for text."""
    return value if value is None or isinstance(value, str | int | float) else [str(value)]


def _send(answers: TextIO, **answer: Any) -> None:
    answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
