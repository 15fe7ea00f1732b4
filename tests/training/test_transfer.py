"""Laws of learning rates that transfer over width: one size of activations, and a multiplier that no forward pass has."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.transformer import TransformerBlock, TransformerLM
from dtl.registry import BLOCKS
from dtl.training.config import OptimizerConfig
from dtl.training.optimizer import build_optimizers
from dtl.training.transfer import adam_rate_factors, output_multiplier, scale_initial_weights

VOCAB_SIZE, SEQ_LEN = 97, 31
ARCHITECTURES, NAMES = ("modern", "classic"), ("adamw", "muon")


def new_model(dim: int, base_width: int | None, block: str = "modern", seed: int = 5, **changes: Any) -> TransformerLM:
    """A model as a run builds it: heads of 16, as many as fit its width."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"n_layers": 2, "n_heads": dim // 16, "max_seq_len": SEQ_LEN, "dropout": 0.0}
    model = TransformerLM(ModelConfig(arch=ArchConfig(block), dim=dim, **(sizes | changes)), VOCAB_SIZE)
    scale_initial_weights(model, base_width)
    return model


def take_step(model: TransformerLM, optimizers: list[Optimizer], ids_bt: Tensor) -> Tensor:
    """One step on the tokens; returns the logits (b, t, v) before it."""
    logits_btv = model(ids_bt[:, :-1])
    model.zero_grad()
    F.cross_entropy(logits_btv.flatten(0, 1), ids_bt[:, 1:].flatten()).backward()
    for optimizer in optimizers:
        optimizer.step()
    return logits_btv.detach()


def rates_of(model: nn.Module, config: OptimizerConfig) -> dict[str, tuple[float, float]]:
    """Peak learning rate and weight decay of each parameter."""
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: (group["peak_lr"], group["weight_decay"])
        for optimizer in build_optimizers(model, config)
        for group in optimizer.param_groups
        for p in group["params"]
    }


# --- the coordinate check -----------------------------------------------------------------------------------------


def activations(name: str, block: str, dim: int, base_width: int | None, n_steps: int = 5) -> Tensor:
    """Root mean squares (steps, layers + 1) of each block's output and of the logits after 1, 2, ... steps."""
    model = new_model(dim, base_width, block)
    optimizers = build_optimizers(
        model, OptimizerConfig(name, lr=2e-3, embedding_lr=1e-2, matrix_lr=2e-2, base_width=base_width)
    )
    seen: list[Tensor] = []
    for module in model.blocks:
        module.register_forward_hook(lambda _module, _input, x_btd: seen.append(x_btd.detach().square().mean().sqrt()))
    generator = torch.Generator().manual_seed(3)
    frequencies_v = 1 / torch.arange(1, VOCAB_SIZE + 1)
    ids_bt = torch.multinomial(frequencies_v, 7 * SEQ_LEN, replacement=True, generator=generator).view(7, SEQ_LEN)
    rows = []
    for _ in range(n_steps + 1):
        seen.clear()
        logits_btv = take_step(model, optimizers, ids_bt)
        rows.append(torch.stack([*seen, logits_btv.square().mean().sqrt()]))
    return torch.stack(rows[1:])


def drift(name: str, block: str, base_width: int | None) -> float:
    """The largest ratio of an activation at one width to the same one at another."""
    at_widths = torch.stack([activations(name, block, dim, base_width) for dim in (64, 128, 256)])
    return float((at_widths.amax(dim=0) / at_widths.amin(dim=0)).max())


@pytest.mark.parametrize("block", ARCHITECTURES)
@pytest.mark.parametrize("name", NAMES)
def test_activations_have_one_size_at_all_widths(name: str, block: str) -> None:
    with_it, without = (drift(name, block, base_width) for base_width in (128, None))
    print(name, block, with_it, without)
    assert with_it < 1.5 < without


# --- the multiplier of the logits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_norm_at_m_with_its_rate_is_a_multiplier_of_the_logits(block: str, tied: bool) -> None:
    """Exactly, but for Adam's eps: steps of a model whose forward pass has the multiplier give the same logits."""
    config = OptimizerConfig(lr=3e-3, embedding_lr=7e-3, eps=1e-30, weight_decay=0.3, base_width=128)
    model = new_model(32, 128, block, tie_embeddings=tied).double()
    multiplier = output_multiplier(model, 128)
    assert multiplier == 4
    explicit = copy.deepcopy(model)
    with torch.no_grad():
        for p in explicit.norm.parameters():
            p.div_(multiplier)
    explicit.norm.register_forward_hook(lambda _module, _input, x_btd: multiplier * x_btd)
    sides = [(each, build_optimizers(each, config)) for each in (model, explicit)]
    for group in sides[1][1][0].param_groups:
        if any(p is explicit.norm.weight for p in group["params"]):
            group["lr"] = config.lr
    ids_bt = torch.randint(VOCAB_SIZE, (3, SEQ_LEN), generator=torch.Generator().manual_seed(2))
    for _ in range(5):
        found_btv, expected_btv = (take_step(*side, ids_bt) for side in sides)
        torch.testing.assert_close(found_btv, expected_btv, rtol=1e-9, atol=1e-11)
    assert found_btv.std() > 0.1


@pytest.mark.parametrize("dim, multiplier", [(96, 2), (192, 1), (256, 1), (384, 0.5), (512, 0.5), (768, 0.25)])
def test_the_multiplier_is_a_power_of_two(dim: int, multiplier: float) -> None:
    with torch.device("meta"):
        model = TransformerLM(ModelConfig(dim=dim), VOCAB_SIZE)
    assert output_multiplier(model, 256) == multiplier
