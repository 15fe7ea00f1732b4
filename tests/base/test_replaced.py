"""A folder that is replaced while it is read is not called damaged; a full disk is told from one without inodes."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dtl.base import files
from dtl.base.files import no_room, publish_directory, read_manifest, sha256_of, verify_manifest, write_manifest
from dtl.errors import CheckpointError


def published(folder: Path, text: str) -> Path:
    """The folder with two files of this text, put in the place of another."""
    new = folder.with_name("new")
    new.mkdir()
    for name in ("model.safetensors", "state.json"):
        (new / name).write_text(text)
    write_manifest(new, text=text)
    publish_directory(new, folder)
    return folder


@pytest.mark.parametrize("after", [1, 2])
def test_a_folder_replaced_while_it_is_verified(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = published(tmp_path / "best", "old")
    calls = []

    def replacing(path: Path) -> str:
        calls.append(path)
        if len(calls) == after:
            monkeypatch.setattr(files, "sha256_of", sha256_of)
            published(best, "newer")
        return sha256_of(path)

    monkeypatch.setattr(files, "sha256_of", replacing)
    assert verify_manifest(best).facts["text"] == "newer"


def test_a_folder_read_between_the_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = published(tmp_path / "best", "old")
    os.replace(best, tmp_path / "aside")
    monkeypatch.setattr(files.time, "sleep", lambda _: os.replace(tmp_path / "aside", best))
    assert read_manifest(best).facts["text"] == "old"


def test_damage_and_absence_stay_what_they_are(tmp_path: Path) -> None:
    best = published(tmp_path / "best", "old")
    (best / "state.json").write_text("odd")
    with pytest.raises(CheckpointError, match=r"state\.json: damaged"):
        verify_manifest(best)
    shutil.rmtree(best)
    with pytest.raises(CheckpointError, match="missing"):
        read_manifest(best)


@pytest.mark.parametrize(
    ("number", "inodes", "said"),
    [
        (errno.ENOSPC, 5, "5 inodes are left"),
        (errno.ENOSPC, 5000, "the disk is full"),
        (errno.EDQUOT, 5000, "the quota of the disk is used up"),
        (errno.EACCES, 5000, None),
        (None, 5, None),
    ],
)
def test_why_there_is_no_room(
    number: int | None, inodes: int, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(f_files=9000, f_favail=inodes, f_bavail=9000, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: usage)
    found = no_room(number, tmp_path / "not" / "yet")
    assert found == said or (said and said in str(found))
