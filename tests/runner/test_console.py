"""A run outlives its console: a log on a full disk, a pipe without a reader, a closed terminal."""

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import outcome, result, start, steps_kept, tiny_config, write_pairs

from dtl.base.display import lasting_display, say, shown
from dtl.base.safe_text import SafeStream
from dtl.runner import screens
from dtl.runner.screens import PROFILED_OPERATORS, show_profile


class Dying(io.StringIO):
    """A stream that takes `left` characters."""

    def __init__(self, error: Exception, left: int) -> None:
        super().__init__()
        self.error, self.left = error, left

    def write(self, text: str) -> int:
        self.left -= len(text)
        if self.left < 0:
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        if self.left < 0:
            raise self.error


ERRORS = {
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "no reader": BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "closed terminal": OSError(errno.EIO, "Input/output error"),
}


@pytest.mark.quick_cases(2)
@pytest.mark.fault("console")
@pytest.mark.parametrize("why", ERRORS)
@pytest.mark.parametrize("late", [False, True])
def test_a_run_goes_on_without_its_console(
    why: str,
    late: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny_config(write_pairs(tmp_path / "pairs.jsonl"), save_every_steps=None, keep=7)
    start(config, tmp_path / "seen")
    before = capsys.readouterr().out.index("step 6/12") if late else 0
    monkeypatch.setattr(sys, "stdout", Dying(ERRORS[why], before))
    start(config, tmp_path / "unseen")
    monkeypatch.undo()
    assert result(tmp_path / "unseen")["state"] == "finished"
    assert outcome(tmp_path / "unseen") == outcome(tmp_path / "seen")
    why_it_ended = os.strerror(ERRORS[why].errno or 0)
    told = re.compile(rf"The output cannot be written any more \({why_it_ended}\)\. Step (\d+) is saved")
    (saved,) = [found for record in caplog.records if (found := told.match(record.getMessage()))]
    assert int(saved[1]) in steps_kept(tmp_path / "unseen")
    assert 1 < int(saved[1]) < 12 if late else saved[1] == "1"


def test_a_message_that_nobody_can_read_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (Dying(ERRORS["no reader"], 0), closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        say("Stopped.")


@pytest.mark.parametrize("device", [0, 1])
def test_a_profile_ends_in_its_slowest_operators(
    device: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their own time, of the device where it has any, of the processor elsewhere."""

    def event(key: str, on_cpu: float, on_device: float, count: int) -> Any:
        return SimpleNamespace(
            key=key, self_cpu_time_total=on_cpu, self_device_time_total=on_device * device, count=count
        )  # fmt: skip

    events = [event("ProfilerStep#3", 9e6, 0, 1), event("aten::mm", 1.5e6, 1e6, 1234), event("aten::add", 5e5, 3e6, 7)]
    events += [event(f"aten::small{n}", 1, 1, 1) for n in range(29)]
    with lasting_display() as display:
        show_profile(display, events, tmp_path / "profile.json")
    first, head, *lines = capsys.readouterr().out.splitlines()
    where, total = ("the device", "4.00") if device else ("the processor", "2.00")
    assert first == f"Steps 3 to 5 spent {total} s on {where}; the trace: {shown(tmp_path / 'profile.json')}"
    assert head.split() == ["self", "fraction", "calls", "operator"] and len(lines) == PROFILED_OPERATORS
    slowest = ["3.00 s 75 % 7 aten::add", "1.00 s 25 % 1,234 aten::mm"]
    if not device:
        slowest = ["1.50 s 75 % 1,234 aten::mm", "0.50 s 25 % 7 aten::add"]
    assert [" ".join(line.split()) for line in lines[:2]] == slowest


@pytest.mark.fault("console", "disk-full-log")
@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full")
def test_a_command_ends_well_with_both_streams_on_a_full_disk(elsewhere: Path) -> None:
    pairs = write_pairs(elsewhere / "pairs.jsonl")
    words = f"trainer=debug model.dim=16 model.n_layers=1 model.n_heads=2 tokenizer=byte tracker=local device=cpu \
        data=qa data.qa.path={pairs} data.cache_dir={elsewhere / 'cache'}".split()
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-m", "dtl.train", *words], stdout=full, stderr=full, timeout=600)
    assert ended.returncode == 0
    (run_dir,) = (elsewhere / "outputs").glob("*/*")
    assert result(run_dir)["state"] == "finished"


def test_colours_pass_the_guard_of_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", SafeStream(terminal))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lasting_display().warn("\x1b]52;c;x\x07")
    assert terminal.getvalue().count("\x1b[") >= 1 and "\x1b]" not in terminal.getvalue()


@pytest.mark.parametrize("busy", [None, "all cores are busy: OMP_NUM_THREADS=1."])
def test_busy_cores_are_a_line_at_the_start_of_a_run(
    busy: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screens, "thread_warning", lambda threads: busy)
    start(tiny_config(write_pairs(tmp_path / "pairs.jsonl"), total_steps=1), tmp_path / "run")
    out, details = capsys.readouterr().out, (tmp_path / "run" / "details.txt").read_text()
    assert out.count("all cores are busy") == details.count("all cores are busy") == (busy is not None)
