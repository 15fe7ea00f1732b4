"""Makes the README's pictures: runs the real commands in a terminal of its own and draws what its screen shows.

    python docs/pictures.py            # trains experiment=demo, then chats with it: two minutes on two cores
    python docs/pictures.py chat       # one of them: train | chat (with the newest run)

Needs a system with pseudo-terminals (Linux, macOS). Writes docs/train.svg and docs/chat.svg.
"""

import fcntl
import io
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
TRAIN = ["dtl.train", "experiment=demo"]
CHAT = ["dtl.chat", "ckpt=latest"]
TYPED = (
    "What is the capital of France?",
    "what city serves as france's capital",
    "/params creative",
    "What is the capital of France?",
    "What is the colour of my neighbour's dog?",
)
PATIENCE = 600.0  # seconds that a command may be silent


class Terminal:
    """A program in a pseudo-terminal of `columns` x `rows`, and what its screen shows."""

    def __init__(self, arguments: list[str], columns: int, rows: int) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:
            os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows)}
            os.execv(sys.executable, [sys.executable, "-m", *arguments])
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, line: str) -> None:
        """Type a line and press Enter."""
        os.write(self._descriptor, f"{line}\r".encode())

    def wait_for(self, pattern: str) -> None:
        """Read until the last line with text on it matches. Raises RuntimeError when the program ends before."""
        while not re.search(pattern, self._last_line()):
            if not self._read():
                raise RuntimeError(f"ended without {pattern!r}:\n" + "\n".join(self.screen.display))

    def wait_for_the_end(self) -> int:
        """Read until the program ends; its exit code."""
        while self._read():
            pass
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self) -> bool:
        """Whether there was more."""
        if not select.select([self._descriptor], [], [], PATIENCE)[0]:
            raise RuntimeError("silent for too long:\n" + "\n".join(self.screen.display))
        try:
            data = os.read(self._descriptor, 2**16)
        except OSError:  # how Linux says that the other side is closed
            return False
        self._stream.feed(data)
        for question in re.findall(rb"\x1b\[6n", data):  # where is the cursor? prompt_toolkit asks, a terminal answers
            del question
            os.write(self._descriptor, f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R".encode())
        return bool(data)

    def _last_line(self) -> str:
        return next((line for line in reversed(self.screen.display) if line.strip()), "")


def drawn(screen: pyte.Screen, command: str) -> str:
    """The screen as an SVG, from the command that was typed to the last line with text."""
    n_lines = max((y for y, line in enumerate(screen.display) if line.strip()), default=0) + 1
    console = Console(
        record=True, width=screen.columns, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
    for y in range(n_lines):
        console.print(_styled_line(screen, y), soft_wrap=True)
    return console.export_svg(title="DTL", unique_id=f"dtl-{command.split()[2].partition('.')[2]}")


def _styled_line(screen: pyte.Screen, y: int) -> Text:
    line = Text(end="")
    for x in range(screen.columns):
        character = screen.buffer[y][x]
        style = [name for name in ("bold", "italics", "reverse") if getattr(character, name)]
        line.append(character.data, " ".join([*style, _color(character.fg)]).replace("italics", "italic"))
    line.rstrip()
    return line


def _color(name: str) -> str:
    """pyte's name of a colour as rich's."""
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return {"brown": "yellow"}.get(name, name.replace("bright", "bright_"))


def take(name: str) -> None:
    """Run one of the commands and write its picture."""
    arguments = TRAIN if name == "train" else CHAT
    terminal = Terminal(arguments, columns=104, rows=40)
    if name == "chat":
        for line in TYPED:
            terminal.wait_for(r"^You: *$")
            terminal.type(line)
            time.sleep(0.2)  # the prompt must be gone before the next one is waited for
        terminal.wait_for(r"^You: *$")
        picture = drawn(terminal.screen, " ".join(["python -m", *arguments]))
        terminal.type("quit")
    code = terminal.wait_for_the_end()
    if code != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {code}:\n" + "\n".join(terminal.screen.display))
    if name == "train":
        picture = drawn(terminal.screen, " ".join(["python -m", *arguments]))
    (HERE / f"{name}.svg").write_text(picture, encoding="utf-8")
    print(HERE / f"{name}.svg")


if __name__ == "__main__":
    for asked in sys.argv[1:] or ["train", "chat"]:
        take(asked)
