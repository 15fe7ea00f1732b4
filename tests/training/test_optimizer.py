"""Laws of the optimizers: who decays, who is stepped, and a state that comes back bit for bit."""

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from dtl.errors import CheckpointError, ConfigError
from dtl.model.presets import load_preset
from dtl.model.transformer import TransformerLM
from dtl.registry import OPTIMIZERS
from dtl.training import optimizer as optimizer_module
from dtl.training.config import OptimizerConfig
from dtl.training.optimizer import build_optimizers, load_optimizer_tensors, optimizer_tensors

BLOCKS = ("modern", "classic")
NAMES = ("adamw", "muon")
MakeModel = Callable[..., TransformerLM]


def groups_of(optimizers: list[Optimizer]) -> Iterable[tuple[Optimizer, dict[str, Any]]]:
    return ((optimizer, group) for optimizer in optimizers for group in optimizer.param_groups)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names registered in a test are forgotten after it."""
    monkeypatch.setattr(OPTIMIZERS, "_parts", dict(OPTIMIZERS._parts))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_held_exactly_once(tiny_model: MakeModel, name: str, block: str, tied: bool) -> None:
    model = tiny_model(block, tie_embeddings=tied)
    optimizers = build_optimizers(model, OptimizerConfig(name=name))
    held = Counter(id(p) for _, group in groups_of(optimizers) for p in group["params"])
    assert held == Counter(id(p) for p in model.parameters())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", NAMES)
def test_only_matrices_decay(tiny_model: MakeModel, name: str, block: str) -> None:
    """With gradients of zero, weight decay is all that moves a weight."""
    model = tiny_model(block, randomised=True)
    optimizers = build_optimizers(model, OptimizerConfig(name=name, lr=0.1, matrix_lr=0.1, weight_decay=0.5))
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in optimizers:
        optimizer.step()
    for key, p in model.named_parameters():
        expected = before[key] * (1 - 0.1 * 0.5) if p.ndim == 2 else before[key]
        torch.testing.assert_close(p.detach(), expected, msg=key)


def test_muon_takes_the_matrices_inside_the_blocks(tiny_model: MakeModel) -> None:
    model = tiny_model("classic", tie_embeddings=False)
    on_matrices, on_rest = build_optimizers(model, OptimizerConfig(name="muon", lr=0.002, matrix_lr=0.03))
    names = {id(p): name for name, p in model.named_parameters()}
    matrices = {names[id(p)] for group in on_matrices.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in on_rest.param_groups for p in group["params"]}
    assert matrices == {name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    assert {"embedding.weight", "head.weight", "blocks.0.attention.to_q.bias"} <= rest
    assert [group["peak_lr"] for group in on_matrices.param_groups] == [0.03]
    assert {group["peak_lr"] for group in on_rest.param_groups} == {0.002}


def test_settings_arrive(tiny_model: MakeModel) -> None:
    config = OptimizerConfig(lr=0.011, betas=[0.7, 0.8], eps=1e-5, weight_decay=0.3)
    (optimizer,) = build_optimizers(tiny_model(), config)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.011, (0.7, 0.8), 1e-5)


def test_embeddings_have_a_rate_of_their_own(tiny_model: MakeModel) -> None:
    """Tables that are looked up, and nothing else; both optimizers."""
    model = tiny_model("classic", tie_embeddings=False)
    names = {id(p): name for name, p in model.named_parameters()}
    for name in NAMES:
        config = OptimizerConfig(name=name, lr=0.002, matrix_lr=0.03, embedding_lr=0.011)
        fast = {
            names[id(p)]
            for _, group in groups_of(build_optimizers(model, config))
            for p in group["params"]
            if group["peak_lr"] == 0.011
        }
        assert fast == {"embedding.weight", "positions.table.weight"}


def test_muons_matrices_are_stepped_together_as_torch_steps_them_one_by_one(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shape and its transpose make a batch; the weights are those of torch's own loop, as near as bf16 is."""
    batches: list[int] = []
    together = optimizer_module.orthogonalised

    def counting(x_nio: Tensor, *settings: Any) -> Tensor:
        batches.append(len(x_nio))
        return together(x_nio, *settings)

    monkeypatch.setattr(optimizer_module, "orthogonalised", counting)
    model = tiny_model(randomised=True, n_layers=5)
    alone = copy.deepcopy(model)
    config = OptimizerConfig(name="muon", matrix_lr=0.02, weight_decay=0.3)
    optimizers = build_optimizers(model, config)
    monkeypatch.setattr(optimizer_module, "Muon", torch.optim.Muon)
    one_by_one = build_optimizers(alone, config)
    assert type(one_by_one[0]) is torch.optim.Muon is not type(optimizers[0])
    for each in ((model, optimizers), (alone, one_by_one)):
        take_steps(*each, range(3))
    assert batches == 3 * [20, 15]  # q, k, v, out of 5 layers; gate, up, down
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-3, msg=name)
    found, expected = (optimizer_tensors(*each) for each in ((model, optimizers), (alone, one_by_one)))
    assert found.keys() == expected.keys()
    load_optimizer_tensors(model, optimizers, expected)  # as a checkpoint of torch's Muon


def test_the_matrices_of_large_are_few_batches() -> None:
    with torch.device("meta"):
        model = TransformerLM(load_preset("large"), 101)
    (on_matrices, _) = build_optimizers(model, OptimizerConfig(name="muon"))
    matrices = [p for group in on_matrices.param_groups for p in group["params"]]
    assert len(matrices) == 84
    assert len({tuple(sorted(p.shape)) for p in matrices}) <= 4


# --- state --------------------------------------------------------------------------------------------------------


def take_steps(model: TransformerLM, optimizers: list[Optimizer], steps: Iterable[int]) -> None:
    """Steps with gradients that depend on the step alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


def through_a_file(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    return load(save(optimizer_tensors(model, optimizers), metadata={"format": "pt"}))


def assert_reload_is_exact(tiny_model: MakeModel, config: OptimizerConfig, block: str = "modern") -> None:
    model = tiny_model(block, randomised=True)
    optimizers = build_optimizers(model, config)
    take_steps(model, optimizers, range(3))
    tensors = through_a_file(model, optimizers)
    twin = tiny_model(block)
    twin.load_state_dict(model.state_dict())
    reloaded = build_optimizers(twin, config)
    load_optimizer_tensors(twin, reloaded, tensors)
    for each in ((model, optimizers), (twin, reloaded)):
        take_steps(*each, range(3, 8))
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), name
    before, after = through_a_file(model, optimizers), through_a_file(twin, reloaded)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype and torch.equal(value, after[key]), key


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", NAMES)
def test_going_on_after_a_reload_is_never_having_stopped(tiny_model: MakeModel, name: str, block: str) -> None:
    assert_reload_is_exact(tiny_model, OptimizerConfig(name=name), block)


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_without_steps_has_no_state(tiny_model: MakeModel, name: str) -> None:
    model = tiny_model()
    optimizers = build_optimizers(model, OptimizerConfig(name=name))
    assert through_a_file(model, optimizers) == {}
    load_optimizer_tensors(model, optimizers, {})


def trained_tensors(model: TransformerLM, name: str) -> dict[str, Tensor]:
    optimizers = build_optimizers(model, OptimizerConfig(name=name))
    take_steps(model, optimizers, range(1))
    return through_a_file(model, optimizers)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_another_size_is_refused(tiny_model: MakeModel, name: str) -> None:
    tensors = trained_tensors(tiny_model(ffn_dim=19), name)
    model = tiny_model()
    with pytest.raises(CheckpointError, match="does not fit this model"):
        load_optimizer_tensors(model, build_optimizers(model, OptimizerConfig(name=name)), tensors)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_another_depth_is_refused(tiny_model: MakeModel, name: str) -> None:
    tensors = trained_tensors(tiny_model(n_layers=3), name)
    model = tiny_model()
    with pytest.raises(CheckpointError, match=r"blocks\.2\."):
        load_optimizer_tensors(model, build_optimizers(model, OptimizerConfig(name=name)), tensors)


@pytest.mark.parametrize("saved, loading", [("adamw", "muon"), ("muon", "adamw")])
def test_the_state_of_another_optimizer_is_refused(tiny_model: MakeModel, saved: str, loading: str) -> None:
    model = tiny_model()
    tensors = trained_tensors(model, saved)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_optimizer_tensors(model, build_optimizers(model, OptimizerConfig(name=loading)), tensors)


def test_a_refused_state_leaves_the_optimizer_as_it_was(tiny_model: MakeModel) -> None:
    tensors = trained_tensors(tiny_model(n_layers=3), "adamw")
    model = tiny_model()
    optimizers = build_optimizers(model, OptimizerConfig())
    with pytest.raises(CheckpointError):
        load_optimizer_tensors(model, optimizers, tensors)
    assert optimizer_tensors(model, optimizers) == {}


# --- one's own ----------------------------------------------------------------------------------------------------


class SignDescent(Optimizer):
    """Steps of one size along the sign of the mean gradient; counts in plain Python numbers, as many do."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"mean": torch.zeros_like(p), "step": 0, "decay": 1.0, "row": torch.zeros(p.shape[0])}
                state["step"] += 1
                state["decay"] *= 1 - 1 / 3**20  # not a number of fp32
                state["mean"].lerp_(p.grad, 0.3)
                state["row"] += p.grad.flatten(1).mean(1) if p.ndim > 1 else p.grad
                p.sub_(group["lr"] * (1 - state["decay"]) * 3**20 / state["step"] * state["mean"].sign())


def test_an_optimizer_of_ones_own(own_registry: None, tiny_model: MakeModel) -> None:
    @OPTIMIZERS.register("sign")
    def sign(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
        return [SignDescent(model.parameters(), config.lr * config.options["scale"])]

    config = OptimizerConfig(name="sign", options={"scale": 0.5})
    config.validate()
    (optimizer,) = build_optimizers(tiny_model(), config)
    assert optimizer.param_groups[0]["peak_lr"] == config.lr * 0.5
    assert_reload_is_exact(tiny_model, config)


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.NAdam, torch.optim.SGD])
def test_an_optimizer_of_torch(own_registry: None, tiny_model: MakeModel, kind: Any) -> None:
    """Adafactor keeps rows and columns instead of whole matrices, SGD keeps nothing."""
    OPTIMIZERS.register("of torch")(lambda model, config: [kind(model.parameters(), lr=config.lr)])
    assert_reload_is_exact(tiny_model, OptimizerConfig(name="of torch"))


def test_state_that_no_file_can_hold_is_named(own_registry: None, tiny_model: MakeModel) -> None:
    OPTIMIZERS.register("lists")(lambda model, config: [SignDescent(model.parameters(), config.lr)])
    model = tiny_model()
    optimizers = build_optimizers(model, OptimizerConfig(name="lists"))
    optimizers[0].state[model.embedding.weight]["history"] = [1, 2]
    with pytest.raises(CheckpointError, match=r"embedding\.weight.*history.*list"):
        optimizer_tensors(model, optimizers)


def test_unknown_optimizer_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'adamw'"):
        OptimizerConfig(name="adam").validate()


def test_keys_are_plain_text(tiny_model: MakeModel) -> None:
    model = tiny_model()
    json.dumps(sorted(trained_tensors(model, "muon")))
