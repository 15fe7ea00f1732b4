"""Settings of the tracker."""

from dataclasses import dataclass, field

from dtl.base.checks import check_choices
from dtl.errors import ConfigError

KINDS = ("wandb", "local")
MODES = ("auto", "online", "offline")


@dataclass
class TrackerConfig:
    """Trackers of a run in addition to metrics.jsonl in its folder."""

    kind: str = "wandb"  # wandb (metrics.jsonl and Weights & Biases) | local (metrics.jsonl only)
    project: str = "dtl"  # W&B project
    entity: str | None = None  # W&B user or team; null = your default
    mode: str = "auto"  # auto (WANDB_MODE, else online with a key and a network, else offline) | online | offline
    group: str | None = None  # W&B group; null = the folder of a multirun
    tags: list[str] = field(default_factory=list)  # W&B tags

    def validate(self) -> None:
        """Raise ConfigError for values that W&B would reject only after the model is built."""
        check_choices(self, "tracker", kind=KINDS, mode=MODES)
        if not 1 <= len(self.project) <= 128 or set(self.project) & set("/\\#?%:"):
            raise ConfigError(f"tracker.project={self.project}: 1 to 128 characters, none of / \\ # ? % :")
        if self.group is not None and not 1 <= len(self.group) <= 128:
            raise ConfigError(f"tracker.group={self.group}: 1 to 128 characters, or null.")
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ConfigError(f"tracker.tags: '{tag}' must have 1 to 64 characters.")
