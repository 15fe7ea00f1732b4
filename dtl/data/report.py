"""What became of the text, for a person who is about to train on it: kept and dropped, lengths, leftovers."""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from dtl.data.documents import Document
from dtl.data.encode import EncodedSource
from dtl.data.prepare import PreparedData
from dtl.data.stored import Texts

LOOKED_AT = 50_000_000  # characters of training text in which leftovers are sought: half a minute
PERCENTILES = (5, 25, 50, 75, 95, 100)
COMMONEST = 8
AROUND = 30  # characters shown before and after a leftover
# Marks of a source's markup that a reader of prose would not expect.
LEFTOVERS = re.compile(
    r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|\(\s*[,;:]*\s*\)|\[\s*\]|'''?|={2,}"
    r"|&(?:[a-zA-Z]{2,8}|#\d{1,6}|#x[0-9a-fA-F]{1,6});|</?[a-zA-Z][^<>\n]{0,60}>"
    r"|(?:formula|codice)_\d+| @[-,.]@ |__[A-Z]+__|\b(?:File|Image|Category|Template):|https?://|\ufffd"
)


def report_lines(prepared: PreparedData, sources: dict[str, EncodedSource]) -> Iterator[str]:
    """The report, a line each."""
    for name, source in sources.items():
        yield f"{name}: {source.texts.origin}"
        yield from _counts(prepared, name, source)
        yield from _lengths(source)
        yield from _density(prepared, source)
        yield from _examples(source)
        yield from _leftovers(source.texts.splits["train"])
        yield ""
    yield from prepared.notes


def _counts(prepared: PreparedData, name: str, source: EncodedSource) -> Iterator[str]:
    for split, counts in source.texts.facts["counts"].items():
        if "read" not in counts:
            continue
        dropped = f"{counts['empty']:,} empty, {counts['duplicate']:,} duplicates"
        if counts["duplicate_characters"]:
            dropped += f" of {counts['duplicate_characters']:,} characters"
        yield (
            f"  {split}: {counts['read']:,} documents read, {counts['kept']:,} kept, dropped: {dropped}; "
            f"{counts['cleaned']:,} changed by cleaning"
        )
    for split, report in prepared.report[name].items():
        encoded = source.tokens[split]
        # Every token but the first of a stream is predicted: the end tokens of whole documents are no inputs.
        yield (
            f"  {split}: {report.documents:,} documents, {len(encoded.tokens):,} tokens; in {report.rows:,} rows "
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
    for document in _first(source.texts.splits["train"]):
        if n_documents == encoded.n_documents:
            break
        n_documents += 1
        n_characters += len(document.text)
        n_bytes += len(document.text.encode("utf-8", "surrogatepass"))
    n_tokens = int(encoded.offsets[n_documents]) - n_documents  # without the end tokens, which stand for no byte
    yield (
        f"  {n_tokens / max(n_bytes, 1):.3f} tokens a byte ({n_bytes / max(n_tokens, 1):.2f} bytes a token, "
        f"{n_bytes / max(n_characters, 1):.2f} bytes a character) with tokenizer={prepared.tokenizer.kind}"
    )


def _examples(source: EncodedSource) -> Iterator[str]:
    for before, after in source.texts.facts["examples"]:
        yield f"  before {before!r}"
        yield f"  after  {after!r}"


def _leftovers(texts: Texts) -> Iterator[str]:
    """The commonest marks of markup in the training text, numbered ones as one kind, each with a place."""
    found: Counter[str] = Counter()
    places: dict[str, str] = {}
    n_characters = 0
    for document in _first(texts):
        n_characters += len(document.text)
        for match in LEFTOVERS.finditer(document.text):
            kind = re.sub(r"\d+", "N", match[0].strip())
            found[kind] += 1
            if kind not in places:
                places[kind] = document.text[max(0, match.start() - AROUND) : match.end() + AROUND]
    where = f"in {n_characters / 1e6:.1f} M characters of training text"
    if not found:
        yield f"  no leftovers of markup {where}"
        return
    yield f"  leftovers of markup {where}:"
    for kind, count in found.most_common(COMMONEST):
        yield f"    {count:,} x {kind!r}, first in {places[kind]!r}"


def _first(texts: Texts) -> Iterator[Document]:
    n_characters = 0
    for document in texts:
        yield document
        n_characters += len(document.text)
        if n_characters >= LOOKED_AT:
            return
