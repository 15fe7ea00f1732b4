"""Settings of sweeps: how trials are run, and what `-m` does with a sweep that was not finished. Imports no torch."""

from dataclasses import dataclass, field

from dtl.errors import ConfigError


@dataclass
class SweepConfig:
    """What `python -m dtl.train -m` does around its trials."""

    new: bool = False  # with -m: start another sweep, although one with the same overrides is unfinished
    retry_failed: bool = False  # with -m: run failed trials of the sweep again; they count as done otherwise
    confirm: int = 5  # after a search: runs of the winner with fresh seeds; 0 = none, and no winner is announced

    def validate(self) -> None:
        if self.confirm < 0:
            raise ConfigError(f"sweep.confirm={self.confirm}: a number of runs, at least 0.")


@dataclass
class LauncherConfig:
    """hydra/launcher=dtl_process, the default: each trial in a process of its own, so that it frees its memory."""

    _target_: str = "hydra_plugins.dtl.process_launcher.ProcessLauncher"
    n_jobs: int = 1  # trials at a time
    timeout_minutes: float | None = None  # a trial that takes longer is stopped; null = never
    hang_minutes: float | None = 30.0  # a trial that writes nothing for so long is stopped; null = never

    def validate(self) -> None:
        """Raises ConfigError for what cannot be."""
        if self.n_jobs < 1:
            raise ConfigError(f"hydra.launcher.n_jobs={self.n_jobs}: must be at least 1.")
        for key in ("timeout_minutes", "hang_minutes"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ConfigError(f"hydra.launcher.{key}={value}: must be above 0, or null.")


@dataclass
class StatusConfig:
    """Everything that `python -m dtl.sweep` can be told."""

    status: str = "latest"  # latest | the folder of a sweep
    watch: bool | None = None  # look again until the sweep ends; null = in a terminal
    plugins: list[str] = field(default_factory=list)  # modules that register parts of your own
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Every value can be; whether the folder is there, the command finds out."""
