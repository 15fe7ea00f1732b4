"""Sampling presets, which are the files in conf/sampling, and a short description of any sampling."""

import yaml
from omegaconf import DictConfig, OmegaConf

from dtl.base.paths import choices, conf_dir
from dtl.generation.config import SamplingConfig

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
