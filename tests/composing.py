"""The run that a command line describes, composed as `python -m dtl.train` does it."""

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from dtl.base.paths import conf_dir
from dtl.config import RunConfig, register, typed


def composed(*overrides: str) -> RunConfig:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # names take their parts from Hydra's choices
    with open_dict(config):
        del config["hydra"]
    return typed(config)
