"""Atomic writes: files and folders that are complete or absent, even after a kill, a power cut or a full disk.

Everything is written under a temporary name next to its destination, flushed to the disk and renamed.
A manifest holds the SHA-256 of each file of a folder, so that any later damage is detected.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtl.base.json_files import escaped, plain, read_json, sealed
from dtl.base.redaction import redact
from dtl.errors import CheckpointError

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"  # prefix of names of unfinished files and folders
TRASH = ".trash-"  # prefix of names of folders that are being deleted
FILES_OF_A_SAVE = 32  # and the folder; fewer free inodes than these are too few
RENAME_SECONDS = 0.02  # more than two renames take
ASIDE = ".old"  # suffix of names of folders that are being replaced
_LEFTOVER = re.compile(rf"(?:{re.escape(TEMPORARY)}|{re.escape(TRASH)})(.+)-\d+-[0-9a-f]{{8}}")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")  # no path out of the folder, nothing hidden


# --- writing ----------------------------------------------------------------------------------------------------


def write_atomically(path: Path, data: bytes | str) -> None:
    """Make `path` hold `data`, a text without secrets, or leave it as it was.

    Raises OSError, and leaves no temporary file then.
    """
    temporary = unfinished(path)
    try:
        with temporary.open("wb") as file:
            file.write(redact(data).encode() if isinstance(data, str) else data)
            file.flush()
            _flush_to_disk(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)  # a power cut may otherwise undo the rename
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object that decides something, with its digest, as `write_atomically`. Raises OSError."""
    text = redact(json.dumps(plain(values), ensure_ascii=False, allow_nan=False))  # the digest is of what can be read
    write_atomically(path, escaped(json.dumps(sealed(json.loads(text)), indent=2, ensure_ascii=False)) + "\n")


def no_room(number: int | None, folder: Path) -> str | None:
    """Return why nothing can be written below a folder, by the number of the error; None for another error."""
    if number is None or number not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return None
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    usage = os.statvfs(folder) if hasattr(os, "statvfs") else None
    # What was begun has been deleted when the message is written: its inodes are free again.
    few = usage is not None and 0 <= usage.f_favail < FILES_OF_A_SAVE and usage.f_files > 0
    if usage is not None and few and usage.f_bavail * usage.f_frsize > 2**20:
        return f"there are bytes, but no more files: {usage.f_favail} inodes are left. Delete files, however small"
    return "the disk is full" if number == errno.ENOSPC else "the quota of the disk is used up"


def unfinished(path: Path) -> Path:
    """A unique temporary name next to `path`, for a file or folder that will be renamed to `path`."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def leftover_of(name: str) -> str | None:
    """Return the name of what was being written or deleted when a killed process left this one behind.

    None for a name that neither `unfinished` nor `discard_directory` gives: it is the user's, and never deleted.
    """
    left = _LEFTOVER.fullmatch(name)
    return left[1] if left else None


def publish_directory(temporary: Path, final: Path) -> None:
    """Flush the folder `temporary` to the disk and rename it to `final`, in the same parent folder.

    An existing `final` is moved to `<final>.old` between the two renames and removed at the end: at every instant a
    complete folder exists under one of the two names. Raises OSError and restores the previous state.
    """
    for entry in (temporary, *temporary.rglob("*")):
        sync_directory(entry) if entry.is_dir() else sync_file(entry)
    aside = final.with_name(final.name + ASIDE)
    if final.exists():
        if aside.exists():  # left by a kill at the very end of an earlier replacement
            discard_directory(aside)
        os.replace(final, aside)
    try:
        os.replace(temporary, final)
    except BaseException:
        if aside.exists():
            os.replace(aside, final)
        raise
    sync_directory(final.parent)
    if aside.exists():
        discard_directory(aside)


def discard_directory(folder: Path) -> None:
    """Delete a folder. It is renamed first, so that a kill leaves no half of it that looks complete.

    Raises OSError when something cannot be deleted.
    """
    trash = folder.with_name(f"{TRASH}{folder.name}-{os.getpid()}-{secrets.token_hex(4)}")
    os.replace(folder, trash)
    sync_directory(trash.parent)
    shutil.rmtree(trash)


def sync_file(path: Path) -> None:
    """Wait until the disk holds the contents of this file."""
    with path.open("r+b" if os.name == "nt" else "rb") as file:  # Windows flushes only what it may write
        _flush_to_disk(file.fileno())


def sync_directory(folder: Path) -> None:
    """Wait until the disk holds the names in this folder. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def _flush_to_disk(descriptor: int) -> None:
    with suppress(ImportError, OSError):
        import fcntl

        # On macOS fsync stops at the drive's cache (man 2 fsync). File systems without F_FULLFSYNC fall back to fsync.
        full_sync = getattr(fcntl, "F_FULLFSYNC", None)
        if full_sync is not None:
            fcntl.fcntl(descriptor, full_sync)
            return
    os.fsync(descriptor)


# --- manifests --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """The contents of a finished folder: facts, files and digest."""

    facts: dict[str, Any]  # the writer's description of the folder: format, step, epoch
    files: dict[str, dict[str, Any]]  # name -> {"sha256": hexadecimal, "size": bytes}
    digest: str  # SHA-256 over facts and files: equal for folders of equal contents


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ManifestWriter:
    """Hashes and flushes the files of a folder in the background, while others are still being written.

    Neither holds the GIL: the disk writes while the processor hashes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(4)
        self._digests: dict[str, Future[str]] = {}
        self._flushed: list[Future[None]] = []

    def __enter__(self) -> "ManifestWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def add(self, name: str) -> None:
        """Start hashing and flushing a file that is complete."""
        self._digests[name] = self._pool.submit(sha256_of, self.folder / name)
        self._flushed.append(self._pool.submit(sync_file, self.folder / name))

    def write(self, **facts: Any) -> Manifest:
        """Write `manifest.json` with the given facts and the size and SHA-256 of every file in the folder.

        To be called last, before `publish_directory`. Raises OSError.
        """
        for file in sorted(self.folder.iterdir()):
            if file.name not in (MANIFEST, *self._digests):
                self.add(file.name)
        for flushed in self._flushed:
            flushed.result()
        files = {
            name: {"sha256": digest.result(), "size": (self.folder / name).stat().st_size}
            for name, digest in sorted(self._digests.items())
        }
        manifest = Manifest(facts, files, _digest(facts, files))
        contents = {**facts, "files": files, "digest": manifest.digest}
        (self.folder / MANIFEST).write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return manifest


def write_manifest(folder: Path, **facts: Any) -> Manifest:
    """Write the manifest of a folder whose files are all written; see `ManifestWriter.write`. Raises OSError."""
    with ManifestWriter(folder) as manifest:
        return manifest.write(**facts)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder and check the names and sizes of its files, without reading their contents.

    Raises CheckpointError naming the file that is missing, cut short, a link, or not a plain name.
    """
    return _unless_replaced(folder, lambda: _read_manifest(folder))


def _unless_replaced(folder: Path, check: Callable[[], Manifest]) -> Manifest:
    """Return the result of a check; repeat one that failed where another folder has taken the place of this one."""
    while True:
        before = _identity(folder)
        try:
            return check()
        except CheckpointError:
            if before is None or _identity(folder) is None:  # perhaps between the two renames of `publish_directory`
                time.sleep(RENAME_SECONDS)
            if _identity(folder) == before:
                raise


def _identity(folder: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        entry = folder.stat()
        return entry.st_dev, entry.st_ino
    return None


def _read_manifest(folder: Path) -> Manifest:
    if (folder / MANIFEST).is_symlink():
        raise CheckpointError(f"{folder / MANIFEST}: a link; only regular files are read.")
    try:
        facts = read_json(folder / MANIFEST)
    except FileNotFoundError:
        raise CheckpointError(f"{folder / MANIFEST}: missing, so this folder was never finished.") from None
    files, digest = facts.pop("files", None), facts.pop("digest", None)
    if not isinstance(files, dict) or digest != _digest(facts, files):
        raise CheckpointError(f"{folder / MANIFEST}: damaged, its own digest does not match.")
    for name, listed in files.items():
        if not PLAIN_NAME.fullmatch(name) or not isinstance(listed, dict) or set(listed) != {"sha256", "size"}:
            raise CheckpointError(f"{folder / MANIFEST}: lists {name!r}, which is not a plain file name and its hash.")
        try:
            entry = (folder / name).lstat()
        except FileNotFoundError:
            raise CheckpointError(f"{folder / name}: missing.") from None
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read ({error.strerror}).") from error
        if not stat.S_ISREG(entry.st_mode):
            raise CheckpointError(f"{folder / name}: a link or a special file; only regular files are read.")
        if entry.st_size != listed["size"]:
            raise CheckpointError(f"{folder / name}: has {entry.st_size} bytes, {listed['size']} were written.")
    return Manifest(facts, files, digest)


def verify_manifest(folder: Path, only: Collection[str] | None = None) -> Manifest:
    """Check every file of a finished folder (or those in `only`) against its SHA-256.

    Raises CheckpointError naming the first file that is missing or has changed.
    """
    return _unless_replaced(folder, lambda: _verify_manifest(folder, only))


def _verify_manifest(folder: Path, only: Collection[str] | None) -> Manifest:
    manifest = _read_manifest(folder)
    names = list(manifest.files) if only is None else list(only)
    for name in names:
        if name not in manifest.files:
            raise CheckpointError(f"{folder / MANIFEST}: does not list {name}.")
    with ThreadPoolExecutor(4) as pool:
        digests = [pool.submit(sha256_of, folder / name) for name in names]
    for name, digest in zip(names, digests, strict=True):
        try:
            intact = digest.result() == manifest.files[name]["sha256"]
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read ({error.strerror}).") from error
        if not intact:
            raise CheckpointError(f"{folder / name}: damaged, its SHA-256 differs from the manifest's.")
    return manifest


def _digest(facts: dict[str, Any], files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([facts, files], sort_keys=True).encode()).hexdigest()
