"""hydra/sweeper=dtl_grid: Hydra's own grid, trial by trial. Hydra only discovers plugins in this package."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dtl.errors import ConfigError


@dataclass
class GridSweeperConfig(BasicSweeperConf):
    """Settings of Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.dtl.grid_sweeper.GridSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="dtl_grid", node=GridSweeperConfig, provider="dtl")


class GridSweeper(BasicSweeper):
    """All combinations. The launcher rejects one that cannot be composed, instead of ending the sweep."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if self._rejects_trials() and self.max_batch_size is not None:
            raise ConfigError(
                f"hydra.sweeper.max_batch_size={self.max_batch_size}: hydra/launcher=dtl_process runs the whole grid. "
                "Leave it out; hydra.launcher.n_jobs=2 runs two trials at a time."
            )

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        if not self._rejects_trials():
            super().validate_batch_is_legal(batch)

    def _rejects_trials(self) -> bool:
        # Not isinstance: Hydra loads each plugin file as a separate module, so its classes differ from imported ones.
        return getattr(self.launcher, "rejects_trials", False)
