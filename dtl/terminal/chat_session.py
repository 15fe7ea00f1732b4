"""A chat: each question answered by itself, as it was in training, until there are no more."""

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from dtl.generation.config import SamplingConfig
from dtl.terminal.chat_commands import command_of
from dtl.terminal.dialogue import introduce, take_lines
from dtl.terminal.input_line import InputLine, TooLong
from dtl.terminal.interrupt import StopOnInterrupt
from dtl.terminal.loaded_model import LoadedModel
from dtl.terminal.presets import n_tokens
from dtl.terminal.screen import Screen
from dtl.terminal.transcript import Turn

if TYPE_CHECKING:
    from dtl.generation.conversation import Continuation

HELP_LINE = "Each question stands alone. help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves."
YOU, DTL = "You", "DTL"
YOU_STYLE, DTL_STYLE = "bold green", "bold cyan"
N_DOTS = 5
N_SEEDS = 2**63


class Chat:
    """What a chat is at the moment: its sampling, its next seed, its turns."""

    def __init__(
        self, model: LoadedModel, screen: Screen, line: InputLine, sampling: SamplingConfig, seed: int
    ) -> None:
        self.model = model
        self.screen = screen
        self.line = line
        self.sampling = sampling
        self.seed = seed  # of the next answer
        self.turns: list[Turn] = []

    def run(self) -> None:
        """Greet, then answer until the input ends, a person leaves, or presses Ctrl-C twice (KeyboardInterrupt)."""
        self.greet()
        take_lines(self.line, self.screen, self._take)

    def greet(self) -> None:
        """The model's name and run, and what to type."""
        introduce(self.model, self.screen)
        if self.model.facts.is_of_plain_text:
            self.screen.note(
                "It learnt from plain text, not from questions: it continues texts better, with python -m dtl.generate."
            )
        if self.line.is_terminal:
            self.screen.note(HELP_LINE)

    def _take(self, line: str | TooLong) -> None:
        if isinstance(line, TooLong):
            self._refuse(f"That has {line.n_characters:,} characters; at most {self.model.most_characters:,} could fit")
        elif not line.strip():
            return
        elif command := command_of(line):
            command(self)
        else:
            self.ask(line.strip())

    def ask(self, question: str) -> None:
        """Answer one question on the screen, if it fits the context."""
        if len(question) > self.model.most_characters:
            return self._take(TooLong(len(question)))
        n_prompt = self.model.count_tokens(self.model.prompt(question))
        if n_prompt >= self.model.context:
            return self._refuse(f"That is {n_prompt:,} tokens, {len(question):,} characters, and does not fit")
        sampling = self._leaving_room(n_prompt)
        started = time.perf_counter()
        continuation = self.model.continue_text(self.model.prompt(question), sampling, self.seed)
        self.screen.label(DTL, DTL_STYLE)
        answer, was_stopped = stream_answer(continuation, self.screen)
        turn = Turn(
            question,
            answer,
            self.seed,
            self.sampling,
            continuation.mean_logprob,
            len(continuation.ids),
            time.perf_counter() - started,
            None if was_stopped else continuation.ended,
        )
        self.turns.append(turn)
        self.seed = (self.seed + 1) % N_SEEDS
        self._tell(turn, continuation, n_prompt)

    def _leaving_room(self, n_prompt: int) -> SamplingConfig:
        """A long question is kept whole: its answer may then be as long as the rest of the context."""
        context, most = self.model.context, self.sampling.max_new_tokens
        if n_prompt <= max(context - most, context // 2):
            return self.sampling
        return replace(self.sampling, max_new_tokens=context - n_prompt)

    def _refuse(self, what: str) -> None:
        self.screen.complain(f"{what} the model's context of {self.model.context:,} tokens. Ask in fewer words.")
        if not self.screen.labelled:
            self.screen.piece("\n")  # in a pipe the answers stay in step with the questions

    def _tell(self, turn: Turn, continuation: "Continuation", n_prompt: int) -> None:
        speed = turn.n_tokens / turn.seconds if turn.seconds > 0 else 0
        parts = [
            *([] if math.isnan(turn.mean_logprob) else [self._confidence(turn.mean_logprob)]),
            f"seed {turn.seed}",
            n_tokens(turn.n_tokens),
            f"{speed:.0f} tokens/s",
        ]
        self.screen.note(", ".join(parts))
        least = self.model.facts.least_logprob
        if least is not None and turn.mean_logprob < least:
            self.screen.complain(
                f"The model rather does not know this: its log p is below {least:.2f}, the threshold of dtl.evaluate."
            )
        if continuation.slid:
            self.screen.note(
                f"The text outgrew the context: the model now sees only the last {self.model.context // 2} tokens or "
                "more of it, without the question."
            )
        if turn.ended == "length" and turn.n_tokens < turn.sampling.max_new_tokens:
            self.screen.note(f"Cut off: the question takes {n_prompt} of the context's {self.model.context} tokens.")
        elif turn.ended == "length":
            self.screen.note(f"Cut off at {turn.n_tokens} tokens: /params max_new_tokens={2 * turn.n_tokens}")

    def _confidence(self, mean_logprob: float) -> str:
        """Dots filled by the mean probability of a token (geometric), and its logarithm."""
        filled, empty = "●○" if self.screen.can_show("●○") else "*."
        n_filled = round(N_DOTS * math.exp(min(0.0, mean_logprob)))
        return f"{filled * n_filled}{empty * (N_DOTS - n_filled)} log p {mean_logprob:.2f}"


def stream_answer(continuation: "Continuation", screen: Screen) -> tuple[str, bool]:
    """Show a text as it is written, without the space that a tokenizer puts before its first word; end its line.

    Returns the text and whether Ctrl-C stopped it. Raises KeyboardInterrupt at the second Ctrl-C.
    """
    answer = ""
    with StopOnInterrupt() as interrupt:
        for piece in continuation:
            begun = answer or piece.lstrip(" ")
            screen.piece(piece if answer else begun)
            answer = answer + piece if answer else begun
            if interrupt.asked:
                break
        screen.piece("\n")
    if interrupt.asked:
        screen.note("(stopped)")
    return answer.strip(), interrupt.asked
