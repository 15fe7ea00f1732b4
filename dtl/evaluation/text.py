"""Loss, perplexity and bits per byte of a model on rows of text."""

import json
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from dtl.data.batches import Rows
from dtl.data.tokenizers.tokenizer import UNKNOWN, Tokenizer
from dtl.evaluation.metrics import bits_per_byte, perplexity
from dtl.model.transformer import TransformerLM
from dtl.training.evaluate import evaluate

# --- bytes of each token ------------------------------------------------------------------------------------------
# How many bytes of text each token stands for: what makes losses comparable across tokenizers.


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


# --- scores of text -----------------------------------------------------------------------------------------------


MixedPrecision = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class TextScores:
    """One split of one source."""

    source: str
    split: str
    loss: float  # mean over the targets, in nats
    perplexity: float
    bits_per_byte: float  # of the targets' text
    targets: int  # tokens with a loss
    bytes: int  # of the targets' text
    tokens_per_second: float


def text_scores(
    model: TransformerLM,
    rows: dict[str, dict[str, Rows]],
    of_token: np.ndarray,
    batch_size: int,
    max_batches: int | None,
    mixed_precision: MixedPrecision,
) -> list[TextScores]:
    """Every held-out split of every source. `of_token`: see `dtl.evaluation.text`."""
    found: list[TextScores] = []
    for source, splits in rows.items():
        for split, of_split in splits.items():
            if split == "train":
                continue
            result = evaluate(model, of_split, batch_size, max_batches, mixed_precision, of_token)
            found.append(
                TextScores(
                    source=source,
                    split=split,
                    loss=result.loss,
                    perplexity=perplexity(result.loss) if math.isfinite(result.loss) else math.nan,
                    bits_per_byte=bits_per_byte(result.loss * result.n_targets, result.n_bytes),
                    targets=result.n_targets,
                    bytes=result.n_bytes,
                    tokens_per_second=result.n_tokens / result.seconds if result.seconds else math.nan,
                )
            )
    return found
