"""The cache: a folder of text, tokens and tokenizers, each under a hash of everything that shapes it.

An entry is built in a temporary folder under a lock and renamed when it is complete; processes that need the same
entry wait for the one that builds it. Readers take no lock, so a read-only folder works too.

All of it is in a folder of its own, marked as such, below `data.cache_dir`; nothing outside it is written or deleted.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
from filelock import FileLock, Timeout

from dtl import __version__
from dtl.base.files import (
    ASIDE,
    MANIFEST,
    Manifest,
    leftover_of,
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
FOLDER = "dtl-cache"  # below data.cache_dir
TAG = "CACHEDIR.TAG"  # marks a folder as a cache, for backup programs too (https://bford.info/cachedir)
TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# The cache of DTL: everything in this folder may be deleted\n"
ENTRY = re.compile(r"[a-z]+-[0-9a-f]{32}")  # names of entries: a word and a key
INDEX = "sources.json"  # hashes of source files: path -> [size, mtime in ns, SHA-256]
# Smaller files of an entry are hashed whenever it is opened, which takes a few hundredths of a second; larger ones in
# the background while training takes its first steps (`check`).
HASHED_ON_OPENING = 2**23
# A younger file may still change without a new time: file systems store times in steps of up to two seconds (FAT).
SETTLED_S = 2.0
ABANDONED_S = 3600.0  # age after which a temporary file is no longer being written

T = TypeVar("T")


def key_of(**parts: Any) -> str:
    """Return a name that is equal only for equal parts and the same version of DTL."""
    text = json.dumps([FORMAT, __version__, parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]  # 128 bits in a short file name


def cache_folder(cache_dir: str | None) -> Path:
    """Return the cache's own folder, in the one given or in the platform's folder for caches."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser().absolute() / FOLDER
    return platformdirs.user_cache_path("dtl", appauthor=False) / FOLDER


def is_cache_folder(folder: Path) -> bool:
    """Return True for a folder that DTL has marked as its cache."""
    with suppress(OSError):
        return (folder / TAG).stat().st_size == len(TAG_TEXT) and (folder / TAG).read_bytes() == TAG_TEXT.encode()
    return False


def create_cache_folder(folder: Path) -> None:
    """Create and mark the cache's own folder. Raises DataError when it holds other files, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    # Listed first: a process that starts at the same time writes the mark before anything else.
    is_empty = all(leftover_of(name) == TAG for name in os.listdir(folder))
    if is_cache_folder(folder):
        return
    if not is_empty:
        raise DataError(
            f"{folder}: has files that are not of a cache of DTL, which would be lost when it is cleaned up. Rename "
            "this folder, or give another: data.cache_dir=FOLDER"
        )
    write_atomically(folder / TAG, TAG_TEXT)


class DamagedEntryError(DataError):
    """A file of an opened entry has other contents than were written. The entry is built again when it is next read."""


@dataclass(frozen=True)
class Entry:
    """A complete entry: its folder, and the facts of its manifest."""

    folder: Path
    facts: dict[str, Any]


class Cache:
    """Entries by name. `notes` are messages for the user on what was damaged or could not be stored.

    With `verify` every opened entry is hashed at once, and the stored hashes of source files are not used. Without it
    `check` must be called before anything is published that was made from the entries.
    """

    def __init__(self, folder: Path, verify: bool = False, log: Callable[[str], None] = lambda message: None) -> None:
        self.folder = folder
        self.verify = verify
        self.log = log
        self.notes: list[str] = []
        self._writable = True
        self._verified: set[str] = set()  # hashed at most once by each Cache
        self._unhashed: dict[Path, str] = {}  # large files of opened entries, and their SHA-256
        self._thread: threading.Thread | None = None  # hashes them
        self._damaged: list[Path] = []  # not reported yet
        self._bad: set[str] = set()  # entries with such a file, until they are built again

    def get(self, name: str, build: Callable[[Path], dict[str, Any]]) -> Entry | None:
        """Return the entry of this name, built when it is missing or damaged; None when the disk cannot be written.

        `build` fills the folder that it is given and returns facts for the manifest. Its errors, other than
        those of the disk, are raised, and nothing is stored then.
        """
        entry = self._open(name)
        if entry is not None or not self._writable:
            return entry
        try:
            create_cache_folder(self.folder)
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
            if not (folder / MANIFEST).exists() or name in self._bad:
                return None
            manifest = read_manifest(folder)
            if name not in self._verified:
                large = {} if self.verify else _large_files(folder, manifest)
                manifest = verify_manifest(folder, [file for file in manifest.files if folder / file not in large])
                self._unhashed |= large
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
            self.check()  # it may have been made from another entry
            manifest = write_manifest(temporary, **facts)
            publish_directory(temporary, self.folder / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._verified.add(name)
        self._bad.discard(name)
        return Entry(self.folder / name, manifest.facts)

    # --- damage -------------------------------------------------------------------------------------------------------

    def start_check(self) -> None:
        """Start to hash the large files of the opened entries in a thread, for which `check` waits."""
        if self._unhashed and self._thread is None:
            self._thread = threading.Thread(target=self._hash_large_files, name="dtl-cache", daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Wait until every file of the opened entries is hashed. Raises DamagedEntryError for one that is damaged."""
        while self._unhashed or self._thread is not None:
            self.start_check()
            if self._thread is not None:
                self._thread.join()
            self._thread = None
        damaged, self._damaged = self._damaged, []
        if damaged:
            raise DamagedEntryError(
                f"{damaged[0]}: damaged, its SHA-256 differs from that of the cache's manifest. Nothing was saved "
                "that was computed from it. The next start builds this entry again (on a read-only disk: with "
                "data.verify=full)."
            )

    def _hash_large_files(self) -> None:
        while self._unhashed:
            file, sha256 = self._unhashed.popitem()
            with suppress(OSError):  # deleted since: what was opened of it stays readable
                if sha256_of(file) == sha256:
                    continue
                self._damaged.append(file)
                self._verified.discard(file.parent.name)
                self._bad.add(file.parent.name)
                (file.parent / MANIFEST).unlink()  # without it the entry does not count

    def rebuilding(self, make: Callable[[], T], check_later: bool = False) -> T:
        """Return what `make` makes of entries; again after damaged ones, each of which is built again.

        `check_later` leaves the check of large files that cause no error here to the caller.
        """

        def checked() -> T:
            made = make()
            if not check_later:
                self.check()
            return made

        told: set[str] = set()
        while True:  # an error ends the making before the entries behind it are opened, and these may be damaged, too
            try:
                with self.explaining():
                    return checked()
            except DamagedEntryError as error:
                if str(error) in told:
                    raise
                told.add(str(error))
                self._note(f"cache: {str(error).partition(',')[0]}. It is built again.")

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise DamagedEntryError in place of any error inside that a damaged entry may have caused."""
        try:
            yield
        except DamagedEntryError:
            raise
        except Exception as error:
            try:
                self.check()
            except DamagedEntryError as damage:
                raise damage from error
            raise

    # --- locks and leftovers ------------------------------------------------------------------------------------------

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
        for left in list(self.folder.iterdir()):
            name = leftover_of(left.name) or left.name
            entry = name.removesuffix(ASIDE)
            if entry == left.name:
                continue
            with suppress(OSError, Timeout):
                if name in (INDEX, TAG) and time.time() - left.stat().st_mtime > ABANDONED_S:
                    left.unlink()
                elif entry == mine:
                    shutil.rmtree(left, ignore_errors=True)
                elif ENTRY.fullmatch(entry):
                    with self._lock(entry).acquire(timeout=0):
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
                create_cache_folder(self.folder)
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


def _large_files(folder: Path, manifest: Manifest) -> dict[Path, str]:
    """Return the files that are not hashed on opening, and their SHA-256."""
    files = manifest.files.items()
    return {folder / name: listed["sha256"] for name, listed in files if listed["size"] > HASHED_ON_OPENING}


def _relative(paths: Sequence[Path]) -> list[str]:
    """Return names relative to the common folder of all paths: the same wherever that folder is."""
    if not paths:
        return []
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(common).as_posix() for path in paths]
