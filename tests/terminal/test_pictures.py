"""The README's pictures: drawn from what a terminal shows, with all of its text and nothing to fetch."""

import importlib.util
import re
from html import unescape
from pathlib import Path
from types import ModuleType

import pytest
from pty_process import Screen
from pyte import Stream

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(svg: str) -> str:
    """Return the text of a picture, line by line."""
    pieces = re.findall(r'<text class="dtl[^>]*y="([\d.]+)"[^>]*>(.*?)</text>', svg)
    lines: dict[str, str] = {}
    for y, piece in pieces:
        lines[y] = lines.get(y, "") + unescape(piece).replace("\xa0", " ")
    return "\n".join(lines.values())


def test_a_screen_is_drawn_with_its_text_and_looks(pictures: ModuleType) -> None:
    screen = Screen(41, 7)
    Stream(screen).feed("\x1b[1mbold <&>\x1b[0m plain\r\n\x1b[2mdim\x1b[0m \x1b[31mred\x1b[38;5;2mgreen\x1b[0m  \r\n")
    svg = pictures.drawn(screen, "python -m dtl.some ckpt=latest")
    # Spaces between two looks are places, not text.
    assert texts(svg).splitlines() == ["DTL", "$ python -m dtl.some ckpt=latest", "bold <&> plain", "dimredgreen"]
    looks = set(re.findall(r"\{ fill: (#\w+)(;font-weight: bold)?", svg))
    assert len(looks) == 6  # the $, bold, plain, dim, red, green


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("train", ["$ python -m dtl.train experiment=demo", "DTL demo", "bits/byte", "Finished"]),
        ("chat", ["$ python -m dtl.chat ckpt=latest", "DTL demo, step", "You: What is the capital", "DTL: Paris"]),
    ],
)
def test_the_readme_shows_both(name: str, contents: list[str]) -> None:
    svg = (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")
    assert f"(docs/{name}.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(part in texts(svg) for part in contents)
    assert re.findall(r"https?://[^\s\"<]+", svg) == ["http://www.w3.org/2000/svg", "https://www.textualize.io"]
