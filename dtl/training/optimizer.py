"""Optimizers by name, their memory, and their state as tensors.

A builder maps the model and its config to the torch optimizers of one step. Every parameter group stores its peak
learning rate as `peak_lr`, which the schedule scales, and where its momentum changes, that of a step as `momentum_at`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw as fused_adamw

from dtl.base.runtime import cpu_has_bf16
from dtl.errors import CheckpointError
from dtl.registry import OPTIMIZERS
from dtl.training.config import OptimizerConfig
from dtl.training.transfer import adam_rate_factors, lookup_tables

MakeOptimizers = Callable[[nn.Module, OptimizerConfig], list[Optimizer]]


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Build the optimizers named by `config.name`; together they hold every trainable parameter exactly once."""
    optimizers = OPTIMIZERS.get(config.name)(model, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


@OPTIMIZERS.register("adamw")
def adamw(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""
    return [_adamw(model, list(model.parameters()), config)]


@OPTIMIZERS.register("muon")
def muon(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Muon (Jordan et al., 2024) on the matrices inside the blocks, AdamW on everything else.

    After equal steps better than AdamW by 0.111 nats (0.093 to 0.130), but its step takes 1.23 times as long on a CPU:
    after equal time no difference (experiments/experiment/muon_vs_adamw.md).
    """
    # Embeddings and head are matrices too, but their rows belong to single tokens: Jordan leaves them to AdamW.
    tables = lookup_tables(model)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks." in name and p not in tables]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [Muon(matrices, config), _adamw(model, rest, config)]


# Factors of x, x^3 and x^5 in each step of an iteration that moves singular values in (0, 1] towards 1.
POLYNOMIALS = {
    # Jordan et al., 2024: those of 0.001 to 1 end in 0.47 to 1.20.
    "newton_schulz": [(3.4445, -4.775, 2.0315)] * 5,
    # Amsel et al., 2025 (arXiv:2505.16932), of the paper's safety factor 1.01: those of 0.001 to 1 end in 0.85 to 1.12.
    "polar_express": [
        (8.205160, -22.901935, 16.460725),
        (4.066395, -2.861154, 0.518400),
        (3.909595, -2.823352, 0.525037),
        (3.285564, -2.415302, 0.485294),
        (2.277873, -1.619822, 0.398481),
    ],
}
FIRST_MOMENTUM = 0.85  # of a warm-up, as in the public speed runs of GPT-2


class Muon(torch.optim.Muon):
    """torch's Muon, but matrices of one shape, and those of its transpose, are orthogonalised together.

    One product of a batch in place of one of each matrix: 2 batches for the 84 matrices of model=large. Without
    `row_beta2` the state, and so a checkpoint, is that of torch's. Like torch's fused AdamW it changes nothing while
    `found_inf`, an attribute that GradScaler or the trainer sets to a tensor of shape (), is 1.
    """

    _step_supports_amp_scaling = True

    def __init__(self, matrices: list[nn.Parameter], config: OptimizerConfig) -> None:
        super().__init__(
            matrices,
            lr=config.matrix_lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            adjust_lr_fn="original",
        )
        self.param_groups[0]["momentum_at"] = functools.partial(warmed_up_momentum, config)
        # A CPU without bf16 units emulates it: a product takes some 20 times as long.
        is_emulated = matrices[0].device.type == "cpu" and not cpu_has_bf16()
        self.dtype = torch.float32 if is_emulated else torch.bfloat16
        self.config = config
        self.polynomials = POLYNOMIALS[config.orthogonalization]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step with the gradients that are there."""
        loss = _loss_of(closure)
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(tuple(sorted(p.shape)), []).append(p)
            for matrices in by_shape.values():
                self._step_together(group, matrices)
        return loss

    def _step_together(self, group: dict[str, Any], matrices: list[Tensor]) -> None:
        for p in matrices:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        gradients = [p.grad for p in matrices if p.grad is not None]
        momenta = [self.state[p]["momentum_buffer"] for p in matrices]
        decay = group["lr"] * group["weight_decay"]
        kept = 1 - decay
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None:
            # The average of a momentum and itself is itself; a NaN times 0 would be NaN.
            for gradient, momentum in zip(gradients, momenta, strict=True):
                torch.where(found_inf > 0, momentum, gradient, out=gradient)
            decay, kept = (torch.where(found_inf > 0, *values) for values in ((0.0, decay), (1.0, kept)))
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])  # pyright: ignore
        directions = momenta
        if group["nesterov"]:
            directions = torch._foreach_lerp(gradients, momenta, group["momentum"])  # pyright: ignore
        wide = [x.T if x.shape[0] > x.shape[1] else x for x in directions]
        stacked_nio = wide[0].new_empty((len(wide), *wide[0].shape), dtype=self.dtype)
        torch._foreach_copy_(list(stacked_nio.unbind()), wide)  # pyright: ignore
        stacked_nio = orthogonalised(stacked_nio, self.polynomials, group["eps"])
        updates = [x.T if p.shape[0] > p.shape[1] else x for x, p in zip(stacked_nio.unbind(), matrices, strict=True)]
        if self.config.row_beta2 is not None:
            weight = 1 - self.config.row_beta2
            weight = weight if found_inf is None else weight * (1 - found_inf)
            updates = [self._with_even_rows(p, x, weight) for p, x in zip(matrices, updates, strict=True)]
        if found_inf is not None:
            torch._foreach_mul_(updates, 1 - found_inf)  # pyright: ignore
        if self.config.cautious_decay:
            for p, update in zip(matrices, updates, strict=True):
                p.mul_(1 - decay * (p * update > 0))
        else:
            torch._foreach_mul_(matrices, kept)  # pyright: ignore
        for p, update in zip(matrices, updates, strict=True):
            n_outputs, n_inputs = p.shape
            p.add_(update, alpha=-group["lr"] * math.sqrt(max(1, n_outputs / n_inputs)))  # adjust_lr_fn="original"

    def _with_even_rows(self, p: Tensor, update_oi: Tensor, weight: float | Tensor) -> Tensor:
        """Return an update whose rows are divided by a running root mean square of their own, at an unchanged norm.

        `weight`, 1 - row_beta2, is that of this update in the running mean. NorMuon (Li et al., 2025,
        arXiv:2510.05491): the rows of an orthogonal matrix, the weights of one neuron each, differ much in length.
        """
        update_oi = update_oi.float()
        squares_o1 = update_oi.square().mean(dim=1, keepdim=True)
        state = self.state[p]
        if "row_second_moment" not in state:
            state["row_second_moment"] = torch.zeros_like(squares_o1)
        state["row_second_moment"].lerp_(squares_o1, weight)
        even_oi = update_oi / (state["row_second_moment"].sqrt() + 1e-8)
        return even_oi * (update_oi.norm() / even_oi.norm().clamp_(min=1e-8))


def _loss_of(closure: Callable[[], float] | None) -> float | None:
    """Return what a step's closure gives, computed with gradients, as torch's optimizers do; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def warmed_up_momentum(config: OptimizerConfig, step: int) -> float:
    """Return Muon's momentum at optimizer step `step`, counted from 0, a pure function of it."""
    if step >= config.momentum_warmup_steps:
        return config.momentum
    first = min(FIRST_MOMENTUM, config.momentum)
    return first + (config.momentum - first) * step / config.momentum_warmup_steps


def orthogonalised(x_nio: Tensor, polynomials: Sequence[tuple[float, float, float]], eps: float) -> Tensor:
    """Return matrices with nearly the same singular vectors and singular values near 1, by Newton-Schulz; overwrites.

    Each of n matrices has at most as many outputs o as inputs i. A step applies one of POLYNOMIALS to the singular
    values. Jordan et al., 2024.
    """
    x_nio.div_(torch.linalg.vector_norm(x_nio, dim=(1, 2), keepdim=True).clamp_(min=eps))
    for a, b, c in polynomials:
        gram_noo = x_nio @ x_nio.mT
        polynomial_noo = torch.baddbmm(gram_noo, gram_noo, gram_noo, beta=b, alpha=c)
        x_nio = torch.baddbmm(x_nio, polynomial_noo, x_nio, beta=a)
    return x_nio


def _adamw(model: nn.Module, parameters: list[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    """AdamW with weight decay on matrices only and a separate learning rate of the embeddings."""
    # Decay shrinks a norm or bias for no benefit. Embeddings may need a higher rate than the rest: a row gets a
    # gradient only when its token is in the batch.
    tables = lookup_tables(model)
    embedding_lr = config.embedding_lr if config.embedding_lr is not None else config.lr
    embeddings = [p for p in parameters if p in tables]
    matrices = [p for p in parameters if p not in tables and p.ndim >= 2]
    vectors = [p for p in parameters if p not in tables and p.ndim < 2]
    kinds = [
        (matrices, config.lr, config.weight_decay),
        (vectors, config.lr, 0.0),
        (embeddings, embedding_lr, config.weight_decay),
    ]
    factors = adam_rate_factors(model, config.base_width)
    groups = [
        {"params": scaled, "lr": lr * factor, "weight_decay": decay / factor}
        for kind, lr, decay in kinds
        for factor, scaled in _by_factor(kind, factors).items()
    ]
    groups.sort(key=lambda group: group["lr"] != config.lr)  # the rate of the first is logged: optimizer.lr itself
    beta1, beta2 = config.betas
    assert beta1 is not None and beta2 is not None  # `RunConfig.on` fills it in
    return (torch.optim.AdamW if config.state_dtype == "fp32" else BF16StateAdamW)(
        groups,
        lr=config.lr,
        betas=(beta1, beta2),
        eps=config.eps,
        fused=True,
    )


class BF16StateAdamW(torch.optim.AdamW):
    """torch's fused AdamW with both moments stored in bf16, in half of the memory, and computed in fp32.

    Rounded to the nearest after each step, at no cost that was seen: experiments/experiment/defaults.md.
    """

    numbers_per_weight = 1  # two of half the size

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step with the gradients that are there; as torch's, it heeds `grad_scale` and `found_inf`."""
        loss = _loss_of(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(group, p, p.grad)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of such an optimizer; torch itself would give the moments the dtype of the weights."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key].bfloat16()

    def _step(self, group: dict[str, Any], p: Tensor, gradient: Tensor) -> None:
        """Step one parameter: the moments of no other are in fp32 at that time."""
        if p not in self.state:
            self.state[p] = first_moments(p, torch.bfloat16)
        state = self.state[p]
        mean, square = state["exp_avg"].float(), state["exp_avg_sq"].float()
        beta1, beta2 = group["betas"]
        fused_adamw(
            [p], [gradient], [mean], [square], [], [state["step"]], fused=True, amsgrad=False, maximize=False,
            grad_scale=getattr(self, "grad_scale", None), found_inf=getattr(self, "found_inf", None),
            beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
        )  # fmt: skip
        state["exp_avg"].copy_(mean)
        state["exp_avg_sq"].copy_(square)


def first_moments(p: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the state that torch's fused AdamW gives a parameter, with moments of this dtype."""
    moments = {key: torch.zeros_like(p, dtype=dtype) for key in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), dtype=torch.float32, device=p.device), **moments}


def _by_factor(parameters: list[nn.Parameter], factors: dict[nn.Parameter, float]) -> dict[float, list[nn.Parameter]]:
    by_factor: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_factor.setdefault(factors.get(parameter, 1.0), []).append(parameter)
    return by_factor


def allocate_state(optimizers: Sequence[Optimizer]) -> None:
    """Create the state that fused AdamW and Muon create in their first step, with the values that it has there.

    They create that of a group of parameters after they have changed the group before: too little memory for it would
    leave half a step. Another optimizer is left as it is.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None or p in optimizer.state:
                    continue
                if type(optimizer) is torch.optim.AdamW and group["fused"] and not group["amsgrad"]:
                    optimizer.state[p] = first_moments(p, p.dtype)
                elif type(optimizer) is BF16StateAdamW:
                    optimizer.state[p] = first_moments(p, torch.bfloat16)
                elif type(optimizer) is Muon:
                    optimizer.state[p] = {"momentum_buffer": torch.zeros_like(p)}


def numbers_per_weight(optimizer: Optimizer) -> int:
    """State elements per weight: one with a momentum and no second moment, as SGD and Muon, else two, as Adam.

    A user-defined optimizer class may state it in an attribute of this name.
    """
    stated = getattr(optimizer, "numbers_per_weight", None)
    if stated is not None:
        return int(stated)
    return 1 if "momentum" in optimizer.defaults and not {"betas", "alpha"} & {*optimizer.defaults} else 2


# --- state, by the parameters' names ------------------------------------------------------------------------------


def optimizer_tensors(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """Return all state as flat tensors, for a safetensors file: `blocks.0.mlp.up.weight|704x256|AdamW|exp_avg`.

    Plain numbers, such as the step counts of many optimizers, get a `#` after their name and are restored as numbers.
    Raises CheckpointError for any other kind of state.
    """
    tensors = {}
    for owner, (optimizer, parameter) in _owners(model, optimizers).items():
        for quantity, value in optimizer.state.get(parameter, {}).items():
            key = f"{owner}|{quantity}"
            if isinstance(value, Tensor):
                tensors[key] = value
            elif isinstance(value, bool | int):
                tensors[f"{key}#"] = torch.tensor(value)
            elif isinstance(value, float):
                tensors[f"{key}#"] = torch.tensor(value, dtype=torch.float64)
            else:
                raise CheckpointError(
                    f"{key}: this optimizer keeps a {type(value).__name__}, and a checkpoint holds tensors and numbers "
                    "only. Keep it as one of these."
                )
    return tensors


def load_optimizer_tensors(model: nn.Module, optimizers: list[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Restore the state that `optimizer_tensors` returned, exactly.

    Changes nothing and raises CheckpointError when a tensor belongs to another parameter, shape or optimizer.
    """
    owners = _owners(model, optimizers)
    for key in tensors:
        if key.rpartition("|")[0] not in owners:
            raise CheckpointError(
                f"optimizer.safetensors: {key} does not fit this model and its optimizer. "
                "The checkpoint belongs to another of either."
            )
    for key, value in tensors.items():
        owner, _, quantity = key.rpartition("|")
        optimizer, parameter = owners[owner]
        if quantity.endswith("#"):
            optimizer.state[parameter][quantity[:-1]] = value.item()
            continue
        # Scalars such as Adam's step count stay on the CPU unless the optimizer is fused.
        fused = any(group.get("fused") for group in optimizer.param_groups)
        device = parameter.device if value.ndim or fused else torch.device("cpu")
        optimizer.state[parameter][quantity] = value.to(device)


def _owners(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, tuple[Optimizer, nn.Parameter]]:
    """Optimizer and parameter by the prefix of their keys, which has the name, shape and optimizer that must match."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}|{'x'.join(map(str, parameter.shape))}|{type(optimizer).__name__}": (optimizer, parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
