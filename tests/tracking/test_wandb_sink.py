"""The W&B sink: real offline runs, and a wandb that raises, hangs or is too slow."""

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dtl.tracking import wandb_sink
from dtl.tracking.config import TrackerConfig
from dtl.tracking.metrics import read_metrics
from dtl.tracking.tracker import Tracker, open_tracker
from dtl.tracking.wandb_sink import choose_mode

pytestmark = pytest.mark.filterwarnings(
    # wandb leaves the folders of its artifacts to the garbage collector
    "ignore:Implicitly cleaning up:ResourceWarning"
)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home folder and no variable of W&B's, for all tests here."""
    import wandb

    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_")) or name == "NETRC"]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        patch.setenv("USERPROFILE", str(folder))
        wandb.teardown()  # what another test may have begun
        yield folder
        wandb.teardown()


def steps(first: int, last: int) -> list[dict[str, Any]]:
    return [
        {"step": step, "tokens": 7 * step, "seconds": 0.1 * step, "train/loss": 1 / step, "optim/lr": 1e-3}
        for step in range(first, last + 1)
    ]


def opened(run_dir: Path, **more: Any) -> Tracker:
    return open_tracker(TrackerConfig(tags=["a"]), run_dir, {"model": {"dim": 3}, "name": "x"}, name="small", **more)


def offline_folders(run_dir: Path) -> list[Path]:
    files = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    return [file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)]


def inspect(folder: Path, *options: str) -> str:
    """The records that wandb itself reads from the log of an offline run."""
    from wandb.util import get_core_path

    (file,) = folder.glob("*.wandb")
    command = [get_core_path(), "leet", "inspect", "--json", *options, f"--run-file={file}", str(folder.parent)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def summary(folder: Path) -> dict[str, Any]:
    return json.loads(inspect(folder, "--summary"))


def history(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


# --- real offline runs ------------------------------------------------------------------------------------------


def test_offline_runs_of_one_process_keep_apart(tmp_path: Path, home: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    randomness = random.getstate()
    trackers = []
    for job in (0, 1):
        run_dir = tmp_path / str(job)
        with opened(run_dir, job_number=job, overrides=[f"seed={job}"], group="sweep") as tracker:
            trackers.append(tracker)
            *first, last = steps(1, 10)
            tracker.log_steps([*first, {**last, "speed/tokens_per_second": 100.0 + job}])
            tracker.log(10, {"val/loss": 0.5 + job})
            tracker.log_samples(10, [{"prompt": "p", "text": "t"}, {"prompt": "q", "text": "u"}])
            tracker.log_steps(steps(11, 20))
            tracker.log_once(20, {"exact_match/test": 0.25})
            tracker.finish("finished", {"best/loss": 0.5 + job, "exact_match/test": 0.25})
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert random.getstate() == randomness, "a tracker must not draw from the random numbers of the run"
    assert trackers[0].run_id != trackers[1].run_id
    for job, tracker in enumerate(trackers):
        (folder,) = offline_folders(tmp_path / str(job))
        assert tracker.status.startswith("W&B offline: no key; run `wandb login`")
        assert (tracker.upload, tracker.has_key) == (f"wandb sync {folder}", False)
        found = summary(folder)
        assert found["run_id"] == tracker.run_id
        assert found["config"] == {"model": {"dim": 3}, "name": "x"}
        assert found["name"] == f"small-00{job} seed={job}"
        assert (found["project"], found["tags"], found["state"]) == ("dtl", ["a"], "finished")
        assert (found["summary"]["best/loss"], found["summary"]["exact_match/test"]) == (0.5 + job, 0.25)
        first, second = history(folder)
        assert (first["_step"], second["_step"]) == (10, 20)
        assert first["val/loss"] == 0.5 + job
        assert first["train/speed/tokens_per_second"] == 100.0 + job
        # What has a single value is no chart, and the first chart by name is the one that everybody looks for.
        charts = sorted(key for key in first | second if not key.startswith("_"))
        assert charts[0] == "train/loss" and "exact_match/test" not in charts
        assert (second["train/loss"], second["train/tokens"]) == (1 / 20, 140)
        run_record = next(json.loads(line) for line in inspect(folder).splitlines() if '"type":"run"' in line)["run"]
        assert (run_record["run_group"], run_record["job_type"]) == ("sweep", "train")
        (table,) = folder.glob("files/media/table/**/*.json")
        assert json.loads(table.read_text())["data"] == [["p", "t"], ["q", "u"]]
        assert len(read_metrics(tmp_path / str(job))) == 22
    assert not (home / ".local").exists() and not (home / ".netrc").exists(), "a run's data stays in its folder"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_a_run_that_raises_is_closed_as_failed(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), opened(tmp_path) as tracker:
        tracker.log_steps(steps(1, 5))
        raise error
    (folder,) = offline_folders(tmp_path)
    assert summary(folder)["state"] == "failed"
    assert [row["_step"] for row in history(folder)] == [5]


@pytest.mark.fault("wandb-resume")
def test_a_resumed_run_keeps_its_id_and_its_steps(tmp_path: Path) -> None:
    with opened(tmp_path) as tracker:
        tracker.log_steps(steps(1, 10))
    with opened(tmp_path, run_id=tracker.run_id, resumed_step=10) as resumed:
        resumed.log_steps(steps(11, 15))
        resumed.log_steps(steps(16, 20))
    assert resumed.run_id == tracker.run_id
    before, after = offline_folders(tmp_path)
    assert summary(before)["run_id"] == summary(after)["run_id"] == tracker.run_id
    assert [row["_step"] for row in history(after)] == [15, 20]
    assert len(read_metrics(tmp_path)) == 20


def logged(first: int, last: int) -> list[dict[str, Any]]:
    return [row | {"speed/tokens_per_second": 3.0} for row in steps(first, last)]


def test_rows_that_a_kill_took_from_wandb_are_sent_on_resume(tmp_path: Path) -> None:
    """wandb writes its file in blocks of 32 KiB: what has not filled one is gone after a kill."""
    with opened(tmp_path) as tracker:
        for row in logged(1, 200):
            tracker.log_steps([row])
    (folder,) = offline_folders(tmp_path)
    (file,) = folder.glob("*.wandb")
    file.write_bytes(file.read_bytes()[: 2**15])
    in_file = [row["_step"] for row in history(folder)]
    assert 0 < len(in_file) < 190
    with opened(tmp_path, run_id=tracker.run_id, resumed_step=190) as resumed:
        resumed.log_steps(logged(191, 192))
    sent = history(offline_folders(tmp_path)[-1])
    assert [*in_file, *(row["_step"] for row in sent)] == [*range(1, 191), 192]
    assert sent[0]["train/loss"] == 1 / sent[0]["_step"]
    request = SimpleNamespace(run_dir=tmp_path, run_id=tracker.run_id)
    assert wandb_sink._last_step(request) == 192  # type: ignore[arg-type]  # the next one sends nothing twice


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_wandb_whose_process_dies_is_missed_by_that_run_alone(tmp_path: Path) -> None:
    from wandb.sdk import wandb_setup

    with opened(tmp_path / "a") as tracker:
        tracker.log_steps(steps(1, 5))
        os.kill(wandb_setup.singleton()._connection._proc._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        tracker.log_steps(steps(6, 10))
    assert read_metrics(tmp_path / "a") == steps(1, 10)
    assert tracker.status.startswith("W&B off: ")
    with opened(tmp_path / "b") as tracker:
        tracker.log_steps(steps(1, 5))
    (folder,) = offline_folders(tmp_path / "b")
    assert summary(folder)["state"] == "finished"


# --- a wandb that misbehaves ------------------------------------------------------------------------------------


class FakeRun:
    """A fake wandb run."""

    url = "https://wandb.example.org/run"
    path = "me/dtl/run"
    dir = "/somewhere/wandb/run-1/files"
    step = 0

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.logged: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.logged.append({**metrics, "step": step})

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """wandb with a key and a server that answers at once; `init` gives this run."""
    import wandb

    run = FakeRun()
    monkeypatch.setattr(wandb, "setup", lambda settings: SimpleNamespace(settings=SimpleNamespace(base_url="http://x")))
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    monkeypatch.setattr(wandb_sink, "_answers", lambda url, seconds, data=None: True)
    return run


def test_online_the_server_says_which_rows_it_has(tmp_path: Path, fake: FakeRun) -> None:
    with opened(tmp_path) as tracker:
        tracker.log_steps(logged(1, 5))
        for row in logged(6, 9):
            tracker.log_steps([row])
        tracker.log(9, {"val/loss": 0.5})
    fake.logged.clear()
    fake.step = 8  # of the next row
    with opened(tmp_path, run_id=tracker.run_id, resumed_step=9):
        pass
    assert [(row["step"], "val/loss" in row) for row in fake.logged] == [(8, False), (9, False), (9, True)]
    assert fake.logged[0]["train/loss"] == 1 / 8 and fake.logged[0]["train/speed/tokens_per_second"] == 3.0


def test_online_with_a_key_and_a_server(tmp_path: Path, fake: FakeRun) -> None:
    with opened(tmp_path) as tracker:
        assert tracker.status == f"W&B online: {fake.url}"
        tracker.log_steps(steps(1, 3))
    assert [row["step"] for row in fake.logged] == [3]
    assert fake.exit_codes == [0]


@pytest.mark.counted("W&B servers that do not answer, die or refuse: no step lost, nobody waits")
@pytest.mark.fault("wandb")
def test_a_wandb_that_always_raises_costs_one_warning(
    tmp_path: Path, fake: FakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(fake, "log", refuse)
    monkeypatch.setattr(fake, "finish", refuse)
    with opened(tmp_path) as tracker:
        for first in range(1, 100, 10):
            tracker.log_steps(steps(first, first + 9))
            tracker.log_samples(first, [{"prompt": "a", "text": "b"}])
    assert read_metrics(tmp_path) == steps(1, 100)
    assert len(list((tmp_path / "samples").iterdir())) == 10
    assert [record.getMessage() for record in caplog.records] == [
        "W&B off: RuntimeError: no such luck; metrics.jsonl has everything."
    ]


def test_a_wandb_that_cannot_start_leaves_metrics(
    tmp_path: Path, fake: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise SystemExit("killed by wandb")

    monkeypatch.setattr(wandb, "init", refuse)
    with opened(tmp_path) as tracker:
        tracker.log_steps(steps(1, 3))
        assert tracker.status == "W&B off: RuntimeError: SystemExit killed by wandb; metrics.jsonl has everything"
        assert tracker.run_id is not None
    assert read_metrics(tmp_path) == steps(1, 3)


@pytest.mark.counted("W&B servers that do not answer, die or refuse: no step lost, nobody waits")
@pytest.mark.fault("wandb")
def test_a_wandb_that_hangs_while_logging_holds_nobody_up(
    tmp_path: Path, fake: FakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(fake, "log", lambda *_, **__: released.wait())
    monkeypatch.setattr(wandb_sink, "MAX_WAITING", 20)
    monkeypatch.setattr(wandb_sink, "FINISH_SECONDS", 0.1)
    with opened(tmp_path) as tracker:
        for first in range(1, 500, 10):
            tracker.log_steps(steps(first, first + 9))
    released.set()
    assert len(read_metrics(tmp_path)) == 500
    assert len(caplog.records) == 1 and "seems to hang" in caplog.records[0].getMessage()


def test_an_upload_that_does_not_end_is_left(tmp_path: Path, fake: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(fake, "finish", lambda **_: released.wait())
    monkeypatch.setattr(wandb_sink, "FINISH_SECONDS", 0.1)
    with opened(tmp_path) as tracker:
        tracker.log_steps(steps(1, 3))
    released.set()
    assert "wandb sync /somewhere/wandb/run-1" in tracker.status


@pytest.mark.parametrize("takes_no_rows", [False, True])
def test_a_server_that_has_died_or_takes_no_rows_is_not_waited_for(
    tmp_path: Path, fake: FakeRun, monkeypatch: pytest.MonkeyPatch, takes_no_rows: bool
) -> None:
    """One that takes no rows answers whoever asks whether it is there."""
    released = threading.Event()
    monkeypatch.setattr(fake, "finish", lambda **_: released.wait())
    monkeypatch.setattr(wandb_sink, "DEAD_SECONDS", 0.1)
    monkeypatch.setattr(wandb_sink, "FINISH_SECONDS", 600.0)
    with opened(tmp_path) as tracker:
        tracker.log_steps(steps(1, 3))
        monkeypatch.setattr(wandb_sink, "_answers", lambda url, seconds, data=None: takes_no_rows and not data)
        watchdog = threading.Timer(60, released.set)  # the status is another one then
        watchdog.start()
    watchdog.cancel()
    assert not released.is_set()
    released.set()
    assert "wandb sync /somewhere/wandb/run-1" in tracker.status


def test_a_dead_server_costs_at_most_five_seconds() -> None:
    assert wandb_sink.DEAD_SECONDS + wandb_sink.PROBE_SECONDS / 2 < 5


def test_an_init_that_hangs_is_overtaken_and_closed_when_it_comes(
    tmp_path: Path, fake: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    released, late = threading.Event(), FakeRun()

    def init(mode: str, **_: Any) -> FakeRun:
        if mode == "online":
            released.wait()
            return late
        return fake

    monkeypatch.setattr(wandb, "init", init)
    with opened(tmp_path, patience=0.2) as tracker:
        assert tracker.status.startswith("W&B offline: no connection within 0 s")
        assert tracker.upload.startswith("wandb sync ") and tracker.has_key
        tracker.log_steps(steps(1, 3))
        released.set()
    while not late.exit_codes:
        time.sleep(0.02)
    assert late.exit_codes == [1] and not late.logged
    assert len(fake.logged) == 1


# --- modes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "variable", "mode"),
    [
        ("auto", None, "online"),
        ("auto", "online", "online"),
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "disabled", "disabled"),
        ("online", "offline", "online"),
        ("offline", "disabled", "offline"),
    ],
)
def test_wandb_mode_is_respected_and_the_setting_wins(
    wanted: str, variable: str | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert choose_mode(wanted)[0] == mode


def test_disabled_means_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with opened(tmp_path) as tracker:
        tracker.log_steps(steps(1, 2))
    assert tracker.status == "local: metrics.jsonl (WANDB_MODE=disabled)"
    assert not (tmp_path / "wandb").exists()


def test_an_agent_gives_its_run_an_id(tmp_path: Path, fake: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "from1agent")
    assert opened(tmp_path / "a").run_id == "from1agent"
    assert opened(tmp_path / "b", run_id="own").run_id == "own"
    assert opened(tmp_path / "c", job_number=0).run_id != "from1agent"


def test_reachability_means_any_answer_in_time() -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(418)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server, socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert wandb_sink._answers(f"http://127.0.0.1:{server.server_port}", 5)
        assert wandb_sink._answers(f"http://127.0.0.1:{server.server_port}/files/r/file_stream", 5, b"{}")
        server.shutdown()
        assert not wandb_sink._answers(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2)
    assert not wandb_sink._answers(f"http://127.0.0.1:{server.server_port}", 5), "nobody listens there any more"
    assert not wandb_sink._answers("no url", 5)


def test_the_longest_opening_stays_below_twenty_seconds() -> None:
    patience = signature(open_tracker).parameters["patience"].default
    assert patience + wandb_sink.OFFLINE_SECONDS <= 20
