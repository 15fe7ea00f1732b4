"""The hub's absence, in every form that a network gives it, is an error within 5 seconds."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dtl.base import network as hub
from dtl.data.hub.stream import HubStream
from dtl.errors import DataError

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch) -> None:
    for name in (*PROXIES, *(name.upper() for name in PROXIES), "HF_ENDPOINT", *hub._OFFLINE_SWITCHES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def silent() -> Iterator[int]:
    """Port of a socket that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def serve() -> Iterator[Callable[[int], tuple[int, list[str]]]]:
    """Start a server that gives every request the same status; its port, and what it was asked."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int) -> tuple[int, list[str]]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                asked.append(f"{self.command} {self.path}")
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_CONNECT = do_HEAD

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_port, asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def refused() -> str:
    """The message of require_hub."""
    with pytest.raises(DataError) as caught:
        hub.require_hub("Wikipedia", "Ways on: data.path=FOLDER")
    message = str(caught.value)
    assert message.startswith("Wikipedia: ") and message.endswith("\nWays on: data.path=FOLDER")
    return message


@pytest.mark.parametrize("status", [200, 302, 401, 404])
def test_any_answer_will_do(serve, monkeypatch, status: int) -> None:
    port, asked = serve(status)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}/")
    hub.require_hub("Wikipedia", "")
    assert len(asked) == 1


@pytest.mark.parametrize("status", [407, 500, 503])
def test_a_failing_server_is_no_hub(serve, monkeypatch, status: int) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{serve(status)[0]}")
    assert f"it answered {status}" in refused()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_closed_port(monkeypatch, closed: int, scheme: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{scheme}://127.0.0.1:{closed}")
    assert "the Hugging Face hub (127.0.0.1) cannot be reached: " in refused()


@pytest.mark.fault("no-network")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_socket_that_never_answers(monkeypatch, silent: int, scheme: str) -> None:
    monkeypatch.setattr(hub, "DEADLINE_S", 1.0)
    monkeypatch.setenv("HF_ENDPOINT", f"{scheme}://127.0.0.1:{silent}")
    message = refused()
    assert "timed out" in message or "no answer within 1 seconds" in message


@pytest.mark.fault("no-network")
def test_a_name_look_up_that_never_returns(monkeypatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(hub, "DEADLINE_S", 1.0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(30) and [])
    assert "the Hugging Face hub (huggingface.co) cannot be reached: no answer within 1 seconds" in refused()
    released.set()


def test_a_name_look_up_that_fails(monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert "Name or service not known" in refused()


def test_a_hanging_check_does_not_hold_the_process_back(silent: int) -> None:
    program = (
        "from dtl.base import network as hub\nhub.DEADLINE_S = 0.2\nimport socket, time\n"
        "socket.getaddrinfo = lambda *a, **k: time.sleep(10**6)\nprint(hub.hub_problem())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    assert "no answer" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("switch", hub._OFFLINE_SWITCHES)
def test_offline_switches_ask_nothing(serve, monkeypatch, switch: str) -> None:
    port, asked = serve(200)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv(switch, "1")
    assert f"is not used because {switch}=1" in refused()
    monkeypatch.setenv(switch, "0")
    hub.require_hub("Wikipedia", "")
    assert len(asked) == 1


@pytest.mark.parametrize(
    "endpoint", ["huggingface.co", "ftp://huggingface.co", "https://", "http://[::1", "http://me:hunter2@a:b"]
)
def test_an_endpoint_that_is_no_address(monkeypatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    message = refused()
    assert "HF_ENDPOINT=" in message and "is no address" in message and "hunter2" not in message


def test_a_proxy_is_asked_instead_of_the_hub(serve, monkeypatch, closed: int) -> None:
    port, asked = serve(200)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    hub.require_hub("Wikipedia", "")
    assert asked == ["HEAD http://hub.invalid"]
    monkeypatch.setenv("no_proxy", "hub.invalid")
    assert "proxy" not in refused()
    assert len(asked) == 1


def test_a_proxy_that_lets_nothing_through(serve, monkeypatch) -> None:
    port, asked = serve(403)
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
    assert "huggingface.co) cannot be reached through the proxy 127.0.0.1: Tunnel connection failed: 403" in refused()
    assert asked == ["CONNECT huggingface.co:443"]


def test_a_proxy_that_is_down_and_its_password_stays_secret(monkeypatch, closed: int) -> None:
    monkeypatch.setenv("https_proxy", f"http://me:hunter2@127.0.0.1:{closed}")
    message = refused()
    assert "through the proxy 127.0.0.1" in message and "hunter2" not in message
    monkeypatch.setenv("https_proxy", f"http://me:hunter2#@127.0.0.1:{closed}")
    assert "hunter2" not in refused()


def test_a_socks_proxy_needs_only_to_listen(monkeypatch, silent: int, closed: int) -> None:
    monkeypatch.setenv("all_proxy", f"socks5://127.0.0.1:{silent}")
    hub.require_hub("Wikipedia", "")
    monkeypatch.setenv("all_proxy", f"socks5://127.0.0.1:{closed}")
    assert "through the proxy 127.0.0.1" in refused()


def test_what_the_process_prints_is_shown_safely_and_named_in_its_error(tmp_path, monkeypatch, capsys):
    """The warning of a library, a traceback: as text, without passwords, the last lines in the error."""
    printed = ["\x1b]0;title\x07 a", "b", "see https://me:secret@hub/x", "ImportError: no \x9bd module"]
    child = tmp_path / "child.py"
    child.write_text(f"import sys\nsys.stderr.write({chr(10).join(printed)!r})\nsys.exit(3)\n")
    monkeypatch.setattr("dtl.data.hub.stream.CHILD", child)
    with pytest.raises(DataError) as failed:
        HubStream("me/x", None, "0" * 40, "data.path=me/x", "data.sources.x")
    message, shown = str(failed.value), capsys.readouterr().err
    assert "ended with exit code 3; it printed: b | see https://hub/x | ImportError: no " in message
    assert shown.splitlines()[1:3] == ["b", "see https://hub/x"] and len(shown.splitlines()) == 4
    assert not {"\x1b", "\x07", "\x9b"} & {*message, *shown} and "secret" not in message + shown
