"""Presets under conf/model, read without Hydra: for notebooks, tests and `create_model`. Imports no torch."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dtl.base.paths import conf_dir
from dtl.errors import ConfigError, did_you_mean
from dtl.model.config import ModelConfig


def load_preset(name: str, **overrides: Any) -> ModelConfig:
    """Return the config of `conf/model/<name>.yaml`, with some of ModelConfig's fields replaced.

    `arch` may be the name of a file under conf/model/arch: `load_preset("small", arch="classic", n_layers=3)`.
    Raises ConfigError for a preset, an architecture or a field that does not exist, or a value of a wrong type.
    """
    preset = _load_group("model", "", name)
    # The file's defaults list names its architecture, as Hydra reads it: [{arch: modern}, _self_].
    arch = next(entry["arch"] for entry in preset.pop("defaults") if isinstance(entry, DictConfig))
    return with_overrides(ModelConfig(), {"arch": _load_group("model/arch", "arch", arch)}, preset, overrides)


def with_overrides(config: ModelConfig, *changes: Any) -> ModelConfig:
    """Return a copy of `config` with each mapping of changes applied in turn; `arch` as in `load_preset`.

    Raises ConfigError for a field that does not exist or a value of a wrong type.
    """
    node = OmegaConf.structured(config)
    fields = list(node)
    for change in changes:
        change = dict(change)
        unknown = [name for name in change if name not in fields]
        if unknown:
            hint = did_you_mean(unknown[0], fields)
            raise ConfigError(f"model.{unknown[0]}: there is no such field.{hint} Fields: {', '.join(fields)}.")
        if isinstance(change.get("arch"), str):
            change["arch"] = _load_group("model/arch", "arch", change["arch"])
        try:
            node = OmegaConf.merge(node, change)
        except OmegaConfBaseException as error:
            raise ConfigError(f"model.{error.full_key}: {str(error).splitlines()[0]}.") from error
    merged = OmegaConf.to_object(node)
    assert isinstance(merged, ModelConfig)
    return merged


def _load_group(group: str, key: str, name: str) -> DictConfig:
    file = conf_dir() / group / f"{name}.yaml"
    known = sorted(other.stem for other in file.parent.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"{group}={name}: unknown name. Known: {', '.join(known)}.{did_you_mean(name, known)}")
    loaded = OmegaConf.load(file)
    assert isinstance(loaded, DictConfig)
    return loaded
