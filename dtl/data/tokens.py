"""Texts as tokens, with the tokenizer that the configuration asks for: out of the cache, or made for it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtl.data.cache import Cache, key_of
from dtl.data.code_key import code_of
from dtl.data.collect import SourceTexts, collect_texts
from dtl.data.config import DataConfig, TokenizerConfig
from dtl.data.encoding import EncodedChunk, TokenDocuments, encode_chunks, joined, token_dtype
from dtl.data.intake import Pace, Progress
from dtl.data.stored import Texts, read_tokens, write_tokens
from dtl.data.tokenizer import Tokenizer, build_tokenizer
from dtl.errors import CheckpointError
from dtl.registry import TOKENIZERS


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
    """A tokenizer that is learnt from cached text is cached with it; what others are made of, only they know."""

    def made() -> Tokenizer:
        return build_tokenizer(config, lambda: _training_texts(texts))

    if not config.traits.learnt or any(of_source.key is None for of_source in texts.values()):
        return made()
    key = tokenizer_key({name: of_source.key for name, of_source in texts.items()}, config)
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
    """Equal for equal tokenizers, learnt by equal code from the texts of these keys, by source; None: unknown code."""
    code = code_of(encode_sources, TOKENIZERS.get(config.kind))
    return key_of(code=code, **tokenizer_settings(texts, config)) if code is not None else None


def tokenizer_settings(texts: Mapping[str, str | None], config: TokenizerConfig) -> dict[str, Any]:
    """The settings that shape a learnt tokenizer, beside the code."""
    return {"texts": list(texts.items()), "config": asdict(config)}


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

    key = None if texts.key is None else tokens_key(texts.key, tokenizer, max_tokens)
    if key is not None:
        entry = cache.get(f"tokens-{key}", build)
        if entry is not None:
            tokens = {split: read_tokens(entry.folder, split) for split in texts.splits}
            return EncodedSource(texts, tokens, key)
    return EncodedSource(texts, {split: joined(chunks(split), dtype) for split in texts.splits}, None)


def tokens_key(text: str, tokenizer: Tokenizer, max_tokens: int | None) -> str | None:
    """Equal for equal tokens of the text of this key; None where the code of the tokenizer's class is unknown."""
    code = code_of(encode_sources, type(tokenizer))
    return key_of(code=code, **tokens_settings(text, tokenizer, max_tokens)) if code is not None else None


def tokens_settings(text: str, tokenizer: Tokenizer, max_tokens: int | None) -> dict[str, Any]:
    """The settings that shape the tokens of a text, beside the code."""
    traits = TOKENIZERS.traits(tokenizer.kind)
    said = {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint, "end": tokenizer.eos_id}
    return {"text": text, "tokenizer": said, "cut": bool(traits and traits.cuts_at_spaces), "most": max_tokens}


def _told(chunks: Iterator[EncodedChunk], what: str, texts: Texts, say: Progress) -> Iterator[EncodedChunk]:
    pace = Pace(what, say)
    total, done, n_tokens = int(texts.characters.sum()), 0, 0
    for chunk in chunks:
        yield chunk
        done += chunk.n_characters
        n_tokens += len(chunk.tokens)
        pace.tell(f"{n_tokens / 1e6:.1f} M tokens", done / max(total, 1))
