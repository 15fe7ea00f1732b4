"""What chat and generate do alike: introduce the model, then take line after line. Imports no torch."""

from collections.abc import Callable

from dtl.terminal.input_line import InputLine, TooLong
from dtl.terminal.interrupt import Leaving
from dtl.terminal.loaded_model import LoadedModel
from dtl.terminal.screen import Screen


def introduce(model: LoadedModel, screen: Screen) -> None:
    """The model's name and run."""
    name, *more = model.lines()
    screen.say(f"DTL {name}", "bold")
    for text in more:
        screen.note(text)


def take_lines(line: InputLine, screen: Screen, take: Callable[[str | TooLong], None]) -> None:
    """Give each line to `take`, until the input ends or `take` raises EOFError. Ctrl-C where somebody types is for
    the line alone; elsewhere, and twice within one answer (`Leaving`), it is KeyboardInterrupt."""
    while True:
        try:
            if note := line.take_note():
                screen.note(note)
            take(line.read())
        except EOFError:
            return
        except Leaving:
            raise
        except KeyboardInterrupt:
            if not line.is_terminal:
                raise
            screen.note("Ctrl-D or quit leaves.")
