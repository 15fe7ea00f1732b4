"""Runs opened on a terminal against W&B servers of every kind: none asks, none waits, none leaks a key.

All of them happen in one other process, in `SCENARIOS`; the tests look at what it left.
"""

import gzip
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dtl.tracking import wandb_sink
from dtl.tracking.metrics import read_metrics

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")

CANARIES = {
    "WANDB_API_KEY": "c4na" * 10,  # 40 letters and digits, as W&B's keys are
    "HF_TOKEN": "hf_c4naryc4naryc4naryc4nary",
    "AWS_SECRET_ACCESS_KEY": "c4nary/aws/s3cret",
    "AWS_SESSION_TOKEN": "c4nary-session",
    "DATABASE_URL": "postgres://me:c4nary-pass@localhost/x",
}
NETRC_PASSWORD = "c4nary-in-netrc"

SCENARIOS = """
import json, os, sys, time
from pathlib import Path
from dtl.tracking import wandb_sink
from dtl.tracking.tracker import TrackerConfig, open_tracker

def go(name, environment, mode="auto", patience=300.0):
    os.environ.update(environment)
    config = {"deep": {"text": "<" + os.environ.get("HF_TOKEN", "") + ">"}}
    tracker = open_tracker(TrackerConfig(mode=mode), Path(name), config, name=name, patience=patience)
    with tracker:
        for step in range(1, 4):
            tracker.log_steps([{"step": step, "tokens": 1, "seconds": 1.0, "train/loss": 1.0}])
        if "online:" not in tracker.status:  # the fake server knows no tables
            tracker.log_samples(3, [{"prompt": "p", "text": "t"}])
        status, upload = tracker.status, tracker.upload
    found = {"name": name, "status": status, "upload": upload, "status_at_the_end": tracker.status}
    print(json.dumps(found), flush=True)
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # the next one has another environment

wandb_sink.OFFLINE_SECONDS = wandb_sink.FINISH_SECONDS = 300.0  # of work that ends, on a busy machine
silent, server, canaries = sys.argv[1:]
go("no-key", {})
go("no-key-online", {}, "online")
go("silent", {**json.loads(canaries), "WANDB_BASE_URL": silent})
go("half", {"WANDB_BASE_URL": server + "/half"}, patience=6.0)
go("whole", {"WANDB_BASE_URL": server + "/whole"})
wandb_sink.FINISH_SECONDS = 1.0
go("dying", {"WANDB_BASE_URL": server + "/dying"})
"""


class FakeServer(BaseHTTPRequestHandler):
    """The little of a W&B server that a run needs; /half answers no call, /dying stops at the first rows."""

    protocol_version = "HTTP/1.1"
    received: str
    paths: list[str]

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        text = (gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body).decode()
        kind = self.path.split("/")[1]
        type(self).paths.append(self.path)
        if kind == "half" or (kind == "dying" and "file_stream" in self.path):
            threading.Event().wait()  # for ever: what waits for it does not end
        type(self).received += text if kind == "whole" and "file_stream" in self.path else ""
        answer = json.dumps(self.answer(text) if self.path.endswith("/graphql") else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, text: str) -> dict[str, Any]:
        if "mutation UpsertBucket" in text:
            project = {"id": "p", "name": "dtl", "entity": {"id": "e", "name": "me"}}
            name = json.loads(text)["variables"]["name"]
            return {
                "data": {"upsertBucket": {"bucket": {"id": "b", "name": name, "project": project}, "inserted": True}}
            }
        if "mutation CreateRunFiles" in text:
            return {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}}
        return {"data": {}}

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of each scenario, their folder, and the terminal output."""
    import pty

    folder = tmp_path_factory.mktemp("scenarios")
    (folder / "home").mkdir()
    netrc = folder.parent / "netrc"  # outside the folder that is searched for secrets
    netrc.write_text(f"machine elsewhere.example.org login user password {NETRC_PASSWORD}\n")
    netrc.chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "XDG_"))}
    environment |= {
        "HOME": str(folder / "home"),
        "NETRC": str(netrc),
        "PYTHONPATH": str(Path(wandb_sink.__file__).parents[1]),
    }
    FakeServer.received, FakeServer.paths = "", []
    main, terminal = pty.openpty()
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeServer)
    server.daemon_threads, server.block_on_close = True, False
    with server, socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{port}" for port in (silent.getsockname()[1], server.server_port)]
        process = subprocess.Popen(
            [sys.executable, "-c", SCENARIOS, *urls, json.dumps(CANARIES)],
            cwd=folder,
            env=environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        shown = _read_terminal(main, process, 900)
        server.shutdown()
    os.close(main)
    assert process.wait(600) == 0, shown
    results = {found["name"]: found for found in map(json.loads, re.findall(r"^\{.*\}", shown, re.MULTILINE))}
    return {**results, "folder": folder, "shown": shown, "received": FakeServer.received}


def _read_terminal(main: int, process: subprocess.Popen[bytes], seconds: float) -> str:
    shown, until = b"", time.monotonic() + seconds
    while time.monotonic() < until:
        ready, _, _ = select.select([main], [], [], 0.1)
        try:
            shown += os.read(main, 65536) if ready else b""
        except OSError:  # the other end is closed
            return shown.decode()
        if not ready and process.poll() is not None:
            return shown.decode()
    process.kill()
    pytest.fail(f"still waiting after {seconds} s, after showing:\n{shown.decode()}")


@pytest.mark.quick_cases(1)
@pytest.mark.counted("W&B servers that do not answer, die or refuse: no step lost, nobody waits")
@pytest.mark.parametrize("name", ["no-key", "no-key-online"])
def test_without_a_key_nobody_is_asked(scenarios: dict[str, Any], name: str) -> None:
    assert scenarios[name]["status"].startswith("W&B offline: no key; run `wandb login`")


@pytest.mark.counted("W&B servers that do not answer, die or refuse: no step lost, nobody waits")
@pytest.mark.fault("wandb")
@pytest.mark.parametrize(("name", "why"), [("silent", "no answer from http://127.0.0.1"), ("half", "CommError")])
def test_a_server_that_does_not_answer_means_offline(scenarios: dict[str, Any], name: str, why: str) -> None:
    assert scenarios[name]["status"].startswith(f"W&B offline: {why}")
    assert len(read_metrics(scenarios["folder"] / name)) == 3
    (file,) = (scenarios["folder"] / name / "wandb").glob("offline-run-*/*.wandb")
    assert scenarios[name]["upload"] == f"wandb sync {file.parent.relative_to(scenarios['folder'])}"


@pytest.mark.counted("W&B servers that do not answer, die or refuse: no step lost, nobody waits")
def test_a_server_that_answers_gets_the_rows(scenarios: dict[str, Any]) -> None:
    assert re.fullmatch(r"W&B online: http://127.0.0.1:\d+/whole/me/dtl/runs/[a-z0-9]{8}", scenarios["whole"]["status"])
    assert re.findall(r'_step\\":(\d)', scenarios["received"])[:3] == ["1", "2", "3"]


@pytest.mark.counted("W&B servers that do not answer, die or refuse: no step lost, nobody waits")
@pytest.mark.fault("wandb")
def test_a_server_that_dies_holds_up_no_more_than_the_end(scenarios: dict[str, Any]) -> None:
    assert scenarios["dying"]["status"].startswith("W&B online")
    assert "wandb sync dying/wandb/run-" in scenarios["dying"]["status_at_the_end"]
    assert len(read_metrics(scenarios["folder"] / "dying")) == 3


def test_wandb_reports_nothing_about_itself(scenarios: dict[str, Any]) -> None:
    # Such a report may hold up the end of the process for half a minute.
    assert FakeServer.paths and [path for path in FakeServer.paths if "otel" in path] == []


def test_wandb_itself_says_nothing(scenarios: dict[str, Any]) -> None:
    foreign = [line for line in scenarios["shown"].splitlines() if line and not line.startswith("{")]
    assert [line for line in foreign if not line.startswith("W&B off: not everything was uploaded")] == []


@pytest.mark.fault("secrets")
def test_no_secret_is_in_any_file(scenarios: dict[str, Any]) -> None:
    secrets = [*CANARIES.values(), "c4nary-pass", NETRC_PASSWORD]
    files = [path for path in scenarios["folder"].rglob("*") if path.is_file()]
    assert len(files) > 50
    contents = {path: path.read_bytes() for path in files}
    assert [(path.name, secret) for path in files for secret in secrets if secret.encode() in contents[path]] == []
    assert not [secret for secret in secrets if secret in scenarios["received"]]
