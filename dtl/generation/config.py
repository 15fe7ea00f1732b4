"""Settings of generation: sampling, its presets (conf/sampling), numbers of the matrices. Imports no torch."""

from dataclasses import dataclass, field

import yaml
from omegaconf import DictConfig, OmegaConf

from dtl.base.checks import LONGEST, MANY, check_choices, check_fractions, check_range
from dtl.base.paths import choices, conf_dir
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


PRESETS = choices("sampling")  # names of the files in conf/sampling
# Settings without effect, which `in_words` omits; no temperature is -1, so that it is always shown.
OFF = SamplingConfig(temperature=-1, top_k=None, top_p=1, min_p=0, repetition_penalty=1)


def preset(name: str, changes: DictConfig | None = None) -> SamplingConfig:
    """Return the settings of one of PRESETS, with `changes` on top. Raises ConfigError for invalid values."""
    values = yaml.safe_load((conf_dir() / "sampling" / f"{name}.yaml").read_text(encoding="utf-8"))
    merged = OmegaConf.merge(OmegaConf.structured(SamplingConfig), values, changes or {})
    sampling = OmegaConf.to_object(merged)
    assert isinstance(sampling, SamplingConfig)
    sampling.validate()
    return sampling


def in_words(sampling: SamplingConfig) -> str:
    """Describe the settings that have an effect: `temperature 0.8, top_k 50`."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return ", ".join(
        f"{name} {getattr(sampling, name):g}" for name in names if getattr(sampling, name) != getattr(OFF, name)
    )


WEIGHTS = ("auto", "fp32", "fp16", "bf16", "int8")


@dataclass
class GenerationConfig:
    """Numbers to compute with in dtl.chat and dtl.generate; training and evaluation generate in fp32."""

    weights: str = "auto"  # of the matrices: fp32 | fp16 | bf16 | int8; auto = fp16 on a CPU where faster, else fp32

    def validate(self) -> None:
        check_choices(self, "generation", weights=WEIGHTS)
