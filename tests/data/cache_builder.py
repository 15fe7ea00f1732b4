"""Builds one cache entry slowly, in a process of its own: `python cache_builder.py <folder> <log> <pause>`.

Writes a line to the log when it begins to build, and prints the digest of what it got.
"""

import hashlib
import sys
import time
from pathlib import Path

from dtl.data.cache import Cache

N_FILES = 7


def build(folder: Path) -> dict[str, object]:
    with open(sys.argv[2], "a") as log:
        log.write("built\n")
    for number in range(N_FILES):
        (folder / f"{number}.bin").write_bytes(bytes([number]) * 10_007)
        time.sleep(float(sys.argv[3]))
    return {"n_files": N_FILES}


if __name__ == "__main__":
    entry = Cache(Path(sys.argv[1])).get("thing-1", build)
    assert entry is not None and entry.facts == {"n_files": N_FILES}
    contents = b"".join(file.read_bytes() for file in sorted(entry.folder.glob("*.bin")))
    print(hashlib.sha256(contents).hexdigest())
