"""How many bytes of text each token stands for: what makes losses comparable across tokenizers."""

import json
import re

import numpy as np

from dtl.data.tokenizer import UNKNOWN, Tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte of SentencePiece


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes of text of each token, (vocab_size,) int64.

    Summed over the tokens of a text they are the bytes of the text. Special tokens stand for none, the unknown
    character for one: it had at least that.
    """
    backend = tokenizer.backend
    of_token = np.zeros(tokenizer.vocab_size, np.int64)
    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=False)
    if '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"]):
        for token, i in vocabulary.items():
            of_token[i] = len(token)  # a letter for each byte
    else:
        plain = {token: i for token, i in vocabulary.items() if i not in added and not _BYTE.fullmatch(token)}
        # Each beside a token with text, since some tokenizers drop the space that a text begins with.
        beside = min(plain.values(), default=0)
        without = len(backend.decode([beside]).encode())
        texts = backend.decode_batch([[beside, i] for i in plain.values()])
        for i, text in zip(plain.values(), texts, strict=True):
            of_token[i] = len(text.encode()) - without
        of_token[[i for token, i in vocabulary.items() if _BYTE.fullmatch(token)]] = 1
    for i, token in added.items():
        of_token[i] = 0 if token.special else len(token.content.encode())
    unknown = backend.token_to_id(UNKNOWN)
    if unknown is not None:
        of_token[unknown] = 1
    return of_token
