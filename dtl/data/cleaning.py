"""Cleaning of text: one kind of line end and of space, no control characters, no brackets emptied by the source.

Idempotent, and the identity on text that is clean already. Questions and answers stay as written.
"""

import re

from dtl.data.documents import Document

_LINE_ENDS = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_ODD_SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000][ \t\u00a0\u2000-\u200a\u202f\u205f\u3000]*")
# C0 and C1 except tab and newline, DEL, soft hyphen, byte order mark, bidi embeddings and isolates. Zero width joiners
# stay: Persian and the languages of India spell with them.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\ufeff\u202a-\u202e\u2066-\u2069]")
# Left by a removed template or pronunciation: "Paris (; ) is". Only after a space and on one line: `print()` and
# `x = []` in code are no leftovers, so a word or closing punctuation must precede the space.
_HOLLOW = "(?:\\([ \t,;:/\u2013-]*\\)|\\[[ \t,;:]*\\])"
_HOLLOW_BRACKETS = re.compile(_HOLLOW)  # a fast test before the slow pattern
_EMPTY_BRACKETS = re.compile("(?<=[\\w.,;:!?\"'\u201d\u2019\u00bb)\\]])[ \t]+" + _HOLLOW + "(?!\\w)")
_SPACE_AT_LINE_END = re.compile(r"[ \t]+(?=\n)")
_EMPTY_LINES = re.compile(r"\n{3,}")


def clean(text: str) -> str:
    """Return the text with normalised whitespace, without control characters and emptied brackets.

    Indentation and spaces inside a line stay; several empty lines become one.
    """
    text = _CONTROL.sub("", _LINE_ENDS.sub("\n", text.replace("\r\n", "\n")))
    # Fixed-width and no-break spaces look like a space but are other tokens; a run that contains one is one space.
    text = _ODD_SPACES.sub("\u00a0", text)
    while " \u00a0" in text:
        text = text.replace(" \u00a0", "\u00a0")
    text = text.replace("\u00a0", " ")
    while _HOLLOW_BRACKETS.search(text) and (shorter := _EMPTY_BRACKETS.sub("", text)) != text:
        text = shorter  # once more: "(, ( ))" empties from the inside
    if " \n" in text or "\t\n" in text:
        text = _SPACE_AT_LINE_END.sub("", text)
    return _EMPTY_LINES.sub("\n\n", text) if "\n\n\n" in text else text


def cleaned(document: Document) -> Document:
    """Return the document with cleaned text; itself when nothing changes or it is a question and answer."""
    if document.pair is not None or document.answer_start is not None:
        return document
    text = clean(document.text)
    return document if text == document.text else Document(text)
