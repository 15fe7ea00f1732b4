"""Reading of the tokenizer of a checkpoint or of any Hugging Face model directory.

Every file may be missing, damaged or hostile: a file that cannot be read raises a CheckpointError with its name.
"""

import base64
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tokenizers

from dtl.base.json_files import read_bounded, read_foreign_json
from dtl.data.tokenizers.gpt2 import read_byte_level_bpe
from dtl.errors import CheckpointError, DataError

TRIED_IDS = 1000
TRIED_TEXT = f"\0 a é 日本 🙂 12\n\n{'a' * 50}!{' ' * 50}{'1' * 50}."  # repetitions: some patterns take 2^n steps
_ESCAPED_LETTER = re.compile(r"(?<!\\)(?:\\\\)*\\u00(?:[56]|7[0-9])")
_CHARSMAP = re.compile(r'"precompiled_charsmap"\s*:\s*"([^"]*)"')
MAX_TOKENIZER_BYTES = 64 * 2**20  # of tokenizer.json; those of 262,144 tokens have 33 MB


def read_settings(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one without the file. Raises CheckpointError when it is malformed."""
    return read_foreign_json(path, CheckpointError) if path.exists() else {}


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """Return the `tokenizers` object from tokenizer.json, or from the vocab.json and merges.txt of a GPT-2.

    Raises CheckpointError when there is neither, or when they are malformed.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder.")
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            with no_panic(file), _without_stderr():
                return _tried(read_bounded(file, MAX_TOKENIZER_BYTES).decode("utf-8"))
        except CheckpointError:
            raise
        except Exception as error:  # `tokenizers` raises plain Exception
            raise CheckpointError(f"{file}: not a tokenizer that can be read ({error}).") from error
    if not (folder / "vocab.json").is_file() or not (folder / "merges.txt").is_file():
        raise CheckpointError(
            f"{folder}: contains no tokenizer (tokenizer.json, or vocab.json with merges.txt). Where transformers "
            "saved the model alone, copy tokenizer.json and tokenizer_config.json from the model that it was made from."
        )
    # vocab.json does not define how text is split before merging; that is known only for GPT-2.
    model_type = read_settings(folder / "config.json").get("model_type", "gpt2")
    if model_type != "gpt2" or (folder / "added_tokens.json").exists():
        raise CheckpointError(
            f"{folder}: vocab.json and merges.txt are not enough for this tokenizer; tokenizer.json is needed.\n"
            "Write it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    try:
        return read_byte_level_bpe(folder)
    except DataError as error:
        raise CheckpointError(str(error)) from error


def _tried(text: str) -> tokenizers.Tokenizer:
    """Make the tokenizer, and use it once: only this shows a missing unknown token, or a decoder that cannot work."""
    if _ESCAPED_LETTER.search(text):  # could hide a key; no program writes letters so
        raise ValueError("it has escaped letters, \\u0061")
    for charsmap in _CHARSMAP.finditer(text):
        binary = base64.b64decode(charsmap[1])
        if not 0 < int.from_bytes(binary[:4], "little") <= len(binary) - 4:  # of its first part: so much is allocated
            raise ValueError("its precompiled_charsmap is damaged")
    backend = tokenizers.Tokenizer.from_str(text)
    # None of these is used, and a padding to 10^13 tokens would end the process.
    backend.no_padding()
    backend.no_truncation()
    backend.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    backend.decode(backend.encode(TRIED_TEXT).ids)
    backend.decode(list(range(min(TRIED_IDS, backend.get_vocab_size()))))
    return backend


@contextmanager
def no_panic(name: object) -> Iterator[None]:
    """Make a panic in `tokenizers`, which is no Exception, a CheckpointError about the file or tokenizer `name`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"{name}: `tokenizers` fails with it ({error}). It is damaged or hostile: use another copy."
        ) from None


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Keep what Rust prints about a panic, with its backtrace, off the terminal; it writes past Python's stream."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is none
        yield
        return
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def special_id(folder: Path, backend: tokenizers.Tokenizer, name: str) -> int | None:
    """Return the id of the "eos", "bos" or "pad" token.

    It is read from tokenizer_config.json, else from config.json or generation_config.json.

    Raises CheckpointError for a token that the vocabulary does not have. None when no file names it.
    """
    token = read_settings(folder / "tokenizer_config.json").get(f"{name}_token")
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None:
        token_id = None
        with suppress(TypeError, UnicodeEncodeError):  # not text; a lone surrogate
            token_id = backend.token_to_id(content)
        if token_id is None:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: {name}_token={content!r} is not in the vocabulary."
            )
        return token_id
    for file in (folder / "config.json", folder / "generation_config.json"):
        number = read_settings(file).get(f"{name}_token_id")
        if isinstance(number, list) and number:  # several, as in chat models: the first ends a text
            number = number[0]
        if number is None:
            continue
        if type(number) is not int or number < 0 or backend.id_to_token(number) is None:
            raise CheckpointError(f"{file}: {name}_token_id={number!r} is not in the vocabulary.")
        return number
    return None
