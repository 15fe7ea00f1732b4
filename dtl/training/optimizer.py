"""Optimizers by name. Each builder gets the model and its config and returns the torch optimizers of one step.

Every parameter group remembers its peak learning rate as `peak_lr`; the schedule scales from there.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dtl.errors import CheckpointError
from dtl.registry import OPTIMIZERS
from dtl.training.config import OptimizerConfig


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """The optimizers named by `config.name`; together they hold every trainable parameter exactly once."""
    build: Callable[[nn.Module, OptimizerConfig], list[Optimizer]] = OPTIMIZERS.get(config.name)
    optimizers = build(model, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


@OPTIMIZERS.register("adamw")
def adamw(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""
    return [_adamw(list(model.parameters()), config)]


@OPTIMIZERS.register("muon")
def muon(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Muon (Jordan et al., 2024) on the matrices inside the blocks, AdamW on all else.

    Embeddings and the head are matrices too, but their rows are looked up, not multiplied through: they
    belong to AdamW.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks." in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    on_matrices = torch.optim.Muon(
        matrices,
        lr=config.matrix_lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        adjust_lr_fn="original",
    )
    return [on_matrices, _adamw(rest, config)]


def _adamw(parameters: list[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    """Weight decay on matrices only: a decayed norm or bias loses scale and wins nothing."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    beta1, beta2 = config.betas
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(beta1, beta2),
        eps=config.eps,
        fused=parameters[0].is_cuda,
    )


# --- state, by the parameters' names ------------------------------------------------------------------------------


def optimizer_tensors(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """All state as flat tensors, `<parameter>|<quantity>`, for a safetensors file."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for quantity, value in state.items():
                tensors[f"{names[id(parameter)]}|{quantity}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(model: nn.Module, optimizers: list[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`, exactly. Raises CheckpointError when a parameter is unknown or misshapen."""
    parameters = dict(model.named_parameters())
    owner = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
    for key, value in tensors.items():
        name, _, quantity = key.rpartition("|")
        parameter = parameters.get(name)
        if parameter is None or (value.ndim and value.shape != parameter.shape):
            raise CheckpointError(
                f"optimizer.safetensors: {key} of shape {tuple(value.shape)} does not fit this model. "
                "The checkpoint belongs to another model or optimizer."
            )
        # Scalars such as Adam's step count stay on the CPU unless the optimizer is fused.
        fused = any(group.get("fused") for group in owner[id(parameter)].param_groups)
        device = parameter.device if value.ndim or fused else torch.device("cpu")
        owner[id(parameter)].state[parameter][quantity] = value.to(device)
