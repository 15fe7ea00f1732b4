"""Laws of the signals that stop a run: the first sets a flag, the second stops, and handlers are restored."""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dtl.base.signals import HANG_UP, STOP, Stopped, StopSignals, ending_by_exception, signal_of


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in STOP]


@pytest.mark.fault("two-signals")
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("number", STOP)
def test_the_first_signal_sets_a_flag_the_second_stops(
    number: int, second: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = handlers()
    with pytest.raises(Stopped) as stopped, StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number
        assert "press again to stop at once" in capfd.readouterr().err
        signal.raise_signal(second)
    assert signal_of(stopped.value) == second and signal_of(KeyboardInterrupt()) == signal.SIGINT
    assert handlers() == before


@pytest.mark.skipif(HANG_UP is None, reason="SIGHUP")
@pytest.mark.parametrize("first", STOP)
def test_a_terminal_that_closes_says_so_twice(first: int) -> None:
    with StopSignals() as signals:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGHUP)
        assert signals.received == first


@pytest.mark.skipif(HANG_UP is None, reason="SIGHUP")
@pytest.mark.parametrize("context", [StopSignals, ending_by_exception])
def test_nohup_holds(context: Callable[[], Any]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with context():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [number for number in STOP if number != signal.SIGINT])
def test_a_signal_ends_by_an_exception(number: int) -> None:
    before = handlers()
    with pytest.raises(Stopped) as stopped, ending_by_exception():
        signal.raise_signal(number)
    assert signal_of(stopped.value) == number and handlers() == before


@pytest.mark.skipif(sys.platform == "win32", reason="SIGUSR2")
def test_the_warning_of_a_batch_system_is_taken_and_left_to_its_handler_afterwards() -> None:
    """With SIGTERM before or after it, which does not count as a second Ctrl-C."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        with StopSignals() as signals:
            for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
                signal.raise_signal(number)
            assert signals.received == signal.SIGUSR2 and heard == []
            assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL  # nobody waits for that one
        signal.raise_signal(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [signal.SIGUSR2]


def test_handlers_are_restored_after_an_error_and_usable_again() -> None:
    before = handlers()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="trouble"), StopSignals():
            assert handlers() != before
            raise RuntimeError("trouble")
        assert handlers() == before


def test_a_handler_set_by_no_python_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that embeds Python may have its own handler; Python reports it as None, and does not accept None."""
    set_handler: Callable[..., Any] = signal.signal
    before = handlers()
    monkeypatch.setattr(signal, "signal", lambda number, new: (set_handler(number, new), None)[1])
    try:
        with StopSignals():
            pass
    finally:
        monkeypatch.undo()
        for number, handler in zip(STOP, before, strict=True):
            signal.signal(number, handler)


def test_outside_the_main_thread_no_handlers_are_set() -> None:
    before, seen = handlers(), []

    def body() -> None:
        with StopSignals() as signals:
            seen.append((handlers(), signals.received))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


def test_a_signal_in_the_middle_of_a_line_of_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's streams are not reentrant: a handler that prints would raise RuntimeError here."""

    class Interrupting(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            if not interrupted:
                interrupted.append(True)
                signal.raise_signal(signal.SIGINT)
            return len(data)

    interrupted: list[bool] = []
    stream = io.TextIOWrapper(io.BufferedWriter(Interrupting()), write_through=True)
    monkeypatch.setattr(sys, "stderr", stream)
    with StopSignals() as signals:
        print("a warning", file=sys.stderr, flush=True)
        assert signals.received == signal.SIGINT
    monkeypatch.undo()


@pytest.mark.skipif(os.name != "posix", reason="a process keeps the number of a parent that has gone")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_child_ends_with_its_parent(how: signal.Signals) -> None:
    child = "from dtl.base.signals import end_with_parent; import os, time; end_with_parent(os.getppid(), 0.01); "
    child += "print('begun', flush=True); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(how)
        assert process.stdout.read() == ""  # the child has the other end: this waits for its end
