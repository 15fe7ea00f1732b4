"""The rows of the hub and of W&B, with local servers that answer, fail, reject or never answer."""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dtl.base import network as hub
from dtl.diagnostics.network import has_wandb_key, judge_hub, look_at_wandb, wandb_address

KEY = "c4na" * 10


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path, elsewhere):
    proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    settings = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_DIR", "WANDB_IDENTITY_TOKEN_FILE", "NETRC")
    for name in (*proxies, *(name.upper() for name in proxies), *settings, "HF_ENDPOINT", *hub._OFFLINE_SWITCHES):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "wandb"))


@pytest.fixture
def serve() -> Iterator[Callable[[int], str]]:
    """Start a server that gives every request the same status; its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def wandb_row() -> str:
    finding = look_at_wandb()
    assert not finding.problems and not finding.warnings, "a run goes well without W&B"
    ((name, value),) = finding.rows
    assert name == "W&B" and KEY not in value
    return value


@pytest.mark.parametrize("status", [200, 401, 404])
def test_a_wandb_that_answers(serve, monkeypatch, status):
    monkeypatch.setenv("WANDB_BASE_URL", serve(status) + "/")
    assert wandb_row() == "127.0.0.1 answers; no API key, runs stay offline (to upload them: wandb login)"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_row() == "127.0.0.1 answers; an API key exists, runs go online"


def test_a_wandb_that_fails(serve, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", serve(500))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    row = wandb_row()
    assert "cannot be reached (it answered 500" in row and row.endswith("runs go offline")


def test_a_wandb_that_rejects(closed, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", closed)
    assert wandb_row().startswith("127.0.0.1 cannot be reached (")


def test_a_wandb_that_keeps_silent(monkeypatch):
    monkeypatch.setattr(hub, "DEADLINE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "cannot be reached" in wandb_row()


def test_a_name_look_up_that_never_returns(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(hub, "DEADLINE_S", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(60) and [])
    assert "api.wandb.ai cannot be reached (no answer within" in wandb_row()
    released.set()


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_wandb_that_is_not_to_be_asked(monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_BASE_URL", "http://nobody.invalid")
    assert wandb_row() == f"{mode}: not checked because WANDB_MODE={mode}"


@pytest.mark.parametrize("address", ["", "nonsense", "http://", "ftp://x", "http://[::1", "http://x:y"])
def test_an_address_that_is_none(address):
    assert "no address" in (hub.unreachable(address) or "")


def test_a_proxy_is_used_and_its_password_is_not_told(closed, monkeypatch):
    monkeypatch.setenv("http_proxy", closed.replace("//", "//me:s3cret-word@"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example.invalid")
    row = wandb_row()
    assert "cannot be reached" in row and "s3cret" not in row and "resolution" not in row


# --- where W&B is, and whether there is a key ------------------------------------------------------------------------


def test_the_address_comes_from_the_environment_then_from_files(monkeypatch, tmp_path):
    assert wandb_address() == "https://api.wandb.ai"
    home = tmp_path / "home" / "wandb" / "settings"
    home.parent.mkdir()
    home.write_text("[default]\nbase_url = https://at.home/\n")
    assert wandb_address() == "https://at.home"
    Path("wandb").mkdir()
    Path("wandb/settings").write_text("[default]\nbase_url = https://100%.here\n")
    assert wandb_address() == "https://100%.here"
    monkeypatch.setenv("WANDB_BASE_URL", "https://named/")
    assert wandb_address() == "https://named"


@pytest.mark.parametrize("content", [b"base_url = x\n", b"\xff\xfe", b"[default]\nentity = me\n"])
def test_a_settings_file_that_says_nothing(tmp_path, content):
    (tmp_path / "home" / "wandb").mkdir()
    (tmp_path / "home" / "wandb" / "settings").write_bytes(content)
    assert wandb_address() == "https://api.wandb.ai"


def test_a_key_counts_for_its_own_server(monkeypatch, tmp_path):
    netrc = tmp_path / "home" / ".netrc"
    assert not has_wandb_key("https://api.wandb.ai")
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    assert has_wandb_key("https://api.wandb.ai") and not has_wandb_key("https://elsewhere")
    netrc.write_text("machine")
    assert not has_wandb_key("https://api.wandb.ai")
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "token")
    assert has_wandb_key("https://api.wandb.ai")


# --- the hub ------------------------------------------------------------------------------------------------------


def test_the_row_of_the_hub(serve, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", serve(200))
    assert judge_hub(hub.hub_problem()).rows[0][1].endswith(" answers")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:s3cret-word@mirror")
    assert judge_hub(None).rows == [("hub", "https://mirror answers")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is not used because HF_HUB_OFFLINE=1" in judge_hub(hub.hub_problem()).rows[0][1]
    assert not judge_hub("the hub cannot be reached").problems, "a run goes well without the hub"
