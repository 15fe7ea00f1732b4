"""A block answers for itself: the width of its mlp, its twin, and what a model of it must be."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dtl.errors import ConfigError
from dtl.model.config import ArchConfig, BlockRules, ModelConfig
from dtl.model.hf import hf_config, to_hf
from dtl.model.transformer import ClassicBlock, GeluMLP, LearnedPositions, TransformerBlock, TransformerLM
from dtl.model.twins import TWINS, twin_of
from dtl.registry import BLOCKS

IDS = {"eos_id": 3, "bos_id": 5, "pad_id": 7}


class SquaredReLU(nn.Module):
    """Two matrices without biases (So et al. 2021, Primer)."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, ffn_dim, bias=False), nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x_btd: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.up(x_btd)).square())


class SquaredBlock(TransformerBlock):
    @classmethod
    def make_mlp(cls, config: ModelConfig) -> nn.Module:
        return SquaredReLU(config.dim, config.resolved_ffn_dim)


@pytest.fixture(autouse=True)
def forget_what_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BLOCKS, "_parts", dict(BLOCKS._parts))
    monkeypatch.setattr(BLOCKS, "_traits", dict(BLOCKS._traits))


def config_of(block: type[TransformerBlock], **changes) -> ModelConfig:
    BLOCKS.register("mine")(block)
    return ModelConfig(arch=ArchConfig("mine"), **{"n_layers": 2, "dim": 256} | changes)


def n_of_mlp(config: ModelConfig) -> int:
    return sum(p.numel() for p in BLOCKS.get(config.arch.block).make_mlp(config).parameters())


@pytest.mark.parametrize("dim", [256, 384, 512, 1024])
def test_an_mlp_of_two_matrices_is_as_large_as_one_of_three(dim):
    mine = config_of(SquaredBlock, dim=dim)
    assert mine.resolved_ffn_dim == 4 * dim
    assert n_of_mlp(mine) == pytest.approx(n_of_mlp(replace(mine, arch=ArchConfig("modern"))), rel=0.01)


def test_biases_are_no_matrices():
    biased = type("Biased", (TransformerBlock,), {"make_mlp": ClassicBlock.make_mlp})
    assert [config_of(biased, dim=dim, n_heads=1).resolved_ffn_dim for dim in (1, 2, 7, 256)] == [4, 8, 28, 1024]


@pytest.mark.parametrize("block", [SquaredBlock, TransformerBlock, ClassicBlock])
def test_a_multiple_is_the_nearest_one_and_changes_no_mlp_much(block):
    exact = 8 / 3  # of three matrices: as many numbers as 4 of two
    for multiple_of in (1, 7, 16, 64, 256):
        for dim in (1, 2, 15, 63, 64, 255, 256, 257, 512, 768, 1023, 1024):
            config = config_of(block, dim=dim, n_heads=1, ffn_multiple_of=multiple_of)
            width = config.resolved_ffn_dim
            if block is not TransformerBlock:
                assert width == 4 * dim  # two matrices: the measure, which is not rounded
            elif dim >= 4 * multiple_of:
                assert width % multiple_of == 0 and abs(width - exact * dim) <= multiple_of / 2
                assert abs(width / (exact * dim) - 1) < 0.05
            else:
                assert width == replace(config, ffn_multiple_of=min(16, multiple_of)).resolved_ffn_dim


@pytest.mark.parametrize("block", ["modern", "value_embeddings", "classic"])
def test_counting_matrices_gives_the_widths_that_are_known_without_torch(block):
    for dim, multiple_of in product([*range(1, 70), 255, 256, 640, 768, 1000], (16, 64)):
        config = ModelConfig(arch=ArchConfig(block), dim=dim, ffn_multiple_of=multiple_of)
        step = multiple_of if dim >= 4 * multiple_of else 16
        expected = 4 * dim if block == "classic" else max(step, round(8 * dim / 3 / step) * step)
        assert config.resolved_ffn_dim == BLOCKS.get(block).default_ffn_dim(config) == expected


def test_counting_matrices_draws_no_random_number():
    config, before = config_of(SquaredBlock), torch.get_rng_state()
    assert config.resolved_ffn_dim == 1024
    assert torch.equal(torch.get_rng_state(), before)


def test_a_block_may_say_its_width_itself_and_a_setting_goes_before():
    mine = config_of(
        type("Wide", (SquaredBlock,), {"default_ffn_dim": classmethod(lambda cls, config: 5 * config.dim)})
    )
    assert mine.resolved_ffn_dim == 5 * 256
    assert replace(mine, ffn_dim=17).resolved_ffn_dim == 17


def test_an_mlp_without_a_matrix_of_that_width_has_a_default_too():
    fixed = type("Fixed", (TransformerBlock,), {"make_mlp": classmethod(lambda cls, config: GeluMLP(config.dim, 19))})
    assert config_of(fixed).resolved_ffn_dim == 4 * 256


@pytest.mark.parametrize("block", [TransformerBlock, ClassicBlock])
def test_a_subclass_has_no_twin_though_its_parts_are_those_of_a_twin(block):
    assert BLOCKS.get("modern") is TransformerBlock and {TransformerBlock, ClassicBlock} == TWINS.keys()
    mine = config_of(type("Mine", (block,), {}), dim=16, n_heads=2)
    assert twin_of(mine) is None and twin_of(ModelConfig()) is TWINS[TransformerBlock]
    assert hf_config(mine, 23, **IDS)["model_type"] == "dtl-mine"
    assert "embedding.weight" in to_hf(TransformerLM(mine, 23))


def test_rotary_positions_need_an_even_head_in_a_block_of_ones_own_too():
    with pytest.raises(ConfigError, match=r"model\.head_dim=5: must be even"):
        config_of(SquaredBlock, head_dim=5).validate()
    learned = {"make_positions": classmethod(lambda cls, config: LearnedPositions(config.max_seq_len, config.dim))}
    BLOCKS.register("learned")(type("Learned", (SquaredBlock,), learned))
    ModelConfig(arch=ArchConfig("learned"), head_dim=5).validate()


def test_a_block_of_ones_own_may_have_options_and_those_of_dtl_have_none():
    mine = config_of(SquaredBlock)
    mine.arch.options = {"depth": 2}
    mine.validate()
    with pytest.raises(ConfigError, match="block=modern has none"):
        ModelConfig(arch=ArchConfig("modern", options={"depth": 2})).validate()


@pytest.mark.parametrize("block", ["modern", "value_embeddings", "classic"])
def test_a_model_has_the_least_parameters_of_its_block(block):
    config = ModelConfig(arch=ArchConfig(block), dim=48, n_layers=2, n_heads=3)
    least = config.block_rules.min_parameters(config)
    n = sum(p.numel() for name, p in TransformerLM(config, 23).named_parameters() if "embedding" not in name)
    assert 0.6 * n < least <= n
    assert config_of(SquaredBlock).block_rules.min_parameters(config) == BlockRules.min_parameters(config) == 0


@pytest.mark.parametrize("block", [nn.Linear, lambda config, layer: nn.Identity()])
def test_a_block_of_another_kind_is_rejected_by_name(block):
    BLOCKS.register("bare")(block)
    with pytest.raises(ConfigError, match=r"model\.arch\.block=bare: must be a subclass of TransformerBlock"):
        ModelConfig(arch=ArchConfig("bare")).validate()


def test_an_mlp_built_by_a_plain_method_has_its_default_width_too():
    class PlainBlock(TransformerBlock):
        def make_mlp(self, config: ModelConfig) -> nn.Module:  # pyright: ignore[reportIncompatibleMethodOverride]
            return SquaredReLU(config.dim, config.resolved_ffn_dim)

    assert config_of(PlainBlock, dim=24, n_heads=3).resolved_ffn_dim == 96
