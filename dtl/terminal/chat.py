"""The chat with a checkpoint: its loop, its commands, and `ask=`, which asks a file of questions. Imports no torch.

Each question is answered by itself, as in training: the model has seen single pairs only, never a dialogue.
"""

import json
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

from dtl.base.display import table
from dtl.base.safe_text import in_one_line
from dtl.base.units import number_of
from dtl.commandline.command import Command
from dtl.commandline.translate import translate_error
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import QuestionAnswer
from dtl.data.local.files import LocalFiles
from dtl.data.qa.records import EXAMPLE
from dtl.data.qa.source import QuestionSource
from dtl.data.tasks import is_right
from dtl.errors import ConfigError, DataError, DTLError, did_you_mean
from dtl.evaluation.config import MIN_PROBABILITY
from dtl.generation.config import PRESETS, SamplingConfig, preset
from dtl.terminal.dialogue import StopOnInterrupt, introduce, take_lines
from dtl.terminal.input import InputLine, TooLong
from dtl.terminal.streams import BlankLines, Screen
from dtl.terminal.transcript import Turn, default_path, save_transcript

if TYPE_CHECKING:
    from dtl.generation.conversation import Continuation
    from dtl.terminal.loading import LoadedModel


NOT_CALIBRATED = "How sure it is was not measured. It answers every question, also what it was not taught."
PLAIN_TEXT = "It was trained on plain text, not on questions: it continues what you type."
ROWS_OF_TEXT = 8  # of an answer by a model of plain text, which finds no end
ROWS_BESIDE = 6  # of a terminal, kept free of one answer
HELP_LINE = "Each {} is independent. help lists the commands; Ctrl-C stops an answer, Ctrl-D quits."
YOU, DTL = "You", "DTL"
YOU_STYLE, DTL_STYLE = "bold green", "bold cyan"
N_DOTS = 5
N_SEEDS = 2**63  # torch takes seeds as signed 64-bit numbers


class Chat:
    """A chat in progress: its sampling, its next seed, its turns."""

    def __init__(
        self,
        model: "LoadedModel",
        screen: Screen,
        line: InputLine,
        sampling: SamplingConfig,
        seed: int,
        fits_screen: bool = False,
    ) -> None:
        """With `fits_screen`, an answer in a terminal is stopped before it fills the screen."""
        self.model = model
        self.screen = screen
        self.line = line
        self.sampling = sampling
        self.seed = seed  # of the next answer
        self.fits_screen = fits_screen
        self.turns: list[Turn] = []

    def run(self) -> None:
        """Greet, then answer until the input ends, the user quits, or presses Ctrl-C twice (KeyboardInterrupt)."""
        self.greet()
        take_lines(self.line, self.screen, self._take)

    def greet(self) -> None:
        """Show the model's name and run, and what to type."""
        introduce(self.model, self.screen)
        if self.model.facts.learned_plain_text:
            self.screen.note(PLAIN_TEXT)
        if self.line.is_terminal:
            taught = self.model.facts.taught
            doubt = [NOT_CALIBRATED] if taught and self.model.facts.calibration is None else []
            for line in (*taught, *doubt, HELP_LINE.format(self.asked)):
                self.screen.note(line)

    @property
    def asked(self) -> str:
        """What is typed: a model of plain text gets it as it is, any other in the form of a question."""
        return "text" if self.model.facts.learned_plain_text else "question"

    def _take(self, line: str | TooLong) -> None:
        if isinstance(line, TooLong):
            self._reject_long(
                f"{line.n_characters:,} characters, of which {self.model.max_characters:,} can fit, exceed"
            )
        elif command := command_of(line):
            command(self)
        elif any(character.isalnum() for character in line):
            self.ask(line.strip())
        elif self.line.is_terminal or line.strip():  # an empty line of a pipe separates questions
            self._reject(f"Type a {self.asked}; help lists the commands.")

    def ask(self, question: str) -> None:
        """Answer one question on the screen, if it fits the context."""
        if len(question) > self.model.max_characters:  # without tokenising it: a paste may have megabytes
            return self._take(TooLong(len(question)))
        is_text = self.model.facts.learned_plain_text
        prompt = question if is_text else self.model.prompt(question)
        n_prompt = self.model.count_tokens(prompt)
        if n_prompt >= self.model.context:
            return self._reject_long(f"{n_prompt:,} tokens ({len(question):,} characters) do not fit into")
        sampling = self._leaving_room(n_prompt)
        started = time.perf_counter()
        output = self.model.continue_text(prompt, sampling, self.seed)
        self.screen.label(DTL, DTL_STYLE)
        beginning = question if is_text and self.screen.labelled else ""
        answer, was_stopped = stream_answer(output, self.screen, self._max_rows(), beginning)
        seconds, ended = time.perf_counter() - started, None if was_stopped else output.ended
        turn = Turn(question, answer, self.seed, self.sampling, output.mean_logprob, len(output.ids), seconds, ended)
        self.turns.append(turn)
        self.seed = (self.seed + 1) % N_SEEDS
        self._report(turn, output, n_prompt)

    def _max_rows(self) -> int | None:
        """Return the rows of the screen for an answer; None: as many as it needs."""
        if not self.fits_screen or not self.line.is_terminal:
            return None
        rows = max(1, self.screen.console.height - ROWS_BESIDE)
        return min(rows, ROWS_OF_TEXT) if self.model.facts.learned_plain_text else rows

    def _leaving_room(self, n_prompt: int) -> SamplingConfig:
        """Return the sampling with `max_new_tokens` cut to the rest of the context after a long question.

        Otherwise `fitting_prompt` would drop the start of the question to make room for the answer.
        """
        context = self.model.context
        if n_prompt <= max(context - self.sampling.max_new_tokens, context // 2):
            return self.sampling
        return replace(self.sampling, max_new_tokens=context - n_prompt)

    def _reject_long(self, problem: str) -> None:
        self._reject(f"{problem} the model's context of {self.model.context:,} tokens. Type a shorter {self.asked}.")

    def _reject(self, why: str) -> None:
        self.screen.warn(why)
        if not self.screen.labelled:
            self.screen.piece("\n")  # in a pipe line n of the answers belongs to line n of the questions

    def _report(self, turn: Turn, continuation: "Continuation", n_prompt: int) -> None:
        speed = turn.n_tokens / turn.seconds if turn.seconds > 0 else 0
        parts = [f"seed {turn.seed}", number_of("tokens", turn.n_tokens), f"{speed:.0f} tokens/s"]
        parts = parts if turn.n_tokens else parts[:1]  # it ended at once
        calibration, probability = self.model.facts.calibration, math.nan
        if calibration is not None and not math.isnan(turn.mean_logprob):
            probability = calibration.probability(turn.mean_logprob)
            # Rounded down: no answer is certain, and below one half at most two of five dots are filled.
            parts.insert(0, f"{self._dots(probability)} {int(100 * probability)} % sure")
        self.screen.note(", ".join(parts))
        if probability < MIN_PROBABILITY:
            self.screen.warn("The model does not know this: the answer is more likely wrong than right.")
        if continuation.context_shifted:
            lost = "its beginning" if self.asked == "text" else f"the {self.asked}"
            self.screen.note(
                f"The text exceeded the context: the model now sees only its last {self.model.context // 2} or more "
                f"tokens, without {lost}."
            )
        if turn.ended == "length" and turn.n_tokens < turn.sampling.max_new_tokens:
            self.screen.note(f"Cut off: the {self.asked} uses {n_prompt} of the context's {self.model.context} tokens.")
        elif turn.ended == "length":
            length, longer = number_of("tokens", turn.n_tokens), 2 * turn.n_tokens
            self.screen.note(f"Cut off at {length}. Longer: /params max_new_tokens={longer}")

    def _dots(self, probability: float) -> str:
        filled, empty = "●○" if self.screen.can_show("●○") else "*."
        n_filled = int(N_DOTS * probability + 0.5)
        return filled * n_filled + empty * (N_DOTS - n_filled)


def stream_answer(
    continuation: "Continuation", screen: Screen, max_rows: int | None = None, beginning: str = ""
) -> tuple[str, bool]:
    """Show a text while it is generated, after the `beginning` that it continues, else without the space that a
    tokenizer puts before its first word; end its line.

    With `max_rows` it is stopped once it has as many rows of the screen. Returns the text and whether it was stopped,
    there or by Ctrl-C. Raises KeyboardInterrupt at the second Ctrl-C.
    """
    answer, is_full = "", False
    shorten = BlankLines(at_start=not beginning) if screen.labelled else str
    flow = screen.flow(len(f"{DTL}: ") if screen.labelled else 0)
    flow.write(beginning)
    with StopOnInterrupt() as interrupt:
        for piece in continuation:
            begun = piece if answer or beginning else piece.lstrip(" ")
            answer += begun
            is_full = max_rows is not None and screen.rows_of(beginning + answer) > max_rows
            if is_full:
                break
            flow.write(shorten(begun))
            if interrupt.asked:
                break
        flow.end()
    if interrupt.asked:
        screen.note("(stopped)")
    elif not answer.strip():
        screen.note("(no text)" if beginning else "(no answer)")
    elif is_full:
        screen.note("(stopped: too long for the screen; /params max_new_tokens=N shows N tokens)")
    return answer.strip(), interrupt.asked or is_full


# --- commands -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatCommand:
    """A command of the chat: its action on a chat and its argument, its usage, and its line in `help`."""

    run: Callable[["Chat", str], None]
    usage: str
    meaning: str


def command_of(line: str) -> "Callable[[Chat], None] | None":
    """Return the action of a line that is a command; None for a question.

    `help`, `quit`, `exit` and `clear` are commands only when nothing follows them; all others begin with a slash.
    """
    word, _, rest = line.strip().partition(" ")
    name = word.lower()
    if not name.startswith("/") and (rest.strip() or name not in WORDS):
        return None
    known = COMMANDS.get(name) or COMMANDS.get(name.removeprefix("/"))
    if known is None:
        message = f"{in_one_line(name)}: no such command.{did_you_mean(name, COMMANDS)} help lists them."
        return lambda chat: chat.screen.warn(message)
    return lambda chat: known.run(chat, rest.strip())


def _help(chat: "Chat", argument: str) -> None:
    questions = (
        "Type a question and press Enter. Each question is answered independently: the model was trained on single "
        "pairs of question and answer, and does not remember earlier ones."
    )
    texts = "Type the beginning of a text and press Enter. The model continues each by itself."
    chat.screen.print(texts if chat.model.facts.learned_plain_text else questions)
    commands = {command.usage: command.meaning for command in COMMANDS.values()}
    chat.screen.console.print(table(("", ""), commands.items(), every={"overflow": "fold"}, show_header=False))
    chat.screen.print("Ctrl-C stops an answer, Ctrl-D quits. Arrow up recalls earlier input.")


def _quit(chat: "Chat", argument: str) -> None:
    raise EOFError


def _clear(chat: "Chat", argument: str) -> None:
    chat.turns.clear()
    chat.screen.clear()


def _seed(chat: "Chat", argument: str) -> None:
    if not argument:
        chat.screen.print(f"The next answer uses seed {chat.seed}; the same seed and question give the same answer.")
    # \d matches the digits of every script; 2^63 has 19 digits, and int() rejects more than 4,300.
    elif re.fullmatch(r"\d{1,19}", argument) and argument.isascii() and int(argument) < N_SEEDS:
        chat.seed = int(argument)
        chat.screen.note(f"The next answer uses seed {chat.seed}.")
    else:
        chat.screen.warn(f"/seed {in_one_line(argument)}: must be an integer from 0, below 2^63.")


def _retry(chat: "Chat", argument: str) -> None:
    if chat.turns:
        chat.ask(chat.turns[-1].question)
    else:
        chat.screen.warn("/retry: there is no question yet.")


def _save(chat: "Chat", argument: str) -> None:
    if not chat.line.is_terminal:
        # The lines of a pipe may be text from anywhere, such as a data set: they must not write files.
        chat.screen.warn("/save: works only in a terminal. In a pipe, redirect the answers: > answers.txt")
        return
    if not chat.turns:
        chat.screen.warn("/save: there is no question yet.")
        return
    path = Path(os.path.expanduser(argument)) if argument else default_path(datetime.now())
    try:
        save_transcript(chat.turns, chat.model.facts.folder, path)
    except DTLError as error:
        chat.screen.warn(str(error))
    else:
        chat.screen.note(f"{number_of('questions', len(chat.turns))} saved in {path}")


# --- sampling -----------------------------------------------------------------------------------------------------


class _Params(Command):
    """The settings of sampling under their own names, without the prefix `sampling.`, as `/params` takes them."""

    def groups(self) -> dict[str, list[str]]:
        return {}


_PARAMS = _Params("chat", SamplingConfig, usage="")
_BETWEEN = re.compile(r"\s+(?=[\w.]+=)")  # between settings; a value may have spaces


def _params(chat: "Chat", argument: str) -> None:
    try:
        if argument:
            chat.sampling = changed_sampling(chat.sampling, argument)
            chat.fits_screen = chat.fits_screen and "max_new_tokens=" not in argument
    except ConfigError as error:
        chat.screen.warn(f"{error} Nothing was changed.")
        return
    settings = "  ".join(f"{key}={json.dumps(value)}" for key, value in asdict(chat.sampling).items())
    chat.screen.print(settings)
    if not argument:
        chat.screen.note(f"Change with /params temperature=0.7 top_k=null, or a preset: {', '.join(PRESETS)}")


def changed_sampling(sampling: SamplingConfig, words: str) -> SamplingConfig:
    """Return `sampling` after `creative` or `temperature=0.7 top_k=null`, or both, preset first.

    A preset sets how tokens are sampled and keeps max_new_tokens and stop. Raises ConfigError for invalid settings.
    """
    given = _BETWEEN.split(words.strip())
    if "=" not in given[0]:
        sampling, given = _preset(given[0], sampling), given[1:]
    # OmegaConf would resolve ${...}, for example environment variables.
    malformed = next((word for word in given if "=" not in word or "${" in word), None)
    if malformed is not None:
        raise ConfigError(f"{in_one_line(malformed)}: cannot be read as key=value.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(sampling), OmegaConf.from_dotlist(given))
        changed = OmegaConf.to_object(merged)
    except yaml.YAMLError as error:
        raise ConfigError(f"{in_one_line(words)}: cannot be read as key=value.") from error
    except OmegaConfBaseException as error:
        raise translate_error(error, given, _PARAMS) or error from error
    assert isinstance(changed, SamplingConfig)
    changed.validate()
    return changed


def _preset(name: str, sampling: SamplingConfig) -> SamplingConfig:
    if name not in PRESETS:
        known = f"Known: {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}"
        raise ConfigError(f"/params {in_one_line(name)}: there is no such preset. {known} Or give key=value.")
    return replace(preset(name), max_new_tokens=sampling.max_new_tokens, stop=list(sampling.stop))


COMMANDS = {
    "/params": ChatCommand(
        _params, "/params [PRESET] [key=value ...]", f"how answers are sampled; presets: {', '.join(PRESETS)}"
    ),
    "/seed": ChatCommand(_seed, "/seed [N]", "the seed of the next answer; it increases by one with each"),
    "/retry": ChatCommand(_retry, "/retry", "ask the last question again, with the next seed"),
    "/save": ChatCommand(
        _save, "/save [FILE]", "save the questions and answers as Markdown, or .jsonl for data.qa.path"
    ),
    "clear": ChatCommand(_clear, "clear", "clear the screen and forget the questions so far"),
    "help": ChatCommand(_help, "help", "show this list; so does ?"),
    "?": ChatCommand(_help, "help", "show this list; so does ?"),
    "quit": ChatCommand(_quit, "quit", "end the chat; so do exit and Ctrl-D"),
    "exit": ChatCommand(_quit, "quit", "end the chat; so do exit and Ctrl-D"),
}
WORDS = [name for name in COMMANDS if not name.startswith("/")]


# --- questions with known answers ---------------------------------------------------------------------------------
# `ask=` checks a model against expected answers, as at the end of the demo.


def read_pairs(path: str) -> list[QuestionAnswer]:
    """Return the pairs in a file, as data=qa reads them. Raises DataError when there are none."""
    files = LocalFiles(path, "ask", example=EXAMPLE)  # its errors then name this setting, not data.qa.path
    source_config = SourceConfig(kind="qa", path=path)
    source = QuestionSource("qa", source_config, DataConfig(sources={"qa": source_config}), seed=0)
    source.origin, source.files = files.origin, files
    pairs = [document.pair for document in chain.from_iterable(source.splits().values()) if document.pair is not None]
    if not pairs:
        raise DataError(f"ask={path}: contains no question with an answer.")
    return pairs


def ask_all(pairs: Sequence[QuestionAnswer], model: "LoadedModel", screen: Screen, sampling: SamplingConfig) -> None:
    """Ask each question greedily, and compare its answer with the expected one by `dtl.data.tasks.is_right`.

    `sampling` gives the end of answers: max_new_tokens and stop. Raises DTLError naming the questions answered wrong.
    """
    # Greedy, so that the check has the same result every time.
    greedy = SamplingConfig(temperature=0, top_k=None, max_new_tokens=sampling.max_new_tokens, stop=list(sampling.stop))
    for line in model.lines():
        screen.note(line)
    wrong: list[str] = []
    for pair in pairs:
        screen.label(YOU, YOU_STYLE)
        screen.piece(f"{pair.question}\n")
        asked = model.fitting(pair, greedy.max_new_tokens)
        if asked is not pair:
            screen.note(
                f"Its context does not fit: {len(asked.context):,} of {len(pair.context):,} characters are used."
            )
        screen.label(DTL, DTL_STYLE)
        answer, was_stopped = stream_answer(
            model.continue_text(model.prompt(asked.question, asked.context), greedy, 0), screen
        )
        if was_stopped:
            raise KeyboardInterrupt
        if is_right(answer, pair):
            screen.print("right", "green")
        else:
            screen.print(f"wrong, expected: {pair.answer}", "red")
            wrong.append(
                f"  {in_one_line(pair.question)}  {in_one_line(answer)!r}, expected {in_one_line(pair.answer)!r}"
            )
    n_right = len(pairs) - len(wrong)
    score = f"{n_right} of {len(pairs)} answers {'are' if len(pairs) > 1 else 'is'} right"
    if wrong:
        raise DTLError(f"{score}. Wrong:\n" + "\n".join(wrong))
    screen.print(f"{score}.", "bold")
