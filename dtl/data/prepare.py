"""From a configuration to training data: documents -> split -> tokenizer -> tokens -> rows.

Everything is held in memory: text while it is being prepared, then two bytes a token (GPT-2's vocabulary).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dtl.data.batches import Rows, TrainingData, epoch_order
from dtl.data.collect import Documents, Progress, collect_documents
from dtl.data.config import DataConfig, TokenizerConfig
from dtl.data.encoding import TokenDocuments, encode_documents
from dtl.data.packing import answer_mask, fully_covered, pack_documents, pack_stream, pad_documents, with_targets
from dtl.data.qa import QuestionAnswer
from dtl.data.sources import Document
from dtl.data.tokenizer import Tokenizer, build_tokenizer
from dtl.errors import DataError


@dataclass(frozen=True)
class SplitReport:
    """What one split of one source came to."""

    documents: int
    tokens: int  # in the rows: end tokens counted, padding not
    targets: int  # tokens that count in the loss
    rows: int
    wasted: float  # share of positions that hold padding


@dataclass(frozen=True)
class PreparedData:
    """All that a run needs of its data. Validation and test are the first source's; `rows` has every source's."""

    train: TrainingData
    validation: Rows
    test: Rows | None
    rows: dict[str, dict[str, Rows]]  # source -> split -> rows
    tokenizer: Tokenizer
    pairs: dict[str, list[QuestionAnswer]]  # split -> questions, one entry a wording
    fingerprint: str  # SHA-256 over the tokens, their layout and the tokenizer: equal data, equal fingerprint
    report: dict[str, dict[str, SplitReport]]  # source -> split -> figures
    notes: list[str]  # one-liners for people


def prepare_data(
    config: DataConfig,
    tokenizer: TokenizerConfig | Tokenizer,
    seq_len: int,
    seed: int,
    progress: Progress | None = None,
) -> PreparedData:
    """Read, split, encode and lay out the text of a configuration.

    A tokenizer configuration is built on the training text; a Tokenizer is used as it is (resume, init).
    With `config.max_samples` each source gives at most so many training rows, a seeded choice from a
    sample of its text. In a mixture a further source gives only as much text as its weight needs for
    `config.recommended.max_epochs` epochs; after these its rows come again.

    Raises DataError when a source is missing, empty, or too little for a training and a validation row.
    """
    say = progress or (lambda line: None)
    sources, documents, notes = collect_documents(config, seq_len, seed, say)
    if isinstance(tokenizer, TokenizerConfig):
        say(f"tokenizer {tokenizer.kind}")
        tokenizer = build_tokenizer(tokenizer, lambda: _training_texts(documents))
    notes += tokenizer.notes
    maker = _Maker(config, tokenizer, seq_len, seed)
    for name, splits in documents.items():
        for split, of_split in splits.items():
            say(f"tokens of {sources[name].origin}: {split}, {len(of_split):,} documents")
            maker.add(name, split, of_split, sources[name].origin)
            of_split.clear()  # the text is no longer needed, and may be large
    return maker.finish(_mixture_notes(config) + notes)


def _mixture_notes(config: DataConfig) -> list[str]:
    sources = config.resolved_sources()
    if [(source.kind, source.path) for source in sources.values()] == [("qa", None)]:
        return [
            "The questions that ship with DTL, alone. Add Wikipedia with data.wiki.path=FOLDER or "
            "data.wiki.weight=0.5 (from the hub), your own pairs with data.qa.path=FILE.jsonl."
        ]
    first, *others = sources
    return [f"validation and early stopping look at {first}, the first source."] if others else []


def _training_texts(documents: dict[str, Documents]) -> Iterator[str]:
    return (document.text for splits in documents.values() for document in splits["train"])


class _Maker:
    """Turns documents into rows, split after split, and collects what is known of them."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, seq_len: int, seed: int) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.seq_len = seq_len
        self.seed = seed
        self.rows: dict[str, dict[str, Rows]] = {}
        self.report: dict[str, dict[str, SplitReport]] = {}
        self.pairs: dict[str, list[QuestionAnswer]] = {}
        self.notes: list[str] = []
        weights = {name: source.weight for name, source in config.resolved_sources().items()}
        self.weights = weights
        layout = (seq_len, config.layout, config.document_mask, config.loss_on, weights, tokenizer.fingerprint)
        self.digest = hashlib.sha256(repr(layout).encode())

    def add(self, name: str, split: str, documents: list[Document], origin: str) -> None:
        limit = self.config.max_samples if split == "train" else None
        encoded = encode_documents(documents, self.tokenizer, limit * self.seq_len + 1 if limit else None)
        rows = self._lay_out(encoded, limit)
        if not len(rows):
            raise DataError(
                f"{origin}: {len(encoded.tokens)} tokens of {split} text make no row. Needed: 2 tokens, one of "
                f"them with a loss (data.loss_on={self.config.loss_on}, data.seq_len={self.seq_len})."
            )
        whole = fully_covered(rows.packing, encoded.offsets)
        cut = int((~whole).sum())
        if split == "train" and cut and limit is None:
            self.notes.append(
                f"{origin}: {cut:,} of {len(documents):,} documents are longer than a row of {self.seq_len} tokens; "
                "their ends are cut off. A larger data.seq_len or data.layout=packed keeps them."
            )
        # A question whose answer is not in the rows was not taught; in the held-out splits all are asked.
        taught = whole if split == "train" else np.ones_like(whole)
        pairs = self.pairs.setdefault(split, [])
        pairs += [pair for pair, kept in zip((d.pair for d in documents), taught, strict=False) if pair and kept]
        self.rows.setdefault(name, {})[split] = rows
        wasted = rows.packing.wasted
        self.report.setdefault(name, {})[split] = SplitReport(
            encoded.n_documents, rows.n_tokens, rows.n_targets, len(rows), wasted
        )
        self._digest(name, split, encoded, rows)

    def _lay_out(self, encoded: TokenDocuments, limit: int | None) -> Rows:
        config = self.config
        loss_mask = answer_mask(encoded) if config.loss_on == "answer" else None
        document_mask = config.document_mask and config.layout == "packed"
        if config.layout == "padded":
            packing = with_targets(pad_documents(encoded.offsets, self.seq_len), loss_mask)
        elif document_mask:
            packing = pack_documents(encoded.offsets, self.seq_len, loss_mask)
        else:
            packing = with_targets(pack_stream(len(encoded.tokens), self.seq_len), loss_mask)
        if limit is not None and packing.n_rows > limit:
            packing = packing.select(np.sort(epoch_order(self.seed, 0, packing.n_rows)[:limit]))
        return Rows(
            encoded.tokens, packing, pad_id=self.tokenizer.pad_id, loss_mask=loss_mask, document_mask=document_mask
        )

    def _digest(self, name: str, split: str, encoded: TokenDocuments, rows: Rows) -> None:
        self.digest.update(f"{name} {split}".encode())
        packing = rows.packing
        arrays = (encoded.offsets, encoded.answer_starts, packing.starts, packing.lengths, packing.row_offsets)
        for array in (encoded.tokens, *arrays):
            portable = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            self.digest.update(f"{portable.dtype.str} {len(portable)}".encode())
            self.digest.update(portable.data)

    def finish(self, notes: list[str]) -> PreparedData:
        first = next(iter(self.rows.values()))
        return PreparedData(
            train=TrainingData({name: splits["train"] for name, splits in self.rows.items()}, self.weights),
            validation=first["validation"],
            test=first.get("test"),
            rows=self.rows,
            tokenizer=self.tokenizer,
            pairs=self.pairs,
            fingerprint=self.digest.hexdigest(),
            report=self.report,
            notes=notes + self.notes,
        )
