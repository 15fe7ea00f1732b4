"""A folder of things that are made once: text, tokens, tokenizers, each under a hash of all that shaped it.

An entry is built in a temporary folder under a lock and renamed when it is whole; processes that want the
same entry at once wait for the one that builds it. Readers take no lock, so a read-only folder serves too.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
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
INDEX = "sources.json"  # what is remembered of files: path -> [size, mtime in ns, SHA-256]
# Up to this size an entry's files are hashed whenever it is opened: a few hundredths of a second. Of larger ones
# names and sizes are looked at, and all of it with data.verify=full.
HASHED_ON_OPENING = 2**23
# A file this young may still change without a new time: file systems count in steps of up to two seconds (FAT).
SETTLED_S = 2.0
ABANDONED_S = 3600.0  # age of a temporary file that nobody is still writing
_LEFTOVERS = (f"{TEMPORARY}*", f"{TRASH}*", f"*{ASIDE}")


def key_of(**parts: Any) -> str:
    """A name that is equal for equal parts alone; DTL's version is one of them."""
    text = json.dumps([FORMAT, __version__, parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def cache_folder(cache_dir: str | None) -> Path:
    """Where the cache lies: as given, or the platform's folder for such files."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser().absolute()
    return platformdirs.user_cache_path("dtl", appauthor=False)


@dataclass(frozen=True)
class Entry:
    """A finished folder and what its manifest says."""

    folder: Path
    facts: dict[str, Any]


class Cache:
    """Entries by name. `notes` tells people what was damaged, and why something was not kept.

    With `verify` everything that is opened is hashed, and no file's hash is remembered.
    """

    def __init__(self, folder: Path, verify: bool = False, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder
        self.verify = verify
        self.say = say
        self.notes: list[str] = []
        self._writable = True
        self._verified: set[str] = set()

    def get(self, name: str, build: Callable[[Path], dict[str, Any]]) -> Entry | None:
        """The entry of this name, made by `build` when it is missing or damaged; None when the disk takes none.

        `build` fills the folder that it is given and returns facts for the manifest. Its errors, other than
        those of the disk, are raised, and nothing is kept of it then.
        """
        found = self._open(name)
        if found is not None or not self._writable:
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(name):
                return self._open(name) or self._build(name, build)
        except OSError as error:
            self._writable = False
            self._note(
                f"{self.folder}: the cache cannot be written ({error.strerror or error}). The data is held in memory "
                "and made again at the next start; data.cache_dir=FOLDER takes another disk."
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
            self._note(f"cache: {error} It is made again.")
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

    def _locked(self, name: str) -> "_Held":
        lock = self._lock(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.say(f"cache: waiting for another process that makes {name}")
            lock.acquire()
        return _Held(lock)

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.folder / f"{name}.lock")

    def _sweep(self, mine: str) -> None:
        """Remove what killed processes left. Whoever makes or replaces an entry holds its lock: that is left alone."""
        for left in [found for names in _LEFTOVERS for found in self.folder.glob(names)]:
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
        """SHA-256 over the names (below what they have in common) and contents of files.

        A file whose size and time have not changed since its hash was taken is not read again, unless `verify`.
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
            with suppress(OSError):  # remembering saves time, and nothing else
                self.folder.mkdir(parents=True, exist_ok=True)
                # Another process may have written meanwhile: its files stay.
                write_atomically(self.folder / INDEX, json.dumps(self._remembered() | index, indent=1) + "\n")
        return digest.hexdigest()

    def _hash(self, path: Path, index: dict[str, list[Any]]) -> str:
        before = path.stat()
        seen = [before.st_size, before.st_mtime_ns]
        remembered = index.get(str(path))
        if not self.verify and remembered is not None and remembered[:2] == seen:
            return remembered[2]
        if before.st_size > 2**30:
            self.say(f"hash of {path.name}: {before.st_size / 2**30:.1f} GiB, once while it does not change")
        found = sha256_of(path)
        after = path.stat()
        if [after.st_size, after.st_mtime_ns] == seen and time.time() - after.st_mtime > SETTLED_S:
            index[str(path)] = [*seen, found]
        else:
            index.pop(str(path), None)
        return found

    def _remembered(self) -> dict[str, list[Any]]:
        try:
            index = read_json(self.folder / INDEX)
        except (OSError, CheckpointError):  # missing or damaged: the files are hashed again
            return {}
        return {path: seen for path, seen in index.items() if isinstance(seen, list) and len(seen) == 3}


class _Held:
    """A lock that is held already and given back at the end of a block."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _entry_of(leftover: str) -> str:
    """The name of the entry that was made or replaced when this was left."""
    if leftover.startswith((TEMPORARY, TRASH)):  # both end in a process id and a random number
        leftover = leftover.removeprefix(TEMPORARY).removeprefix(TRASH).rsplit("-", 2)[0]
    return leftover.removesuffix(ASIDE)


def _relative(paths: Sequence[Path]) -> list[str]:
    """Names below the folder that all paths have in common: the same wherever that folder lies."""
    if not paths:
        return []
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(common).as_posix() for path in paths]
