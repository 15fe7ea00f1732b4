"""Texts continued one after the other, as they are typed or piped in. Imports no torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dtl.base.display import table
from dtl.base.safe_text import visible
from dtl.base.units import n_tokens
from dtl.generation.config import SamplingConfig
from dtl.terminal.dialogue import StopOnInterrupt, take_lines
from dtl.terminal.input import InputLine, TooLong
from dtl.terminal.presets import in_words
from dtl.terminal.screen import Screen

if TYPE_CHECKING:
    from dtl.generation.conversation import Continuation
    from dtl.terminal.loading import LoadedModel


# --- side by side -------------------------------------------------------------------------------------------------
# One beginning continued in several ways: as columns that grow in a terminal, one below the other elsewhere.


NARROWEST = 30  # characters of a column that is still read with pleasure


@dataclass
class _Column:
    """What one way of sampling has written so far."""

    name: str
    sampling: SamplingConfig
    writing: "Continuation"
    text: str = ""
    facts: str = ""
    head: Text = field(init=False)

    def __post_init__(self) -> None:
        self.head = Text.assemble((self.name, "bold"), ("  " + in_words(self.sampling), "dim"))


def write_side_by_side(
    screen: Screen,
    beginning: str,
    ways: Mapping[str, SamplingConfig],
    continue_text: "Callable[[SamplingConfig], Continuation]",
    stopped: Callable[[], bool],
) -> None:
    """Continue `beginning` in each of the `ways`, showing the texts while they are written.

    `stopped` is asked after each piece: once it is true, nothing more is written.
    """
    columns = [_Column(name, sampling, continue_text(sampling)) for name, sampling in ways.items()]
    if screen.is_terminal and len(columns) > 1 and screen.console.width // len(columns) >= NARROWEST:
        _in_columns(screen, beginning, columns, stopped)
    else:
        _one_below_the_other(screen, beginning, columns, stopped)


def _in_columns(screen: Screen, beginning: str, columns: list[_Column], stopped: Callable[[], bool]) -> None:
    with Live(console=screen.console, transient=True, refresh_per_second=8, vertical_overflow="crop") as live:
        for column in columns:
            for piece in column.writing:
                column.text += piece
                live.update(_table(beginning, columns))
                if stopped():
                    break
            column.facts = facts(column.writing)
            if stopped():
                break
    screen.console.print(_table(beginning, columns))


def _one_below_the_other(screen: Screen, beginning: str, columns: list[_Column], stopped: Callable[[], bool]) -> None:
    for column in columns:
        if len(columns) > 1:
            screen.piece(f"--- {column.head.plain}\n")
        screen.piece(beginning)
        for piece in column.writing:
            screen.piece(piece)
            if stopped():
                break
        screen.piece("\n")
        screen.note(facts(column.writing))
        if stopped():
            return


def _table(beginning: str, columns: list[_Column]) -> Table:
    texts = (
        Group(Text.assemble((visible(beginning), "dim"), visible(column.text)), Text(column.facts, style="dim"))
        for column in columns
    )
    heads = [column.head for column in columns]
    every = {"ratio": 1, "overflow": "fold"}
    return table((column.name for column in columns), (heads, texts), every=every, expand=True, show_header=False)


def facts(writing: "Continuation") -> str:
    """What is to be said of a text when it has ended."""
    found = [n_tokens(len(writing.ids))]
    if math.isfinite(writing.mean_logprob):
        found.append(f"log p {writing.mean_logprob:.2f} a token")
    if writing.prompt_cut:
        found.append(f"the first {writing.prompt_cut:,} tokens of the prompt do not fit the context and were not read")
    if writing.slid:
        found.append("past the context: the end was written from the last part of the text alone")
    if writing.ended == "length":
        found.append("cut off by sampling.max_new_tokens")
    return "; ".join(found)


# --- one after the other ------------------------------------------------------------------------------------------


HELP_LINE = "Type the beginning of a text. Ctrl-C stops a text, Ctrl-D or quit leaves."
MAX_CHARACTERS = 2**20  # of a beginning; what does not fit the context is cut at its start, and said
N_SEEDS = 2**63


class Writer:
    """A model, the ways in which it writes, and the seed of the next text."""

    def __init__(self, model: "LoadedModel", screen: Screen, ways: Mapping[str, SamplingConfig], seed: int) -> None:
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
            self.screen.complain(f"That has {beginning.n_characters:,} characters; at most {MAX_CHARACTERS:,}.")
        elif beginning.strip().lower() in ("quit", "exit"):
            raise EOFError
        elif beginning.strip().lower() == "help":
            self.screen.note(HELP_LINE)
        elif beginning.strip():
            self.write(beginning)
