"""Small models of prime-sized parts, every parameter random: a fresh model has almost no logits to compare."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.transformer import TransformerLM

VOCAB_SIZE = 23


@pytest.fixture(autouse=True)
def one_seed_one_thread():
    torch.manual_seed(7)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products: several threads only wait for each other
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def tiny_config() -> Callable[..., ModelConfig]:
    """Configs of all architectures; with rotary positions the heads are grouped, and wider together than the model."""

    def make(block: str = "modern", **changes: Any) -> ModelConfig:
        sizes: dict[str, Any] = {"n_layers": 3, "ffn_dim": 17, "max_seq_len": 29, "dropout": 0.0}
        if block != "classic":
            arch = ArchConfig(block, norm_eps=1e-5, rope_theta=777.0)
            sizes |= {"dim": 13, "n_heads": 6, "n_kv_heads": 2, "head_dim": 10}
        else:
            arch = ArchConfig(block, norm_eps=1e-4)
            sizes |= {"dim": 33, "n_heads": 3}
        return ModelConfig(arch=arch, **(sizes | changes))

    return make


@pytest.fixture
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Draws every parameter anew, norms and biases too."""

    def draw(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(mean=0.1, std=0.4)
        return module

    return draw


@pytest.fixture
def tiny_model(tiny_config, randomise) -> Callable[..., TransformerLM]:
    """Random models in evaluation mode."""

    def make(block: str = "modern", **changes: Any) -> TransformerLM:
        model = TransformerLM(tiny_config(block, **changes), VOCAB_SIZE)
        return randomise(model).eval()

    return make
