"""What a search shows while it runs."""

from dtl.base.display import shown
from dtl.base.safe_text import in_one_line
from dtl.run_dir.sweep_records import SweepFolder, Trial
from dtl.sweeps.screen import SweepScreen
from dtl.sweeps.search_config import SearchConfig
from dtl.sweeps.search_space import Space
from dtl.sweeps.table import counted


class SearchScreen(SweepScreen):
    """As of any sweep; its trials are not known beforehand, so that each is named by the keys that are searched."""

    def __init__(self, sweep: SweepFolder, space: Space) -> None:
        super().__init__(sweep)
        self._keys = {*space.searched, "seed"}

    def begin_search(self, settings: SearchConfig, tried: list[Trial], left: int, goes_on: bool) -> None:
        """What is searched, and how much is left of a search that `goes_on`."""
        pruned = "" if settings.pruner == "none" else f", pruned by {settings.pruner}"
        hours = "" if settings.hours is None else f", at most {settings.hours:g} h"
        where = shown(self.sweep.path)
        self._say(f"search of {settings.n_trials} trials ({settings.sampler}{pruned}{hours}) in {where}", "bold")
        if goes_on:
            done = counted(trial for trial in tried if trial.done) or "nothing done yet"
            self._say(f"goes on: {done}; {left} left to run (sweep.new=true starts another one)", "dim")

    def say(self, line: str, style: str = "") -> None:
        """One line."""
        self._say(line, style)

    def _name(self, trial: Trial) -> str:
        own = [override for override in trial.overrides if override.partition("=")[0] in self._keys]
        return in_one_line(" ".join(own))
