"""Files and folders are complete or absent, and a manifest detects later changes."""

import json
import os
import re
from pathlib import Path

import pytest
from hostile_files import KINDS

from dtl.base import files as durable
from dtl.base import json_files
from dtl.base.files import (
    discard_directory,
    publish_directory,
    read_manifest,
    sha256_of,
    verify_manifest,
    write_atomically,
    write_manifest,
)
from dtl.base.json_files import open_to_append, read_json
from dtl.errors import CheckpointError
from dtl.runner.screens import DETAILS, write_details

PACKAGE = Path(__file__).resolve().parents[2] / "dtl"


def make_folder(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def record_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The order of flushes and renames, by the names of the files."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    return calls


linux_only = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads names of open files from /proc")


@pytest.mark.parametrize("data", ["grüße\n", b"\x00\xff", ""])
def test_write_atomically_replaces_what_was_there(tmp_path: Path, data: str | bytes) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "before")
    write_atomically(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.fault("disk-full")
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "after")
    monkeypatch.undo()
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.fault("power-cut")
@linux_only
def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_calls(monkeypatch)
    write_atomically(tmp_path / "a.txt", "text")
    assert [kind for kind, _ in calls] == ["fsync", "rename", "fsync"]
    assert calls[2] == ("fsync", tmp_path.name)


@pytest.mark.fault("power-cut")
@linux_only
def test_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = make_folder(tmp_path / ".tmp-x", a="1", b="2")
    make_folder(temporary / "inner", c="3")
    calls = record_calls(monkeypatch)
    publish_directory(temporary, tmp_path / "x")
    renamed = calls.index(("rename", "x"))
    assert {name for _, name in calls[:renamed]} == {"a.txt", "b.txt", "c.txt", "inner", ".tmp-x"}
    assert calls[renamed + 1 :] == [("fsync", tmp_path.name)]


def test_publishing_replaces_a_folder_and_clears_the_old_one_away(tmp_path: Path) -> None:
    final = make_folder(tmp_path / "best", a="old")
    make_folder(tmp_path / "best.old", a="older")
    publish_directory(make_folder(tmp_path / ".tmp-1", a="new"), final)
    assert (final / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["best"]


def test_a_publication_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, temporary = make_folder(tmp_path / "best", a="old"), make_folder(tmp_path / ".tmp-1", a="new")
    replace = os.replace

    def fail_for_the_new_one(source: Path, target: Path) -> None:
        if source == temporary:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_new_one)
    with pytest.raises(PermissionError):
        publish_directory(temporary, final)
    assert (final / "a.txt").read_text() == "old"
    assert names(tmp_path) == [".tmp-1", "best"]


def test_a_folder_loses_its_name_before_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "step", a="1", b="2")

    def stop(path: Path) -> None:
        raise OSError(5, "stopped here")

    monkeypatch.setattr(durable.shutil, "rmtree", stop)
    with pytest.raises(OSError, match="stopped here"):
        discard_directory(folder)
    (trash,) = tmp_path.iterdir()
    assert trash.name.startswith(durable.TRASH)
    assert names(trash) == ["a.txt", "b.txt"]


# --- manifests --------------------------------------------------------------------------------------------------


def test_a_manifest_says_what_is_there(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x", a="one", b="")
    written = write_manifest(folder, step=7)
    assert verify_manifest(folder) == read_manifest(folder) == written
    assert written.facts == {"step": 7}
    assert written.files["a.txt"] == {"sha256": sha256_of(folder / "a.txt"), "size": 3}
    assert sorted(written.files) == ["a.txt", "b.txt"]


def test_equal_folders_have_equal_digests(tmp_path: Path) -> None:
    first = write_manifest(make_folder(tmp_path / "x", a="1", b="2"), step=1)
    second = write_manifest(make_folder(tmp_path / "y", b="2", a="1"), step=1)
    third = write_manifest(make_folder(tmp_path / "z", a="1", b="2"), step=2)
    assert first.digest == second.digest != third.digest
    assert (tmp_path / "x/manifest.json").read_bytes() == (tmp_path / "y/manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.txt", "onf", r"a\.txt: damaged"),
        ("a.txt", "on", r"a\.txt: has 2 bytes, 3 were written"),
        ("a.txt", None, r"a\.txt: missing"),
        ("manifest.json", None, "never finished"),
        ("manifest.json", "{", r"manifest\.json: damaged"),
        ("manifest.json", "[]", "not a JSON object"),
        ("manifest.json", '{"files": {}, "digest": ""}', "own digest"),
        ("manifest.json", '{"files": NaN}', "NaN"),
        ("manifest.json", "[" * 100_000, r"manifest\.json: damaged"),
        ("manifest.json", "\xff\xfe", r"manifest\.json: damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    folder = make_folder(tmp_path / "x", a="one")
    write_manifest(folder)
    (folder / file).unlink() if text is None else (folder / file).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=message):
        verify_manifest(folder)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x", a="one", b="two")
    write_manifest(folder)
    (folder / "b.txt").write_text("TWO")
    verify_manifest(folder, only=["a.txt"])
    with pytest.raises(CheckpointError, match=r"b\.txt: damaged"):
        verify_manifest(folder)
    with pytest.raises(CheckpointError, match=r"does not list c\.txt"):
        verify_manifest(folder, only=["c.txt"])


@pytest.mark.fault("names")
@pytest.mark.parametrize(
    "name", ["../x/a.txt", "/etc/passwd", "b\\a.txt", "..", "a.txt\0", ".hidden", "a" * 300, "\ud800"]
)
def test_a_manifest_names_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path / "x", a="one")
    written = write_manifest(folder)
    files = {name: written.files["a.txt"]}
    forged = {"files": files, "digest": durable._digest({}, files)}
    (folder / "manifest.json").write_text(json.dumps(forged))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        verify_manifest(folder)


@pytest.mark.fault("hostile-model")
def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x", a="one")
    write_manifest(folder)
    (folder / "a.txt").rename(tmp_path / "a.txt")
    (folder / "a.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(CheckpointError, match=r"a\.txt: a link"):
        read_manifest(folder)
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")  # opening it would wait for ever
    with pytest.raises(CheckpointError, match="special file"):
        read_manifest(folder)


@pytest.mark.parametrize("kind", ["fifo", "endless", "folder", "loop"])
def test_nothing_is_appended_to_what_is_no_regular_file(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "log")  # opening a FIFO would wait for ever
    with pytest.raises(OSError):
        open_to_append(tmp_path / "log")
    (tmp_path / DETAILS).symlink_to("log")
    write_details(tmp_path, "a run", [("device", "cpu")])
    assert not (tmp_path / "log").is_file()


def test_a_link_to_a_file_that_is_not_there_yet_is_followed(tmp_path: Path) -> None:
    (tmp_path / DETAILS).symlink_to("elsewhere.txt")
    write_details(tmp_path, "a run", [("device", "cpu")])
    assert (tmp_path / "elsewhere.txt").read_text().startswith("a run")


def test_what_is_appended_comes_last(tmp_path: Path) -> None:
    for text in (b"first\n", b"second\n"):
        with open_to_append(tmp_path / "log") as file:
            file.write(text)
    assert (tmp_path / "log").read_bytes() == b"first\nsecond\n"


def test_no_other_place_opens_a_file_to_append_to_it() -> None:
    """metrics.jsonl is opened to read, too, which waits for nobody."""
    append = re.compile(r"""open\([^)]*["'](a\S*)["']""")
    found = {file.name: mode for file in PACKAGE.rglob("*.py") for mode in append.findall(file.read_text())}
    assert found == {"json_files.py": "ab+"}


def test_json_of_absurd_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "MAX_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text('{"a": "0123456789"}')
    with pytest.raises(CheckpointError, match="larger than"):
        read_json(tmp_path / "a.json")
