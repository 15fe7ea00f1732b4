"""A rejected command line removes the folders it created, and nothing else."""

import pytest

from dtl.commandline.cli import remove_empty_run_dir


@pytest.fixture
def made(elsewhere):
    folder = elsewhere / "outputs" / "2026-01-02" / "03-04-05-6"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").touch()
    (folder / ".lock").touch()
    return folder


def test_what_was_made_goes_with_the_empty_folders_above(made, elsewhere):
    remove_empty_run_dir(made, (".hydra", ".lock"))
    assert [path.name for path in elsewhere.rglob("*")] == ["outputs"]


def test_a_folder_with_anything_else_stays_whole(made):
    before = sorted(made.rglob("*"))
    remove_empty_run_dir(made, (".hydra",))
    assert sorted(made.rglob("*")) == before


def test_a_folder_above_that_holds_something_stays(made):
    (made.parent / "another run").touch()
    remove_empty_run_dir(made, (".hydra", ".lock"))
    assert [path.name for path in made.parent.iterdir()] == ["another run"]


def test_the_folder_one_stands_in_stays(made, monkeypatch):
    monkeypatch.chdir(made.parent)
    remove_empty_run_dir(made.relative_to(made.parent), (".hydra", ".lock"))
    assert list(made.parent.iterdir()) == []


def test_a_run_in_the_working_directory_does_not_delete_it(made, monkeypatch):
    monkeypatch.chdir(made)
    remove_empty_run_dir(made, (".hydra", ".lock"))
    assert made.is_dir()


def test_an_empty_folder_that_is_neither_here_nor_in_outputs_is_the_users(elsewhere, monkeypatch):
    made = elsewhere / "mine" / "run"
    made.mkdir(parents=True)
    (elsewhere / "here").mkdir()
    monkeypatch.chdir("here")
    remove_empty_run_dir(made, ())
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["here", "mine"]
