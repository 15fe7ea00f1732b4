"""Laws of learning rates that transfer over width: activations of one size, a multiplier that no forward pass has."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from dtl.config import RunConfig, converted
from dtl.errors import ConfigError
from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.transformer import TransformerBlock, TransformerLM
from dtl.registry import BLOCKS
from dtl.training.config import OptimizerConfig
from dtl.training.optimizer import build_optimizers
from dtl.training.transfer import adam_rate_factors, output_multiplier, scale_initial_weights

VOCAB_SIZE, SEQ_LEN = 97, 23
ARCHITECTURES, NAMES = ("modern", "value_embeddings", "classic"), ("adamw", "muon")


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


def activations(name: str, block: str, dim: int, base_width: int | None, seed: int) -> Tensor:
    """Root mean squares (steps, layers + 1) of each block's output and of the logits after 1 to 5 steps."""
    model = new_model(dim, base_width, block, seed)
    rates = {"lr": 1e-3, "embedding_lr": 1e-2, "matrix_lr": 1e-2}
    optimizers = build_optimizers(model, OptimizerConfig(name, base_width=base_width, **rates))
    seen: list[Tensor] = []
    for module in model.blocks:
        module.register_forward_hook(lambda _module, _input, x_btd: seen.append(x_btd.detach().square().mean().sqrt()))
    generator = torch.Generator().manual_seed(seed)
    frequencies_v = 1 / torch.arange(1, VOCAB_SIZE + 1)
    ids_bt = torch.multinomial(frequencies_v, 7 * SEQ_LEN, replacement=True, generator=generator).view(7, SEQ_LEN)
    rows = []
    for _ in range(6):
        seen.clear()
        logits_btv = take_step(model, optimizers, ids_bt)
        rows.append(torch.stack([*seen, logits_btv.square().mean().sqrt()]))
    return torch.stack(rows[1:])


def drift(name: str, block: str, base_width: int | None) -> float:
    """Return the largest ratio of an activation at one width to the same one, mean of two seeds, at another."""
    at_widths = torch.stack(
        [sum(activations(name, block, dim, base_width, seed) for seed in (5, 7)) for dim in (48, 96, 192)]
    )
    return float((at_widths.amax(dim=0) / at_widths.amin(dim=0)).max())


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("block", ARCHITECTURES)
@pytest.mark.parametrize("name", NAMES)
def test_activations_have_one_size_at_all_widths(name: str, block: str) -> None:
    """A coordinate check: at most 1.12 here with the setting, at least 3.6 without."""
    with_it, without = (drift(name, block, base_width) for base_width in (96, None))
    assert with_it < 1.3 and without > 1.5


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


# --- who is scaled ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("block", ARCHITECTURES)
def test_rates_and_decay_of_each_parameter(block: str, tied: bool) -> None:
    model = new_model(48, 96, block, tie_embeddings=tied)
    rates = {"lr": 0.003, "embedding_lr": 0.011, "matrix_lr": 0.02, "weight_decay": 0.3}
    adamw, muon = (rates_of(model, OptimizerConfig(name, base_width=96, **rates)) for name in NAMES)
    for name, p in model.named_parameters():
        in_block, is_table = name.startswith("blocks."), name.endswith(("embedding.weight", "positions.table.weight"))
        if is_table:
            expected = (0.011, 0.3)
        elif name.startswith("norm."):
            expected = (0.006, 0.0)
        elif p.ndim == 1:
            expected = (0.003, 0.0)
        else:
            expected = (0.006, 0.15) if in_block else (0.003, 0.3)
        assert adamw[name] == pytest.approx(expected), name
        assert muon[name] == pytest.approx((0.02, 0.3) if in_block and p.ndim == 2 else expected), name


def test_the_rate_that_is_logged_is_the_one_that_was_set() -> None:
    for name in NAMES:
        config = OptimizerConfig(name, lr=0.003, base_width=96)
        assert build_optimizers(new_model(48, 96), config)[-1].param_groups[0]["peak_lr"] == 0.003


@pytest.mark.parametrize("block", ARCHITECTURES)
def test_without_the_setting_and_at_its_width_nothing_is_scaled(block: str) -> None:
    plain, at_its_width = (new_model(48, base_width, block) for base_width in (None, 48))
    torch.manual_seed(5)
    drawn = TransformerLM(plain.config, VOCAB_SIZE)
    for p, q, r in zip(drawn.parameters(), plain.parameters(), at_its_width.parameters(), strict=True):
        assert torch.equal(p, q) and torch.equal(p, r)
    for name in NAMES:
        rates = [rates_of(plain, OptimizerConfig(name, base_width=base_width)) for base_width in (None, 48)]
        assert rates[0] == rates[1]
    assert adam_rate_factors(plain, None) == adam_rate_factors(plain, 48) == {}


@pytest.mark.parametrize("block", ARCHITECTURES)
def test_the_first_weights(block: str) -> None:
    """Of a model twice as wide as its base: matrices in the blocks, final norm, and an embedding that is tied."""
    scaled, drawn = (dict(new_model(192, base_width, block).named_parameters()) for base_width in (96, None))
    for name, p in scaled.items():
        factor = 1.0
        if name.startswith("blocks.") and p.ndim == 2:
            factor = 2**-0.5
        elif name.startswith("norm."):
            factor = 0.5
        elif name == "embedding.weight" and block != "classic":
            factor = min(0.02, math.log(VOCAB_SIZE) / 192) / min(0.02, math.log(VOCAB_SIZE) / 384)
        torch.testing.assert_close(p.detach(), drawn[name] * factor, msg=name)


class NormWithoutWeights(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:])


def test_a_block_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables and the final norm keep their weights and rates, its matrices are scaled, of whatever dimension."""
    monkeypatch.setattr(BLOCKS, "_parts", dict(BLOCKS._parts))

    @BLOCKS.register("experts")
    class Block(TransformerBlock):
        def __init__(self, config: ModelConfig, layer: int) -> None:
            super().__init__(config, layer)
            self.experts = nn.Parameter(torch.ones(3, 5, 7))
            self.table = nn.Embedding(11, 13)

        @classmethod
        def make_norm(cls, config: ModelConfig) -> nn.Module:
            return NormWithoutWeights()

    scaled, drawn = (dict(new_model(32, base_width, "experts").named_parameters()) for base_width in (64, None))
    model = new_model(32, 64, "experts")
    rates = rates_of(model, OptimizerConfig(lr=0.003, base_width=64))
    for name, p in scaled.items():
        is_matrix = name.startswith("blocks.") and p.ndim > 1 and "table" not in name
        assert rates[name][0] == pytest.approx(0.006 if is_matrix else 0.003), name
        torch.testing.assert_close(p.detach(), drawn[name] * (2**0.5 if is_matrix else 1), msg=name)


def test_the_default_is_off_and_the_groups_have_it() -> None:
    """A run whose config.yaml was written before the key existed keeps its rates."""
    assert converted(RunConfig, {"optimizer": {"lr": 0.003}}).optimizer.base_width is None
    assert RunConfig().optimizer.base_width == 256


@pytest.mark.parametrize("base_width", [0, -256, 65_537])
def test_a_width_out_of_range_is_an_error(base_width: int) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer.base_width={base_width}: must be at .*or null"):
        OptimizerConfig(base_width=base_width).validate()
