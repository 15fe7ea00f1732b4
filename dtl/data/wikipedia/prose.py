"""The last steps from wikitext to prose: lines to headings, lists and paragraphs; removal of traces of cuts."""

# ruff: noqa: RUF001  (dashes, primes and letters of other scripts are what this file is about)
import html
import re

from dtl.data.wikipedia.names import APPENDICES

CUT = "\x01"  # marks a cut; XML cannot contain it, so no page does
HARD_BREAK = "\u2028"  # a line end that stays one: <br>, <poem>
_HEADING = re.compile(r"(={1,6})\s*(.+?)\s*\1\s*$")
_ITEM = re.compile(r"[*#:;]+")
_MARKERS = ("*", "#", ":", ";")
# Each pattern that removes traces of cuts is tried only where a line may contain one, since most contain none. These
# tests are searches for strings, or for patterns that begin with one character: re finds those 10 to 50 times as fast.
_OTHER_SPACES = re.compile(r"[\t\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\x00-\x08\x0b-\x1f\x7f-\x9f]")
_IN_BRACKETS = r"[\s,;:.·/|–—-]"
_EMPTY = re.compile(rf"[ ]?(?:\({_IN_BRACKETS}*\)|（[\s、，；：]*）|\[{_IN_BRACKETS}*\])")
_OPENING = re.compile(r"([(（])(?: ?(?:[、，；]|[,;:](?=[\s)]|$))){1,6} ?|([(（]) (?=\S)")
_CLOSING = re.compile(r"(?: ?[,;:、，；]){1,6} ?([)）])| (\))")
_HOLLOW_ROUND = re.compile(r"\([\s,;:.·/|–—)、，；-]")
_HOLLOW_SQUARE = re.compile(r"\[[\s,;:.·/|–—\]-]")
_HOLLOW_END = re.compile(r"\)(?<=[ ,;:、，；]\))")
_DOUBLED = re.compile(r"([,;、，])(?: ?[,;、，])+")
_AFTER_COMMA = re.compile(r",(?: ?[,;、，]|\s*\.)")
_AFTER_SEMICOLON = re.compile(r";(?: ?[,;、，]|\s*\.)")
_NESTED = 6  # depth of brackets that is cleaned
_BEFORE_END = re.compile(r"\s*[,;]\s*(?=\.(?:\s|$))")
_SPACE_BEFORE = re.compile(r" +(?=[,.、。，](?:\s|$)|[、。，])")
_WIDE = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")
_WIDE_SIGNS = re.compile("[、。，；）（]")
_AMOUNT_CUT = re.compile(rf" ?\([^()]*[$€£¥]{CUT}[^()]*\)")  # `$5 ({{inflation|...}} in 2020)`
_CURRENCY_CUT = re.compile(f"{CUT}(?<=[$€£¥]{CUT})")
_NAME_CUT = re.compile(rf"{CUT}+\s*\([^()]*\)\s*$")  # an item of a list that was `{{DEN}} (EU)`
_UNITS = re.compile(r"(?<=[ \u00a0])((?:k|c|m|d)?m|mi|ft|yd|in)([23])(?=[\s,.;:)]|$)")
_UNITS_2 = re.compile(r"2(?<=[mtdin]2)")
_UNITS_3 = re.compile(r"3(?<=[mtdin]3)")
_ORPHAN = re.compile(r"\s*[,;.、，。]\s+(?=\S)")


def lines_to_prose(text: str) -> str:
    """Convert text without tags, links and templates to prose; empty sections are dropped with their headings."""
    sections: list[tuple[int, str, list[str]]] = [(0, "", [])]
    for line in text.split("\n"):
        if line.startswith("=") and (heading := _HEADING.match(line)):
            sections.append((len(heading[1]), clean_line(heading[2].replace(HARD_BREAK, " ")), []))
        else:
            sections[-1][2].append(line)
    written: list[str] = []
    for title, body in _worth_reading([(level, title, _body(lines)) for level, title, lines in sections]):
        written += [part for part in (title, body) if part]
    return "\n\n".join(written)


def _worth_reading(sections: list[tuple[int, str, str]]) -> list[tuple[str, str]]:
    """Return the sections with text of their own or in a subsection, without references and lists of links."""
    without_appendices = []
    inside: int | None = None
    for level, title, body in sections:
        if inside is not None and level > inside:
            continue
        inside = level if title.lower().rstrip(":") in APPENDICES else None
        if inside is None:
            without_appendices.append((level, title, body))
    kept: list[tuple[str, str]] = []
    following = 0  # level of the last section kept, seen from the end
    for level, title, body in reversed(without_appendices):
        if body or following > level:
            kept.append((title, body))
            following = level
    return kept[::-1]


def _body(lines: list[str]) -> str:
    """Join the lines of one section to paragraphs as MediaWiki does, with items of lists on separate lines."""
    parts: list[str] = []  # paragraphs, and lists whose items are lines
    paragraph: list[str] = []
    items: list[str] = []
    counters: list[int] = []

    def finish() -> None:
        if paragraph:
            parts.append(_joined(paragraph))
            paragraph.clear()
        if items:
            parts.append("\n".join(items))
            items.clear()

    for line in lines:
        marker = _ITEM.match(line) if line.startswith(_MARKERS) else None
        if marker is None:
            counters.clear()
            words = _hard_lines(line.lstrip(" \t"), "\n")
            if items or not words:
                finish()
            if words:
                paragraph.append(words)
            continue
        if paragraph:
            finish()
        words = _hard_lines(line[marker.end() :], " ")
        if words:
            items.append(_item(marker[0], words, counters))
    finish()
    return "\n\n".join(parts)


def _item(marker: str, words: str, counters: list[int]) -> str:
    """Return `* a` as `- a`, `# a` as `1. a`, deeper ones indented; indented text and terms without a sign."""
    depth = len(marker)
    del counters[depth:]
    counters.extend([0] * (depth - len(counters)))
    indent = "  " * sum(sign in "*#" for sign in marker[:-1])
    if marker[-1] == "#":
        counters[-1] += 1
        return f"{indent}{counters[-1]}. {words}"
    return f"{indent}- {words}" if marker[-1] == "*" else f"{indent}{words}"


def _hard_lines(line: str, separator: str) -> str:
    if HARD_BREAK not in line:
        return clean_line(line)
    cleaned = (clean_line(part) for part in line.split(HARD_BREAK))
    return separator.join(part for part in cleaned if part)


def _joined(lines: list[str]) -> str:
    text = lines[0]
    for line in lines[1:]:
        close = _WIDE.match(text[-1]) and _WIDE.match(line[0])
        text += line if close else f" {line}"
    return text


def clean_line(line: str) -> str:
    """Return a line with entities decoded and without traces of cuts; empty when no letter or digit is left."""
    if not line or line.isspace():
        return ""
    if "&" in line:
        line = html.unescape(line)
    if CUT in line:
        if _CURRENCY_CUT.search(line):
            line = _AMOUNT_CUT.sub("", line)
        if _NAME_CUT.match(line.lstrip()):
            return ""
        line = line.replace(CUT, "")
    line = line.replace("\u00a0", " ")
    if not line.isprintable():  # every other space and every invisible character is not
        line = _OTHER_SPACES.sub(" ", _INVISIBLE.sub("", line))
    spaced = line = _with_single_spaces(line)
    has_wide_signs = not line.isascii() and _WIDE_SIGNS.search(line) is not None
    has_traces = has_wide_signs or _AFTER_COMMA.search(line) or (";" in line and _AFTER_SEMICOLON.search(line))
    if has_traces:
        line = _DOUBLED.sub(r"\1", line)
    if "(" in line or "[" in line or "（" in line:
        filled = _without_hollow_brackets(line, has_wide_signs)
        has_traces = has_traces or filled != line
        line = filled
    if has_wide_signs or " ," in line or " ." in line:
        line = _SPACE_BEFORE.sub("", line)
    if has_traces:
        line = _BEFORE_END.sub("", line)
    if _UNITS_2.search(line) or _UNITS_3.search(line):
        line = _UNITS.sub(lambda match: match[1] + "²³"[int(match[2]) - 2], line)
    if line is not spaced:
        line = _with_single_spaces(line)
    if orphan := _ORPHAN.match(line):
        line = line[orphan.end() :]
    line = line.strip()
    return line if any(map(str.isalnum, line)) else ""


def _with_single_spaces(line: str) -> str:
    while "  " in line:
        line = line.replace("  ", " ")
    return line


def _without_hollow_brackets(line: str, has_wide_signs: bool) -> str:
    """Remove empty brackets, and the separators and spaces inside brackets next to what was cut."""
    for _ in range(_NESTED):
        may_be = has_wide_signs or _HOLLOW_ROUND.search(line) or _HOLLOW_END.search(line)
        if not may_be and not ("[" in line and _HOLLOW_SQUARE.search(line)):
            break
        before = line
        line = _EMPTY.sub("", _CLOSING.sub(_bracket, _OPENING.sub(_bracket, line)))
        if line == before:
            break
    return line


def _bracket(match: re.Match[str]) -> str:
    return match[1] or match[2]
