"""hydra/sweeper=dtl_grid, where Hydra looks for plugins and nowhere else: Hydra's own grid, trial by trial."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore


@dataclass
class GridSweeperConfig(BasicSweeperConf):
    """As Hydra's own."""

    _target_: str = "hydra_plugins.dtl.grid_sweeper.GridSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="dtl_grid", node=GridSweeperConfig, provider="dtl")


class GridSweeper(BasicSweeper):
    """All combinations. One that cannot be composed is refused by its own launcher, instead of ending the sweep."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        # Not isinstance: Hydra loads each plugin file apart, so that its classes are others than those imported here.
        if not getattr(self.launcher, "refuses_trials", False):
            super().validate_batch_is_legal(batch)
