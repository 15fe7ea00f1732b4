"""Generated text controls no terminal, checked with a terminal emulator."""

import io
import json
import random
import unicodedata

import pyte
import pytest
from checkpoint_examples import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from dtl.base.safe_text import escaped, in_one_line, visible
from dtl.generation.conversation import TokenDecoder
from dtl.terminal.streams import Screen

ESC, BEL, CSI, OSC, DCS, ST = "\x1b", "\x07", "\x9b", "\x9d", "\x90", "\x9c"
ATTACKS = [
    f"{ESC}]0;owned{BEL}",  # the window's title
    f"{ESC}]2;owned{ESC}\\",
    f"{OSC}2;owned{ST}",
    f"{ESC}]52;c;cm0gLXJm{BEL}",  # the clipboard
    f"{ESC}]8;;http://x{BEL}link{ESC}]8;;{BEL}",
    f"{ESC}[2J{ESC}[H",  # an empty screen
    f"{ESC}[?1049h",  # the alternate screen
    f"{ESC}[?25l",  # no cursor
    f"{ESC}[?5h{ESC}[?7l{ESC}[?1000h",  # colours inverted, no wrapping, the mouse
    f"{ESC}[31;7;8m",  # colours, hidden text
    f"{CSI}2J{CSI}1;1H",
    f"{DCS}q#0;2;0;0;0{ST}",
    f"{ESC}P$q q{ESC}\\",
    f"{ESC}c",  # reset
    f"{ESC}[5n{ESC}[c{ESC}[6n",  # what a terminal answers as if it were typed
    f"{ESC}[20t{ESC}[21t",
    f"{ESC}(0{ESC})0\x0e",  # another character set
    f"{ESC}#8{ESC}7{ESC}8{ESC}M{ESC}D",
    f"{ESC}[3;5r{ESC}[?6h",
    "You: yes\rno\x08\x08\x7f",
    "\x0b\x0c\x00\x05",
    "\u202ecod.exe\u202c\u2066\u2069\u200f\u061c",
]


def hostile_bytes(chance: random.Random) -> bytes:
    """Attacks, complete and truncated, between words and random bytes."""
    parts: list[bytes] = []
    for _ in range(chance.randint(1, 5)):
        kind = chance.randrange(4)
        if kind == 0:
            parts.append(chance.choice(ATTACKS).encode())
        elif kind == 1:
            whole = chance.choice(ATTACKS).encode()
            parts.append(whole[chance.randrange(len(whole)) :] + whole[: chance.randrange(len(whole))])
        elif kind == 2:
            parts.append(chance.randbytes(chance.randint(1, 12)))
        else:
            parts.append(chance.choice(["hello ", "naïve 🙂", "line\nline\t", "שלום", "日本"]).encode())
    return b"".join(parts)


def streamed(data: bytes) -> str:
    """The pieces of a model's text with one token per byte, as they are written to the terminal."""
    out, decoder = io.StringIO(), TokenDecoder(TOKENIZER)
    screen = Screen(out, io.StringIO(), labelled=False)
    for byte in data:
        screen.piece(decoder.feed(byte))
    screen.piece(decoder.flush())
    return out.getvalue()


TOKENIZER = tiny_tokenizer("byte")


@pytest.mark.fault("terminal")
def test_a_hostile_stream_only_writes_text():
    chance, fresh = random.Random(7), pyte.Screen(24, 6)
    for _ in range(5000):
        data = hostile_bytes(chance)
        sent = streamed(data)
        assert sent == visible(data.decode(errors="replace"))
        screen = pyte.Screen(24, 6)
        answers: list[str] = []
        screen.write_process_input = answers.append
        pyte.Stream(screen).feed(sent.replace("\n", "\r\n"))
        assert (screen.title, screen.icon_name, screen.mode) == ("", "", fresh.mode), data
        assert (screen.cursor.hidden, screen.cursor.attrs) == (False, fresh.cursor.attrs), data
        assert (screen.charset, screen.g0_charset, screen.g1_charset) == (0, fresh.g0_charset, fresh.g1_charset), data
        assert (screen.margins, screen.savepoints, answers) == (None, [], []), data
        cells = [cell for row in screen.buffer.values() for cell in row.values()]
        assert all(cell._replace(data=" ") == fresh.default_char for cell in cells), data
        shown = unicodedata.normalize("NFC", "".join(cell.data for cell in cells))
        assert set(shown) <= set(unicodedata.normalize("NFC", sent)) | {" "}, data


def test_the_emulator_would_notice():
    """The attacks change a terminal when nothing filters them."""
    for attack in ATTACKS[:1] + ATTACKS[5:6] + ATTACKS[7:8] + ATTACKS[9:10]:
        screen = pyte.Screen(24, 6)
        pyte.Stream(screen).feed("text" + attack + "x")
        plain = pyte.Screen(24, 6)
        pyte.Stream(plain).feed("text" + visible(attack) + "x")
        assert (screen.title, screen.mode, screen.display, screen.cursor.attrs) != (
            plain.title,
            plain.mode,
            plain.display,
            plain.cursor.attrs,
        )


@pytest.mark.fault("terminal")
@given(st.text())
def test_no_control_character_is_left(text):
    safe = visible(text)
    assert len(safe) == len(text)
    for before, after in zip(text, safe, strict=True):
        if unicodedata.category(before) == "Cc" and before not in "\n\t":
            assert unicodedata.category(after) == "So"
        assert unicodedata.category(after) not in ("Cc", "Cs") or after in "\n\t"
        assert unicodedata.bidirectional(after) not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    assert visible(safe) == safe
    safe.encode()


def test_every_control_character_is_seen():
    for code in [*range(0x20), *range(0x7F, 0xA0)]:
        if chr(code) not in "\n\t":
            assert visible(f"a{chr(code)}b")[1] in (chr(0x2400 + code) if code < 0x20 else "\u2421\ufffd")
    for mark in "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069":
        assert visible(mark) == "\ufffd"
    assert visible("naïve 日本 🙂 \u200d שלום\n\t") == "naïve 日本 🙂 \u200d שלום\n\t"


def test_a_name_stays_in_its_line():
    assert in_one_line("a\nb\tc\x1b[2J") == "a b c␛[2J"
    assert in_one_line("x" * 999, 40) == "x" * 37 + "..."


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_escaped_json_reads_back(text):
    line = escaped(json.dumps(text, ensure_ascii=False))
    assert json.loads(line) == text
    assert visible(line) == line
