"""GPT-2's ids from tiktoken: several times as fast as `tokenizers` on long texts, and the same ids.

tiktoken merges neighbours by the rank of what they make, `tokenizers` by the list of merges. For GPT-2's published
vocabulary both give the same: tried on every code point, every entry, repetitions and random strings. Another
vocabulary is left to `tokenizers`.
"""

import hashlib
import json
import os
from typing import Any

import tokenizers

END = "<|endoftext|>"
# SHA-256 of the entries in the order of their ids and of the merges, each on a line of its own.
MODEL_SHA256 = "23c6fdc4834db90a09c4c4dc25984d27b7446c7f56db12c659ab913058b26a43"
# Settings of a model by which its ids would be others; GPT-2 has none of them.
UNUSUAL = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges")
# As in tiktoken's own `gpt2`; possessive quantifiers, so that no run of letters or spaces is tried twice.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class GPT2Encoder:
    """Many texts at once; lone surrogates become U+FFFD, and `<|endoftext|>` is text."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        import tiktoken

        self._encoding = tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        self._n_threads = 1 if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else os.cpu_count() or 1

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch(texts, num_threads=self._n_threads)


def gpt2_encoder(backend: tokenizers.Tokenizer, byte_letters: list[str]) -> GPT2Encoder | None:
    """The encoder of a backend that is GPT-2's own to the last merge; None for any other.

    `byte_letters`: the letter that stands for each byte. Takes a sixth of a second.
    """
    parts = json.loads(backend.to_str())
    model, splitter = parts["model"], parts["pre_tokenizer"] or {}
    is_plain = splitter.get("type") == "ByteLevel" and splitter["use_regex"] and not splitter["add_prefix_space"]
    if parts["normalizer"] is not None or not is_plain or any(model.get(setting) for setting in UNUSUAL):
        return None
    if not all(token["special"] for token in parts["added_tokens"]) or _digest(model) != MODEL_SHA256:
        return None
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters)}
    ranks = {token: number for token, number in model["vocab"].items() if token != END}
    return GPT2Encoder({bytes(byte_of[letter] for letter in token): number for token, number in ranks.items()})


def _digest(model: dict[str, Any]) -> str:
    vocabulary, merges = model.get("vocab") or {}, model.get("merges") or []
    entries = [f"{token} {number}" for token, number in sorted(vocabulary.items(), key=lambda entry: entry[1])]
    return hashlib.sha256("\n".join([*entries, *map(" ".join, merges)]).encode()).hexdigest()
