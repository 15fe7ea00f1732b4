"""The command `python -m dtl.generate`: continue a text with each sampling preset. Torch is imported last."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dtl.base.display import command_line, exit_when_output_closes
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.commandline.overrides import override_key
from dtl.config import typed_as
from dtl.generation.config import PRESETS, SamplingConfig, preset
from dtl.terminal.choose import checkpoint_to_use
from dtl.terminal.config import GenerateConfig
from dtl.terminal.dialogue import introduce, open_input
from dtl.terminal.input import is_interactive, quiet_keyboard
from dtl.terminal.streams import open_screen
from dtl.terminal.writing import HELP_LINE, MAX_CHARACTERS, Writer

OUTPUTS = Path("outputs")
COMMAND = Command(
    "generate",
    GenerateConfig,
    usage="""\
python -m dtl.generate ckpt=... [prompt="..."] [sampling=...] [key=value ...]
Continues a text, without sampling= once with each preset, side by side.

  python -m dtl.generate ckpt=latest prompt="Once upon a time"
  python -m dtl.generate ckpt=latest            asks for one text after another
  python -m dtl.generate ckpt=latest prompt="Once" sampling=creative
  python -m dtl.generate ckpt=path/to/gpt2 prompt="The sea"   published weights
""",
    details="""\
A prompt is taken literally; quotes inside the value are removed: prompt=\"'...'\".
""",
    free_text=("prompt",),
)


def main() -> None:
    """Entry point of `python -m dtl.generate` and of the console script dtl-generate."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """Generate. Everything that can be checked without torch is checked before it is imported."""
    config = typed_as(GenerateConfig, composed)
    presets = _presets(config, composed)
    checkpoint = checkpoint_to_use(config.ckpt, OUTPUTS, "generate", input if is_interactive() else None)
    screen = open_screen(all_in_one=is_interactive())
    with exit_when_output_closes(), quiet_keyboard():
        with screen.waiting("loading ..."):
            from dtl.terminal.loading import load

            model = load(checkpoint, config)
        writer = Writer(model, screen, presets, config.seed)
        introduce(model, screen)
        if model.facts.trained_on_questions_alone:
            trained = "trained on questions and answers, not on plain text"
            last_trained = "last trained on questions and answers alone"
            screen.note(f"It was {trained if model.facts.learned_questions_alone else last_trained}. To ask it:")
            screen.print(command_line("chat", f"ckpt={model.facts.ckpt}"))
        if config.prompt is not None:
            writer.write(config.prompt)
            return
        if is_interactive():
            screen.note(HELP_LINE)
        writer.write_each(open_input("Text", MAX_CHARACTERS))


def _presets(config: GenerateConfig, composed: DictConfig) -> dict[str, SamplingConfig]:
    """The preset that `sampling=` names, else all of them; keys such as `sampling.top_k=5` apply to each."""
    hydra = HydraConfig.get()
    chosen = hydra.runtime.choices.get("sampling")
    if chosen is not None:
        return {str(chosen): config.sampling}
    given = [override_key(override) for override in hydra.overrides.task]
    keys = [key.removeprefix("sampling.") for key in given if key.startswith("sampling.")]
    changes = OmegaConf.masked_copy(composed.sampling, keys)
    return {name: preset(name, changes) for name in PRESETS}


if __name__ == "__main__":
    main()
