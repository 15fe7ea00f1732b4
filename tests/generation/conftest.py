"""Random models of prime sizes for the tests of generation: every parameter drawn anew, norms and biases too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from naive_loop import VOCAB_SIZE

from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.transformer import TransformerLM


@pytest.fixture(autouse=True)
def in_every_test(one_thread_one_seed: None) -> None:
    """One thread, one seed."""


@pytest.fixture
def random_model() -> Callable[..., TransformerLM]:
    """Models in evaluation mode: `grouped` and `value_embeddings` have fewer key/value heads than heads, `modern` as
    many, `classic` is GPT-2's."""

    def make(kind: str = "modern", vocab_size: int = VOCAB_SIZE, **changes: Any) -> TransformerLM:
        sizes: dict[str, Any] = {"n_layers": 3, "ffn_dim": 17, "max_seq_len": 29, "dropout": 0.3}
        if kind == "classic":
            sizes |= {"arch": ArchConfig("classic"), "dim": 33, "n_heads": 3}
        else:
            block = "modern" if kind == "grouped" else kind
            sizes |= {"arch": ArchConfig(block, rope_theta=777.0), "dim": 13, "n_heads": 6, "head_dim": 10}
            sizes |= {"n_kv_heads": None if kind == "modern" else 2}
        model = TransformerLM(ModelConfig(**(sizes | changes)), vocab_size)
        with torch.no_grad():
            for parameter in model.parameters():
                # A mean in the matrices would favour one token everywhere, and texts would be dull.
                parameter.normal_(mean=0.0 if parameter.ndim == 2 else 0.3, std=0.5)
        return model.eval()

    return make
