"""Decompression of gzip, bzip2, xz and zstd files as they are read, with the memory of a block."""

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any, BinaryIO

# The first bytes of such files.
MAGIC = {"gz": b"\x1f\x8b\x08", "bz2": b"BZh", "xz": b"\xfd7zXZ\x00", "zst": b"\x28\xb5\x2f\xfd"}
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)  # raised by reading a truncated or damaged compressed file
BLOCK = 1 << 16  # compressed bytes read at a time


class _Decompressed(io.RawIOBase):
    """The decompressed streams of a bzip2 or xz file, one after the other.

    Not `bz2.open` or `lzma.open`, which silently take a damaged beginning of a second stream for the end of the file.
    """

    def __init__(self, compressed: BinaryIO, decompressor: type[bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> None:
        self._compressed = compressed
        self._new = decompressor
        self._stream = decompressor()
        self._inside = False  # True once the current stream has begun
        self._ahead = b""  # read with the previous stream, but part of the next

    def readable(self) -> bool:
        return True

    def readinto(self, buffer, /) -> int:
        room = memoryview(buffer)
        while True:
            if self._stream.eof:
                self._ahead = self._stream.unused_data
                self._stream = self._new()
                self._inside = False
            block = self._compressed.read(BLOCK) if self._stream.needs_input and not self._ahead else self._ahead
            self._ahead = b""
            if not self._inside and self._new is lzma.LZMADecompressor:
                while block and not (block := block.lstrip(b"\0")):  # xz pads its streams
                    block = self._compressed.read(BLOCK)
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


class _DecompressedZstd(io.RawIOBase):
    """The decompressed frames of a zstd file, by pyarrow: the standard library of Python 3.13 has no zstd."""

    def __init__(self, compressed: BinaryIO) -> None:
        import pyarrow  # imported here: it takes a third of a second

        self._stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(compressed, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer, /) -> int:
        data = self._stream.read(len(memoryview(buffer)))
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
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


def compression_of(head: bytes) -> str:
    """Return the name of the compression by a file's first bytes; empty for none."""
    return next((name for name, magic in MAGIC.items() if head.startswith(magic)), "")


def open_decompressed(file: Path | BinaryIO, compression: str) -> Decompressed:
    """Open a file, decompressed when `compression` is a name in MAGIC. Reading a truncated file raises one of DAMAGE.

    Of an open file the position tells how much has been read, compressed.
    """
    if compression == "gz":
        return gzip.GzipFile(file, "rb") if isinstance(file, Path) else gzip.GzipFile(fileobj=file, mode="rb")
    raw: Any = file.open("rb") if isinstance(file, Path) else file
    if compression == "bz2":
        return io.BufferedReader(_Decompressed(raw, bz2.BZ2Decompressor), BLOCK)
    if compression == "xz":
        return io.BufferedReader(_Decompressed(raw, lzma.LZMADecompressor), BLOCK)
    return io.BufferedReader(_DecompressedZstd(raw), BLOCK) if compression == "zst" else raw
