"""Files packed with gzip or bzip2, unpacked as they are read. Standard library, no more memory than a block."""

import bz2
import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO

MAGIC = {"gz": b"\x1f\x8b\x08", "bz2": b"BZh"}  # what such a file begins with
DAMAGE = (EOFError, OSError, zlib.error)  # what reading a packed file that is cut off or damaged raises
BLOCK = 1 << 16  # packed bytes read at a time


class _UnpackedBzip2(io.RawIOBase):
    """The streams of a bzip2 file, one after the other.

    Not `bz2.open`: that takes a damaged beginning of a second stream for the end of the file, and says nothing.
    """

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._stream = bz2.BZ2Decompressor()
        self._inside = False  # whether the present stream has begun
        self._ahead = b""  # read with the stream before, but part of the next

    def readable(self) -> bool:
        return True

    def readinto(self, buffer, /) -> int:
        room = memoryview(buffer)
        while True:
            if self._stream.eof:
                self._ahead = self._stream.unused_data
                self._stream = bz2.BZ2Decompressor()
                self._inside = False
            block = self._packed.read(BLOCK) if self._stream.needs_input and not self._ahead else self._ahead
            self._ahead = b""
            if block:
                self._inside = True
            elif self._stream.needs_input:
                if self._inside:
                    raise EOFError("the file ends before its last stream does")
                return 0
            unpacked = self._stream.decompress(block, len(room))
            if unpacked:
                room[: len(unpacked)] = unpacked
                return len(unpacked)

    def close(self) -> None:
        self._packed.close()
        super().close()


class UpToDamage(io.RawIOBase):
    """A packed file, unpacked up to where it is cut off or damaged; `damage` then says how."""

    def __init__(self, file: Path, packing: str) -> None:
        self._unpacked = open_unpacked(file, packing)
        self.damage: BaseException | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer, /) -> int:
        if self.damage is not None:
            return 0
        try:
            # One read of the packed file at a time: a longer one would lose what it had before the damage.
            return self._unpacked.readinto1(buffer)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's trouble, not the content's
                raise
            self.damage = error
            return 0

    def close(self) -> None:
        self._unpacked.close()
        super().close()


Unpacked = io.BufferedReader | gzip.GzipFile  # both can be read, looked ahead in and walked through by lines


def open_unpacked(file: Path, packing: str) -> Unpacked:
    """The bytes of a file, unpacked when `packing` is gz or bz2. Reading raises one of DAMAGE when it is cut off."""
    if packing == "gz":
        return gzip.GzipFile(file, "rb")
    if packing == "bz2":
        return io.BufferedReader(_UnpackedBzip2(file.open("rb")), BLOCK)
    return file.open("rb")
