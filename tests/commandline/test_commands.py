"""Common to all commands: help, error messages, and text that arrives as it was typed."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import dtl.__main__
import dtl.sweep
from dtl.base.paths import conf_dir
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.commandline.overrides import quoted, to_hydra_syntax, unquoted
from dtl.config import typed_as
from dtl.terminal.config import GenerateConfig
from dtl.train import main as train_main

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
    monkeypatch.setattr(sys, "argv", [f"dtl-{name}", "--help=all"])
    module.main()
    page = capsys.readouterr().out
    assert page.startswith(f"python -m dtl.{name}")
    for setting in module.COMMAND.settings:
        assert re.search(
            rf"    {re.escape(setting.name)}=.*  \({setting.type}\)\n        {re.escape(setting.meaning)}", page
        )
    for group, choices in module.COMMAND.groups().items():
        assert group in page and " | ".join(choices) in " ".join(page.split())
    assert max(map(len, page.splitlines())) <= 140


@pytest.mark.parametrize("name", NAMES)
def test_help_is_one_screen(name, monkeypatch, capsys):
    """A terminal of 80 x 24, its prompt included; the words beside it do not matter."""
    module = importlib.import_module(f"dtl.{name}")
    for arguments in (["--help"], ["-h"], ["help"], ["plugins=[not_there]", "--help"], ["--help", "no=1"]):
        monkeypatch.setattr(sys, "argv", [f"dtl-{name}", *arguments])
        module.main()
        page = capsys.readouterr().out
        assert page.startswith(f"python -m dtl.{name}") and "--help=all" in page
        assert len(page.splitlines()) <= 23 and max(map(len, page.splitlines())) <= 79
        for group, choices in module.COMMAND.groups().items():
            assert f"\n  {group:<11} {choices[0]}" in page


@pytest.mark.parametrize("flag", ["--help=", "help="])
def test_help_has_the_values_of_the_words_beside_it(monkeypatch, capsys, flag):
    def page(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dtl-train", *words])
        train_main()
        return capsys.readouterr().out

    model = page("model=qa", f"{flag}model", "model.dropout=0.25")
    assert "\n    model.dim=512  (integer)\n" in model and "model.dropout=0.25" in model and "optimizer" not in model
    assert page(f"{flag}optimizer.lr").count("\n    optimizer") == 1
    assert page(f"{flag}optimizer") == page(flag.strip("="), "optimizer", "seed=1")
    assert "    name=small_qa  (text)" in page(f"{flag}all")  # of conf/, not of the dataclass
    assert "hydra.sweeper.n_trials=30" in page(f"{flag}sweep")


def test_help_about_nothing_known(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dtl-train", "--help=optimzer"])
    with pytest.raises(SystemExit) as ended:
        train_main()
    assert ended.value.code == 2 and "Did you mean 'optimizer'?" in capsys.readouterr().err


# --- one name for all commands ------------------------------------------------------------------------------------


def dtl_command(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dtl", *arguments])
    try:
        dtl.__main__.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_umbrella_knows_every_command(monkeypatch, capsys):
    assert sorted(dtl.__main__.COMMANDS) == NAMES
    for asked in ([], ["--help"], ["help"]):
        assert dtl_command(monkeypatch, *asked) == 0
        page = capsys.readouterr().out
        assert all(f"\n  {name:<10} " in page for name in NAMES)
        assert len(page.splitlines()) <= 23 and max(map(len, page.splitlines())) <= 79


@pytest.mark.parametrize("name", NAMES)
def test_the_umbrella_calls_a_command_with_its_words(monkeypatch, capsys, name):
    assert dtl_command(monkeypatch, name, "--help") == 0 == dtl_command(monkeypatch, "help", name)
    shown = capsys.readouterr().out
    half = len(shown) // 2
    assert shown[:half] == shown[half:] and shown.startswith(f"python -m dtl.{name} ")
    assert dtl_command(monkeypatch, name, "debgu=true") == 2
    assert "debgu=true: there is no such key. Did you mean 'debug'?" in capsys.readouterr().err


def test_the_umbrella_without_a_command(monkeypatch, capsys):
    assert dtl_command(monkeypatch, "--version") == 0 and capsys.readouterr().out == f"DTL {dtl.__version__}\n"
    assert dtl_command(monkeypatch, "help", "train", "optimizer.lr") == 0
    assert capsys.readouterr().out.count("\n    optimizer") == 1
    for word, hint in (("trian", "Did you mean 'train'?"), ("model=small", "Did you mean 'dtl train model=small'?")):
        assert dtl_command(monkeypatch, word) == 2 and hint in capsys.readouterr().err


# --- what a process may lack --------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["dtl", *(f"dtl.{name}" for name in NAMES)])
def test_without_the_environment_there_is_one_sentence(module):
    """As the Python of the system has none of DTL's packages; -S leaves out those of the environment."""
    program = [sys.executable, "-S", "-m", module]
    environment = {**os.environ, "PYTHONPATH": str(conf_dir().parent)}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"Error: \w+: not installed for \S+\. Activate the environment .*\n", done.stderr), done.stderr


def test_python_itself_reports_a_missing_package_as_always():
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import dtl.train"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(conf_dir().parent)},
    )
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1].startswith("ModuleNotFoundError")


def test_an_older_python_is_named():
    program = "import sys; sys.argv = ['-m']; sys.version_info = (3, 10, 1); import dtl"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Error: DTL needs Python 3.11 or newer, and this is")


def test_a_package_that_is_missed_later_is_named_too(monkeypatch, capsys):
    def job(_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(sys, "argv", ["dtl-sweep"])
    with pytest.raises(SystemExit) as ended:
        run_command(job, dtl.sweep.COMMAND)
    shown = capsys.readouterr().err
    assert (
        ended.value.code == 1 and shown.startswith("Error: torch: not installed for ") and len(shown.splitlines()) == 1
    )


@pytest.mark.quick_cases(1)
@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX closes the streams")
@pytest.mark.parametrize(
    ("name", "closed"),
    [("train", ">&-"), ("chat", "<&- >&- 2>&-")]
    + [pytest.param("train", closed, marks=pytest.mark.slow) for closed in ("<&-", "2>&-", "<&- >&- 2>&-")]
    + [pytest.param(name, "<&- >&- 2>&-", marks=pytest.mark.slow) for name in ("runs", "sweep")],
)
def test_streams_may_be_missing(name, closed, elsewhere):
    """As under pythonw, and of services. A file that is opened must not get the number of a stream."""
    program = f"{shlex.quote(sys.executable)} -m dtl.{name} {'--cfg job' if name == 'train' else ''} {closed}"
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    there = subprocess.run(
        ["sh", "-c", program.replace(closed, "")], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == there.returncode and "Traceback" not in done.stderr and "Error -" not in done.stderr
    assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else there.stdout)
    assert done.stderr == ("" if "2>&-" in closed else there.stderr)


@pytest.mark.quick_cases(3)
@pytest.mark.fault("wrong-setting")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "train"])
def test_wrong_settings_are_refused_and_leave_nothing(name, monkeypatch, capsys, elsewhere):
    module = importlib.import_module(f"dtl.{name}")
    for arguments, expected in (
        (["debgu=true"], "debgu=true: there is no such key. Did you mean 'debug'?"),
        (["debug=perhaps"], "debug=perhaps: must be true/false"),
        *([] if name == "plan" else [(["+trainer=cpu"], f"+trainer=cpu: dtl.{name} has no such group.")]),
        *(
            []
            if name in ("prepare", "plan")
            else [(["experiment=demo"], "It is a setting of dtl.train: python -m dtl.train exp")]
        ),
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


@pytest.mark.slow
@settings(max_examples=200)
@given(st.text(alphabet=ODD | st.characters(exclude_categories=["Cs"])))
def test_a_text_arrives_as_it_was_typed(text):
    """Also text that Hydra would read as a list, a sweep or a quote, and OmegaConf as an interpolation."""
    if text != "null" and not (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        assert read_by_hydra(f"prompt={text}") == text


@pytest.mark.slow
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
