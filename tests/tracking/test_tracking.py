"""metrics.jsonl, samples and result.json: rows are read as written, and write errors never stop the run."""

import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dtl.base.json_files
import dtl.tracking.metrics
import dtl.tracking.tracker
from dtl.base.json_files import read_json
from dtl.errors import ConfigError, InterruptedRun
from dtl.run_dir.provenance import write_result
from dtl.tracking.config import TrackerConfig
from dtl.tracking.metrics import LOST, METRICS, read_metrics, truncate_metrics
from dtl.tracking.tracker import Tracker, open_tracker

LOCAL = TrackerConfig(kind="local")


def opened(run_dir: Path, **more: Any) -> Tracker:
    return open_tracker(LOCAL, run_dir, {}, name="test", **more)


def steps(first: int, last: int) -> list[dict[str, Any]]:
    return [
        {"step": step, "tokens": 7 * step, "seconds": 0.1 * step, "train/loss": 1 / step}
        for step in range(first, last + 1)
    ]


# --- config -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "tensorboard"},
        {"mode": "disabled"},
        {"project": ""},
        {"project": "a/b"},
        {"project": "p" * 129},
        {"group": ""},
        {"tags": ["ok", ""]},
        {"tags": ["t" * 65]},
    ],
)
def test_what_wandb_would_refuse_is_refused_at_once(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"tracker.{next(iter(change))}"):
        TrackerConfig(**change).validate()


def test_the_defaults_are_valid_and_hold_no_key() -> None:
    TrackerConfig().validate()
    assert not [name for name in vars(TrackerConfig()) if "key" in name or "token" in name]


def test_a_job_of_a_multirun_says_which_it_is() -> None:
    name = dtl.tracking.tracker._display_name
    assert name("small", None, ["optimizer.lr=0.003"]) == "small"
    assert name("small", 3, ["optimizer.lr=0.003"]) == "small-003 optimizer.lr=0.003"
    assert len(name("small", 3, ["x=" + "y" * 300])) == 128


@pytest.mark.fault("secrets")
def test_an_override_with_a_secret_opens_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        opened(tmp_path, overrides=["tracker.api_key=abc"])
    assert list(tmp_path.iterdir()) == []


# --- rows -------------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_given(tmp_path: Path) -> None:
    *first, last = steps(1, 3)
    with opened(tmp_path) as tracker:
        tracker.log_steps([*first, {**last, "speed/tokens_per_second": 11.5}])
        assert len(read_metrics(tmp_path)) == 3, "rows must be in the file when the call returns"
        tracker.log(3, {"val/loss": 0.3})
        tracker.log_steps([])
    assert read_metrics(tmp_path) == [*first, {**last, "speed/tokens_per_second": 11.5}, {"step": 3, "val/loss": 0.3}]
    assert tracker.status == "local: metrics.jsonl"
    assert tracker.run_id is None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_losses_keep_every_bit(tmp_path: Path, losses: list[float]) -> None:
    (tmp_path / METRICS).unlink(missing_ok=True)
    opened(tmp_path).log_steps([{"step": n, "train/loss": loss} for n, loss in enumerate(losses)])
    assert [row["train/loss"].hex() for row in read_metrics(tmp_path)] == [loss.hex() for loss in losses]


def test_numbers_of_other_libraries_and_nonsense_are_written_as_strict_json(tmp_path: Path) -> None:
    row = {
        "step": np.int64(3),
        "train/loss": np.float32(0.1),
        "optim/lr": np.float64(0.1),
        "path": Path("a"),
        "x": [math.inf],
    }
    opened(tmp_path).log_steps([{**row, "optim/grad_norm": math.nan}])
    line = (tmp_path / METRICS).read_text()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == {
        "step": 3,
        "train/loss": float(np.float32(0.1)),
        "optim/lr": 0.1,
        "path": "a",
        "x": [None],
        "optim/grad_norm": None,
    }


def test_the_run_id_outlives_a_session_without_wandb(tmp_path: Path) -> None:
    assert opened(tmp_path, run_id="abc12345").run_id == "abc12345"


# --- disks that refuse ------------------------------------------------------------------------------------------


@pytest.mark.fault("disk-full-log")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_one_warning_and_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / METRICS).symlink_to("/dev/full")
    tracker = opened(tmp_path)
    tracker.log_steps(steps(1, 5))
    tracker.log(5, {"val/loss": 1.0})
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and METRICS in warnings[0].getMessage()
    (tmp_path / METRICS).unlink()  # there is room again
    tracker.log_steps(steps(6, 7))
    assert read_metrics(tmp_path) == [*steps(1, 5), {"step": 5, "val/loss": 1.0}, *steps(6, 7)]


@pytest.mark.fault("disk-full-log")
def test_a_disk_that_fills_up_within_a_write_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = opened(tmp_path)
    tracker.log_steps(steps(1, 2))
    before = (tmp_path / METRICS).read_bytes()
    plain_open = Path.open

    class Narrow:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Narrow":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            return self.file.write(data[:17])

    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: Narrow(plain_open(self, *args, **kwargs)))
    tracker.log_steps(steps(3, 4))
    monkeypatch.undo()
    assert (tmp_path / METRICS).read_bytes() == before
    tracker.finish("finished")
    assert read_metrics(tmp_path) == steps(1, 4)


@pytest.mark.fault("disk-full-log")
def test_samples_and_result_that_cannot_be_written_cost_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "samples").write_text("a file where the folder should be")
    (tmp_path / "result.json").mkdir()
    opened(tmp_path).log_samples(1, [{"prompt": "a", "text": "b"}])
    write_result(tmp_path, "finished", 1.0, 3, "abc")
    assert len(caplog.records) == 2


# --- after a kill -----------------------------------------------------------------------------------------------


def test_a_line_cut_short_is_neither_read_nor_grown(tmp_path: Path) -> None:
    opened(tmp_path).log_steps(steps(1, 3))
    whole = (tmp_path / METRICS).read_bytes()
    (tmp_path / METRICS).write_bytes(whole[:-9])
    assert read_metrics(tmp_path) == steps(1, 2)
    opened(tmp_path).log_steps(steps(3, 4))
    assert read_metrics(tmp_path) == steps(1, 4)


ROWS = st.lists(
    st.builds(lambda step, loss: {"step": step, "train/loss": loss}, st.integers(0, 9), st.floats(0, 9)), max_size=12
)


@given(rows=ROWS, step=st.integers(0, 9), torn=st.integers(0, 12), again=st.integers(0, 9))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncating_moves_what_is_beyond_the_step_and_nothing_else(
    tmp_path: Path, rows: list[dict[str, Any]], step: int, torn: int, again: int
) -> None:
    metrics, lost = tmp_path / METRICS, tmp_path / LOST
    metrics.unlink(missing_ok=True)
    lost.unlink(missing_ok=True)
    opened(tmp_path).log_steps(rows)
    if torn and rows:
        with metrics.open("ab") as file:
            file.write(b'{"step": 9, "trai'[:torn])
    moved = truncate_metrics(tmp_path, step)
    kept = [row for row in rows if row["step"] <= step]
    gone = [row for row in rows if row["step"] > step]
    assert moved == len(gone)
    assert read_metrics(tmp_path) == kept
    assert [json.loads(line) for line in lost.read_bytes().splitlines()] == gone if gone else not lost.exists()
    assert not rows or len(metrics.read_bytes().splitlines()) == len(kept), "the torn line is gone"
    contents = metrics.read_bytes() if rows else b""
    assert truncate_metrics(tmp_path, step) == 0, "a second time there is nothing to move"
    assert not rows or metrics.read_bytes() == contents
    truncate_metrics(tmp_path, again)
    assert read_metrics(tmp_path) == [row for row in kept if row["step"] <= again]
    everything = [*kept, *gone]
    found = (
        [*read_metrics(tmp_path), *(json.loads(line) for line in lost.read_bytes().splitlines())]
        if lost.exists()
        else kept
    )
    assert sorted(map(str, found)) == sorted(map(str, everything))


def test_rows_of_evaluations_that_the_checkpoint_precedes_are_moved(tmp_path: Path) -> None:
    rows = [*steps(1, 2), {"step": 2, "val/loss": 3.0}, *steps(3, 4), {"step": 4, "val/loss": 2.0}]
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert truncate_metrics(tmp_path, 4) == 0
    assert truncate_metrics(tmp_path, 4, evaluated_step=2) == 1
    assert read_metrics(tmp_path) == rows[:-1]
    assert truncate_metrics(tmp_path, 4, evaluated_step=0) == 1
    assert read_metrics(tmp_path) == [*steps(1, 2), *steps(3, 4)]


def test_a_damaged_line_in_the_middle_stays(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1}\n###\n{"step": 2}\n{"step": 3}\n')
    truncate_metrics(tmp_path, 2)
    assert (tmp_path / METRICS).read_text() == '{"step": 1}\n###\n{"step": 2}\n'


@pytest.mark.fault("kill")
def test_a_crash_while_truncating_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path).log_steps(steps(1, 5))
    write = dtl.tracking.metrics.write_atomically

    def crash(path: Path, data: bytes) -> None:
        if path.name == METRICS:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(dtl.tracking.metrics, "write_atomically", crash)
    with pytest.raises(KeyboardInterrupt):
        truncate_metrics(tmp_path, 3)
    monkeypatch.undo()
    truncate_metrics(tmp_path, 3)
    assert read_metrics(tmp_path) == steps(1, 3)
    assert [json.loads(line) for line in (tmp_path / LOST).read_text().splitlines()] == steps(4, 5)


def test_opening_a_resumed_run_truncates(tmp_path: Path) -> None:
    opened(tmp_path).log_steps(steps(1, 5))
    with opened(tmp_path, resumed_step=3) as tracker:
        tracker.log_steps(steps(4, 6))
    assert read_metrics(tmp_path) == steps(1, 6)


def test_rows_that_are_missing_are_mentioned_when_the_run_resumes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path).log_steps([*steps(1, 3), *steps(7, 9)])
    opened(tmp_path, resumed_step=9).finish("finished")
    assert "metrics.jsonl: 3 rows are missing, the first of step 4" in caplog.text
    caplog.clear()
    opened(tmp_path, resumed_step=3).finish("finished")
    assert not caplog.text
    (tmp_path / "metrics.jsonl").unlink()
    opened(tmp_path, resumed_step=1).finish("finished")
    assert "metrics.jsonl: 1 row is missing, the first of step 1" in caplog.text


def test_resuming_from_before_the_first_step_keeps_no_row(tmp_path: Path) -> None:
    """A run that was stopped before its first step has a checkpoint of step 0, and no steps yet."""
    opened(tmp_path).log_steps(steps(1, 5))
    with opened(tmp_path, resumed_step=0) as tracker:
        tracker.log_steps(steps(1, 2))
    assert read_metrics(tmp_path) == steps(1, 2)


# --- samples and result -----------------------------------------------------------------------------------------


@pytest.mark.fault("terminal")
def test_sampled_text_is_exact_and_harmless_to_show(tmp_path: Path) -> None:
    generator = random.Random(5)
    hostile = "".join(
        chr(generator.choice([*range(0xA0), 0x202E, 0x2066, 0x2028, 0xD800, 0xE9, 0x1F600])) for _ in range(999)
    )
    rows = [{"prompt": "q", "text": hostile}, {"prompt": "Zürich", "text": "a\nb"}]
    opened(tmp_path).log_samples(1000, rows)
    contents = (tmp_path / "samples" / "step-00001000.jsonl").read_bytes().decode()
    assert [json.loads(line) for line in contents.removesuffix("\n").split("\n")] == rows
    assert "Zürich" in contents
    assert not [
        char
        for char in contents
        if char != "\n" and (ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char in "\u202e\u2066\u2028")
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_result_never_holds_what_is_not_a_number(tmp_path: Path, value: float | None) -> None:
    write_result(tmp_path, "failed", value, 7, "abc", best_step=None, scores={"exact": math.nan})
    text = (tmp_path / "result.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert read_json(tmp_path / "result.json") == {
        "state": "failed",
        "value": None,
        "step": 7,
        "config_hash": "abc",
        "best_step": None,
        "scores": {"exact": None},
    }


def test_a_result_keeps_its_value_to_the_last_bit(tmp_path: Path) -> None:
    write_result(tmp_path, "finished", 0.1 + 0.2, 7, "abc")
    assert read_json(tmp_path / "result.json")["value"] == 0.1 + 0.2


# --- endings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "finished"),
        (ValueError("x"), "failed"),
        (SystemExit(3), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (InterruptedRun("x", 15), "interrupted"),
    ],
)
def test_leaving_by_an_error_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, state: str
) -> None:
    class Sink:
        finished: list[int] = []  # noqa: RUF012

        def finish(self, exit_code: int, summary: dict[str, Any]) -> None:
            self.finished.append(exit_code)

    sink = Sink()
    sink.finished = []
    tracker = Tracker(tmp_path, sink, "abc", None)  # type: ignore[arg-type]
    states: list[str] = []
    finish = tracker.finish
    monkeypatch.setattr(tracker, "finish", lambda state, summary=None: (states.append(state), finish(state, summary)))
    try:
        with tracker:
            if error is not None:
                raise error
    except BaseException as caught:
        assert caught is error
    tracker.finish("finished")
    assert states[0] == state
    assert sink.finished == [0 if error is None else 1]
