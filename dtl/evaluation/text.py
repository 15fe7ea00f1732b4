"""Loss, perplexity and bits per byte of a model on held-out text."""

import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from dtl.base.progress import Pace, Progress
from dtl.data.batches import PackedSequences
from dtl.data.tokenizers.tokenizer import UNKNOWN, Tokenizer
from dtl.evaluation.metrics import bits_per_byte, perplexity
from dtl.generation.decoder import Decoder, choose_weights
from dtl.generation.engine import nats_when_decoding
from dtl.model.transformer import TransformerLM
from dtl.training.evaluate import evaluate

# --- bytes of each token ------------------------------------------------------------------------------------------
# Bits per byte, unlike a loss per token, can be compared across tokenizers.

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte of SentencePiece


def count_token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Return the UTF-8 bytes of text of each token, (vocab_size,) int64.

    Summed over the tokens of a text they are the bytes of the text. Special tokens have none, the unknown character
    has one: it had at least that.
    """
    backend = tokenizer.backend
    token_bytes = np.zeros(tokenizer.vocab_size, np.int64)
    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=False)
    if '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"]):
        for token, i in vocabulary.items():
            token_bytes[i] = len(token)  # one letter per byte
    else:
        plain = {token: i for token, i in vocabulary.items() if i not in added and not _BYTE.fullmatch(token)}
        # Decoded after another token, since some tokenizers drop the space at the beginning of a text.
        first = min(plain.values(), default=0)
        first_bytes = len(backend.decode([first]).encode())
        texts = backend.decode_batch([[first, i] for i in plain.values()])
        for i, text in zip(plain.values(), texts, strict=True):
            token_bytes[i] = len(text.encode()) - first_bytes
        token_bytes[[i for token, i in vocabulary.items() if _BYTE.fullmatch(token)]] = 1
    for i, token in added.items():
        token_bytes[i] = 0 if token.special else len(token.content.encode())
    unknown = backend.token_to_id(UNKNOWN)
    if unknown is not None:
        token_bytes[unknown] = 1
    return token_bytes


def decoded_bits_per_byte(
    model: TransformerLM, rows: PackedSequences, token_bytes: np.ndarray, weights: str, n_rows: int = 16
) -> float:
    """Return the bits per byte of the first `n_rows` sequences, decoded token by token with `generation.weights`.

    The difference to fp32 is what rounded weights lose. Documents of a sequence are not separated. Raises ConfigError
    for weights that this machine cannot have.
    """
    decoder = Decoder(model, choose_weights(model, weights))
    ids_bt = rows.batch(range(min(n_rows, len(rows)))).inputs
    nats = nats_when_decoding(model, decoder, ids_bt).double().sum().item()
    return bits_per_byte(nats, int(token_bytes[ids_bt[:, 1:].numpy()].sum()))


# --- scores of text -----------------------------------------------------------------------------------------------

MixedPrecision = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class TextScores:
    """Scores of one split of one source. Field names are keys of evaluation.json."""

    source: str
    split: str
    loss: float  # mean over the targets, in nats
    perplexity: float
    bits_per_byte: float  # of the targets' text
    targets: int  # tokens with a loss
    bytes: int  # of the targets' text
    tokens_per_second: float
    metrics: dict[str, float] = field(default_factory=dict)  # means over the targets, by name (`data.metrics`)


def text_scores(
    model: TransformerLM,
    rows: dict[str, dict[str, PackedSequences]],
    token_bytes: np.ndarray,
    batch_size: int,
    max_batches: int | None,
    mixed_precision: MixedPrecision,
    metrics: Sequence[str] = (),
    log: Progress = lambda message: None,
    at_once: int | None = None,
) -> list[TextScores]:
    """Score every held-out split of every source, with the registered `metrics` in addition.

    `token_bytes`: see `count_token_bytes`; `at_once`: see `evaluate`.
    """
    scores: list[TextScores] = []
    for source, splits in rows.items():
        for split, split_rows in splits.items():
            if split == "train":
                continue
            after_batch = Pace(f"{source}: {split} sequences", log).count
            scope = (split_rows, batch_size, max_batches, mixed_precision, token_bytes, metrics)
            result = evaluate(model, *scope, after_batch, at_once)
            if result.at_once != at_once:
                at_once = result.at_once
                log(f"no memory for {batch_size} sequences at once. From here on {at_once}: the same loss.")
            scores.append(
                TextScores(
                    source=source,
                    split=split,
                    loss=result.loss,
                    perplexity=perplexity(result.loss) if math.isfinite(result.loss) else math.nan,
                    bits_per_byte=bits_per_byte(result.loss * result.n_targets, result.n_bytes),
                    targets=result.n_targets,
                    bytes=result.n_bytes,
                    tokens_per_second=result.n_tokens / result.seconds if result.seconds else math.nan,
                    metrics=result.metrics,
                )
            )
    return scores
