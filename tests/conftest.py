"""What holds for every test: one thread, no network, nobody's accounts, a folder of its own to run in, and no clock."""

import copy
import gc
import ipaddress
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import omegaconf._utils
import omegaconf.base
import omegaconf.grammar_parser
import pytest
import yaml
from hypothesis import HealthCheck, settings

# The same examples everywhere, however long they take: a machine may be busy with something else.
settings.register_profile("dtl", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dtl")

# Before torch, wandb and the hub's library are imported, which read these once; children inherit them.
os.environ |= {
    "OMP_NUM_THREADS": "1",  # the workers of pytest-xdist share the cores
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", metavar="FILE", help="write what the tests counted by `figure` to a JSON file")


def pytest_collection() -> None:
    """Collecting the tests makes half a million objects and no garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Keep the garbage collector from visiting the imported libraries and the collected tests again and again: a tenth
    of the time of a test that composes configs."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before the cases are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow all but a few evenly chosen cases of a test that is marked as `quick_cases(n)`."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        is_slow = item.get_closest_marker("slow") or item.get_closest_marker("torture")
        if item.get_closest_marker("quick_cases") and not is_slow:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for items_of_test in cases.values():
        (n_quick,) = items_of_test[0].get_closest_marker("quick_cases").args
        quick = {number * len(items_of_test) // n_quick for number in range(n_quick)}
        for number, item in enumerate(items_of_test):
            if number not in quick:
                item.add_marker(pytest.mark.slow)


@pytest.fixture
def figure(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Counts for the table of `make torture`: what, how many were tried, how many of them failed."""

    def count(what: str, tried: int, failed: int = 0) -> None:
        record_property("figure", [what, tried, failed])

    return count


@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest, record_property: Callable[[str, Any], None]) -> None:
    """Counts each case of a test that is marked as `counted(what)`, as one."""
    if mark := request.node.get_closest_marker("counted"):
        record_property("counted", mark.args[0])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the sums of what was counted, and write them where --figures says."""
    tried, failed = Counter[str](), Counter[str]()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", None) == "call":
            for name, value in report.user_properties:
                if name == "figure":
                    what, n_tried, n_failed = value
                elif name == "counted" and report.outcome != "skipped":
                    what, n_tried, n_failed = value, 1, int(report.failed)
                else:
                    continue
                tried[what] += n_tried
                failed[what] += n_failed
    for what in sorted(tried):
        terminalreporter.write_line(f"{what}: {tried[what]:,} tried, {failed[what]} failed")
    if path := config.getoption("--figures"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figures = {what: [tried[what], failed[what]] for what in sorted(tried)}
        Path(path).write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True, scope="session")
def no_flushing() -> Iterator[None]:
    """Nothing waits for the disk: only a power cut loses what is not flushed, and no test can cut the power.

    A save flushes some thirty files, each for milliseconds. Tests of the order of flushes record the calls.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_omegaconf() -> Iterator[None]:
    """Compose a config in 0.17 s of processor time instead of 0.25: a text is parsed once, as YAML or for its `${...}`,
    and metadata are copied by their class. The values are the same; commands in processes of their own go without."""
    load, parse = yaml.load, cache(omegaconf.grammar_parser.parse)
    parsed: dict[str, Any] = {}

    def load_once(stream: Any, Loader: Any) -> Any:
        if Loader.__name__ != "OmegaConfLoader":
            return load(stream, Loader)
        is_text = isinstance(stream, str)
        text = stream if is_text else stream.read()
        if text not in parsed:
            if not is_text:
                stream.seek(0)  # an error names the file
            parsed[text] = load(stream, Loader)
        return copy.deepcopy(parsed[text])

    def copied(self: Any, memo: dict[int, Any]) -> Any:
        new = object.__new__(type(self))
        new.__dict__ |= self.__dict__ | {"flags": copy.copy(self.flags)}
        new.resolver_cache = copy.deepcopy(self.resolver_cache, memo)
        return new

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "load", load_once)
        for module in (omegaconf.base, omegaconf._utils):
            patch.setattr(module, "parse", parse)
        patch.setattr(omegaconf.base.Metadata, "__deepcopy__", copied, raising=False)
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that looks up a name or connects to an address outside this machine.

    To the code under test it looks as if the network were down. Names under `.invalid` may be looked up: they
    exist nowhere (RFC 6761), which is what a test that uses one wants to see.
    """
    attempts: list[str] = []
    look_up, connect, connect_ex = socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex

    def guarded_look_up(host, port, *arguments, **keywords):
        if not _is_local(host):
            if not str(host).endswith(".invalid"):
                attempts.append(f"look-up of {host}")
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, port, *arguments, **keywords)

    def guarded(call):
        def connect_to(self: socket.socket, address):
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
                attempts.append(f"connection to {address[0]}:{address[1]}")
                raise OSError(101, "Network is unreachable")
            return call(self, address)

        return connect_to

    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    monkeypatch.setattr(socket.socket, "connect", guarded(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
    yield
    if attempts:
        pytest.fail(f"The test used the network: {', '.join(attempts)}", pytrace=False)


def _is_local(host: str | bytes | None) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new, empty working directory, outside the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def one_thread_one_seed() -> Iterator[None]:
    """The same arithmetic and the same random numbers in every test that asks."""
    import torch  # two seconds, which tests without it need not pay

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    yield
    torch.set_num_threads(before)
