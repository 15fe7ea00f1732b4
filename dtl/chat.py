"""The command `python -m dtl.chat`: talk to a checkpoint. Torch is imported only to load it."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dtl.base.display import exit_when_output_closes
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.commandline.overrides import override_key
from dtl.config import typed_as
from dtl.terminal.chat import YOU, Chat, ask_all, read_pairs
from dtl.terminal.choose import checkpoint_to_use
from dtl.terminal.config import ChatConfig
from dtl.terminal.dialogue import open_input
from dtl.terminal.input import history_file, is_interactive, quiet_keyboard
from dtl.terminal.streams import open_screen

OUTPUTS = Path("outputs")
COMMAND = Command(
    "chat",
    ChatConfig,
    usage="""\
python -m dtl.chat ckpt=latest [group=choice ...] [key=value ...]
Answers your questions with a checkpoint. Type help in the chat for more.

  python -m dtl.chat                            offers the newest run
  python -m dtl.chat ckpt=latest                the newest run
  python -m dtl.chat ckpt=latest sampling=creative device=cpu
  python -m dtl.chat ckpt=latest ask=pairs.jsonl   exit code 1: a wrong answer
  echo "What is the capital of France?" | python -m dtl.chat ckpt=latest

In a pipe each line is a question; only answers go to standard output.
""",
)


def main() -> None:
    """Entry point of `python -m dtl.chat` and of the console script dtl-chat."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """One chat, or the questions of `ask=`."""
    config = typed_as(ChatConfig, composed)
    checkpoint = checkpoint_to_use(config.ckpt, OUTPUTS, "chat", input if is_interactive() else None)
    pairs = None if config.ask is None else read_pairs(config.ask)
    screen = open_screen(all_in_one=pairs is not None or is_interactive())
    with exit_when_output_closes(), quiet_keyboard():
        with screen.waiting("loading ..."):
            from dtl.terminal.loading import load

            model = load(checkpoint, config)
        if pairs is not None:
            ask_all(pairs, model, screen, config.sampling)
            return
        line = open_input(YOU, model.max_characters, history_file(config.history, "chat"))
        given = [override_key(word) for word in HydraConfig.get().overrides.task]
        fits_screen = "sampling.max_new_tokens" not in given
        Chat(model, screen, line, config.sampling, config.seed, fits_screen).run()


if __name__ == "__main__":
    main()
