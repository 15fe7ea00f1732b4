"""Streaming of the rows of a hub dataset: in constant memory, only as far as needed, with a limit on silence."""

import json
import queue
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtl.base.display import say
from dtl.base.network import without_password
from dtl.base.redaction import redact
from dtl.base.safe_text import in_one_line
from dtl.errors import DataError

CHILD = Path(__file__).with_name("child.py")
STALL_S = 120.0  # silence after which reading fails; a first row may need some megabytes of each of ten files
READ_AHEAD = 64  # rows buffered
# Attempts of the library at each read, each of several requests. Its default of 20 takes half an hour in a network
# that drops packets.
READ_ATTEMPTS = 3
PAUSE_S = 5.0  # between attempts
# Of what the libraries print: characters of a line, lines shown, and last ones in an error message.
MAX_PRINTED, LINES_SHOWN, LINES_IN_ERROR = 300, 20, 3


class HubStream:
    """A dataset at one commit: its splits with their columns, and their rows.

    Raises DataError when the dataset cannot be read, has no such subset, or nothing arrives for `STALL_S`.
    """

    def __init__(self, dataset: str, subset: str | None, sha: str, origin: str, settings: str) -> None:
        """`origin` and `settings` (the prefix of the setting `subset`) are for messages."""
        self._query = {"dataset": dataset, "subset": subset, "sha": sha, "attempts": READ_ATTEMPTS, "pause_s": PAUSE_S}
        self._origin = origin
        self._settings = settings
        self._child: _Child | None = None
        self.columns: dict[str, list[str] | None] = self._started().columns

    def _started(self) -> "_Child":
        child = _Child()
        weakref.finalize(self, child.end)
        child.ask(self._query)
        answer = child.answer()
        if "splits" not in answer:
            child.end()
            raise self._error(answer)
        child.columns = answer["splits"]
        self._child = child
        return child

    def rows(self, split: str, columns: Sequence[str], seed: int | None, buffer_size: int) -> Iterator[list[Any]]:
        """Yield the values of `columns` of each row, None where a row lacks one; in an order drawn by the seed.

        Closing the iterator ends the download. Raises DataError when the first of the columns is missing.
        """
        child = self._child
        if child is None or child.ended or child.busy:  # busy: an earlier split was not read to its end
            self.end()
            child = self._started()
        child.busy = True
        child.ask({"split": split, "columns": columns, "seed": seed, "buffer": buffer_size})
        try:
            while "row" in (answer := child.answer()):
                yield answer["row"]
            if "splits" in answer:
                raise self.no_column(columns[0], answer["splits"][split])
            if "end" not in answer:
                raise self._error(answer)
            child.busy = False
        finally:
            if child.busy:
                child.end()

    def end(self) -> None:
        """End the process once everything needed has been read."""
        if self._child is not None:
            self._child.end()

    def no_column(self, column: str, names: Sequence[str]) -> DataError:
        """Return the error for a column that is not among `names`."""
        return DataError(
            f"{self._origin}: has no column '{column}'. Its columns: {', '.join(names)}. "
            f"Name the one with the text: {self._settings}.column=NAME"
        )

    def _error(self, answer: dict[str, Any]) -> DataError:
        """Return a readable error for any error of the library, which passes on those of its network and parsers."""
        message = without_password(str(answer.get("message"))).strip()
        if answer.get("error") == "ValueError" and "onfig" in message and "[" in message and "]" in message:
            # The message lists the subsets: "BuilderConfig 'x' not found. Available: ['a', 'b']".
            subset = self._query["subset"]
            given = f"has no subset '{subset}'" if subset else "has several subsets"
            known = message[message.index("[") : message.index("]") + 1]
            return DataError(f"{self._origin}: {given}. Give one of {known}: {self._settings}.subset=NAME")
        message = message.replace("\n", " ")[:300] + str(answer.get("printed", ""))
        if "gated" in message.lower():
            return DataError(
                f"{self._origin}: is a gated dataset. Accept its conditions on its page of the hub, then "
                f"`hf auth login` ({message})."
            )
        return DataError(
            f"{self._origin}: reading from the hub failed ({answer.get('error')}: {message}). Nothing of it was kept. "
            "Try again."
        )


class _Child:
    """The process that reads, and a thread that receives its answers."""

    def __init__(self) -> None:
        self.columns: dict[str, list[str] | None] = {}
        self.ended = False
        self.busy = False
        # -P: the folder of the script must not shadow installed modules.
        command = [sys.executable, "-P", str(CHILD)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8", errors="replace"
        )
        self._printed: deque[str] = deque(maxlen=LINES_IN_ERROR)  # last lines of its standard error
        self._errors = threading.Thread(target=self._show_errors, name="hub-errors", daemon=True)
        self._errors.start()
        self._lines: queue.Queue[str] = queue.Queue(READ_AHEAD)
        threading.Thread(target=self._listen, name="hub-stream", daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._pass_on(line)
                if self.ended:
                    return
        self._pass_on("")

    def _show_errors(self) -> None:
        """Show what the libraries of the process print, as text that cannot control a terminal, without passwords."""
        assert self._process.stderr is not None
        n_shown = 0
        with self._process.stderr as stream:
            while line := stream.readline(MAX_PRINTED):
                text = in_one_line(redact(without_password(line)), MAX_PRINTED)
                if text:
                    self._printed.append(text)
                    n_shown += 1
                if text and n_shown <= LINES_SHOWN and not self.ended:
                    say(text)

    def _last_lines(self) -> dict[str, str]:
        """Return what was printed last, for an answer that is an error."""
        printed = [*self._printed]
        return {"printed": f"; it printed: {' | '.join(printed)}"} if printed else {}

    def _pass_on(self, line: str) -> None:
        while not self.ended:
            with suppress(queue.Full):
                return self._lines.put(line, timeout=0.2)  # returns now and then, to check `ended`

    def ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # the process is gone, which `answer` reports
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the next answer; an error when none arrives, or when the process is gone."""
        try:
            line = self._lines.get(timeout=STALL_S)
        except queue.Empty:
            return {"error": "Stalled", "message": f"nothing arrived for {STALL_S:.0f} seconds"} | self._last_lines()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.join(1.0)  # a process of its own may have kept the pipe open
        message = f"the process that downloads ended with exit code {code}"
        return {"error": "HubProcess", "message": message} | self._last_lines()

    def end(self) -> None:
        """Kill the process, at any time: it writes no file that could be left incomplete."""
        self.ended = True
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):  # unsent requests have no reader
                self._process.stdin.close()
