"""The process that reads a dataset of the hub; `dtl.data.hub.stream` starts it as a script and ends it at will.

The libraries below retry for many minutes in threads that hold a process back at its end: a process of their own can
be killed. Speaks JSON lines; what it is asked stands in `main`. Imports nothing of DTL.
"""

import json
import os
import signal
import sys
import time
from typing import Any, TextIO

FLUSH_S = 0.5  # rows wait no longer to be passed on


def main() -> None:
    """First {dataset, subset, sha, attempts, pause_s}, answered with {splits: {name: columns}}.

    Then any number of {split, columns, seed, buffer}, each answered with {row: values} and {end: true}.
    An error is {error: its type, said: its words}, and the last.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    try:
        asked = json.loads(sys.stdin.readline())
        splits = _load(asked)
        _tell(answers, splits={name: rows.column_names for name, rows in splits.items()})
        answers.flush()
        for line in sys.stdin:
            _read(splits, json.loads(line), answers)
            answers.flush()
    except BrokenPipeError:
        pass  # nobody listens any longer
    except Exception as error:
        _tell(answers, error=type(error).__name__, said=str(error))
        answers.flush()
    os._exit(0)  # without waiting for the libraries' threads


def _load(asked: dict[str, Any]) -> dict[str, Any]:
    from datasets import config, disable_progress_bars, load_dataset, logging

    logging.set_verbosity_error()
    disable_progress_bars()
    config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = asked["attempts"]
    config.STREAMING_READ_RETRY_INTERVAL = config.STREAMING_OPEN_RETRY_INTERVAL = asked["pause_s"]
    splits = load_dataset(asked["dataset"], asked["subset"], revision=asked["sha"], streaming=True)
    return {str(name): rows for name, rows in splits.items()}


def _read(splits: dict[str, Any], asked: dict[str, Any], answers: TextIO) -> None:
    rows = splits[asked["split"]]
    if asked["seed"] is not None:
        rows = rows.shuffle(seed=asked["seed"], buffer_size=asked["buffer"])
    flushed = time.monotonic()
    for row in rows:
        missing = [column for column in asked["columns"][:1] if column not in row]
        if missing:
            return _tell(answers, splits={asked["split"]: list(row)})
        _tell(answers, row=[_plain(row.get(column)) for column in asked["columns"]])
        if time.monotonic() - flushed > FLUSH_S:
            answers.flush()
            flushed = time.monotonic()
    return _tell(answers, end=True)


def _plain(value: Any) -> Any:
    """A value as JSON has it; of another kind its words, in a list, which is no text either."""
    return value if value is None or isinstance(value, str | int | float) else [str(value)]


def _tell(answers: TextIO, **answer: Any) -> None:
    answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
