"""Decompression of gzip and bzip2 files as they are read, with the memory of a block. Standard library only."""

import bz2
import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO

MAGIC = {"gz": b"\x1f\x8b\x08", "bz2": b"BZh"}  # the first bytes of such files
DAMAGE = (EOFError, OSError, zlib.error)  # raised by reading a truncated or damaged compressed file
BLOCK = 1 << 16  # compressed bytes read at a time


class _DecompressedBzip2(io.RawIOBase):
    """The decompressed streams of a bzip2 file, one after the other.

    Not `bz2.open`, which silently takes a damaged beginning of a second stream for the end of the file.
    """

    def __init__(self, compressed: BinaryIO) -> None:
        self._compressed = compressed
        self._stream = bz2.BZ2Decompressor()
        self._inside = False  # True once the current stream has begun
        self._ahead = b""  # read with the previous stream, but part of the next

    def readable(self) -> bool:
        return True

    def readinto(self, buffer, /) -> int:
        room = memoryview(buffer)
        while True:
            if self._stream.eof:
                self._ahead = self._stream.unused_data
                self._stream = bz2.BZ2Decompressor()
                self._inside = False
            block = self._compressed.read(BLOCK) if self._stream.needs_input and not self._ahead else self._ahead
            self._ahead = b""
            if block:
                self._inside = True
            elif self._stream.needs_input:
                if self._inside:
                    raise EOFError("the file ends before its last stream does")
                return 0
            decompressed = self._stream.decompress(block, len(room))
            if decompressed:
                room[: len(decompressed)] = decompressed
                return len(decompressed)

    def close(self) -> None:
        self._compressed.close()
        super().close()


class UpToDamage(io.RawIOBase):
    """A compressed file up to the place where it is truncated or damaged; `damage` is then the error."""

    def __init__(self, file: Path, compression: str) -> None:
        self._decompressed = open_decompressed(file, compression)
        self.damage: BaseException | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer, /) -> int:
        if self.damage is not None:
            return 0
        try:
            # One read of the compressed file at a time: a longer one would lose the bytes before the damage.
            return self._decompressed.readinto1(buffer)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno is not None:  # a fault of the disk, not of the contents
                raise
            self.damage = error
            return 0

    def close(self) -> None:
        self._decompressed.close()
        super().close()


Decompressed = io.BufferedReader | gzip.GzipFile  # both support read, peek and iteration over lines


def open_decompressed(file: Path, compression: str) -> Decompressed:
    """Open a file, decompressed when `compression` is gz or bz2. Reading a truncated file raises one of DAMAGE."""
    if compression == "gz":
        return gzip.GzipFile(file, "rb")
    if compression == "bz2":
        return io.BufferedReader(_DecompressedBzip2(file.open("rb")), BLOCK)
    return file.open("rb")
