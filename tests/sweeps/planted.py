"""A plugin for whole sweeps: an optimizer of which some cases fail at their third step, in one of six ways."""

import os
import signal
import sys
import time

import torch
from planted_cases import failure_of
from torch import nn

from dtl.registry import OPTIMIZERS
from dtl.training.config import OptimizerConfig


@OPTIMIZERS.register("planted")
def planted(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    case = int(config.options["case"])

    class Planted(torch.optim.SGD):
        def step(self, closure=None):
            # In the state, which a checkpoint keeps: a resumed run fails at the same step as before.
            state = self.state[self.param_groups[0]["params"][0]]
            steps = state.setdefault("steps", torch.zeros(()))
            if steps >= 2 and failure_of(case):
                fail(failure_of(case), self.param_groups[0]["params"])
            steps += 1
            return super().step(closure)

    return [Planted(model.parameters(), lr=config.lr * (1 + case / 7))]


def fail(how: str | None, parameters: list[nn.Parameter]) -> None:
    if how == "raise":
        raise RuntimeError("planted")
    if how == "exit":
        sys.exit(9)
    if how == "nan":
        with torch.no_grad():
            parameters[0].fill_(float("nan"))
    if how == "memory":
        raise torch.OutOfMemoryError("planted")
    if how == "hang":
        time.sleep(10_000)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
