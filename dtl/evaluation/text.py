"""Loss, perplexity and bits per byte of a model on rows of text."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from dtl.data.batches import Rows
from dtl.evaluation.metrics import bits_per_byte, perplexity
from dtl.model.transformer import TransformerLM
from dtl.training.evaluate import evaluate

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
    """Every held-out split of every source. `of_token`: see `dtl.evaluation.token_bytes`."""
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
