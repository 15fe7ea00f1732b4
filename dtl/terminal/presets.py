"""Ways of sampling: those that have a name, which are the files in conf/sampling, and any in words."""

import yaml
from omegaconf import DictConfig, OmegaConf

from dtl.base.paths import choices, conf_dir
from dtl.generation.config import SamplingConfig

PRESETS = choices("sampling")  # names of the files in conf/sampling
OFF = SamplingConfig(temperature=-1, top_k=None, top_p=1, min_p=0, repetition_penalty=1)  # what restricts nothing


def preset(name: str, changes: DictConfig | None = None) -> SamplingConfig:
    """The settings of one of PRESETS, with `changes` on top. Raises ConfigError for values that cannot be."""
    values = yaml.safe_load((conf_dir() / "sampling" / f"{name}.yaml").read_text(encoding="utf-8"))
    merged = OmegaConf.merge(OmegaConf.structured(SamplingConfig), values, changes or {})
    sampling = OmegaConf.to_object(merged)
    assert isinstance(sampling, SamplingConfig)
    sampling.validate()
    return sampling


def in_words(sampling: SamplingConfig) -> str:
    """The settings that restrict anything: `temperature 0.8, top_k 50`."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return ", ".join(
        f"{name} {getattr(sampling, name):g}" for name in names if getattr(sampling, name) != getattr(OFF, name)
    )
