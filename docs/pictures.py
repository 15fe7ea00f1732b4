"""Makes the README's pictures: runs the real commands in a pseudo-terminal and draws its screen as SVG.

    python docs/pictures.py            # trains experiment=demo, then chats with it: two minutes on two cores
    python docs/pictures.py chat       # one of them: train | chat (with the newest run)

Needs a system with pseudo-terminals (Linux, macOS). Writes docs/train.svg and docs/chat.svg.
"""

import io
import re
import sys
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "terminal"))

from pty_process import PtyProcess  # noqa: E402 - the tests' terminal, too

TRAIN = ["dtl.train", "experiment=demo"]
CHAT = ["dtl.chat", "ckpt=latest"]
TYPED = (
    "What is the capital of France?",
    "what city serves as france's capital",
    "/params creative",
    "What is the capital of France?",
    "What is the colour of my neighbour's dog?",
)
PATIENCE = 900.0  # seconds that a picture may take at most
PROMPT = re.compile(r"You: *\Z")


def drawn(screen: pyte.Screen, command: str) -> str:
    """Return the screen as an SVG, from the typed command to the last line with text."""
    n_lines = max((y for y, line in enumerate(screen.display) if line.strip()), default=0) + 1
    console = Console(
        record=True, width=screen.columns, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
    for y in range(n_lines):
        console.print(_styled_line(screen, y), soft_wrap=True)
    console.print()  # an empty line: without it the descenders of the last line are cut off
    svg = console.export_svg(title="DTL", unique_id=f"dtl-{command.split()[2].partition('.')[2]}")
    # No web fonts: a page does not fetch them for a picture, and any fixed-width font will do.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def _styled_line(screen: pyte.Screen, y: int) -> Text:
    characters = [screen.buffer[y][x] for x in range(screen.columns)]
    runs = groupby(characters, key=_style)
    line = Text.assemble(*(("".join(character.data for character in run), style) for style, run in runs), end="")
    line.rstrip()
    return line


def _style(character: Char) -> str:
    """Return the style of pyte's character in rich's notation."""
    names = {"bold": "bold", "italics": "italic", "reverse": "reverse"}
    return " ".join([*(word for name, word in names.items() if getattr(character, name)), _color(character.fg)])


def _color(name: str) -> str:
    """Return rich's name of pyte's colour."""
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return {"brown": "yellow"}.get(name, name.replace("bright", "bright_"))


def take(name: str) -> None:
    """Run one of the commands and write its picture. Raises AssertionError if its exit code is not 0."""
    arguments = TRAIN if name == "train" else CHAT
    colours = {"TERM": "xterm-256color"}
    with PtyProcess(arguments, Path.cwd(), colours, columns=104, rows=72, patience=PATIENCE) as terminal:
        if name == "chat":
            for line in TYPED:
                wait_for_prompt(terminal)
                before = shown(terminal).count(line)
                terminal.send(f"{line}\r")
                terminal.wait_for(lambda _, line=line, before=before: shown(terminal).count(line) > before)
            wait_for_prompt(terminal)
            picture = drawn(terminal.screen, " ".join(["python -m", *arguments]))
            terminal.send("quit\r")
        code = terminal.wait()
        assert code == 0, f"{' '.join(arguments)} ended with {code}:\n" + "\n".join(terminal.lines)
        if name == "train":
            picture = drawn(terminal.screen, " ".join(["python -m", *arguments]))
    file = ROOT / "docs" / f"{name}.svg"
    file.write_text(picture, encoding="utf-8")
    print(file)


def wait_for_prompt(terminal: PtyProcess) -> None:
    """Wait until the last line with text is an empty prompt."""
    terminal.wait_for(lambda _: bool(PROMPT.search(shown(terminal))))


def shown(terminal: PtyProcess) -> str:
    """Return the text of the screen."""
    return "\n".join(terminal.lines).rstrip("\n")


if __name__ == "__main__":
    for name in sys.argv[1:] or ["train", "chat"]:
        take(name)
