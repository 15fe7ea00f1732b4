"""The cache: a folder of text, tokens and tokenizers, each under a hash of everything that shapes it.

An entry is built in a temporary folder under a lock and renamed when it is complete; processes that need the same
entry wait for the one that builds it. Readers take no lock, so a read-only folder works too.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from dtl import __version__
from dtl.base.files import (
    ASIDE,
    MANIFEST,
    TEMPORARY,
    TRASH,
    publish_directory,
    read_manifest,
    sha256_of,
    unfinished,
    verify_manifest,
    write_atomically,
    write_manifest,
)
from dtl.base.json_files import read_json
from dtl.errors import CheckpointError, DataError

FORMAT = 1  # of the files in an entry
INDEX = "sources.json"  # hashes of source files: path -> [size, mtime in ns, SHA-256]
# Up to this size an entry's files are hashed whenever it is opened, which takes a few hundredths of a second. Of a
# larger entry only names and sizes are checked, and the contents with data.verify=full.
HASHED_ON_OPENING = 2**23
# A younger file may still change without a new time: file systems store times in steps of up to two seconds (FAT).
SETTLED_S = 2.0
ABANDONED_S = 3600.0  # age after which a temporary file is no longer being written
_LEFTOVERS = (f"{TEMPORARY}*", f"{TRASH}*", f"*{ASIDE}")


def key_of(**parts: Any) -> str:
    """Return a name that is equal only for equal parts and the same version of DTL."""
    text = json.dumps([FORMAT, __version__, parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]  # 128 bits in a short file name


def cache_folder(cache_dir: str | None) -> Path:
    """Return the folder of the cache: as given, or the platform's folder for caches."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser().absolute()
    return platformdirs.user_cache_path("dtl", appauthor=False)


@dataclass(frozen=True)
class Entry:
    """A complete entry: its folder, and the facts of its manifest."""

    folder: Path
    facts: dict[str, Any]


class Cache:
    """Entries by name. `notes` are messages for the user on what was damaged or could not be stored.

    With `verify` every opened entry is hashed, and the stored hashes of source files are not used.
    """

    def __init__(self, folder: Path, verify: bool = False, log: Callable[[str], None] = lambda message: None) -> None:
        self.folder = folder
        self.verify = verify
        self.log = log
        self.notes: list[str] = []
        self._writable = True
        self._verified: set[str] = set()  # hashed at most once by each Cache

    def get(self, name: str, build: Callable[[Path], dict[str, Any]]) -> Entry | None:
        """Return the entry of this name, built when it is missing or damaged; None when the disk cannot be written.

        `build` fills the folder that it is given and returns facts for the manifest. Its errors, other than
        those of the disk, are raised, and nothing is stored then.
        """
        entry = self._open(name)
        if entry is not None or not self._writable:
            return entry
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(name):
                return self._open(name) or self._build(name, build)
        except OSError as error:
            self._writable = False
            self._note(
                f"{self.folder}: the cache cannot be written ({error.strerror or error}). The data is kept in memory "
                "and prepared again at the next start; data.cache_dir=FOLDER selects another disk."
            )
            return None

    def _open(self, name: str) -> Entry | None:
        folder = self.folder / name
        try:
            if not (folder / MANIFEST).exists():
                return None
            manifest = read_manifest(folder)
            size = sum(listed["size"] for listed in manifest.files.values())
            if name not in self._verified and (self.verify or size <= HASHED_ON_OPENING):
                manifest = verify_manifest(folder)
                self._verified.add(name)
            return Entry(folder, manifest.facts)
        except (CheckpointError, OSError) as error:
            self._note(f"cache: {error} It is built again.")
            return None

    def _build(self, name: str, build: Callable[[Path], dict[str, Any]]) -> Entry:
        self._sweep(name)
        temporary = unfinished(self.folder / name)
        try:
            temporary.mkdir()
            facts = build(temporary)
            manifest = write_manifest(temporary, **facts)
            publish_directory(temporary, self.folder / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._verified.add(name)
        return Entry(self.folder / name, manifest.facts)

    def _locked(self, name: str) -> AbstractContextManager[object]:
        lock = self._lock(name)
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            self.log(f"cache: waiting for another process that builds {name}")
            return lock.acquire()

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.folder / f"{name}.lock")

    def _sweep(self, mine: str) -> None:
        """Remove what killed processes left. Entries that are being built are locked, and are skipped."""
        for left in [path for pattern in _LEFTOVERS for path in self.folder.glob(pattern)]:
            with suppress(OSError, Timeout):
                name = _entry_of(left.name)
                if not left.is_dir():
                    if time.time() - left.stat().st_mtime > ABANDONED_S:
                        left.unlink()
                elif name == mine:
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    with self._lock(name).acquire(timeout=0):
                        shutil.rmtree(left, ignore_errors=True)

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def files_fingerprint(self, files: Iterable[Path]) -> str:
        """Return SHA-256 over the names (relative to their common folder) and contents of files.

        A file of unchanged size and time is not hashed again, unless `verify`.
        Raises DataError for a file that cannot be read.
        """
        paths = sorted({file.absolute() for file in files})
        known = self._remembered()
        index = dict(known)
        digest = hashlib.sha256()
        for path, name in zip(paths, _relative(paths), strict=True):
            try:
                digest.update(f"{name}\0{self._hash(path, index)}\n".encode("utf-8", "surrogateescape"))
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
        if index != known:
            with suppress(OSError):  # the index only saves time
                self.folder.mkdir(parents=True, exist_ok=True)
                # Merged: another process may have added files meanwhile.
                write_atomically(self.folder / INDEX, json.dumps(self._remembered() | index, indent=1) + "\n")
        return digest.hexdigest()

    def _hash(self, path: Path, index: dict[str, list[Any]]) -> str:
        before = path.stat()
        seen = [before.st_size, before.st_mtime_ns]
        remembered = index.get(str(path))
        if not self.verify and remembered is not None and remembered[:2] == seen:
            return remembered[2]
        if before.st_size > 2**30:
            self.log(f"hash of {path.name}: {before.st_size / 2**30:.1f} GiB, once while it does not change")
        sha256 = sha256_of(path)
        after = path.stat()
        if [after.st_size, after.st_mtime_ns] == seen and time.time() - after.st_mtime > SETTLED_S:
            index[str(path)] = [*seen, sha256]
        else:
            index.pop(str(path), None)
        return sha256

    def _remembered(self) -> dict[str, list[Any]]:
        try:
            index = read_json(self.folder / INDEX)
        except (OSError, CheckpointError):  # missing or damaged: the files are hashed again
            return {}
        return {path: seen for path, seen in index.items() if isinstance(seen, list) and len(seen) == 3}


def _entry_of(leftover: str) -> str:
    """Return the name of the entry that was being built or replaced when this was left."""
    if leftover.startswith((TEMPORARY, TRASH)):  # both end in a process id and a random number
        leftover = leftover.removeprefix(TEMPORARY).removeprefix(TRASH).rsplit("-", 2)[0]
    return leftover.removesuffix(ASIDE)


def _relative(paths: Sequence[Path]) -> list[str]:
    """Return names relative to the common folder of all paths: the same wherever that folder is."""
    if not paths:
        return []
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(common).as_posix() for path in paths]
