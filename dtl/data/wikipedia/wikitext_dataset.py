"""WikiText as plain prose (Merity et al., 2016): its rows are lines, cut into words with marks of their own."""

import re
from collections.abc import Iterable, Iterator

_TITLE = re.compile(r"\s*= ([^=]+) =\s*")  # a line of its own; sections have more signs: = = History = =
_SECTION = re.compile(r"\s*(?:= ){2,}([^=]+?)(?: =){2,}\s*")
_JOINED = re.compile(r" ?@([-,.])@ ?")  # "mid @-@ air", "1 @,@ 900", "3 @.@ 5"
_BEFORE = re.compile(r" (?=[,.;:!?%)\]}](?:\s|$|[)\"',.;:]))")  # no space before these ...
_AFTER = re.compile(r"(?<=[(\[{$£€#]) ")  # ... nor after these
_CLITIC = re.compile(r" (?='(?:s|t|re|ve|m|ll|d)\b)| (?=n't\b)")
_QUOTED = re.compile(r'" ([^"]*?) "')


def articles(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Title and text of each article, from lines in their order. What comes before the first title has none."""
    title, paragraphs = "", list[str]()
    for line in lines:
        found = _TITLE.fullmatch(line)
        if found:
            if paragraphs:
                yield title, "\n".join(paragraphs)
            title, paragraphs = natural(found[1]), []
        elif line.strip():
            paragraphs.append(natural(line))
    if paragraphs:
        yield title, "\n".join(paragraphs)


def natural(line: str) -> str:
    """One line as it was before it was cut into words: `It was 3 @.@ 5 m , he said .` to `It was 3.5 m, he said.`"""
    section = _SECTION.fullmatch(line)
    text = section[1] if section else line.strip()
    text = _JOINED.sub(r"\1", text)
    text = _QUOTED.sub(r'"\1"', text)
    return _AFTER.sub("", _BEFORE.sub("", _CLITIC.sub("", text)))
