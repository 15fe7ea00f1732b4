"""Composition of a run's config outside of Hydra's main: from the words of the command line, for Python. No torch."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.version import VersionBase, setbase
from omegaconf import DictConfig, OmegaConf

from dtl.base.redaction import check_no_secrets
from dtl.commandline.cli import check_sections, to_dtl_error
from dtl.commandline.command import Command, load_config
from dtl.commandline.config_files import check_config_folder, check_given, check_texts
from dtl.commandline.corrections import check_words
from dtl.commandline.overrides import check_init_words, in_hydras_words, override_key, to_hydra_syntax
from dtl.config import RunConfig, typed
from dtl.errors import ConfigError

# As in dtl/train.py, but for the texts of --help.
COMMAND = Command("train", RunConfig, usage="", free_text=("data.qa.prompt", "data.separator"), multirun=True)
# Hydra's state belongs to the process: its config is replaced for the moment in which a composed one is resolved.
_one_at_a_time = threading.RLock()


def typed_run(composed: DictConfig) -> RunConfig:
    """Return the validated config of a run from what Hydra has composed, Hydra's own section included.

    Raises OmegaConf's errors for wrong keys and types, ConfigError for wrong values.
    """
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(composed)  # ${hydra:...} reads it: the name of a run has its choices in it
    try:
        return typed(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))
    finally:
        hydra.cfg = before


def compose(*overrides: str, config_dir: Path | str | None = None) -> RunConfig:
    """Return the config of the run that `python -m dtl.train` starts with these words, validated.

    `dtl.compose("model=small", "data=qa", "trainer.total_steps=200")`: groups, recipes (`experiment=demo`), plugins and
    defaults are those of the command, and `name` is made of the choices of model and data unless given. `config_dir`
    is a folder with config groups of your own, as `--config-dir` is. Works in threads, in notebooks and inside a job of
    Hydra, whose state is unchanged afterwards.

    Raises ConfigError, with the command's message, for a word that cannot be read, an unknown key or choice, a value of
    a wrong type or out of range; also for several values of one key, which are several runs.
    """
    words = [*overrides]
    try:
        _check_words(words, config_dir)
        words = [in_hydras_words(word) for word in words]
        hydra_words = [to_hydra_syntax(word, COMMAND) for word in words]
        _check_single_run(overrides, hydra_words)
        with _one_at_a_time, _version_base():
            config = _composed(hydra_words, config_dir)
        check_init_words(config.init, words)
        return config
    except Exception as error:
        known = to_dtl_error(error, [word for word in words if isinstance(word, str)], COMMAND)
        if known is None or known is error:
            raise
        raise known from None


def _check_words(words: list[str], config_dir: Path | str | None) -> None:
    """Raise ConfigError for words that only a command line can follow."""
    for word in words:
        if not isinstance(word, str):
            raise ConfigError(f'{word!r}: dtl.compose takes words as typed on the command line: "model=small".')
        if word.startswith("-"):
            raise ConfigError(
                f"{word}: a flag of the command line. dtl.compose takes key=value words and returns the config of one "
                'run; a folder of your own config groups is its argument config_dir="my_conf".'
            )
        key = override_key(word)
        if key.partition("/")[0].partition(".")[0] == "hydra" and key != "hydra.searchpath":
            raise ConfigError(f"{word}: sets how the command starts runs, which dtl.compose does not do. Leave it out.")
    if config_dir is not None:
        check_config_folder(f"config_dir={config_dir}", os.path.expanduser(config_dir))
    check_no_secrets(words)
    folders = [] if config_dir is None else [f"--config-dir={os.path.expanduser(config_dir)}"]
    check_words(words, COMMAND, _call)
    check_sections(words, COMMAND)
    check_texts(words, COMMAND, *folders)
    check_given(words, COMMAND, folders, _call)


def _call(_: str, *words: str) -> str:
    return f"dtl.compose({', '.join(map(repr, words))})"


def _check_single_run(words: Sequence[str], hydra_words: list[str]) -> None:
    """Raise ConfigError for several values of one key, which are several runs; `words` are these as typed."""
    for word, parsed in zip(words, OverridesParser.create().parse_overrides(hydra_words), strict=True):
        if parsed.is_sweep_override():
            raise ConfigError(
                f"{word}: several values are several runs, and dtl.compose returns the config of one. Call it once for "
                "each value, or run python -m dtl.train -m."
            )


def _composed(words: list[str], config_dir: Path | str | None) -> RunConfig:
    return typed_run(load_config(COMMAND, words, config_dir))


@contextmanager
def _version_base() -> Iterator[None]:
    """Compose by the rules of the Hydra that DTL is written for, whatever another application chose."""
    version = VersionBase.instance()
    before = version.version_base
    setbase("1.3")
    try:
        yield
    finally:
        version.version_base = before
