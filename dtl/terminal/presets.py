"""The ways of sampling that have a name: the files in conf/sampling. Imports no torch."""

import yaml
from omegaconf import DictConfig, OmegaConf

from dtl.generation.config import SamplingConfig
from dtl.paths import conf_dir


def preset_names() -> list[str]:
    """Names for `sampling=`, in the order of the alphabet."""
    return sorted(file.stem for file in (conf_dir() / "sampling").glob("*.yaml"))


def preset(name: str, changes: DictConfig | None = None) -> SamplingConfig:
    """The settings of one of `preset_names()`, with `changes` on top. Raises ConfigError for values that cannot be."""
    values = yaml.safe_load((conf_dir() / "sampling" / f"{name}.yaml").read_text(encoding="utf-8"))
    merged = OmegaConf.merge(OmegaConf.structured(SamplingConfig), values, changes or {})
    sampling = OmegaConf.to_object(merged)
    assert isinstance(sampling, SamplingConfig)
    sampling.validate()
    return sampling
