"""The report on prepared text before training: documents kept and dropped, lengths, leftovers of markup."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

import numpy as np

from dtl.base.units import in_units, number_of
from dtl.data.documents import Document
from dtl.data.encode import EncodedSource
from dtl.data.prepare import PreparedData
from dtl.data.stored import Texts

MAX_SCANNED = 50_000_000  # characters of training text searched for leftovers: half a minute
PERCENTILES = (5, 25, 50, 75, 95, 100)
MAX_LEFTOVERS = 8  # kinds listed, the most frequent first
PREVIEW = "a training text as the model sees it, «with a loss»:"
AROUND = 30  # characters shown before and after a leftover
# Marks of a source's markup that a reader of prose would not expect.
LEFTOVERS = re.compile(
    r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|\(\s*[,;:]*\s*\)|\[\s*\]|'''?|={2,}"
    r"|&(?:[a-zA-Z]{2,8}|#\d{1,6}|#x[0-9a-fA-F]{1,6});|</?[a-zA-Z][^<>\n]{0,60}>"
    r"|(?m:^[|!]-?)(?=.*(?:\|\||\|-|(?:col|row)span))|\|\||(?:col|row)span=|-\{|\}-"
    r"|(?:formula|codice)_\d+| @[-,.]@ |__[A-Z]+__|\b(?:File|Image|Category|Template):|https?://|\ufffd"
)


def report_lines(prepared: PreparedData, sources: dict[str, EncodedSource], preview: int = 0) -> Iterator[str]:
    """Yield the lines of the report, with `preview` training texts of each source as the model sees them."""
    for name, source in sources.items():
        origin, *how = prepared.read[name]
        yield f"{name}: {origin}"
        yield from (f"  {line}" for line in how)
        yield from _counts(prepared, name, source)
        yield from _lengths(source)
        yield from _density(prepared, source)
        for before, after in source.texts.facts["examples"]:
            yield f"  before {before!r}"
            yield f"  after  {after!r}"
        yield from _leftovers(source.texts.splits["train"])
        for text in prepared.samples(name, preview):
            yield f"  {PREVIEW}"
            yield from (f"    {line}" for line in text.split("\n"))
        yield ""
    yield from with_short_origins(prepared.notes, prepared.read.values())
    yield from prepared.hints


def with_short_origins(notes: Iterable[str], read: Iterable[Sequence[str]]) -> list[str]:
    """The notes below a report that has named each origin, `data.path=long/path/to/pairs.jsonl`, already: in them the
    file's name stands for it, unless two have the same. `read`: of each source, its origin first."""
    places = [place for origin, *_ in read if (place := origin.partition("=")[2].rstrip("/")) and "/" in place]
    names = Counter(PurePath(place).name for place in places)
    short = []
    for note in notes:
        for place in places:
            # What a note is on comes first; a path further on is part of a command to paste.
            said = re.match(rf"(?:[\w.]+=)?{re.escape(place)}/?(?=[:/])", note)
            if said and names[name := PurePath(place).name] == 1:
                note = name + note[len(said[0]) :]
                break
        short.append(note)
    return short


def _counts(prepared: PreparedData, name: str, source: EncodedSource) -> Iterator[str]:
    for split, counts in source.texts.facts["counts"].items():
        if "read" not in counts:
            continue
        dropped = f"{counts['empty']:,} empty, {number_of('duplicates', counts['duplicate'])}"
        if counts["duplicate_characters"]:
            dropped += f" of {counts['duplicate_characters']:,} characters"
        yield (
            f"  {split}: {number_of('documents', counts['read'])} read, {counts['kept']:,} kept, dropped: {dropped}; "
            f"{counts['cleaned']:,} changed by cleaning"
        )
    for split, report in prepared.report[name].items():
        encoded = source.tokens[split]
        # Every token but the first of a stream is predicted; the end token of a complete document is never an input.
        documents, sequences = number_of("documents", report.documents), number_of("sequences", report.rows)
        yield (
            f"  {split}: {documents}, {len(encoded.tokens):,} tokens; in {sequences} "
            f"{report.tokens:,} of them, {report.targets:,} with a loss, {report.wasted:.2%} padding"
        )


def _lengths(source: EncodedSource) -> Iterator[str]:
    lengths = np.diff(source.tokens["train"].offsets)
    values = np.percentile(lengths, PERCENTILES, method="nearest")
    shown = ", ".join(f"{p} %: {int(value):,}" for p, value in zip(PERCENTILES, values, strict=True))
    yield f"  tokens of a training document: {shown}"


def _density(prepared: PreparedData, source: EncodedSource) -> Iterator[str]:
    n_bytes = n_documents = n_characters = 0
    encoded = source.tokens["train"]
    for document in _scanned(source.texts.splits["train"]):
        if n_documents == encoded.n_documents:
            break
        n_documents += 1
        n_characters += len(document.text)
        n_bytes += len(document.text.encode("utf-8", "surrogatepass"))
    n_tokens = int(encoded.offsets[n_documents]) - n_documents  # end tokens represent no byte
    yield (
        f"  {n_tokens / max(n_bytes, 1):.3f} tokens a byte ({n_bytes / max(n_tokens, 1):.2f} bytes a token, "
        f"{n_bytes / max(n_characters, 1):.2f} bytes a character) with tokenizer={prepared.tokenizer.kind}"
    )


def _leftovers(texts: Texts) -> Iterator[str]:
    """Yield the most frequent leftovers of markup in the training text, each kind with its first place.

    Digits count as `N`, so that `formula_1` and `formula_2` are one kind.
    """
    leftovers: Counter[str] = Counter()
    places: dict[str, str] = {}
    n_characters = 0
    for document in _scanned(texts):
        n_characters += len(document.text)
        for match in LEFTOVERS.finditer(document.text):
            kind = re.sub(r"\d+", "N", match[0].strip())
            leftovers[kind] += 1
            if kind not in places:
                places[kind] = document.text[max(0, match.start() - AROUND) : match.end() + AROUND]
    where = f"in {in_units(n_characters)} characters of training text"
    if not leftovers:
        yield f"  no leftovers of markup {where}"
        return
    yield f"  leftovers of markup {where}:"
    for kind, count in leftovers.most_common(MAX_LEFTOVERS):
        yield f"    {count:,} x {kind!r}, first in {places[kind]!r}"


def _scanned(texts: Texts) -> Iterator[Document]:
    n_characters = 0
    for document in texts:
        yield document
        n_characters += len(document.text)
        if n_characters >= MAX_SCANNED:
            return
