"""Questions with known answers, asked one after the other: the check at the end of the demo. Imports no torch."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from dtl.base.safe_text import in_one_line
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import QuestionAnswer
from dtl.data.local.files import LocalFiles
from dtl.data.qa.source import QuestionSource
from dtl.data.tasks import is_right
from dtl.errors import DataError, DTLError
from dtl.generation.config import SamplingConfig
from dtl.terminal.chat import DTL, DTL_STYLE, YOU, YOU_STYLE, stream_answer
from dtl.terminal.screen import Screen

if TYPE_CHECKING:
    from dtl.terminal.loading import LoadedModel


def read_pairs(path: str) -> list[QuestionAnswer]:
    """The pairs in a file, as data=qa reads them. Raises DataError when there are none."""
    LocalFiles(path, "ask")  # what is wrong with the path is said by the name of this setting
    source_config = SourceConfig(kind="qa", path=path)
    source = QuestionSource("qa", source_config, DataConfig(sources={"qa": source_config}), seed=0)
    pairs = [document.pair for document in chain.from_iterable(source.splits().values()) if document.pair is not None]
    if not pairs:
        raise DataError(f"ask={path}: holds no question with an answer.")
    return pairs


def ask_all(pairs: Sequence[QuestionAnswer], model: "LoadedModel", screen: Screen, sampling: SamplingConfig) -> None:
    """Ask each question greedily, and show how its answer compares to the expected one.

    `sampling` says where answers end. What counts as right says `dtl.data.tasks.is_right`. Raises DTLError naming
    the questions whose answer is wrong.
    """
    greedy = SamplingConfig(temperature=0, top_k=None, max_new_tokens=sampling.max_new_tokens, stop=list(sampling.stop))
    for line in model.lines():
        screen.note(line)
    wrong: list[str] = []
    for pair in pairs:
        screen.label(YOU, YOU_STYLE)
        screen.piece(f"{pair.question}\n")
        screen.label(DTL, DTL_STYLE)
        answer, was_stopped = stream_answer(
            model.continue_text(model.prompt(pair.question, pair.context), greedy, 0), screen
        )
        if was_stopped:
            raise KeyboardInterrupt
        if is_right(answer, pair):
            screen.say("right", "green")
        else:
            screen.say(f"wrong, expected: {pair.answer}", "red")
            wrong.append(
                f"  {in_one_line(pair.question)}  {in_one_line(answer)!r}, expected {in_one_line(pair.answer)!r}"
            )
    n_right = len(pairs) - len(wrong)
    score = f"{n_right} of {len(pairs)} answers {'are' if len(pairs) > 1 else 'is'} right"
    if wrong:
        raise DTLError(f"{score}. Wrong:\n" + "\n".join(wrong))
    screen.say(f"{score}.", "bold")
