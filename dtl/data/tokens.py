"""Texts as tokens, with the tokenizer that the configuration asks for: out of the cache, or made for it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtl.data.cache import Cache, key_of
from dtl.data.collect import SourceTexts, collect_texts
from dtl.data.config import DataConfig, TokenizerConfig
from dtl.data.encoding import EncodedChunk, TokenDocuments, encode_chunks, joined, token_dtype
from dtl.data.intake import Pace, Progress
from dtl.data.stored import Texts, read_tokens, write_tokens
from dtl.data.tokenizer import Tokenizer, build_tokenizer
from dtl.errors import CheckpointError

LEARNT_TOKENIZERS = ("bpe", "char")  # the kinds of DTL's own that are made of the text


@dataclass(frozen=True)
class EncodedSource:
    """The texts of a source and what they are as tokens."""

    texts: SourceTexts
    tokens: dict[str, TokenDocuments]  # by split
    key: str | None  # equal for equal tokens; None where they are in memory alone


def encode_sources(
    config: DataConfig, tokenizer: TokenizerConfig | Tokenizer, seq_len: int, seed: int, cache: Cache, say: Progress
) -> tuple[Tokenizer, dict[str, EncodedSource]]:
    """The tokenizer and every source as tokens, in order; made where the cache does not have them."""
    texts = collect_texts(config, seq_len, seed, cache, say)
    if isinstance(tokenizer, TokenizerConfig):
        say(f"tokenizer {tokenizer.kind}")
        tokenizer = _tokenizer(tokenizer, texts, cache)
    max_tokens = None if config.max_samples is None else config.max_samples * seq_len + 1
    return tokenizer, {name: _encode(of_source, tokenizer, max_tokens, cache, say) for name, of_source in texts.items()}


def _tokenizer(config: TokenizerConfig, texts: dict[str, SourceTexts], cache: Cache) -> Tokenizer:
    """A tokenizer that is learnt from cached text is cached with it; of others, plugins' too, only they know."""

    def made() -> Tokenizer:
        return build_tokenizer(config, lambda: _training_texts(texts))

    if config.kind not in LEARNT_TOKENIZERS or any(of_source.key is None for of_source in texts.values()):
        return made()
    keys = {name: of_source.key for name, of_source in texts.items()}

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = made()
        tokenizer.save(folder)
        return {"notes": list(tokenizer.notes), "fingerprint": tokenizer.fingerprint}

    entry = cache.get(f"tokenizer-{key_of(texts=list(keys.items()), config=asdict(config))}", build)
    if entry is None:
        return made()
    tokenizer = Tokenizer.load(entry.folder)
    if tokenizer.fingerprint != entry.facts["fingerprint"]:
        raise CheckpointError(f"{entry.folder}: not the tokenizer that was written. Delete this folder.")
    tokenizer.notes = tuple(entry.facts["notes"])
    return tokenizer


def _training_texts(texts: dict[str, SourceTexts]) -> Iterator[str]:
    return (document.text for of_source in texts.values() for document in of_source.splits["train"])


def _encode(
    texts: SourceTexts, tokenizer: Tokenizer, max_tokens: int | None, cache: Cache, say: Progress
) -> EncodedSource:
    dtype = token_dtype(tokenizer.vocab_size)

    def chunks(split: str) -> Iterator[EncodedChunk]:
        of_split = texts.splits[split]
        what = f"tokens of {texts.origin}: {split}, {len(of_split):,} documents"
        say(what)
        return _told(encode_chunks(of_split, tokenizer, max_tokens if split == "train" else None), what, of_split, say)

    def build(folder: Path) -> dict[str, Any]:
        for split in texts.splits:
            write_tokens(folder, split, chunks(split), dtype)
        return {"origin": texts.origin, "splits": list(texts.splits), "tokenizer": tokenizer.kind}

    if texts.key is not None:
        key = key_of(texts=texts.key, tokenizer=tokenizer.fingerprint, end=tokenizer.eos_id, most=max_tokens)
        entry = cache.get(f"tokens-{key}", build)
        if entry is not None:
            tokens = {split: read_tokens(entry.folder, split) for split in texts.splits}
            return EncodedSource(texts, tokens, key)
    return EncodedSource(texts, {split: joined(chunks(split), dtype) for split in texts.splits}, None)


def _told(chunks: Iterator[EncodedChunk], what: str, texts: Texts, say: Progress) -> Iterator[EncodedChunk]:
    pace = Pace(what, say)
    total, done, n_tokens = int(texts.characters.sum()), 0, 0
    for chunk in chunks:
        yield chunk
        done += chunk.n_characters
        n_tokens += len(chunk.tokens)
        pace.tell(f"{n_tokens / 1e6:.1f} M tokens", done / max(total, 1))
