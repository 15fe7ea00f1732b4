"""The source `text`: local files of text."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dtl.base.safe_text import in_one_line
from dtl.data.config import DataConfig, SourceConfig, with_line_ends
from dtl.data.documents import Document
from dtl.data.local.files import LocalFiles, raise_if_without_columns
from dtl.data.sources import order_seed, path_key
from dtl.errors import DataError
from dtl.registry import SOURCES

# A line that is nothing but a token for the end of a text separates documents, as in the files of TinyStories.
_LINES_BETWEEN = re.compile(
    r"^[ \t]*(?:<\|(?:endoftext|end_of_text|begin_of_text|endofdoc|eos|bos|sep)\|>|<(?:eos|bos|sep|/?s)>"
    r"|\[(?:SEP|EOS|BOS)\])[ \t]*(?:\n|\Z)",
    re.M,
)
# Lines of signs may do so, or are breaks between scenes and headings of one text.
_LINES_OF_SIGNS = re.compile(r"^[ \t]*([-*=#~_%+.]{1,80})[ \t]*$", re.M)
MIN_LINES_OF_SIGNS = 5  # of one kind, in the only text, before they are reported


@SOURCES.register("text")
class TextSource:
    """Documents of local files: a whole .txt, or the field `column` (default: text) of each record of other formats;
    each split where `data.separator` separates documents."""

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        if source.path is None:
            raise DataError(f"{path_key(data, name)}=null: kind=text needs a file or folder.")
        self.files = LocalFiles(source.path, path_key(data, name), data.allow_truncated, data.encoding)
        self.origin = self.files.origin
        raise_if_without_columns(self.files, name, source.column)
        self._column = source.column or "text"
        self._name = name
        self._order_seed = order_seed(data, name, seed)
        self._separator = None if data.separator is None else with_line_ends(data.separator)
        self._n_separated = self._n_parts = 0
        self._marks: set[str] = set()
        self._n_texts = 0
        self._signs: Counter[str] = Counter()  # lines of signs in the first text

    def splits(self) -> dict[str, Iterator[Document]]:
        self._n_separated = self._n_parts = self._n_texts = 0  # a second read must not count twice
        return {split: self._documents(split) for split in self.files.by_split}

    def _documents(self, split: str) -> Iterator[Document]:
        for _, text in self.files.texts(split, self._column, (), self._order_seed, self._name):
            if not self._n_texts:
                self._signs = Counter(_LINES_OF_SIGNS.findall(text))
            self._n_texts += 1
            parts = self._parts(text)
            if self._order_seed is not None:  # of a sample, which may end within this text
                random.Random(self._order_seed).shuffle(parts)
            yield from map(Document, parts)

    def _parts(self, text: str) -> list[str]:
        """Return the documents in a text."""
        if self._separator is None:
            mark = _LINES_BETWEEN.search(text)
            parts = [text] if mark is None else _LINES_BETWEEN.split(text)
        else:
            mark = self._separator if self._separator and self._separator in text else None
            parts = text.split(mark) if isinstance(mark, str) else [text]
        if mark is not None:
            parts = [part for part in parts if part.strip()]
            self._n_separated += 1
            self._n_parts += len(parts)
            self._marks.add(mark if isinstance(mark, str) else mark[0].strip())
        return parts

    def fingerprint(self) -> list[Path]:
        """Return the files that the text is read from."""
        return self.files.paths()

    def notes(self) -> list[str]:
        notes = self.files.notes()
        if self._n_separated:
            marks = " or ".join(sorted(in_one_line(mark) for mark in self._marks))
            texts = "one text is" if self._n_separated == 1 else f"{self._n_separated:,} texts are"
            way = "lines of " if self._separator is None else ""
            keep = " (data.separator= keeps each whole)" if self._separator is None else ""
            notes.append(f"{self.files.origin}: {texts} separated by {way}{marks}: {self._n_parts:,} documents{keep}.")
        elif self._n_texts == 1 and self._separator is None:
            notes += [
                f"{self.files.origin}: one text, with {count:,} lines of {in_one_line(sign)}. If they separate "
                f"documents: 'data.separator=\\n{sign}\\n' splits there."
                for sign, count in self._signs.most_common(1)
                if count >= MIN_LINES_OF_SIGNS
            ]
        return notes
