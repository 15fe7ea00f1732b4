"""Files of /proc and /sys of machines, for tests."""

from pathlib import Path

LAPTOP = """\
processor\t: 0
model name\t: AMD Ryzen 7 7840HS
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16
bogomips\t: 7585.31

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
BOARD = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd bf16 sve\nCPU implementer\t: 0x41\n"
MEMINFO = "MemTotal:       16777216 kB\nMemFree:          123 kB\nMemAvailable:    8388608 kB\n"


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root
