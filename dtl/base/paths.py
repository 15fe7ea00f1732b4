"""Paths of DTL's own files: the Hydra groups and the laboratory notebook. Imports no torch.

A checkout (and an editable install) has conf/ and experiments/ next to the package; an installed wheel
has them inside it.
"""

from pathlib import Path

from dtl.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The absolute path of conf/: the checkout's own if there is one, else the copy in the wheel.

    Raises ConfigError when neither exists.
    """
    for folder in (_PACKAGE.parent / "conf", _PACKAGE / "conf"):
        # A folder named conf/ in site-packages may belong to another package: look for a file of DTL's.
        if (folder / "model" / "small.yaml").is_file():
            return folder
    raise ConfigError(
        f"conf/: not found next to or inside {_PACKAGE}. This installation is incomplete: install DTL again."
    )


def experiments_dir() -> Path:
    """The absolute path of experiments/, next to conf/."""
    return conf_dir().parent / "experiments"


def choices(group: str) -> list[str]:
    """The names of the files in conf/<group>/, sorted."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
