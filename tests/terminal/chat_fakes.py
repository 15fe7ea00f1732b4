"""A chat without a model or terminal: fixed answers, lines from a list, a screen in memory."""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from dtl.data.documents import QuestionAnswer
from dtl.generation.config import SamplingConfig
from dtl.generation.decoder import FP32
from dtl.terminal.chat import Chat
from dtl.terminal.input import TooLong
from dtl.terminal.loading import CheckpointFacts, LoadedModel
from dtl.terminal.streams import Screen

Line = str | TooLong | type[BaseException]


class RoteContinuation:
    """A `Continuation` whose pieces are known before, one token each."""

    def __init__(
        self, pieces: list[str], logprob: float = -0.25, ended: str = "end", context_shifted: bool = False
    ) -> None:
        self._pieces, self._logprob, self._ending, self._slides = pieces, logprob, ended, context_shifted
        self.prompt_cut = 0
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.context_shifted = False
        self.ended: str | None = None

    @property
    def mean_logprob(self) -> float:
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else math.nan

    def __iter__(self) -> Iterator[str]:
        for number, piece in enumerate(self._pieces):
            self.ids.append(number)
            self.logprobs.append(self._logprob)
            self.context_shifted = self._slides
            yield piece
        self.ended = self._ending


class Asked(list[tuple[str, SamplingConfig, int]]):
    """A call of the model: text, sampling, seed."""


class RoteModel(LoadedModel):
    """A model without weights; a token is a word."""

    def __init__(self, context: int, answer: Callable[[str, SamplingConfig, int], RoteContinuation]) -> None:
        self.n_parameters = 1_234_567
        self.weights = FP32
        self.context = context
        self.device = "cpu"
        self.max_characters = 7 * context
        self.asked = Asked()
        self._tokenizer = SimpleNamespace(prompt=None)  # pyright: ignore
        self._answer = answer

    def fitting(self, pair: QuestionAnswer, max_new_tokens: int) -> QuestionAnswer:
        words = pair.context.split()
        return pair if len(words) <= self.context else replace(pair, context=" ".join(words[: self.context]))

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def continue_text(self, text: str, sampling: SamplingConfig, seed: int) -> RoteContinuation:  # pyright: ignore
        self.asked.append((text, sampling, seed))
        return self._answer(text, sampling, seed)


def rote_model(
    answer: Callable[[str, SamplingConfig, int], RoteContinuation] | None = None, context: int = 101, **facts: object
) -> tuple[LoadedModel, Asked]:
    """A model that answers with the seed, and what it is asked."""
    model = RoteModel(context, answer or (lambda text, sampling, seed: RoteContinuation([" seed", f" {seed}"])))
    model.facts = CheckpointFacts(Path("somewhere/checkpoints/best"), **({"name": "parrot", "step": 7} | facts))  # pyright: ignore
    return model, model.asked


class ScriptedInput:
    """Lines that were typed, and keys that raise, in order; then the end of input."""

    def __init__(self, lines: list[Line], is_terminal: bool = True) -> None:
        self._lines = list(lines)
        self.is_terminal = is_terminal
        self.notes: list[str] = []

    def read(self) -> str | TooLong:
        if not self._lines:
            raise EOFError
        line = self._lines.pop(0)
        if isinstance(line, type):
            raise line
        return line

    def take_note(self) -> str | None:
        return self.notes.pop(0) if self.notes else None


class Talk:
    """A chat from its greeting to its end, with the output by stream."""

    def __init__(
        self, *lines: Line, is_terminal: bool = True, sampling: SamplingConfig | None = None, **model: object
    ) -> None:
        self.model, self.asked = rote_model(**model)  # pyright: ignore
        self.line = ScriptedInput(list(lines), is_terminal)
        self.answers, self.notes = io.StringIO(), io.StringIO()
        screen = Screen(self.answers, self.answers if is_terminal else self.notes, labelled=is_terminal)
        self.chat = Chat(self.model, screen, self.line, sampling or SamplingConfig(), seed=11)

    def held(self) -> "Talk":
        self.chat.run()
        return self

    @property
    def shown(self) -> str:
        """Everything, answers and notes."""
        return self.answers.getvalue() + self.notes.getvalue()


def talk(*lines: Line, **how: object) -> Talk:
    """See `Talk`."""
    return Talk(*lines, **how).held()  # pyright: ignore
