"""Settings of generation: sampling, the end of a text, numbers of the matrices. Imports no torch."""

from dataclasses import dataclass, field

from dtl.base.checks import LONGEST, MANY, check_choices, check_fractions, check_range
from dtl.errors import ConfigError


@dataclass
class SamplingConfig:
    """Settings for the continuation of a text."""

    temperature: float = 0.8  # 0 = greedy, always the most likely token; higher = more varied
    top_k: int | None = 50  # draw from the k most likely tokens; null = all
    top_p: float = 1.0  # draw from the most likely tokens with this fraction of the probability; 1 = all
    min_p: float = 0.0  # draw from tokens at least this likely, as a fraction of the highest probability; 0 = all
    repetition_penalty: float = 1.0  # above 1 makes tokens of the prompt and of the text so far less likely; 1 = off
    max_new_tokens: int = 64  # maximum number of tokens in one continuation
    stop: list[str] = field(default_factory=list)  # texts that end a continuation; not part of it

    def validate(self) -> None:
        check_range(self, "sampling", " (0 is greedy)", temperature=(0, 1000))
        check_range(self, "sampling", ", or null for all tokens", top_k=(1, MANY))
        check_fractions(self, "sampling", "top_p", interval="(0, 1]")
        check_fractions(self, "sampling", "min_p")
        check_range(self, "sampling", " (1 is off)", repetition_penalty=(0.01, 100))
        check_range(self, "sampling", max_new_tokens=(1, LONGEST))
        if "" in self.stop:
            raise ConfigError("sampling.stop: an empty text would end every continuation. Leave it out.")


WEIGHTS = ("auto", "fp32", "fp16", "bf16", "int8")


@dataclass
class GenerationConfig:
    """Numbers to compute with in dtl.chat and dtl.generate; training and evaluation generate in fp32."""

    weights: str = "auto"  # of the matrices: fp32 | fp16 | bf16 | int8; auto = fp16 on a CPU where faster, else fp32

    def validate(self) -> None:
        check_choices(self, "generation", weights=WEIGHTS)
