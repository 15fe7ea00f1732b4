"""The guard in conftest.py: a test that reaches for the network fails, even when the code swallows the error."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import socket
from contextlib import suppress
from urllib.request import urlopen

def test_a_name():
    with suppress(OSError):
        urlopen("http://example.com")

def test_an_address():
    with socket.socket() as client, suppress(OSError):
        client.connect(("192.0.2.1", 80))

def test_an_address_without_exceptions():
    with socket.socket(socket.AF_INET6) as client, suppress(OSError):
        client.connect_ex(("2001:db8::1", 80))

def test_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()

def test_a_name_that_cannot_exist():
    with suppress(OSError):
        urlopen("http://hub.invalid")
"""


@pytest.mark.fault("no-network")
def test_whoever_asks_the_network_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=5, errors=3)
    result.stdout.fnmatch_lines(
        ["*used the network: look-up of example.com", "*connection to 192.0.2.1:80", "*connection to 2001:db8::1:80"]
    )
