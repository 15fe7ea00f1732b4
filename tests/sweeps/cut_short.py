"""A plugin for sweeps under Hydra's own launchers: an optimizer that something happens to at its sixth step, once."""

import signal
import sys
from pathlib import Path

import torch
from torch import nn

from dtl.registry import OPTIMIZERS
from dtl.training.config import OptimizerConfig


@OPTIMIZERS.register("cut_short")
def cut_short(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    how = config.options["how"]
    happened = Path(f"happened-{how}")

    class CutShort(torch.optim.SGD):
        def step(self, closure=None):
            steps = self.param_groups[0].get("steps", 0) + 1
            if steps == 6 and how != "nothing" and not happened.exists():
                happened.touch()
                happen(how)
            self.param_groups[0]["steps"] = steps
            return super().step(closure)

    return [CutShort(model.parameters(), lr=config.lr)]


def happen(how: str) -> None:
    if how == "requeue":  # what submitit is sent before a job is stopped
        signal.raise_signal(signal.SIGUSR2)
    elif how == "preempt":  # what SLURM sends to a job that makes room
        signal.raise_signal(signal.SIGTERM)
    elif how == "raise":
        raise RuntimeError("planted")
    elif how == "exit":
        sys.exit(9)
