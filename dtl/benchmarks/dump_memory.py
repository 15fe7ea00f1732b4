"""Memory while a large dump streams through: of this process and of those that parse, in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dtl.benchmarks.inputs import MEGABYTE
from dtl.benchmarks.made_text import write_made_dump
from dtl.benchmarks.measuring import Row, at_most, skipped
from dtl.benchmarks.suite import Workplace
from dtl.errors import DTLError

N_CHARACTERS = 4 * MEGABYTE
REPEATS = 75  # some 300 MB of XML, with the marks around each page
WARM_UP = 0.2  # share of the articles after which memory should have its final size
PROCESSES = 2
PAUSE_S = 0.05  # between two looks at memory


def dump_memory(place: Workplace) -> Iterator[Row]:
    """One row: by how much memory grows once a fifth of the dump has been read."""
    tiny = place.settings.tiny
    file = place.folder / "large.xml.bz2"
    repeats = 3 if tiny else REPEATS
    n_articles = write_made_dump(file, 20_000 if tiny else N_CHARACTERS, place.settings.seed, repeats)
    row = Row("dump_memory", f"memory that grows while a made dump, {repeats} times over, is read", "MB")
    row = replace(row, goal=at_most(50, "MB"))
    if not Path("/proc/self/statm").exists():
        yield skipped(row, "memory is read from /proc, which this system does not have")
        return
    program = [sys.executable, "-m", __name__, str(file), str(n_articles)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DTLError(f"dump_memory: the process that reads the dump failed.\n{done.stderr.strip()[-400:]}")
    found = json.loads(done.stdout)
    note = f"{found['articles']:,} articles in {found['seconds']:.0f} s; {found['settled']:.0f} MB after a fifth"
    yield replace(row, ours=found["peak"] - found["settled"], note=note, rounds=1)


def resident_mb(process: int | str = "self") -> float:
    """Memory of a process that lies in RAM, its own and shared pages together; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    import resource

    return pages * resource.getpagesize() / 1e6


def main(file: Path, n_articles: int) -> dict[str, float]:
    """Read a dump and watch memory: MB at the end of the warm-up, and the most after it."""
    import multiprocessing

    from dtl.data.wikipedia.dump import read_dump

    began = looked = time.perf_counter()
    settled = peak = 0.0
    n_read = 0
    for _ in read_dump(file, processes=PROCESSES):
        n_read += 1
        warm = n_read <= WARM_UP * n_articles
        if time.perf_counter() - looked > PAUSE_S or n_read == n_articles:
            looked = time.perf_counter()
            children = multiprocessing.active_children()
            now = resident_mb() + sum(resident_mb(child.pid) for child in children if child.pid)
            settled, peak = (max(settled, now), peak) if warm else (settled or now, max(peak, now))
    return {"articles": n_read, "settled": settled, "peak": max(peak, settled), "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
