"""A run's folder records its commit and the command that repeats it, and no secret."""

import errno
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtl.errors import DTLError
from dtl.run_dir import provenance
from dtl.run_dir.provenance import add_session, config_hash, git_state, update_run_record, write_run_record
from dtl.run_dir.state import resume_command

OVERRIDES = ["model=small", "name=a b", "+x='it''s, $HOME'", "data.path=ä/ü.txt"]
SECRETS = {
    "WANDB_API_KEY": "c4na" * 10,
    "HF_TOKEN": "hf_c4naryc4naryc4naryc4nary",
    "HUGGING_FACE_HUB_TOKEN": "c4nary-hub-token",
    "AWS_ACCESS_KEY_ID": "AKIAC4NARYC4NARYC4NA",
    "AWS_SECRET_ACCESS_KEY": "c4nary/aws/s3cret",
    "AWS_SESSION_TOKEN": "c4nary-session-01",
    "OPENAI_API_KEY": "sk-c4nary-openai-0123456789",
    "GITHUB_TOKEN": "ghp_c4naryc4naryc4naryc4nary",
    "DTL_PASSWORD": "c4nary-own-pass",
    "TORCH_HUB_TOKEN": "c4nary-torch-hub",
    "SOME_URL": "https://me:c4nary-url@example.org",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without the user's git settings."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in [name for name in os.environ if name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "NETRC")]:
        monkeypatch.delenv(name)
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True, errors="replace"
    ).stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package `dtl` in a checkout of one commit."""
    folder = tmp_path / "checkout" / "dtl"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("a = 1\n")
    git(folder.parent, "init")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-m", "first")
    monkeypatch.setattr(provenance, "PACKAGE", folder)
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def write(run_dir: Path, **more: Any) -> dict[str, Any]:
    write_run_record(run_dir, "model: {dim: 3}\n", OVERRIDES, {"model": "small"}, "cpu", seed=7, **more)
    return record(run_dir)


def record(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text())


# --- the folder -------------------------------------------------------------------------------------------------


def test_the_folder_says_what_the_run_was(package: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("EDITOR", "an-editor-of-mine")
    found = write(run_dir, lineage={"init": "outputs/a"})
    assert (run_dir / "config.yaml").read_text() == "model: {dim: 3}\n"
    assert found["overrides"] == OVERRIDES and found["choices"] == {"model": "small"} and found["seed"] == 7
    assert found["lineage"] == {"init": "outputs/a"}
    assert found["git"]["commit"] == git(package, "rev-parse", "HEAD")
    (session,) = found["sessions"]
    assert session["argv"] == sys.argv and session["device"] == "cpu"
    assert session["environment"]["OMP_NUM_THREADS"] == "2"
    assert "an-editor-of-mine" not in (run_dir / "run.json").read_text(), "only variables of the list are written"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", session["started"])
    packages = (run_dir / "packages.txt").read_text().splitlines()
    assert f"torch=={session['packages']['torch']}" in packages
    assert packages == sorted(set(packages), key=str.lower)


@pytest.mark.skipif(os.name == "nt", reason="POSIX quoting")
def test_the_command_to_rerun_gives_the_same_words_to_the_program(run_dir: Path) -> None:
    command = write(run_dir)["rerun"]
    shown = subprocess.run(
        ["sh", "-c", command.replace("python -m dtl.train", "printf '%s\\n'", 1)], capture_output=True, text=True
    )
    assert shown.stdout.splitlines() == OVERRIDES
    assert shlex.split(command)[:3] == ["python", "-m", "dtl.train"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX quoting")
def test_lines_to_paste_bring_the_config_folders_and_plugins_that_were_given(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--config-dir=/my conf", "--config-name=night"]
    found = write(run_dir, flags=flags)
    assert shlex.split(found["rerun"])[3:] == [*flags, *OVERRIDES]
    monkeypatch.setattr(sys.modules[__name__], "OVERRIDES", [*OVERRIDES, "init=latest"])  # another run, tomorrow
    pinned = [*OVERRIDES[:-1], f"init={run_dir}/checkpoints/best"]
    found = write(run_dir, flags=flags, init_from=run_dir / "checkpoints" / "best")
    assert shlex.split(found["rerun"])[3:] == [*flags, *pinned] and found["overrides"] == OVERRIDES
    (run_dir / "config.yaml").write_text("plugins: [my_lab.a, my_lab.b]\n")
    resumed = ["python", "-m", "dtl.train", *flags, f"resume={run_dir}", "plugins=my_lab.a,my_lab.b"]
    assert shlex.split(resume_command(run_dir)) == resumed
    for file in run_dir.iterdir():
        file.unlink()
    assert resume_command(run_dir) == f"python -m dtl.train resume={run_dir}"


def test_each_session_leaves_a_note(package: Path, run_dir: Path) -> None:
    first = write(run_dir)
    (package / "__init__.py").write_text("a = 2\n")
    git(package, "commit", "-am", "second")
    (package / "__init__.py").write_text("a = 3\n")
    add_session(run_dir, ["trainer.total_steps=9"], "cuda")
    update_run_record(run_dir, wandb_id="abc")
    found = record(run_dir)
    assert found["wandb_id"] == "abc"
    assert found["git"] == first["git"] and found["sessions"][0] == first["sessions"][0]
    assert found["sessions"][1]["overrides"] == ["trainer.total_steps=9"]
    assert found["sessions"][1]["git"]["commit"] == git(package, "rev-parse", "HEAD") != first["git"]["commit"]
    assert "+a = 3" in (run_dir / found["sessions"][1]["git"]["diff"]).read_text()
    assert not (run_dir / "git.diff").exists()


def test_a_record_that_is_gone_or_damaged_stops_no_resume(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir.mkdir()
    add_session(run_dir, [])
    for contents in ("{", "[1]", '{"sessions": 3}'):
        (run_dir / "run.json").write_text(contents)
        add_session(run_dir, [])
        assert (run_dir / "run.json").read_text() == contents
    assert len([entry for entry in caplog.records if entry.levelno == logging.WARNING]) == 4


def test_a_folder_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DTLError, match="file") as caught:
        write(tmp_path / "file")
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_that_cannot_be_recorded_leaves_no_part_of_its_record(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk config.yaml is written and run.json is not."""
    write = provenance.write_atomically

    def full(path: Path, data: bytes | str) -> None:
        if path.name == provenance.RECORD:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(provenance, "write_atomically", full)
    with pytest.raises(DTLError, match="cannot be written"):
        write_run_record(tmp_path / "run", "seed: 3", [], {}, "cpu")
    assert [*(tmp_path / "run").iterdir()] == []


def test_the_hash_of_a_config_is_a_function_of_its_text() -> None:
    assert config_hash("a: 1\n") == config_hash("a: 1\n") != config_hash("a: 2\n")
    assert re.fullmatch(r"[0-9a-f]{16}", config_hash("a: 1\n"))


# --- git --------------------------------------------------------------------------------------------------------


def test_a_clean_checkout_has_a_commit_and_no_diff(package: Path, run_dir: Path) -> None:
    assert write(run_dir)["git"] == {"commit": git(package, "rev-parse", "HEAD"), "dirty": False, "untracked": []}
    assert not (run_dir / "git.diff").exists()


def test_commit_and_diff_together_are_the_code_that_ran(package: Path, run_dir: Path, tmp_path: Path) -> None:
    (package / "new.py").write_text("b = 2\n")
    git(package, "add", "new.py")
    (package / "__init__.py").write_bytes(b"a = 3  # \xff not UTF-8\r\n")
    (package / "image.bin").write_bytes(bytes(range(256)))
    git(package, "add", "image.bin")
    (package / "mine.py").write_text("c = 3\n")
    found = write(run_dir)["git"]
    assert found["dirty"] and found["diff"] == "git.diff" and found["untracked"] == ["dtl/mine.py"]
    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", str(package.parent), str(again))
    git(again, "checkout", "-q", found["commit"])
    git(again, "apply", str(run_dir / "git.diff"))
    for name in ("__init__.py", "new.py", "image.bin"):
        assert (again / "dtl" / name).read_bytes() == (package / name).read_bytes()


def _untracked(package: Path) -> None:
    git(package.parent, "rm", "-q", "--cached", "dtl/__init__.py")


def _without_commit(package: Path) -> None:
    git(package.parent, "update-ref", "-d", "HEAD")


def _without_repository(package: Path) -> None:
    (package.parent / ".git").rename(package.parent / "gone")


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (_untracked, "not part of a git checkout"),  # as site-packages inside somebody else's repository
        (_without_commit, "no commit yet"),
        (_without_repository, "not part of a git checkout"),
    ],
)
def test_a_commit_that_is_not_dtls_is_never_recorded(package: Path, change: Callable[[Path], None], note: str) -> None:
    assert git_state(package)[0]["commit"] is not None
    change(package)
    state, diff = git_state(package)
    assert state["commit"] is None and note in state["note"] and diff == b""


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script")
def test_a_git_that_is_missing_or_hangs_holds_nobody_up(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert git_state(package)[0] == {"commit": None, "note": "git is not installed"}
    slow = tmp_path / "bin" / "git"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 20\n")
    slow.chmod(0o755)
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)
    assert "did not answer" in git_state(package)[0]["note"]


@pytest.mark.fault("hostile-model")
def test_no_program_of_the_repository_is_run(package: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    (package.parent / ".gitattributes").write_text("*.py diff=trap\n")
    for key in ("core.fsmonitor", "diff.external", "diff.trap.textconv", "diff.trap.command"):
        git(package, "config", key, str(trap))
    (package / "__init__.py").write_text("a = 4\n")
    state, diff = git_state(package)
    assert state["dirty"] and b"+a = 4" in diff
    assert not (tmp_path / "sprung").exists()


def test_a_difference_too_large_is_said_to_be(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "MAX_DIFF_BYTES", 99)
    (package / "__init__.py").write_text("a = 5\n" * 99)
    state, diff = git_state(package)
    assert state["dirty"] and "too large" in state["note"] and "diff" not in state and diff == b""


# --- secrets ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("secrets")
def test_no_secret_is_in_any_file(package: Path, run_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".netrc").write_text("machine example.org login user password c4nary-netrc\n")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    values = [*SECRETS.values(), "c4nary-netrc"]
    (package / "__init__.py").write_text("\n".join(f'key = "{value}"' for value in values))
    monkeypatch.setattr(sys, "argv", ["train.py", *(f"x={value}" for value in values)])
    everything = "\n".join(f"k{number}: {value}" for number, value in enumerate(values))
    overrides = [f"x={value}" for value in values]
    write_run_record(run_dir, everything, overrides, {"a": values[0]}, "cpu", lineage=values)
    add_session(run_dir, overrides)
    update_run_record(run_dir, note=values)
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"config.yaml", "run.json", "packages.txt", "git.diff", "git.2.diff"}
    secrets = [*values[:-2], "c4nary-url", values[-1]]
    leaks = [(path.name, secret) for path in files for secret in secrets if secret.encode() in path.read_bytes()]
    assert leaks == []
    assert "[hidden]" in (run_dir / "git.diff").read_text()
    assert not {"DTL_PASSWORD", "TORCH_HUB_TOKEN"} & set(record(run_dir)["sessions"][0]["environment"])


def test_the_files_that_were_chosen_have_their_whole_names() -> None:
    recipe = "a_study_of_rates_over_widths_and_depths_with_three_seeds"
    choices = {"experiment": recipe, "model": "None", "data": "null", "trainer": "auto\x1b[31m"}
    found = provenance.chosen_files({"choices": choices})
    assert found["experiment"] == recipe and found.keys() == {"experiment", "trainer"}
    assert "\x1b" not in found["trainer"] and provenance.chosen_files({"choices": [7]}) == {}
