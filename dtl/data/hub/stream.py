"""The rows of a hub's dataset, streamed: in flat memory, only as far as they are asked for, and never for ever."""

import json
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtl.base.network import without_password
from dtl.errors import DataError

CHILD = Path(__file__).with_name("child.py")
STALL_S = 120.0  # nothing at all for so long: given up. A first row may need some megabytes of each of ten files
READ_AHEAD = 64  # rows held ready
# Of each read, by the library, within each several requests. Its own 20 are half an hour where packets are swallowed.
READ_ATTEMPTS = 3
PAUSE_S = 5.0  # between them


class HubStream:
    """A dataset at one commit: its splits with their columns, and their rows.

    Raises DataError when the dataset cannot be read, has no such subset, or nothing arrives for `STALL_S`.
    """

    def __init__(self, dataset: str, subset: str | None, sha: str, origin: str, settings: str) -> None:
        """`origin` and `settings` (the setting that its subset stands under) are for messages."""
        self._asked = {"dataset": dataset, "subset": subset, "sha": sha, "attempts": READ_ATTEMPTS, "pause_s": PAUSE_S}
        self._origin = origin
        self._settings = settings
        self._child: _Child | None = None
        self.columns: dict[str, list[str] | None] = self._started().columns

    def _started(self) -> "_Child":
        child = _Child()
        weakref.finalize(self, child.end)
        child.ask(self._asked)
        answer = child.answer()
        if "splits" not in answer:
            child.end()
            raise self._error(answer)
        child.columns = answer["splits"]
        self._child = child
        return child

    def rows(self, split: str, columns: Sequence[str], seed: int | None, buffer_size: int) -> Iterator[list[Any]]:
        """The values of `columns` of each row, None where a row lacks one; in an order that the seed draws.

        Whoever stops asking ends the download. Raises DataError when the first of the columns is missing.
        """
        child = self._child
        if child is None or child.over or child.busy:  # busy: an earlier split was not read to its end
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
        """Everything wanted has been read."""
        if self._child is not None:
            self._child.end()

    def no_column(self, column: str, found: Sequence[str]) -> DataError:
        """What is said when the column is not among those that were found."""
        return DataError(
            f"{self._origin}: has no column '{column}'. Its columns: {', '.join(found)}. "
            f"Say which holds the text: {self._settings}.column=NAME"
        )

    def _error(self, answer: dict[str, Any]) -> DataError:
        """What a person is told of an error of the library: it raises whatever its network and parsers raise."""
        said = without_password(str(answer.get("said"))).strip()
        if answer.get("error") == "ValueError" and "onfig" in said and "[" in said and "]" in said:
            # Its words hold the subsets: "BuilderConfig 'x' not found. Available: ['a', 'b']".
            subset = self._asked["subset"]
            given = f"has no subset '{subset}'" if subset else "has several subsets"
            known = said[said.index("[") : said.index("]") + 1]
            return DataError(f"{self._origin}: {given}. Give one of {known}: {self._settings}.subset=NAME")
        said = said.replace("\n", " ")[:300]
        if "gated" in said.lower():
            return DataError(
                f"{self._origin}: is a gated dataset. Accept its conditions on its page of the hub, then "
                f"`hf auth login` ({said})."
            )
        return DataError(
            f"{self._origin}: reading from the hub failed ({answer.get('error')}: {said}). Nothing of it was kept. "
            "Try again."
        )


class _Child:
    """The process that reads, and a thread that waits for what it says."""

    def __init__(self) -> None:
        self.columns: dict[str, list[str] | None] = {}
        self.over = False
        self.busy = False
        # -P: the folder of the script must not hide other people's modules.
        command = [sys.executable, "-P", str(CHILD)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._lines: queue.Queue[str] = queue.Queue(READ_AHEAD)
        threading.Thread(target=self._listen, name="hub-stream", daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._pass_on(line)
                if self.over:
                    return
        self._pass_on("")

    def _pass_on(self, line: str) -> None:
        while not self.over:
            with suppress(queue.Full):
                return self._lines.put(line, timeout=0.2)

    def ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it is gone, which the answer says
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next line; an error where none comes, or where the process is gone."""
        try:
            line = self._lines.get(timeout=STALL_S)
        except queue.Empty:
            return {"error": "Stalled", "said": f"nothing arrived for {STALL_S:.0f} seconds"}
        if line:
            return json.loads(line)
        code = self._process.wait()
        return {"error": "HubProcess", "said": f"the process that downloads ended with exit code {code}"}

    def end(self) -> None:
        """Kill it, whatever it does: it writes nothing that could be left half done."""
        self.over = True
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):  # what was to be sent has no reader
                self._process.stdin.close()
