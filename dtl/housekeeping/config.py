"""Settings of dtl.runs. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path

from dtl.base.checks import MANY, check_choices, check_range
from dtl.base.display import command_line
from dtl.errors import ConfigError, did_you_mean

OUTPUTS = "outputs"
STATES = (
    "running",
    "finished",
    "stopped",
    "interrupted",
    "failed",
    "killed",
    "unfinished",
    "pruned",
    "timed out",
    "hung",
)
SORTS = ("age", "size", "loss", "name")
DELETIONS = ("checkpoints", "empty", "runs")


@dataclass
class RunsConfig:
    """Settings of `python -m dtl.runs`."""

    outputs: str = OUTPUTS  # folder that contains the runs
    state: str | None = None  # only runs in these states, such as failed,killed; null = all
    name: str | None = None  # only runs whose name or folder matches, such as demo* or multirun/*; null = all
    older_than_days: float | None = None  # only runs that wrote nothing for so many days; null = all
    sort: str = "age"  # age (last written first) | size (largest first) | loss (lowest first) | name
    limit: int | None = None  # at most so many runs, after sorting; null = all, on a terminal those that fit
    delete: str | None = None  # among those listed: checkpoints (superseded) | empty (runs without a checkpoint) | runs
    best_of: list[str] = field(default_factory=list)  # for delete=runs: runs to delete with their best checkpoint
    yes: bool = False  # delete without asking, for scripts
    plugins: list[str] = field(default_factory=list)  # modules of your own, imported first
    debug: bool = False  # show tracebacks

    @property
    def states(self) -> list[str]:
        """Return the states that `state=` lists, with or without brackets around them; [] = all."""
        return [name.strip() for name in (self.state or "").strip("[]").split(",") if name.strip()]

    @property
    def chooses(self) -> bool:
        """Return True when a setting selects runs."""
        return bool(self.states or self.name or self.older_than_days is not None)

    def validate(self) -> None:
        """Raises ConfigError, naming key, value, rule and remedy, for invalid values."""
        for state in self.states:
            if state not in STATES:
                raise ConfigError(
                    f"state={state}: give one or more of {','.join(STATES)}.{did_you_mean(state, STATES)}"
                )
        if self.delete is not None and self.delete not in DELETIONS and Path(self.delete).expanduser().is_dir():
            where = [] if self.outputs == OUTPUTS else [f"outputs={self.outputs}"]
            raise ConfigError(
                f"delete={self.delete}: one of {', '.join(DELETIONS)}. To delete this run: "
                f"{command_line('runs', *where, 'delete=runs', f'best_of=[{self.delete}]')}"
            )
        check_choices(self, "", hint=True, sort=SORTS, delete=DELETIONS)
        check_range(self, "", older_than_days=(0, MANY))
        check_range(self, "", ", or null for all", limit=(1, MANY))
        if self.best_of and self.delete != "runs":
            raise ConfigError("best_of=: lists runs to delete, so it needs delete=runs.")
        if self.delete == "runs" and not (self.chooses or self.best_of):
            raise ConfigError(
                "delete=runs: select runs by state=, name=, older_than_days= or 'best_of=[FOLDER]'. "
                "To delete only superseded checkpoints: delete=checkpoints."
            )
        if not self.outputs.strip():
            raise ConfigError("outputs='': is no folder. Give the folder that contains the runs; . is this one.")
        if self.outputs != OUTPUTS and not Path(self.outputs).expanduser().is_dir():
            raise ConfigError(f"outputs={self.outputs}: there is no such folder.")
