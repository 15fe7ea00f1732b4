"""Laws of the optimizers: who decays, who is stepped, and a state that comes back bit for bit."""

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from dtl.config import RunConfig
from dtl.errors import CheckpointError, ConfigError
from dtl.model.presets import load_preset
from dtl.model.transformer import TransformerLM
from dtl.registry import OPTIMIZERS
from dtl.runner.build import checkpoint_bytes
from dtl.training import optimizer as optimizer_module
from dtl.training.config import OptimizerConfig, TrainerConfig
from dtl.training.optimizer import (
    POLYNOMIALS,
    BF16StateAdamW,
    build_optimizers,
    load_optimizer_tensors,
    optimizer_tensors,
    orthogonalised,
    warmed_up_momentum,
)

BLOCKS = ("modern", "value_embeddings", "classic")
NAMES = ("adamw", "muon")
MakeModel = Callable[..., TransformerLM]


def groups_of(optimizers: list[Optimizer]) -> Iterable[tuple[Optimizer, dict[str, Any]]]:
    return ((optimizer, group) for optimizer in optimizers for group in optimizer.param_groups)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names registered in a test are forgotten after it."""
    monkeypatch.setattr(OPTIMIZERS, "_parts", dict(OPTIMIZERS._parts))


@pytest.mark.parametrize(("micro", "accumulated"), [(3, 1), (3, 5), (7, 2)])
def test_half_of_the_second_moment_is_from_as_many_tokens_with_any_batch(micro, accumulated):
    trainer = TrainerConfig(micro_batch_size=micro, grad_accum_steps=accumulated)
    run = replace(RunConfig(), trainer=trainer, optimizer=OptimizerConfig(betas=[0.8, None], beta2_half_life=40_000))
    beta1, beta2 = run.on("cpu").optimizer.betas
    steps = 40_000 / (micro * accumulated * run.seq_len)
    assert beta1 == 0.8 and beta2 is not None and beta2**steps == pytest.approx(0.5, rel=1e-2)


def test_a_second_beta_of_ones_own_stays_and_no_half_life_makes_one_of_noise():
    assert OptimizerConfig(betas=[0.8, 0.71]).with_beta2(10**6).betas == [0.8, 0.71]
    assert OptimizerConfig(betas=[0.8, None]).with_beta2(10**9).betas == [0.8, 0.9]
    for betas in ([None, 0.9], [0.9], [0.9, 1.0]):
        with pytest.raises(ConfigError, match=r"optimizer\.betas=.*two numbers"):
            OptimizerConfig(betas=betas).validate()


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


def test_muon_leaves_tables_inside_the_blocks_to_adamw(tiny_model: MakeModel) -> None:
    model = tiny_model()
    for block in model.blocks:
        block.table = nn.Embedding(11, 13)
    muon, adamw = build_optimizers(model, OptimizerConfig(name="muon", lr=0.003, embedding_lr=0.07))
    tables = {id(block.table.weight) for block in model.blocks}
    assert not tables & {id(p) for group in muon.param_groups for p in group["params"]}
    assert tables <= {id(p) for group in adamw.param_groups if group["lr"] == 0.07 for p in group["params"]}


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
    settings: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.3, "adjust_lr_fn": "original"}
    monkeypatch.setattr(optimizer_module, "Muon", lambda matrices, _: torch.optim.Muon(matrices, **settings))
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


@pytest.mark.parametrize("has_units", [True, False])
def test_muon_computes_in_what_the_processor_does_not_emulate(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, has_units: bool
) -> None:
    monkeypatch.setattr(optimizer_module, "cpu_has_bf16", lambda: has_units)
    dtypes = set()

    def recording(x_nio: Tensor, *_: Any) -> Tensor:
        dtypes.add(x_nio.dtype)
        return x_nio

    monkeypatch.setattr(optimizer_module, "orthogonalised", recording)
    model = tiny_model(randomised=True)
    take_steps(model, build_optimizers(model, OptimizerConfig(name="muon")), range(1))
    assert dtypes == {torch.bfloat16 if has_units else torch.float32}


@pytest.mark.parametrize(("name", "low", "high"), [("newton_schulz", 0.47, 1.21), ("polar_express", 0.845, 1.13)])
def test_the_singular_values_end_near_one(name: str, low: float, high: float) -> None:
    """As far as POLYNOMIALS says, whatever they were; the vectors stay."""
    left_noo, right_nii = (torch.linalg.qr(torch.randn(3, size, size, dtype=torch.float64))[0] for size in (29, 43))
    values_o = torch.logspace(-3, 0, 29, dtype=torch.float64)
    x_noi = left_noo * values_o @ right_nii[:, :29]
    # Divided by their norm, they are below 1.
    found_noi = orthogonalised(x_noi.clone(), POLYNOMIALS[name], 1e-7)
    found_noo = left_noo.mT @ found_noi @ right_nii[:, :29].mT
    found_no = found_noo.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found_noo, torch.diag_embed(found_no), atol=1e-9, rtol=0)
    reached = found_no[:, values_o > 1e-3 * values_o.norm()]
    assert low <= reached.min() < 0.9 and 1.05 < reached.max() <= high


def update_of_the_first_step(make: MakeModel, weight_decay: float = 0.0, **settings: Any) -> dict[str, Tensor]:
    """What the first step takes from each matrix inside the blocks, with equal weights and gradients."""
    torch.manual_seed(5)
    model = make(randomised=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "blocks." in name and p.ndim == 2}
    config = OptimizerConfig(name="muon", matrix_lr=0.1, weight_decay=weight_decay, **settings)
    config.validate()
    take_steps(model, build_optimizers(model, config), range(1))
    now = dict(model.named_parameters())
    return {name: p - now[name].detach() for name, p in before.items()}


def test_even_rows_are_equally_long_and_the_step_is_as_long(tiny_model: MakeModel) -> None:
    plain, even = (update_of_the_first_step(tiny_model, row_beta2=beta2) for beta2 in (None, 0.7))
    for name, update in plain.items():
        torch.testing.assert_close(even[name].norm(), update.norm(), rtol=1e-3, atol=0)
        lengths_o = even[name].norm(dim=1)
        torch.testing.assert_close(lengths_o, lengths_o.mean().expand_as(lengths_o), rtol=1e-3, atol=0)
    assert any(update.norm(dim=1).std() > 0.05 * update.norm(dim=1).mean() for update in plain.values())


def test_cautious_decay_decays_what_the_step_also_makes_smaller(tiny_model: MakeModel) -> None:
    torch.manual_seed(5)
    weights = {name: p.detach() for name, p in tiny_model(randomised=True).named_parameters()}
    plain, cautious = (
        update_of_the_first_step(tiny_model),
        update_of_the_first_step(tiny_model, 0.5, cautious_decay=True),
    )
    for name, update in plain.items():
        decayed = 0.1 * 0.5 * weights[name] * (weights[name] * update > 0)
        torch.testing.assert_close(cautious[name] - update, decayed, atol=1e-6, rtol=1e-5, msg=name)


def test_the_momentum_warms_up(tiny_model: MakeModel) -> None:
    config = OptimizerConfig(name="muon", momentum=0.95, momentum_warmup_steps=10)
    assert [warmed_up_momentum(config, step) for step in (0, 5, 10, 99)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
    lower = OptimizerConfig(name="muon", momentum=0.7, momentum_warmup_steps=10)
    assert {warmed_up_momentum(lower, step) for step in range(12)} == {0.7}
    assert warmed_up_momentum(OptimizerConfig(name="muon", momentum=0.9), 0) == 0.9


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


@pytest.mark.parametrize("state_dtype", ["fp32", "bf16"])
def test_and_with_all_that_muon_may_do(tiny_model: MakeModel, state_dtype: str) -> None:
    config = OptimizerConfig(
        name="muon", orthogonalization="polar_express", row_beta2=0.7, cautious_decay=True, weight_decay=0.3,
        state_dtype=state_dtype,
    )  # fmt: skip
    assert_reload_is_exact(tiny_model, config)


# --- moments in bf16 --------------------------------------------------------------------------------------------------


def test_moments_in_bf16_are_those_of_torch_rounded_after_each_step(tiny_model: MakeModel) -> None:
    model = tiny_model(randomised=True)
    twin = copy.deepcopy(model)
    rates = {"lr": 0.01, "embedding_lr": 0.07, "weight_decay": 0.3}
    narrow = build_optimizers(model, OptimizerConfig(state_dtype="bf16", **rates))
    rounded = build_optimizers(twin, OptimizerConfig(**rates))
    for step in range(5):
        take_steps(model, narrow, range(step, step + 1))
        take_steps(twin, rounded, range(step, step + 1))
        for state in rounded[0].state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key].copy_(state[key].bfloat16())
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), name
        mine, theirs = narrow[0].state[p], rounded[0].state[q]
        assert mine["step"] == theirs["step"] == 5
        for key in ("exp_avg", "exp_avg_sq"):
            assert mine[key].dtype == torch.bfloat16 and torch.equal(mine[key].float(), theirs[key]) and mine[key].any()


def test_moments_in_bf16_stay_so_when_torch_loads_them(tiny_model: MakeModel) -> None:
    model = tiny_model()
    (optimizer,) = build_optimizers(model, OptimizerConfig(state_dtype="bf16"))
    take_steps(model, [optimizer], range(2))
    (other,) = build_optimizers(model, OptimizerConfig(state_dtype="bf16"))
    other.load_state_dict(optimizer.state_dict())
    for p, state in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            assert other.state[p][key].dtype == torch.bfloat16 and torch.equal(other.state[p][key], state[key])


@pytest.mark.parametrize("beta2", [0.9, 0.95, 0.9875, 0.996])
def test_a_second_moment_in_bf16_falls_with_every_beta_that_may_be_set(beta2: float) -> None:
    """After gradients that fell to a tenth it ends within a third of that in fp32, which is a hundredth as large."""
    OptimizerConfig(betas=[0.9, beta2], state_dtype="bf16").validate()
    p = {dtype: nn.Parameter(torch.zeros(997)) for dtype in ("fp32", "bf16")}
    optimizers = {"fp32": torch.optim.AdamW([p["fp32"]], betas=(0.9, beta2), fused=True)}
    optimizers["bf16"] = BF16StateAdamW([p["bf16"]], betas=(0.9, beta2), fused=True)
    half_life = int(0.7 / (1 - beta2)) + 1
    for step in range(16 * half_life):
        gradient = torch.randn(997) * (1.0 if step < 6 * half_life else 0.1)
        for dtype, optimizer in optimizers.items():
            p[dtype].grad = gradient.clone()
            optimizer.step()
    exact, rounded = (optimizers[dtype].state[p[dtype]]["exp_avg_sq"].float().mean() for dtype in ("fp32", "bf16"))
    assert exact < 0.02 and 0.75 < rounded / exact < 1.33


def test_a_second_moment_that_would_not_fall_in_bf16_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.state_dtype=bf16: the second beta is 0\.999.*0\.9961 at most"):
        OptimizerConfig(betas=[0.9, 0.999], state_dtype="bf16").validate()
    small = OptimizerConfig(betas=[0.9, None], state_dtype="bf16")
    assert small.with_beta2(1024).betas[1] == pytest.approx(0.98748)
    with pytest.raises(ConfigError, match=r"the second beta is 0\.99685"):
        small.with_beta2(256)
    for device, accumulated in (("auto", 1), ("cpu", None)):  # known before torch is loaded
        trainer = TrainerConfig(micro_batch_size=1, grad_accum_steps=accumulated)
        with pytest.raises(ConfigError, match=r"the second beta is 0\.99685"):
            replace(RunConfig(), device=device, trainer=trainer, optimizer=small).validate()


def test_moments_in_bf16_take_half_of_the_memory(tiny_model: MakeModel) -> None:
    weights = sum(p.nbytes for p in tiny_model().parameters())
    for dtype, moments in (("fp32", 2 * weights), ("bf16", weights)):
        model = tiny_model()
        optimizers = build_optimizers(model, OptimizerConfig(state_dtype=dtype))
        assert checkpoint_bytes(model, optimizers) == weights + moments  # foreseen
        take_steps(model, optimizers, range(1))
        assert checkpoint_bytes(model, optimizers) == weights + moments + 4 * len(list(model.parameters()))


def test_a_dtype_of_the_moments_that_nothing_reads_is_an_error(own_registry: None) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.state_dtype=fp8.*fp32.*bf16"):
        OptimizerConfig(state_dtype="fp8").validate()
    OPTIMIZERS.register("mine")(lambda model, config: [])
    OptimizerConfig("mine").validate()
    with pytest.raises(ConfigError, match=r"optimizer\.state_dtype=bf16: optimizer\.name=mine does not read it"):
        OptimizerConfig("mine", state_dtype="bf16").validate()


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
