"""Preparation of training data from a configuration: documents -> splits -> tokenizer -> tokens -> sequences.

Text and tokens are made once and cached, memory-mapped; small sources, and those without a fingerprint, are kept in
memory. Both ways give the same sequences.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from dtl.base.progress import Progress
from dtl.base.system import give_back_freed_memory
from dtl.base.units import number_of
from dtl.data.batches import (
    BORDER,
    OPEN,
    Batch,
    PackedSequences,
    TrainingData,
    epoch_order,
    readable,
    shortened,
)
from dtl.data.cache import Cache, cache_folder
from dtl.data.collect import all_notes
from dtl.data.config import DataConfig, TokenizerConfig
from dtl.data.documents import QuestionAnswer
from dtl.data.encode import EncodedSource, encode_sources
from dtl.data.pack import (
    Packing,
    answer_mask,
    data_fingerprint,
    fingerprint_key,
    fully_covered,
    pack_documents,
    pack_stream,
    pad_documents,
    with_targets,
)
from dtl.data.sources import SourcePlan, plan_sources
from dtl.data.stored import TokenDocuments
from dtl.data.tokenizers.prompt import Prompt
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.errors import DataError

LITTLE_TEXT = 1000  # tokens of training text: less than a page


@dataclass(frozen=True)
class SplitReport:
    """Sizes of one split of one source."""

    documents: int
    tokens: int  # in the sequences: end tokens counted, padding not
    targets: int  # tokens that count in the loss
    rows: int
    wasted: float  # fraction of positions that hold padding


@dataclass(frozen=True)
class PreparedData:
    """The data of a run. Validation and test are those of the first source; `rows` has every source's."""

    train: TrainingData
    validation: PackedSequences | None  # None: nothing is held out
    test: PackedSequences | None
    rows: dict[str, dict[str, PackedSequences]]  # source -> split -> sequences
    tokenizer: Tokenizer
    pairs: dict[str, list[QuestionAnswer]]  # split -> questions, one entry per paraphrase
    fingerprint: str  # SHA-256 over the tokens, their layout and the tokenizer: equal data, equal fingerprint
    report: dict[str, dict[str, SplitReport]]  # source -> split -> sizes
    notes: list[str]  # messages for the user, one line each
    hints: list[str]  # less important ones, for the report and a run's details.txt
    read: dict[str, list[str]]  # source -> its origin, then how it was read and split, a line each
    cache: Cache  # which checks the files that the data was read from
    prompt: Prompt = field(default_factory=Prompt)  # of the questions

    def decode(self, sequence: Batch, row: int = 0) -> str:
        """Return a sequence as text, with its loss marked: `data.decode(data.train[0])`. See `readable`."""
        return readable(self.tokenizer, sequence, row)

    def samples(self, source: str, count: int, max_length: int = 400) -> list[str]:
        """Return the first training texts of a source as the model sees them, with their loss marked.

        A text is a document where attention ends at its border, else a sequence; each of at most about `max_length`
        characters.
        """
        rows = self.rows[source]["train"]
        texts = (
            text for number in range(len(rows)) for text in self.decode(rows[number]).split(BORDER) if OPEN in text
        )
        return [shortened(text, max_length) for text in islice(texts, count)]

    def longest_answer(self) -> int:
        """Return the most tokens to generate for an answer to any question of the data. See `longest_answer`."""
        return longest_answer(self.tokenizer, [pair for pairs in self.pairs.values() for pair in pairs])

    def taught(self) -> dict[str, Any] | None:
        """Return the number of training questions, their topics and three examples; None for data without questions."""
        pairs = self.pairs.get("train")
        if not pairs:
            return None
        examples = [pairs[len(pairs) * n // 6].question for n in (1, 3, 5)]
        topics = sorted({pair.topic for pair in pairs} - {""})
        return {"questions": len(pairs), "topics": topics, "examples": list(dict.fromkeys(examples))}


def longest_answer(tokenizer: Tokenizer, pairs: Iterable[QuestionAnswer]) -> int:
    """Return the tokens of the longest answer, and 4 more: a longer answer is wrong anyway."""
    return 4 + max((len(ids) for ids in tokenizer.encode_batch([pair.answer for pair in pairs])), default=0)


def prepare_data(
    config: DataConfig,
    tokenizer: TokenizerConfig | Tokenizer,
    seq_len: int,
    seed: int,
    progress: Progress | None = None,
    plans: Sequence[SourcePlan] | None = None,
    check_later: bool = False,
) -> PreparedData:
    """Read, split, encode and pack the text of a configuration.

    A tokenizer configuration is built on the training text; a Tokenizer is used as it is (resume, init).
    With `config.max_samples` each source gives at most so many training sequences, a seeded choice from a
    sample of its text. In a mixture each further source gives only as much text as its weight needs for
    `config.recommended.max_epochs` epochs; after these its sequences repeat. `plans` are the sources of `config`
    where they have been opened already. With `check_later` the caller calls `cache.check()` before it publishes
    anything that was computed from the data.

    Raises DataError when a source is missing, empty, or too small for a sequence of each of its splits.
    """
    log = progress or (lambda message: None)
    cache = Cache(cache_folder(config.cache_dir), config.verify == "full", log)
    opened = plan_sources(config, seed) if plans is None else plans
    return cache.rebuilding(lambda: encode_and_pack(config, opened, tokenizer, seq_len, seed, cache, log), check_later)


def encode_and_pack(
    config: DataConfig,
    plans: Sequence[SourcePlan],
    tokenizer: TokenizerConfig | Tokenizer,
    seq_len: int,
    seed: int,
    cache: Cache,
    log: Progress,
) -> PreparedData:
    """Do what `prepare_data` describes with this cache, and leave no more memory taken than the result needs.

    Raises DataError for too little text.
    """
    built, sources = encode_sources(config, plans, tokenizer, seq_len, seed, cache, log)
    data = pack_sequences(config, plans, built, sources, seq_len, seed, cache)
    del sources  # with the texts that are not in the cache
    give_back_freed_memory()
    return data


def pack_sequences(
    config: DataConfig,
    plans: Sequence[SourcePlan],
    tokenizer: Tokenizer,
    sources: dict[str, EncodedSource],
    seq_len: int,
    seed: int,
    cache: Cache,
) -> PreparedData:
    """Pack tokens into sequences, the second half of `prepare_data`. Raises DataError for too little text."""
    weights = {plan.name: plan.config.weight for plan in plans}
    has_questions = any(source.texts.facts["has_pairs"] for source in sources.values())
    tokenizer = tokenizer.with_prompt(Prompt.of(config) if has_questions else None)
    packer = _Packer(config, weights, tokenizer, seq_len, seed)
    for name, source in sources.items():
        for split in source.tokens:
            packer.add(name, split, source)
    notes = all_notes({name: source.texts for name, source in sources.items()})
    notes += [note for plan in plans if (note := _sample_note(plan, config, packer, sources[plan.name], seq_len))]
    fingerprint = packer.fingerprint(cache, [source.key for source in sources.values()])
    hints = [*_hints(plans), *tokenizer.notes]
    return packer.finish([*_mixture_notes(plans), *notes, *cache.notes], hints, fingerprint, cache)


def _sample_note(
    plan: SourcePlan, config: DataConfig, packer: "_Packer", source: EncodedSource, seq_len: int
) -> str | None:
    """Return how much of a source is used where that is a sample, and why; None where it is all of it."""
    facts, used = source.texts.facts, source.tokens["train"].n_documents
    read, rows = facts["counts"]["train"]["documents"], len(packer.rows[plan.name]["train"])
    is_limited = config.max_samples is not None and rows >= config.max_samples
    if plan.order_seed is None or not (facts.get("stopped") or used < read or packer.n_left_out.get(plan.name)):
        return None
    why = (
        f"data.max_samples={config.max_samples} (sequences of {seq_len} tokens)"
        if is_limited
        else f"data.sources.{plan.name}.weight={plan.config.weight:g}, for "
        + number_of("epochs", config.recommended.max_epochs)
    )
    # Whether there are further ones is not known: the last that was read may be a whole file.
    more = f" No further document of {source.texts.origin} is read: that is enough." if facts.get("stopped") else ""
    n_validation = len(packer.rows[plan.name].get("validation", ()))
    if is_limited and n_validation > rows:
        more += (
            f" The limit is for training: {number_of('sequences', n_validation)} for validation, of which "
            "trainer.eval_max_batches limits an evaluation."
        )
    return (
        f"{plan.name}: {number_of('sequences', rows)} of {used:,} of the {read:,} documents that were read are used, "
        f"drawn by the seed: {why}.{more}"
    )


def _mixture_notes(plans: Sequence[SourcePlan]) -> list[str]:
    return [f"validation and early stopping use {plans[0].name}, the first source."] if len(plans) > 1 else []


def _hints(plans: Sequence[SourcePlan]) -> list[str]:
    if len(plans) == 1 and plans[0].config.is_shipped:
        return [
            "Only the questions that ship with DTL. Add Wikipedia with data.wiki.path=FOLDER or "
            "data.wiki.weight=0.5 (from the hub), your own pairs with data.qa.path=FILE.jsonl."
        ]
    return []


class _Packer:
    """Packs tokens into sequences, split after split, and collects their report."""

    def __init__(
        self, config: DataConfig, weights: dict[str, float], tokenizer: Tokenizer, seq_len: int, seed: int
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.seq_len = seq_len
        self.seed = seed
        self.rows: dict[str, dict[str, PackedSequences]] = {}
        self.report: dict[str, dict[str, SplitReport]] = {}
        self.pairs: dict[str, list[QuestionAnswer]] = {}
        self.notes: list[str] = []
        self.read: dict[str, list[str]] = {}
        self.weights = weights
        self.layout = (
            seq_len, config.layout, config.document_mask, config.loss_on, weights, tokenizer.fingerprint
        )  # fmt: skip
        self.n_left_out: dict[str, int] = {}  # by source: training sequences beyond data.max_samples
        self._made: list[tuple[str, TokenDocuments, Packing]] = []

    def add(self, name: str, split: str, source: EncodedSource) -> None:
        limit = self.config.max_samples if split == "train" else None
        origin, encoded = source.texts.origin, source.tokens[split]
        rows = self._pack(name, encoded, limit)
        if not len(rows):
            raise DataError(
                f"{origin}: {len(encoded.tokens)} tokens of {split} text make no sequence. Needed: 2 tokens, one of "
                f"them with a loss (data.loss_on={self.config.loss_on}, data.seq_len={self.seq_len})."
            )
        complete = fully_covered(rows.packing, encoded.offsets)
        cut = int((~complete).sum())
        if split == "train" and cut and limit is None:
            self.notes.append(
                f"{origin}: {cut:,} of {len(complete):,} documents are longer than a sequence of {self.seq_len} "
                "tokens; their ends are cut off. A larger data.seq_len or data.layout=packed keeps them."
            )
        # Training questions whose answer was cut off are not scored as learnt; held-out splits ask all questions.
        trained = complete if split == "train" else np.ones_like(complete)
        pairs = self.pairs.setdefault(split, [])
        if source.texts.facts["has_pairs"]:
            encoded_texts = islice(source.texts.splits[split], len(complete))
            pairs += [d.pair for d, kept in zip(encoded_texts, trained, strict=True) if d.pair and kept]
        self.read[name] = [origin, *source.texts.facts.get("read", [])]
        self.rows.setdefault(name, {})[split] = rows
        self.report.setdefault(name, {})[split] = SplitReport(
            encoded.n_documents, rows.n_tokens, rows.n_targets, len(rows), rows.packing.wasted
        )
        self._made.append((f"{name} {split}", encoded, rows.packing))

    def _pack(self, name: str, encoded: TokenDocuments, limit: int | None) -> PackedSequences:
        config = self.config
        loss_mask = answer_mask(encoded) if config.loss_on == "answer" else None
        document_mask = config.document_mask and config.layout == "packed"
        if config.layout == "padded":
            packing = with_targets(pad_documents(encoded.offsets, self.seq_len), loss_mask)
        elif document_mask:
            packing = pack_documents(encoded.offsets, self.seq_len, loss_mask)
        else:
            packing = with_targets(pack_stream(len(encoded.tokens), self.seq_len), loss_mask)
        if limit is not None and packing.n_sequences > limit:
            self.n_left_out[name] = packing.n_sequences - limit
            packing = packing.select(np.sort(epoch_order(self.seed, 0, packing.n_sequences)[:limit]))
        return PackedSequences(
            encoded.tokens, packing, pad_id=self.tokenizer.pad_id, loss_mask=loss_mask, document_mask=document_mask
        )

    def fingerprint(self, cache: Cache, keys: Sequence[str | None]) -> str:
        """Return SHA-256 over all tokens and sequences; cached for cached tokens, since taking it reads them all."""
        known = [key for key in keys if key is not None]
        if len(known) < len(keys):
            return data_fingerprint(self.layout, self._made)
        name = f"fingerprint-{fingerprint_key(known, self.layout, self._made)}"
        entry = cache.get(name, lambda folder: {"fingerprint": data_fingerprint(self.layout, self._made)})
        return data_fingerprint(self.layout, self._made) if entry is None else entry.facts["fingerprint"]

    def finish(self, notes: list[str], hints: list[str], fingerprint: str, cache: Cache) -> PreparedData:
        first = next(iter(self.rows.values()))
        n_tokens = sum(report["train"].tokens for report in self.report.values())
        if n_tokens < LITTLE_TEXT and not any(self.pairs.values()):
            self.notes.insert(
                0,
                f"only {number_of('tokens', n_tokens)} of training text: too little to learn a language from. The "
                "model can only repeat them; its losses and samples mean little. Give 100,000 or more.",
            )
        return PreparedData(
            train=TrainingData({name: splits["train"] for name, splits in self.rows.items()}, self.weights),
            validation=first.get("validation"),
            test=first.get("test"),
            rows=self.rows,
            tokenizer=self.tokenizer,
            pairs=self.pairs,
            fingerprint=fingerprint,
            report=self.report,
            notes=notes + self.notes,
            hints=hints,
            read=self.read,
            cache=cache,
            prompt=Prompt.of(self.config),
        )
