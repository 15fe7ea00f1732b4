"""hydra/launcher=dtl_process, implemented in dtl/sweeps. Hydra only discovers plugins in this package."""

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dtl.sweeps.config import LauncherConfig

ConfigStore.instance().store(group="hydra/launcher", name="dtl_process", node=LauncherConfig, provider="dtl")


class ProcessLauncher(Launcher):
    """Runs each trial in its own process: see dtl.sweeps.launch."""

    rejects_trials = True  # a trial that cannot be composed is a row of the table

    def __init__(self, n_jobs: int, timeout_minutes: float | None, hang_minutes: float | None) -> None:
        self.settings = LauncherConfig(n_jobs=n_jobs, timeout_minutes=timeout_minutes, hang_minutes=hang_minutes)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.settings.validate()
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from dtl.sweeps.launch import launch_grid
        from dtl.train import COMMAND

        return launch_grid(job_overrides, self.settings, self.context, self.config, COMMAND)
