"""Common to all commands: help, error messages, and text that arrives as it was typed."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dtl.base.paths import conf_dir
from dtl.commandline.command import Command
from dtl.commandline.overrides import quoted, to_hydra_syntax, unquoted
from dtl.config import typed_as
from dtl.terminal.config import GenerateConfig

NAMES = sorted(file.stem for file in conf_dir().glob("*.yaml"))


@pytest.fixture(autouse=True)
def outside_the_checkout(elsewhere: Path) -> None:
    """A working directory without the checkout's outputs/."""


def call(name: str, *arguments: str) -> tuple[int, str, str]:
    """Run `python -m dtl.<name>` with arguments in another process; returns exit code and both outputs."""
    program = [sys.executable, "-m", f"dtl.{name}", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


def test_each_primary_config_has_its_command():
    assert {"train", "chat", "generate", "diagnose"} <= set(NAMES)
    for name in NAMES:
        assert importlib.import_module(f"dtl.{name}").COMMAND.name == name


@pytest.mark.parametrize("name", NAMES)
def test_help_names_every_setting_and_choice(name, monkeypatch, capsys):
    module = importlib.import_module(f"dtl.{name}")
    monkeypatch.setattr(sys, "argv", [f"dtl-{name}", "--help"])
    module.main()
    page = capsys.readouterr().out
    assert page.startswith(f"python -m dtl.{name}")
    for setting in module.COMMAND.settings:
        assert f"    {setting.name}={setting.default}  ({setting.type})\n        {setting.meaning}" in page
    for group, choices in module.COMMAND.groups().items():
        assert group in page and " | ".join(choices) in " ".join(page.split())
    assert max(map(len, page.splitlines())) <= 140


@pytest.mark.parametrize("name", [name for name in NAMES if name != "train"])
def test_wrong_settings_are_refused_and_leave_nothing(name, monkeypatch, capsys, elsewhere):
    module = importlib.import_module(f"dtl.{name}")
    for arguments, expected in (
        (["debgu=true"], "debgu=true: there is no such key. Did you mean 'debug'?"),
        (["debug=perhaps"], "debug=perhaps: must be true/false"),
        (["+trainer=cpu"], f"+trainer=cpu: dtl.{name} has no such group."),
        (["-m"], f"-m: dtl.{name} runs once; only dtl.train runs a grid."),
        (["plugins=[a],[b]"], "takes one value."),
    ):
        monkeypatch.setattr(sys, "argv", [f"dtl-{name}", *arguments])
        with pytest.raises(SystemExit) as ended:
            module.main()
        shown = capsys.readouterr().err
        assert (ended.value.code, "Traceback" in shown) == (2, False)
        assert shown.startswith("Error: ") and expected in shown, shown
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["chat", "generate"])
def test_sampling_is_refused_before_a_model_is_looked_for(name):
    code, out, shown = call(name, "ckpt=nowhere", "sampling.top_p=2")
    assert (code, out, shown) == (2, "", "Error: sampling.top_p=2.0: a fraction in (0, 1].\n")


# --- texts --------------------------------------------------------------------------------------------------------

ODD = st.sampled_from("'\"\\${}[](), =:~+-#1an\n\t")
TALK = Command("generate", GenerateConfig, usage="", free_text=("prompt",))


def read_by_hydra(argument: str) -> object:
    """The value that a command gets for the typed text."""
    override = OverridesParser.create().parse_override(to_hydra_syntax(argument, TALK))
    value = override.value()
    config = OmegaConf.structured(GenerateConfig)
    config.merge_with({"prompt": getattr(value, "text", value)})
    return typed_as(GenerateConfig, config).prompt


@settings(max_examples=500)
@given(st.text(alphabet=ODD | st.characters(exclude_categories=["Cs"])))
def test_a_text_arrives_as_it_was_typed(text):
    """Also text that Hydra would read as a list, a sweep or a quote, and OmegaConf as an interpolation."""
    if text != "null" and not (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        assert read_by_hydra(f"prompt={text}") == text


@settings(max_examples=150)
@given(st.text(alphabet=ODD | st.characters(exclude_categories=["Cs"])))
def test_quotes_hide_any_text_from_hydra_and_come_off_again(text):
    assert read_by_hydra(f"prompt={quoted(text)}") == text == unquoted(quoted(text))


@pytest.mark.parametrize("text", ["a\\\n", "o'neil's", "null", "'a'"])
def test_texts_that_quotes_once_changed(text):
    assert read_by_hydra(f"prompt={quoted(text)}") == text == unquoted(quoted(text))


def test_a_text_in_quotes_of_its_own_loses_these():
    assert read_by_hydra("prompt='null'") == "null"
    assert read_by_hydra('prompt="a, b"') == "a, b"
    assert read_by_hydra("prompt=null") is None
