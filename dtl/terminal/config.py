"""Settings of the commands that talk: which model, how it writes, what is asked. Imports no torch."""

from dataclasses import dataclass, field

from dtl.base.checks import check_device, check_seed
from dtl.generation.config import SamplingConfig


@dataclass
class TalkConfig:
    """What chat and generate have in common."""

    ckpt: str | None = None  # latest | run | checkpoint | Hugging Face folder
    device: str = "auto"  # auto (CUDA, MPS, CPU) | cpu | cuda | cuda:1 | mps
    seed: int = 1337  # of the first text; each further one counts on
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    plugins: list[str] = field(default_factory=list)  # modules that register blocks of your own
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Raises ConfigError, naming key, value, rule and remedy, for values that cannot be."""
        self.sampling.validate()
        check_device(self.device)
        check_seed(self.seed)


@dataclass
class GenerateConfig(TalkConfig):
    """Everything that `python -m dtl.generate` can be told."""

    prompt: str | None = None  # the beginning of the text; null = ask for one after the other


@dataclass
class ChatConfig(TalkConfig):
    """Everything that `python -m dtl.chat` can be told."""

    ask: str | None = None  # .jsonl of pairs: ask each question, compare; exit code 1 if an answer is wrong
    history: str | None = None  # file that remembers what was typed; null = in your own folder for such files
