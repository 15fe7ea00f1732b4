"""Continuations of texts: one beginning with several samplings, one beginning after another. Imports no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dtl.base.display import table
from dtl.base.safe_text import visible
from dtl.base.units import number_of
from dtl.generation.config import SamplingConfig, in_words
from dtl.terminal.dialogue import StopOnInterrupt, take_lines
from dtl.terminal.input import InputLine, TooLong
from dtl.terminal.streams import BlankLines, Screen

if TYPE_CHECKING:
    from dtl.generation.conversation import Continuation
    from dtl.terminal.loading import LoadedModel


# --- side by side -------------------------------------------------------------------------------------------------

MIN_COLUMN_WIDTH = 30  # characters; narrower columns are hard to read, so the texts are shown one below the other


@dataclass
class _Column:
    """The text that one sampling has generated so far."""

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
    """Continue `beginning` with each of the samplings in `ways`, showing the texts while they are generated.

    Columns that grow in a terminal that is wide enough, one text below the other elsewhere. `stopped` is called after
    each piece: once it returns True, generation ends.
    """
    columns = [_Column(name, sampling, continue_text(sampling)) for name, sampling in ways.items()]
    if screen.is_terminal and len(columns) > 1 and screen.console.width // len(columns) >= MIN_COLUMN_WIDTH:
        _in_columns(screen, beginning, columns, stopped)
    else:
        _one_below_the_other(screen, beginning, columns, stopped)


def _in_columns(screen: Screen, beginning: str, columns: list[_Column], stopped: Callable[[], bool]) -> None:
    # rich cannot erase a live table that is taller than the window: it is cropped, and printed in full at the end.
    with Live(console=screen.console, transient=True, refresh_per_second=8, vertical_overflow="crop") as live:
        for column in columns:
            shorten = BlankLines()
            for piece in column.writing:
                column.text += shorten(piece)
                live.update(_table(beginning, columns))
                if stopped():
                    break
            column.facts = facts(column.writing, column.text)
            if stopped():
                break
    screen.console.print(_table(beginning, columns))


def _one_below_the_other(screen: Screen, beginning: str, columns: list[_Column], stopped: Callable[[], bool]) -> None:
    for column in columns:
        if len(columns) > 1:
            screen.piece(f"--- {column.head.plain}\n")
        flow = screen.flow()
        flow.write(beginning)
        shorten = BlankLines() if screen.is_terminal else str
        for piece in column.writing:
            text = shorten(piece)
            column.text += text
            flow.write(text)
            if stopped():
                break
        flow.end()
        screen.note(facts(column.writing, column.text))
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


def facts(writing: "Continuation", text: str) -> str:
    """Summarise a finished text: tokens, what was cut."""
    parts = [number_of("tokens", len(writing.ids))]
    if not writing.ids:
        parts[0] += ": the model ended the text at once"
    elif not text.strip():
        parts[0] += ", all of them white space"
    if writing.prompt_cut:
        parts.append(f"the first {writing.prompt_cut:,} tokens of the prompt do not fit the context and were dropped")
    if writing.context_shifted:
        parts.append("longer than the context: the end was generated from the last part of the text only")
    if writing.ended == "length":
        parts.append("cut off by sampling.max_new_tokens")
    return "; ".join(parts)


# --- one after the other ------------------------------------------------------------------------------------------

HELP_LINE = "Type the beginning of a text. Ctrl-C stops a text, Ctrl-D or quit ends the program."
MAX_CHARACTERS = 2**20  # of a beginning; what exceeds the context is cut at its start and reported
N_SEEDS = 2**63


class Writer:
    """A model, its samplings by name (`ways`), and the seed of the next text."""

    def __init__(self, model: "LoadedModel", screen: Screen, ways: Mapping[str, SamplingConfig], seed: int) -> None:
        self.model = model
        self.screen = screen
        self.ways = ways
        self.seed = seed

    def write(self, beginning: str) -> None:
        """Continue one text with each sampling. Raises KeyboardInterrupt for a second Ctrl-C."""
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
        """Continue each typed or piped line, until the input ends or the user quits."""
        take_lines(line, self.screen, self._take)

    def _take(self, beginning: str | TooLong) -> None:
        """Take one line. Raises EOFError for `quit` and `exit`."""
        if isinstance(beginning, TooLong):
            self.screen.warn(f"{beginning.n_characters:,} characters are too many: at most {MAX_CHARACTERS:,}.")
        elif beginning.strip().lower() in ("quit", "exit"):
            raise EOFError
        elif beginning.strip().lower() == "help":
            self.screen.note(HELP_LINE)
        elif beginning.strip():
            self.write(beginning)
