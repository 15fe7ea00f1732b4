"""Optimizers by name, their memory, and their state as tensors.

A builder maps the model and its config to the torch optimizers of one step. Every parameter group stores its peak
learning rate as `peak_lr`, which the schedule scales.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dtl.errors import CheckpointError
from dtl.registry import OPTIMIZERS
from dtl.training.config import OptimizerConfig

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
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks." in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    on_matrices = Muon(
        matrices,
        lr=config.matrix_lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        adjust_lr_fn="original",
    )
    return [on_matrices, _adamw(model, rest, config)]


class Muon(torch.optim.Muon):
    """torch's Muon, but matrices of one shape, and those of its transpose, are orthogonalised together.

    One product of a batch in place of one of each matrix: 2 batches for the 84 matrices of model=large. The state, and
    so a checkpoint, is that of torch's. Like torch's fused AdamW it changes nothing while `found_inf`, an attribute
    that GradScaler or the trainer sets to a tensor of shape (), is 1.
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step with the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
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
        decay = 1 - group["lr"] * group["weight_decay"]
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None:
            # The average of a momentum and itself is itself; a NaN times 0 would be NaN.
            for gradient, momentum in zip(gradients, momenta, strict=True):
                torch.where(found_inf > 0, momentum, gradient, out=gradient)
            decay = torch.where(found_inf > 0, 1.0, decay)
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])  # pyright: ignore
        directions = momenta
        if group["nesterov"]:
            directions = torch._foreach_lerp(gradients, momenta, group["momentum"])  # pyright: ignore
        wide = [x.T if x.shape[0] > x.shape[1] else x for x in directions]
        stacked_nio = wide[0].new_empty((len(wide), *wide[0].shape), dtype=torch.bfloat16)
        torch._foreach_copy_(list(stacked_nio.unbind()), wide)  # pyright: ignore
        updates_nio = orthogonalised(stacked_nio, group["ns_coefficients"], group["ns_steps"], group["eps"])
        if found_inf is not None:
            updates_nio *= 1 - found_inf
        torch._foreach_mul_(matrices, decay)  # pyright: ignore
        for p, update in zip(matrices, updates_nio.unbind(), strict=True):
            n_outputs, n_inputs = p.shape
            lr = group["lr"] * math.sqrt(max(1, n_outputs / n_inputs))  # adjust_lr_fn="original"
            p.add_(update.T if n_outputs > n_inputs else update, alpha=-lr)


def orthogonalised(x_nio: Tensor, coefficients: tuple[float, float, float], n_steps: int, eps: float) -> Tensor:
    """Return matrices with nearly the same singular vectors and singular values near 1, by Newton-Schulz; overwrites.

    Each of n matrices has at most as many outputs o as inputs i. Jordan et al., 2024.
    """
    a, b, c = coefficients
    x_nio.div_(torch.linalg.vector_norm(x_nio, dim=(1, 2), keepdim=True).clamp_(min=eps))
    for _ in range(n_steps):
        gram_noo = x_nio @ x_nio.mT
        polynomial_noo = torch.baddbmm(gram_noo, gram_noo, gram_noo, beta=b, alpha=c)
        x_nio = torch.baddbmm(x_nio, polynomial_noo, x_nio, beta=a)
    return x_nio


def _adamw(model: nn.Module, parameters: list[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    """AdamW with weight decay on matrices only and a separate learning rate of the embeddings."""
    # Decay shrinks a norm or bias for no benefit. Embeddings may need a higher rate than the rest: a row gets a
    # gradient only when its token is in the batch.
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    embedding_lr = config.embedding_lr if config.embedding_lr is not None else config.lr
    embeddings = [p for p in parameters if id(p) in tables]
    matrices = [p for p in parameters if id(p) not in tables and p.ndim >= 2]
    vectors = [p for p in parameters if id(p) not in tables and p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        {"params": embeddings, "weight_decay": config.weight_decay, "lr": embedding_lr},
    ]
    beta1, beta2 = config.betas
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(beta1, beta2),
        eps=config.eps,
        fused=True,
    )


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
