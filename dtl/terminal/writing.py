"""Texts continued one after the other, as they are typed or piped in. Imports no torch."""

from collections.abc import Mapping

from dtl.generation.config import SamplingConfig
from dtl.terminal.dialogue import take_lines
from dtl.terminal.input_line import InputLine, TooLong
from dtl.terminal.interrupt import StopOnInterrupt
from dtl.terminal.loaded_model import LoadedModel
from dtl.terminal.screen import Screen
from dtl.terminal.side_by_side import write_side_by_side

HELP_LINE = "Type the beginning of a text. Ctrl-C stops a text, Ctrl-D or quit leaves."
MOST_CHARACTERS = 2**20  # of a beginning; what does not fit the context is cut at its start, and said
N_SEEDS = 2**63


class Writer:
    """A model, the ways in which it writes, and the seed of the next text."""

    def __init__(self, model: LoadedModel, screen: Screen, ways: Mapping[str, SamplingConfig], seed: int) -> None:
        self.model = model
        self.screen = screen
        self.ways = ways
        self.seed = seed

    def write(self, beginning: str) -> None:
        """Continue one text in all ways. Raises KeyboardInterrupt for a second Ctrl-C."""
        seed, self.seed = self.seed, (self.seed + 1) % N_SEEDS
        self.screen.note(f"seed {seed}")
        with StopOnInterrupt() as interrupt:
            write_side_by_side(
                self.screen,
                beginning,
                self.ways,
                lambda sampling: self.model.continue_text(beginning, sampling, seed),
                stopped=lambda: interrupt.asked,
            )
        if interrupt.asked:
            self.screen.note("(stopped)")

    def write_each(self, line: InputLine) -> None:
        """Continue what is typed or piped in, until there is no more, or a person leaves."""
        take_lines(line, self.screen, self._take)

    def _take(self, beginning: str | TooLong) -> None:
        """Raises EOFError for what means the same."""
        if isinstance(beginning, TooLong):
            self.screen.complain(f"That has {beginning.n_characters:,} characters; at most {MOST_CHARACTERS:,}.")
        elif beginning.strip().lower() in ("quit", "exit"):
            raise EOFError
        elif beginning.strip().lower() == "help":
            self.screen.note(HELP_LINE)
        elif beginning.strip():
            self.write(beginning)
