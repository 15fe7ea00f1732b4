"""Conversion of wikitext to plain prose: the sentences of an article, without layout.

Templates, tables, files, references and tags are cut by scans in linear time; mwparserfromhell then parses the rest,
a few links per paragraph, which is several times faster than parsing the whole page, and limits its worst cases to
one paragraph.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from dtl.data.wikipedia.names import FILES_AND_CATEGORIES
from dtl.data.wikipedia.prose import CUT, HARD_BREAK, lines_to_prose
from dtl.data.wikipedia.templates import raised, template_text, tex_to_text

# Patterns that a whole page is searched for begin with one character or with a string, which re finds 10 to 50 times as
# fast as the beginning of anything else; what comes before that character is found from there, backwards.
_COMMENT_OR_LITERAL = re.compile(r"<(?:!--.*?(?:-->|\Z)|nowiki\s*/>|nowiki>(.*?)</nowiki>)", re.S | re.I)
_REST_OF_LINE = re.compile(r"[ \t]*\n")
_MARKUP = re.compile(r"[\[\]{}|'<>*#:;=_~]")
_GONE = (
    "ref|references|gallery|timeline|score|imagemap|syntaxhighlight|source|templatedata|templatestyles|graph|mapframe"
    "|maplink|hiero|inputbox|indicator|includeonly|categorytree|pre|del|s|strike|style|script|table|rt|rp|section"
)
_GONE_TAG = re.compile(rf"<(/?)({_GONE})\b([^<>]*)>", re.I)
_UNCLOSED_REFERENCE = re.compile(r"<ref\b[^<>\n]*>[^\n]*", re.I)
_MATH = re.compile(r"<(math|chem|ce)\b[^<>]*>([^<]*(?:<(?!/?(?:math|chem|ce)\b)[^<]*)*)</\1\s*>", re.I)
_POEM = re.compile(r"<poem\b[^<>]*>([^<]*(?:<(?!/?poem\b)[^<]*)*)</poem\s*>", re.I)
_BREAK = re.compile(r"<\s*/?\s*br\b[^<>]*>[ \t]*\n?", re.I)
_BLOCK = re.compile(r"</?(?:p|div|center|blockquote|ul|ol|dl|hr)\b[^<>]*>", re.I)
_ITEM = re.compile(r"<(?:li|dd|dt)\b[^<>]*>", re.I)
_HEADING_TAG = re.compile(r"<h([1-6])\b[^<>]*>([^<\n]*(?:<(?!/?h[1-6])[^<\n]*)*)</h\1\s*>", re.I)
_RAISED = re.compile(r"<sup\b[^<>]*>([^<>]*)</sup\s*>", re.I)
_INLINE_TAG = re.compile(
    r"</?(?:b|i|u|em|strong|small|big|span|font|cite|code|kbd|samp|tt|var|sub|sup|abbr|dfn|q|ins|nobr|poem|noinclude"
    r"|onlyinclude|li|dd|dt|ruby|rb|rbc|rtc|bdi|bdo|data|time|wbr|mark|h[1-6]|ref|references|gallery|math|nowiki|table"
    r"|tr|td|th|tbody|thead|caption|pre|s|del|strike|center|blockquote|includeonly|section)\b[^<>]*>",
    re.I,
)
_SCAN = re.compile(r"\{\{|\}\}|\{\||\|\}(?!\}(?!\}))")
_ENDS_TABLE = re.compile(r"\s*(?:[^|{}]*[ _-])?(?:end|bottom|foot|footer|fin|ende|fim|slut|koniec|конец)\s*", re.I)
_ROW = re.compile(r"[ \t:]*\|(?=.)")
_LATER_ROW = re.compile(r"\n[ \t:]*\|(?=.)")
_VARIANTS = re.compile(r"-\{([^{}]*)\}-")
_CODE = re.compile(r"[a-z]{2,3}(?:-[a-z]{2,8})?")
_SPELLINGS = re.compile(r";\s*(?=[a-z]{2,3}(?:-[a-z]{2,8})?\s*:|$)")
_PREFERRED = ("zh-hans", "zh-cn", "zh", "zh-sg", "zh-my", "sr-ec", "sr-cyrl")
_PARAMETER = re.compile(r"\{\{\{[^{}]*\}\}\}")
_BRACKETS = re.compile(r"\[\[|\]\]")
_SWITCH = re.compile(r"__([^\W\d_]+(?:_[^\W\d_]+)*)__")
_INTERLANGUAGE = re.compile(
    r"\[\[\s*(?:[a-z]{2,3}|[a-z]{2,3}-[a-z]{2,}(?:-[a-z]+)*|simple)\s*:[^\[\]\n]*\]\][ \t]*(?:\n(?=\[\[))?"
)
_ENDINGS = "jpe?g|png|svg|gif|tiff?|webp|xcf|og[gvax]|oga|opus|webm|mp[34]|wav|flac|mid|pdf|djvu|stl"
_QUOTES = re.compile(r"''+")
_PLAIN_LINK = re.compile(r"\[\[([^\[\]{}|\n<>#:&]+)(?:\|([^\[\]{}|\n<>]*))?\]\]")
# Without brackets inside: a link, an address with words, and words in brackets, as in "[he] said".
_FLAT = re.compile(
    r"\[(?:\[([^\[\]{}|\n<>]+)(?:\|([^\[\]{}|\n<>]*))?\]\]"
    r"|(https?://[^\s\[\]{}|<>\"'\\^`]+)(?: ([^\s\[\]{}|<>][^\[\]{}|\n<>]*))?\]|[^\[\]{}\s:/]*(?:\s[^\[\]{}]*)?\])"
)
_SCHEMES = {"bitcoin", "geo", "magnet", "mailto", "news", "sip", "sips", "sms", "tel", "urn", "xmpp"}  # without slashes
_UNREAD = re.compile(r"[\[\]{]")
LONGEST_PIECE = 4000  # characters that mwparserfromhell reads at a time
_PIECES = re.compile(rf"(?s).{{1,{LONGEST_PIECE}}}(?:\n|\Z)|.{{1,{LONGEST_PIECE}}}(?:[ \n]|\Z)|.{{{LONGEST_PIECE}}}")
_NEVER_CLOSED = re.compile(r"\[\[+|\]\]+|\{\{+|\}\}+|\[(?:https?:)?//\S+ ?")
_UNKNOWN_TAG = re.compile(r"</?[A-Za-z][\w:-]*(?:\s[^<>\n]*)?/?>")
_PARAGRAPHS = re.compile(r"\n(?:[ \t]*\n)+")


def to_prose(wikitext: str, names: Iterable[str] = (), language: str = "") -> str:
    """Return the prose of a page: paragraphs and headings separated by empty lines, items of lists on their own lines.

    `names` are the wiki's own namespaces for files and categories, in addition to those of
    `dtl.data.wikipedia.names`; `language` is its code, such as `fr` (see `template_text`). Raises ParserError or
    RecursionError where mwparserfromhell fails.
    """
    text = wikitext.replace("\r\n", "\n").replace(CUT, "")
    text = _without_comments(text)
    text = _without_tags_that_hide(text)
    text = _PARAMETER.sub("", text) if "{{{" in text else text
    text = _without_templates_and_tables(text, language)
    text = _without_variants(_without_rows(text))
    text = _without_files(text, frozenset(names))
    if "__" in text:
        text = _SWITCH.sub(lambda match: "" if match[1].upper() == match[1] else match[0], text)
    text = _without_tags(text)
    text = "\n".join(_without_quotes(line) if "''" in line else line for line in text.split("\n"))
    text = _PLAIN_LINK.sub(_plain_link, text)
    return lines_to_prose("\n\n".join(_read(block) for block in _PARAGRAPHS.split(text)))


def _without_comments(text: str) -> str:
    """Cut comments, with the lines that hold nothing else; the text of <nowiki> stays, with markup as entities until
    the last step."""
    kept = []
    position = 0
    while match := _COMMENT_OR_LITERAL.search(text, position):
        start, end = match.span()
        if text.startswith("<!--", start) and (rest := _REST_OF_LINE.match(text, end)) and text.endswith("-->", 0, end):
            before = _start_of_line(text, start, position, " \t")
            start, end = (before, rest.end()) if before > 0 else (start, end)
        kept.append(text[position:start])
        kept.append(_MARKUP.sub(_as_entity, match[1] or ""))
        position = end
    return "".join(kept) + text[position:]


def _start_of_line(text: str, end: int, limit: int, signs: str) -> int:
    """Return the beginning of the line that has only `signs` up to `end`; -1 where there is none after `limit`."""
    start = end
    while start > limit and text[start - 1] in signs:
        start -= 1
    return start if start == 0 or text[start - 1] == "\n" else -1


def _as_entity(sign: re.Match[str]) -> str:
    return f"&#{ord(sign[0])};"


def _without_tags_that_hide(text: str) -> str:
    """Cut references, galleries, code and other tags without prose, with their contents; formulas become text."""
    if "<" not in text:
        return text
    text = _UNCLOSED_REFERENCE.sub("", _without_pairs(text))
    return _MATH.sub(lambda match: _MARKUP.sub(_as_entity, tex_to_text(match[2])) or CUT, text)


def _without_pairs(text: str) -> str:
    """Cut each tag of `_GONE` up to the next closing tag of its name; one that is never closed stays."""
    tags = list(_GONE_TAG.finditer(text))
    ends = [0] * len(tags)  # end of the element that each tag opens
    nearest: dict[str, int] = {}
    for number in range(len(tags) - 1, -1, -1):
        closing, name, rest = tags[number].groups()
        if closing:
            nearest[name.lower()] = tags[number].end()
        elif rest.endswith("/"):
            ends[number] = tags[number].end()
        else:
            ends[number] = nearest.get(name.lower(), 0)
    kept = []
    position = 0
    for tag, end in zip(tags, ends, strict=True):
        if tag.start() >= position and end:
            kept.append(text[position : tag.start()])
            position = end
    return "".join(kept) + text[position:]


def _without_templates_and_tables(text: str, language: str) -> str:
    """Cut `{{...}}` and `{|...|}`, at any nesting; keep the few templates that are words of a sentence.

    A table may end with a template such as `{{s-end}}`. An unclosed template removes the rest of its paragraph, an
    unclosed table the rest of its section, not the page.
    """
    frames: list[tuple[str, list[str]]] = [("", [])]
    templates = position = 0  # `templates`: frames that are templates
    searched = 0
    while match := _SCAN.search(text, searched):
        sign, start = match[0], match.start()
        searched = start + 1
        if "|" in sign:  # the beginning or the end of a table, at the beginning of a line
            start = _start_of_line(text, start, position, " \t:*#" if sign == "{|" else " \t")
            if start < 0:
                continue
        frames[-1][1].append(text[position:start])
        position = searched = match.end()
        if sign == "{{" or sign == "{|":
            frames.append((sign, []))
            templates += sign == "{{"
        elif sign == "}}" and templates:
            templates -= 1
            while frames[-1][0] != "{{":
                frames.pop()
            content = "".join(frames.pop()[1])
            if frames[-1][0] == "{|" and _ENDS_TABLE.fullmatch(content):
                frames.pop()
            frames[-1][1].append(template_text(content, language) or CUT)
        elif sign != "}}" and frames[-1][0] == "{|":
            frames.pop()
        elif frames[-1][0] == "{{":  # the end of a table that the template began
            frames[-1][1].append(text[start:position])
    frames[-1][1].append(text[position:])
    kept = "".join(frames[0][1])
    for kind, parts in frames[1:]:
        rest = "".join(parts)
        end = re.search(r"\n[ \t]*\n|\n==" if kind == "{{" else r"\n==", rest)
        kept += rest[end.start() :] if end else ""
    return kept


def _without_rows(text: str) -> str:
    """Cut the rows of tables that a template opened: lines that begin with `|`, and what belongs to their cells.

    Lines that begin with `!` are headers where such a line follows.
    """
    if not (_ROW.match(text) or _LATER_ROW.search(text)):
        return text
    lines = text.split("\n")
    is_row = [False] * (len(lines) + 1)
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number]
        is_row[number] = bool(_ROW.match(line)) or (is_row[number + 1] and line.lstrip(" \t:").startswith("!"))
    kept: list[str] = []
    number = 0
    while number < len(lines):
        if not is_row[number]:
            kept.append(lines[number])
            number += 1
            continue
        # Up to an empty line or a heading. The template that closes the table, where there is one, ends it earlier;
        # lines between rows are text of a cell then.
        end = next((n for n in range(number, len(lines)) if not lines[n].strip() or lines[n].startswith("=")), None)
        block = lines[number:end]
        closing = next((n for n, line in enumerate(block) if line.lstrip(":").startswith(CUT)), None)
        if closing is not None:
            kept.append(block[closing])
            number += closing + 1
        else:
            kept += [line for line in block if not line.lstrip(" \t:").startswith(("|", "!"))]
            number += len(block)
    return "\n".join(kept)


def _without_variants(text: str) -> str:
    """Return the text with one of the spellings in `-{zh-hans:计算机; zh-hant:電腦}-`, which readers choose from."""
    return _VARIANTS.sub(lambda match: _one_variant(match[1]), text) if "-{" in text else text


def _one_variant(content: str) -> str:
    flags, bar, spellings = content.rpartition("|")
    if bar and {flag.strip() for flag in flags.split(";")} & set("HTD-"):
        return ""  # rules for the rest of the page
    by_code: dict[str, str] = {}
    for spelling in filter(str.strip, _SPELLINGS.split(spellings)):
        code, colon, words = spelling.partition(":")
        if not colon or not _CODE.fullmatch(code.strip()):
            return spellings.strip()  # the same in all of them
        by_code.setdefault(code.strip(), words.strip().rstrip(";"))
    return next((by_code[code] for code in _PREFERRED if code in by_code), next(iter(by_code.values()), ""))


@lru_cache(maxsize=8)
def _file_patterns(names: frozenset[str]) -> re.Pattern[str]:
    own = "".join(f"|{re.escape(name)}" for name in sorted(names))
    return re.compile(  # first the colon: most links have none, and the names are some two hundred
        r"\[\[(?=[^:|\[\]]*:)"
        rf"(?:\s*(?:{FILES_AND_CATEGORIES}{own})\s*:"
        rf"|[^\[\]|\n:]{{1,40}}:[^\[\]|\n]{{1,255}}\.(?:{_ENDINGS})\s*(?=[|\]]))",
        re.IGNORECASE,
    )


def _without_files(text: str, names: frozenset[str]) -> str:
    """Cut files with their captions, categories, and links to the page in other languages."""
    kept = []
    position = 0
    opening = _file_patterns(names)
    while match := opening.search(text, position):
        kept.append(text[position : match.start()])
        position = _end_of_link(text, match.end())
    kept.append(text[position:])
    return _INTERLANGUAGE.sub("", "".join(kept))


def _end_of_link(text: str, start: int) -> int:
    """Return the end of the link that is open at `start`; the end of its line if it is never closed."""
    depth = 1
    for match in _BRACKETS.finditer(text, start):
        depth += 1 if match[0] == "[[" else -1
        if depth == 0:
            return match.end()
    line_end = text.find("\n", start)
    return len(text) if line_end < 0 else line_end


def _without_tags(text: str) -> str:
    if "<" not in text:
        return text
    text = _POEM.sub(lambda match: match[1].strip().replace("\n", HARD_BREAK), text)
    text = _with_hard_breaks(text)
    text = _HEADING_TAG.sub(lambda match: f"\n{'=' * int(match[1])}{match[2].strip()}{'=' * int(match[1])}\n", text)
    text = _RAISED.sub(lambda match: raised(match[1], _word_before(match.string, match.start())), text)
    first, *items = _ITEM.split(text)
    if items:
        text = "\n* ".join([first.rstrip(), *map(str.strip, items[:-1]), items[-1].lstrip()])
    text = _INLINE_TAG.sub("", _BLOCK.sub("\n\n", text))
    return _UNKNOWN_TAG.sub("", text).replace("<", "&lt;")  # any other < means "less than"


def _with_hard_breaks(text: str) -> str:
    *lines, last = _BREAK.split(text)
    return HARD_BREAK.join([*map(str.rstrip, lines), last])


def _word_before(text: str, end: int) -> str:
    start = end
    while start and (text[start - 1].isalnum() or text[start - 1] == "_"):
        start -= 1
    return text[start:end]


def _without_quotes(line: str) -> str:
    """Remove bold and italics, keeping the apostrophe in `l'''été''` by the rule of MediaWiki's doQuotes."""
    if "'''" not in line:
        return line.replace("''", "")
    lengths = [min(len(match[0]), 5) for match in _QUOTES.finditer(line)]
    bold = sum(length in (3, 4, 5) for length in lengths)
    italic = sum(length in (2, 5) for length in lengths)
    if bold % 2 and italic % 2:
        line = re.sub(r"(?<=\b\w)'''(?!')", "'", line, count=1)

    def apostrophes(match: re.Match[str]) -> str:
        length = len(match[0])
        return "'" * (1 if length == 4 else max(length - 5, 0))

    return _QUOTES.sub(apostrophes, line)


def _plain_link(match: re.Match[str]) -> str:
    """Return the result of `_wikilink` for a link without markup inside: nine of ten links, at a tenth of the time."""
    label = match[2]
    if label is None:
        return match[1].strip().replace("_", " ")
    return label if label.strip() else match[0]


def _read(block: str) -> str:
    """Return a paragraph without links and other remaining markup.

    It is parsed in pieces: mwparserfromhell's time grows with the square of the unclosed markup.
    """
    if "[" not in block and "{{" not in block:
        return block
    pieces = [block] if len(block) <= LONGEST_PIECE else _PIECES.findall(block)
    return _NEVER_CLOSED.sub("", "".join(map(_without_links, pieces)))


def _without_links(piece: str) -> str:
    if not _UNREAD.search(_FLAT.sub(_without_flat, piece)):
        return _FLAT.sub(_flat, piece)
    from mwparserfromhell.parser import Parser  # imported here: it takes a fifth of a second, and only dumps need it

    return _text_of(Parser().parse(piece, skip_style_tags=True))


def _text_of(code: Any) -> str:
    return "".join(_TEXTS.get(type(node).__name__, str)(node) for node in code.nodes)


def _without_flat(match: re.Match[str]) -> str:
    """Return nothing for what `_flat` reads as mwparserfromhell does; the rest unchanged."""
    title = match[1]
    is_address = title is not None and ("//" in title or title.partition(":")[0].strip().lower() in _SCHEMES)
    return match[0] if is_address else ""


def _flat(match: re.Match[str]) -> str:
    title, label, address, words = match.groups()
    if title is not None:
        return _link_text(title.strip(), label)
    return match[0] if address is None else words or ""


def _link_text(title: str, label: str | None) -> str:
    if label is not None:
        return label if label.strip() else re.sub(r"^[^:]*:|\s*[(,].*$", "", title)
    return title.removeprefix(":").replace("_", " ") if not title.startswith("#") else title[1:].replace("_", " ")


def _wikilink(node: Any) -> str:
    return _link_text(str(node.title).strip(), None if node.text is None else _text_of(node.text))


def _external_link(node: Any) -> str:
    """Return the link's words. An address in brackets without words is a numbered reference, and is cut."""
    if node.title is not None:
        return _text_of(node.title)
    return "" if node.brackets else str(node.url)


def _tag(node: Any) -> str:
    if node.wiki_markup:  # list markers, rules
        return str(node.wiki_markup)
    return _text_of(node.contents) if node.contents is not None else ""


_TEXTS: dict[str, Callable[[Any], str]] = {
    "Wikilink": _wikilink,
    "ExternalLink": _external_link,
    "Tag": _tag,
    "Heading": lambda node: f"{'=' * node.level}{_text_of(node.title)}{'=' * node.level}",
    "Template": lambda node: "",
    "Argument": lambda node: "",
    "Comment": lambda node: "",
}
