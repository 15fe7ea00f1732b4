"""Where DTL's own files lie: the Hydra groups and the laboratory notebook. Imports no torch.

A checkout (and an editable install) has conf/ and experiments/ beside the package; an installed wheel
has them inside it.
"""

from pathlib import Path

from dtl.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The folder conf/, absolute: the checkout's own if there is one, else the copy in the wheel.

    Raises ConfigError when neither is there.
    """
    for folder in (_PACKAGE.parent / "conf", _PACKAGE / "conf"):
        # A folder named conf/ in site-packages may belong to somebody else: look for a file of ours.
        if (folder / "model" / "small.yaml").is_file():
            return folder
    raise ConfigError(
        f"conf/: not found beside or inside {_PACKAGE}. This installation is incomplete: install DTL again."
    )


def experiments_dir() -> Path:
    """The folder experiments/, absolute; it lies beside conf/."""
    return conf_dir().parent / "experiments"


def choices(group: str) -> list[str]:
    """The names of the files in conf/<group>/, sorted."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
