"""hydra/sweeper=dtl_grid, where Hydra looks for plugins and nowhere else: Hydra's own grid, trial by trial."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dtl.errors import ConfigError


@dataclass
class GridSweeperConfig(BasicSweeperConf):
    """As Hydra's own."""

    _target_: str = "hydra_plugins.dtl.grid_sweeper.GridSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="dtl_grid", node=GridSweeperConfig, provider="dtl")


class GridSweeper(BasicSweeper):
    """All combinations. One that cannot be composed is refused by its own launcher, instead of ending the sweep."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if self._refuses_trials() and self.max_batch_size is not None:
            raise ConfigError(
                f"hydra.sweeper.max_batch_size={self.max_batch_size}: hydra/launcher=dtl_process takes the whole grid. "
                "Leave it out; hydra.launcher.n_jobs=2 runs two trials at a time."
            )

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        if not self._refuses_trials():
            super().validate_batch_is_legal(batch)

    def _refuses_trials(self) -> bool:
        # Not isinstance: Hydra loads each plugin file apart, so that its classes are others than those imported here.
        return getattr(self.launcher, "refuses_trials", False)
