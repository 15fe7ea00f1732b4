"""Reading of the tokenizer of a checkpoint or of any Hugging Face model directory.

Every file may be missing, damaged or hostile: a file that cannot be read raises a CheckpointError with its name.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import tokenizers

from dtl.base.json_files import read_bounded, read_foreign_json
from dtl.data.tokenizers.gpt2 import read_byte_level_bpe
from dtl.errors import CheckpointError, DataError

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
            backend = tokenizers.Tokenizer.from_str(read_bounded(file, MAX_TOKENIZER_BYTES).decode("utf-8"))
            backend.encode("\0 a")  # only this shows a missing unknown token
            return backend
        except Exception as error:  # `tokenizers` raises plain Exception
            raise CheckpointError(f"{file}: not a tokenizer that can be read ({error}).") from error
    if not (folder / "vocab.json").is_file() or not (folder / "merges.txt").is_file():
        raise CheckpointError(f"{folder}: contains no tokenizer (tokenizer.json, or vocab.json with merges.txt).")
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
