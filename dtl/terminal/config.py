"""Settings of dtl.chat and dtl.generate: the checkpoint, its sampling, its input. Imports no torch."""

from dataclasses import dataclass, field

from dtl.base.checks import check_device, check_seed
from dtl.generation.config import GenerationConfig, SamplingConfig


@dataclass
class TalkConfig:
    """Settings that chat and generate share."""

    ckpt: str | None = None  # latest | run | checkpoint | Hugging Face folder
    device: str = "auto"  # auto (CUDA, MPS, CPU) | cpu | cuda | cuda:1 | mps
    seed: int = 1337  # of the first text; each further text adds one
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    plugins: list[str] = field(default_factory=list)  # modules that register blocks of your own
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Raises ConfigError, naming key, value, rule and remedy, for invalid values."""
        self.sampling.validate()
        self.generation.validate()
        check_device(self.device)
        check_seed(self.seed)


@dataclass
class GenerateConfig(TalkConfig):
    """Settings of `python -m dtl.generate`."""

    prompt: str | None = None  # the beginning of the text; null = ask for one after another


@dataclass
class ChatConfig(TalkConfig):
    """Settings of `python -m dtl.chat`."""

    ask: str | None = None  # .jsonl of pairs: ask each question, compare; exit code 1 if an answer is wrong
    history: str | None = None  # file that keeps typed lines; null = dtl/chat_history in the state folder of the user
