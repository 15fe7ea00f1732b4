"""A chat: each question answered by itself, as it was in training, until there are no more."""

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dtl.base.display import aligned
from dtl.base.safe_text import in_one_line
from dtl.base.units import n_tokens
from dtl.commandline.command import Command
from dtl.commandline.translate import explained
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import QuestionAnswer
from dtl.data.local.files import LocalFiles
from dtl.data.qa.source import QuestionSource
from dtl.data.tasks import is_right
from dtl.errors import ConfigError, DataError, DTLError, did_you_mean
from dtl.generation.config import SamplingConfig
from dtl.terminal.dialogue import StopOnInterrupt, introduce, take_lines
from dtl.terminal.input import InputLine, TooLong
from dtl.terminal.presets import PRESETS, preset
from dtl.terminal.screen import Screen
from dtl.terminal.transcript import Turn, default_path, save_transcript

if TYPE_CHECKING:
    from dtl.generation.conversation import Continuation
    from dtl.terminal.loading import LoadedModel


HELP_LINE = "Each question stands alone. help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves."
YOU, DTL = "You", "DTL"
YOU_STYLE, DTL_STYLE = "bold green", "bold cyan"
N_DOTS = 5
N_SEEDS = 2**63


class Chat:
    """What a chat is at the moment: its sampling, its next seed, its turns."""

    def __init__(
        self, model: "LoadedModel", screen: Screen, line: InputLine, sampling: SamplingConfig, seed: int
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


# --- commands -----------------------------------------------------------------------------------------------------
# What can be typed in a chat beside questions.


@dataclass(frozen=True)
class ChatCommand:
    """One word, what may follow it, and what it does to a chat."""

    run: Callable[["Chat", str], None]
    usage: str
    meaning: str


def command_of(line: str) -> "Callable[[Chat], None] | None":
    """What a line that is no question does; None for a question.

    `help`, `quit`, `exit` and `clear` are commands when they are all of the line; others begin with a slash.
    """
    word, _, rest = line.strip().partition(" ")
    name = word.lower()
    if not name.startswith("/") and (rest.strip() or name not in WORDS):
        return None
    known = COMMANDS.get(name) or COMMANDS.get(name.removeprefix("/"))
    if known is None:
        return lambda chat: _unknown(chat, name)
    return lambda chat: known.run(chat, rest.strip())


def _unknown(chat: "Chat", word: str) -> None:
    chat.screen.complain(f"{in_one_line(word)}: no such command.{did_you_mean(word, COMMANDS)} help lists them.")


def _help(chat: "Chat", argument: str) -> None:
    chat.screen.say(
        "Type a question and press Enter. Each question stands alone: the model was trained on single pairs\n"
        "of question and answer, and does not remember the ones before."
    )
    for line in aligned(list({command.usage: command.meaning for command in COMMANDS.values()}.items())):
        chat.screen.say(f"  {line}")
    chat.screen.say("Ctrl-C stops an answer, Ctrl-D leaves. Arrow up brings back what was typed before.")


def _quit(chat: "Chat", argument: str) -> None:
    raise EOFError


def _clear(chat: "Chat", argument: str) -> None:
    chat.turns.clear()
    chat.screen.clear()


def _seed(chat: "Chat", argument: str) -> None:
    if not argument:
        chat.screen.say(f"seed {chat.seed} draws the next answer; the same seed and question give the same answer.")
    elif re.fullmatch(r"\d{1,19}", argument) and argument.isascii() and int(argument) < 2**63:
        chat.seed = int(argument)
        chat.screen.note(f"The next answer is drawn with seed {chat.seed}.")
    else:
        chat.screen.complain(f"/seed {in_one_line(argument)}: a whole number from 0, below 2^63.")


def _retry(chat: "Chat", argument: str) -> None:
    if chat.turns:
        chat.ask(chat.turns[-1].question)
    else:
        chat.screen.complain("/retry: nothing was asked yet.")


def _save(chat: "Chat", argument: str) -> None:
    if not chat.line.is_terminal:
        # Lines of a pipe may be anybody's text: they must not write files.
        chat.screen.complain("/save: only in a terminal. In a pipe, send the answers to a file with > answers.txt")
        return
    if not chat.turns:
        chat.screen.complain("/save: nothing was asked yet.")
        return
    path = Path(os.path.expanduser(argument)) if argument else default_path(datetime.now())
    try:
        save_transcript(chat.turns, chat.model.facts.folder, path)
    except DTLError as error:
        chat.screen.complain(str(error))
    else:
        chat.screen.note(f"{len(chat.turns)} question{'s' if len(chat.turns) > 1 else ''} saved in {path}")


# --- sampling -------------------------------------------------------------------------------------------------------


class _Params(Command):
    """The settings of sampling under their own names, as they are typed here."""

    def groups(self) -> dict[str, list[str]]:
        return {}


_PARAMS = _Params("chat", SamplingConfig, page="")
_BETWEEN = re.compile(r"\s+(?=[\w.]+=)")  # a value may have spaces


def _params(chat: "Chat", argument: str) -> None:
    try:
        if argument:
            chat.sampling = changed_sampling(chat.sampling, argument)
    except ConfigError as error:
        chat.screen.complain(f"{error} Nothing was changed.")
        return
    settings = "  ".join(f"{key}={_as_typed(value)}" for key, value in asdict(chat.sampling).items())
    chat.screen.say(settings)
    if not argument:
        chat.screen.note(f"Change with /params temperature=0.7 top_k=null, or a preset: {', '.join(PRESETS)}")


def changed_sampling(sampling: SamplingConfig, words: str) -> SamplingConfig:
    """`sampling` after `creative` or `temperature=0.7 top_k=null`, or both, preset first.

    A preset sets how tokens are drawn; where texts end stays. Raises ConfigError for what cannot be.
    """
    given = _BETWEEN.split(words.strip())
    if "=" not in given[0]:
        sampling, given = _preset(given[0], sampling), given[1:]
    # OmegaConf would look up ${...}, such as what stands in the environment.
    odd = next((word for word in given if "=" not in word or "${" in word), None)
    if odd is not None:
        raise ConfigError(f"{in_one_line(odd)}: cannot be read as key=value.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(sampling), OmegaConf.from_dotlist(given))
        changed = OmegaConf.to_object(merged)
    except yaml.YAMLError as error:
        raise ConfigError(f"{in_one_line(words)}: cannot be read as key=value.") from error
    except OmegaConfBaseException as error:
        raise explained(error, given, _PARAMS) or error from error
    assert isinstance(changed, SamplingConfig)
    changed.validate()
    return changed


def _preset(name: str, sampling: SamplingConfig) -> SamplingConfig:
    if name not in PRESETS:
        known = f"Known: {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}"
        raise ConfigError(f"/params {in_one_line(name)}: there is no such choice. {known} Or key=value.")
    return replace(preset(name), max_new_tokens=sampling.max_new_tokens, stop=list(sampling.stop))


def _as_typed(value: object) -> str:
    return "null" if value is None else repr(value).replace("'", '"') if isinstance(value, list) else str(value)


COMMANDS = {
    "/params": ChatCommand(
        _params, "/params [PRESET] [key=value ...]", f"how answers are drawn; presets: {', '.join(PRESETS)}"
    ),
    "/seed": ChatCommand(_seed, "/seed [N]", "the seed of the next answer; each further one counts on"),
    "/retry": ChatCommand(_retry, "/retry", "the last question once more, with the next seed"),
    "/save": ChatCommand(_save, "/save [FILE]", "questions and answers as Markdown, or as .jsonl for data.qa.path"),
    "clear": ChatCommand(_clear, "clear", "an empty screen, and nothing to save"),
    "help": ChatCommand(_help, "help", "this list"),
    "quit": ChatCommand(_quit, "quit", "leave; so do exit and Ctrl-D"),
    "exit": ChatCommand(_quit, "quit", "leave; so do exit and Ctrl-D"),
}
WORDS = [name for name in COMMANDS if not name.startswith("/")]


# --- questions with known answers ---------------------------------------------------------------------------------
# Questions with known answers, asked one after the other: the check at the end of the demo. Imports no torch.


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
