"""hydra/sweeper=dtl_optuna, implemented in dtl/sweeps. Hydra only discovers plugins in this package."""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dtl.errors import ConfigError
from dtl.sweeps.config import SearchConfig, require_optuna

ConfigStore.instance().store(group="hydra/sweeper", name="dtl_optuna", node=SearchConfig, provider="dtl")


class OptunaSweeper(Sweeper):
    """Runs a search instead of all combinations: see dtl.sweeps.search_launch."""

    def __init__(self, **settings: Any) -> None:
        self.settings = SearchConfig(**settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.settings.validate()
        require_optuna()
        chosen = config.hydra.runtime.choices["hydra/launcher"]
        if chosen != "dtl_process":
            raise ConfigError(
                f"hydra/launcher={chosen}: a search runs its trials with hydra/launcher=dtl_process only. Leave it "
                "out; hydra.launcher.n_jobs=2 runs two trials at a time."
            )
        self.context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> float:
        from dtl.sweeps.search_launch import launch_search
        from dtl.train import COMMAND

        launcher = self.launcher.settings  # type: ignore[attr-defined]
        assert self.config is not None
        return launch_search(arguments, self.settings, launcher, self.context, self.config, COMMAND)
