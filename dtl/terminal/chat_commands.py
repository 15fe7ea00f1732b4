"""What can be typed in a chat beside questions."""

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dtl.base.safe_text import in_one_line
from dtl.commandline.command import Command
from dtl.commandline.translate import explained
from dtl.errors import ConfigError, DTLError, did_you_mean
from dtl.generation.config import SamplingConfig
from dtl.terminal.presets import preset, preset_names
from dtl.terminal.transcript import default_path, save_transcript

if TYPE_CHECKING:
    from dtl.terminal.chat_session import Chat


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
    width = max(len(command.usage) for command in COMMANDS.values())
    chat.screen.say(
        "Type a question and press Enter. Each question stands alone: the model was trained on single pairs\n"
        "of question and answer, and does not remember the ones before."
    )
    for command in {command.usage: command for command in COMMANDS.values()}.values():
        chat.screen.say(f"  {command.usage:<{width}}  {command.meaning}")
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
        chat.screen.note(f"Change with /params temperature=0.7 top_k=null, or a preset: {', '.join(preset_names())}")


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
    if name not in preset_names():
        known = f"Known: {', '.join(preset_names())}.{did_you_mean(name, preset_names())}"
        raise ConfigError(f"/params {in_one_line(name)}: there is no such choice. {known} Or key=value.")
    return replace(preset(name), max_new_tokens=sampling.max_new_tokens, stop=list(sampling.stop))


def _as_typed(value: object) -> str:
    return "null" if value is None else repr(value).replace("'", '"') if isinstance(value, list) else str(value)


COMMANDS = {
    "/params": ChatCommand(
        _params, "/params [PRESET] [key=value ...]", f"how answers are drawn; presets: {', '.join(preset_names())}"
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
