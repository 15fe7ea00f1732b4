"""Encoding of documents to token ids: one compact array, end to end, with the offset of each document."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtl.base.progress import Pace, Progress
from dtl.base.units import in_units, number_of
from dtl.data.cache import Cache, key_of
from dtl.data.code_key import code_of
from dtl.data.collect import SourceTexts, collect_texts
from dtl.data.config import DataConfig, TokenizerConfig
from dtl.data.documents import Document, in_chunks
from dtl.data.fit import CHUNK_CHARACTERS, FittedQuestions, parts_of
from dtl.data.sources import SourcePlan
from dtl.data.stored import (
    DiskWriter,
    EncodedChunk,
    MemoryWriter,
    Texts,
    TokenDocuments,
    offsets_of,
    read_texts,
    read_tokens,
    token_dtype,
    write_tokens,
)
from dtl.data.tokenizers.prompt import Prompt
from dtl.data.tokenizers.tokenizer import Tokenizer, build_tokenizer, pieces
from dtl.errors import CheckpointError, DataError
from dtl.registry import TOKENIZERS


def encode_chunks(
    documents: Iterable[Document],
    encoder: Tokenizer,
    max_tokens: int | None = None,
    encoded_characters: Callable[[int], None] = lambda n_characters: None,
) -> Iterator[EncodedChunk]:
    """Encode documents in chunks, stopping after the chunk in which `max_tokens` is reached.

    `encoded_characters`: see `Tokenizer.encode_batch`.

    The prompt and the answer are encoded separately: whatever the tokenizer would merge across that border, the
    prompt's ids are those of the prompt alone, as in chat.
    """
    dtype = token_dtype(encoder.vocab_size)
    n_tokens = 0
    for chunk in in_chunks(documents, lambda document: len(document.text), CHUNK_CHARACTERS):
        turns = [document.turns or (document,) for document in chunk]
        parts_of_all = [part for of_one in turns for turn in of_one for part in parts_of(turn)]
        ids = iter(encoder.encode_batch(parts_of_all, encoded_characters))
        flat: list[list[int]] = []
        lengths: list[list[int]] = []  # of the turns of each document
        answer_starts: list[int] = []
        for of_one in turns:
            lengths.append([])
            for turn in of_one:
                parts = [next(ids) for _ in parts_of(turn)]
                answer_starts.append(len(parts[0]) if len(parts) == 2 else 0)
                lengths[-1].append(sum(map(len, parts)) + 1)
                flat += [*parts, [encoder.eos_id]]
        of_documents = np.array([sum(of_one) for of_one in lengths], np.int64)
        of_turns = np.array([*itertools.chain.from_iterable(lengths)], np.int64)
        tokens = np.fromiter(itertools.chain.from_iterable(flat), dtype, int(of_documents.sum()))
        yield EncodedChunk(tokens, of_documents, of_turns, np.array(answer_starts, np.int32))
        n_tokens += len(tokens)
        if max_tokens is not None and n_tokens >= max_tokens:
            break


def encode_documents(
    documents: Iterable[Document], encoder: Tokenizer, max_tokens: int | None = None
) -> TokenDocuments:
    """Encode documents into memory; see `encode_chunks`."""
    return joined(encode_chunks(documents, encoder, max_tokens), token_dtype(encoder.vocab_size))


def joined(chunks: Iterable[EncodedChunk], dtype: np.dtype) -> TokenDocuments:
    """Concatenate chunks."""
    kept = list(chunks)
    return TokenDocuments(
        tokens=np.concatenate([np.empty(0, dtype), *(chunk.tokens for chunk in kept)]),
        offsets=offsets_of([chunk.lengths for chunk in kept]),
        turns=offsets_of([chunk.turn_lengths for chunk in kept]),
        answer_starts=np.concatenate([np.empty(0, np.int32), *(chunk.answer_starts for chunk in kept)]),
    )


# --- questions that fit a sequence ------------------------------------------------------------------------------------


def fit_questions(texts: SourceTexts, prompt: Prompt, tokenizer: Tokenizer, seq_len: int, cache: Cache) -> SourceTexts:
    """Return the texts of a source with questions that fit a sequence, from the cache where it has them."""
    fitted = FittedQuestions(prompt, tokenizer, seq_len)

    def write(writer: MemoryWriter | DiskWriter) -> dict[str, Any]:
        for split, documents in texts.splits.items():
            writer.begin(split)
            for document in fitted.documents(documents, split):
                writer.add(split, document)
        changed = any(count for what, count in fitted.counts.items() if what != "questions")
        return {"changed": changed, "notes": fitted.notes(texts.origin)}

    def build(folder: Path) -> dict[str, Any]:
        writer = DiskWriter(folder)
        try:
            facts = write(writer)
            writer.close()
        finally:
            writer.abandon()
        return facts

    key = None if texts.key is None else fitted_key(texts.key, prompt, tokenizer, seq_len)
    entry = None if key is None else cache.get(f"text-{key}", build)
    if entry is not None:
        facts, splits = entry.facts, read_texts(entry.folder, list(texts.splits))
    else:
        key, writer = None, MemoryWriter()
        facts, splits = write(writer), dict[str, Texts](writer.texts())
    if not facts["changed"]:
        return texts
    if not len(splits["train"]):
        raise DataError("\n".join(facts["notes"]))
    splits = {split: documents for split, documents in splits.items() if len(documents)}
    return SourceTexts(texts.origin, splits, key, texts.facts | {"notes": [*texts.facts["notes"], *facts["notes"]]})


def fitted_key(text: str, prompt: Prompt, tokenizer: Tokenizer, seq_len: int) -> str | None:
    """Return a key, equal for equal questions of the text of this key; None where the tokenizer's code is unknown."""
    code = code_of(encode_sources, type(tokenizer))
    settings = tokens_settings(text, tokenizer, None) | {"prompt": asdict(prompt), "seq_len": seq_len}
    return key_of(code=code, **settings) if code is not None else None


# --- every source -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedSource:
    """The texts of a source, and their tokens."""

    texts: SourceTexts
    tokens: dict[str, TokenDocuments]  # by split
    key: str | None  # equal for equal tokens; None where they are not cached


def encode_sources(
    config: DataConfig,
    plans: Sequence[SourcePlan],
    tokenizer: TokenizerConfig | Tokenizer,
    seq_len: int,
    seed: int,
    cache: Cache,
    log: Progress,
) -> tuple[Tokenizer, dict[str, EncodedSource]]:
    """Return the tokenizer and the tokens of every source, in order, from the cache where it has them."""
    texts = collect_texts(config, plans, seq_len, seed, cache, log)
    if isinstance(tokenizer, TokenizerConfig):
        log(f"tokenizer {tokenizer.kind}")
        tokenizer = _tokenizer(tokenizer, texts, cache, log)
    for name, source in texts.items():
        if source.facts["has_pairs"]:
            texts[name] = fit_questions(source, Prompt.of(config), tokenizer, seq_len, cache)
    max_tokens = None if config.max_samples is None else config.max_samples * seq_len + 1
    return tokenizer, {name: _encode(source, tokenizer, max_tokens, cache, log) for name, source in texts.items()}


def _tokenizer(config: TokenizerConfig, texts: dict[str, SourceTexts], cache: Cache, log: Progress) -> Tokenizer:
    """Build a tokenizer. One that is trained on cached text is cached too; others do not depend on the text alone."""

    def training_texts() -> Iterator[str]:
        splits = [each.splits["train"] for each in texts.values()]
        pace, total, done = Pace(f"tokenizer {config.kind}", log), sum(int(s.characters.sum()) for s in splits), 0
        for document in itertools.chain.from_iterable(splits):
            for part in pieces(document.text) if config.traits.cuts_at_spaces else (document.text,):
                yield part
                done += len(part)
                pace.report(f"{in_units(done)} of {in_units(total)} characters", done / max(total, 1))

    def made() -> Tokenizer:
        return build_tokenizer(config, training_texts)

    if not config.traits.learnt or any(source.key is None for source in texts.values()):
        return made()
    key = tokenizer_key({name: source.key for name, source in texts.items()}, config)
    if key is None:
        return made()

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = made()
        tokenizer.save(folder)
        return {"notes": list(tokenizer.notes), "fingerprint": tokenizer.fingerprint}

    entry = cache.get(f"tokenizer-{key}", build)
    if entry is None:
        return made()
    tokenizer = Tokenizer.load(entry.folder)
    if tokenizer.fingerprint != entry.facts["fingerprint"]:
        raise CheckpointError(f"{entry.folder}: not the tokenizer that was written. Delete this folder.")
    tokenizer.notes = tuple(entry.facts["notes"])
    return tokenizer


def tokenizer_key(texts: Mapping[str, str | None], config: TokenizerConfig) -> str | None:
    """Return a key, equal for equal tokenizers trained by equal code on the texts of these keys; None: unknown code."""
    code = code_of(encode_sources, TOKENIZERS.get(config.kind))
    return key_of(code=code, **tokenizer_settings(texts, config)) if code is not None else None


def tokenizer_settings(texts: Mapping[str, str | None], config: TokenizerConfig) -> dict[str, Any]:
    """Return the settings that shape a trained tokenizer in addition to the code."""
    return {"texts": list(texts.items()), "config": asdict(config)}


def _encode(
    texts: SourceTexts, tokenizer: Tokenizer, max_tokens: int | None, cache: Cache, log: Progress
) -> EncodedSource:
    dtype = token_dtype(tokenizer.vocab_size)

    def chunks(split: str) -> Iterator[EncodedChunk]:
        documents = texts.splits[split]
        what = f"tokens of {texts.origin}: {split}, {number_of('documents', len(documents))}"
        log(what)
        pace, total, done = Pace(what, log), int(documents.characters.sum()), 0

        def report(n_characters: int) -> None:
            nonlocal done
            done += n_characters
            pace.report(f"{in_units(done)} of {in_units(total)} characters", done / max(total, 1))

        return encode_chunks(documents, tokenizer, max_tokens if split == "train" else None, report)

    def build(folder: Path) -> dict[str, Any]:
        for split in texts.splits:
            write_tokens(folder, split, chunks(split), dtype)
        return {"origin": texts.origin, "splits": list(texts.splits), "tokenizer": tokenizer.kind}

    key = None if texts.key is None else tokens_key(texts.key, tokenizer, max_tokens)
    if key is not None:
        entry = cache.get(f"tokens-{key}", build)
        if entry is not None:
            tokens = {split: read_tokens(entry.folder, split) for split in texts.splits}
            return EncodedSource(texts, tokens, key)
    return EncodedSource(texts, {split: joined(chunks(split), dtype) for split in texts.splits}, None)


def tokens_key(text: str, tokenizer: Tokenizer, max_tokens: int | None) -> str | None:
    """Return a key, equal for equal tokens of the text of this key; None where the tokenizer's code is unknown."""
    code = code_of(encode_sources, type(tokenizer))
    return key_of(code=code, **tokens_settings(text, tokenizer, max_tokens)) if code is not None else None


def tokens_settings(text: str, tokenizer: Tokenizer, max_tokens: int | None) -> dict[str, Any]:
    """Return the settings that shape the tokens of a text in addition to the code."""
    traits = TOKENIZERS.traits(tokenizer.kind)
    identity = {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint, "end": tokenizer.eos_id}
    return {"text": text, "tokenizer": identity, "cut": bool(traits and traits.cuts_at_spaces), "most": max_tokens}
