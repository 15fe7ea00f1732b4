"""A check that fails, hangs or exits affects only its own row."""

import sys
import threading

import pytest

from dtl.diagnostics.findings import Finding, Later, fit_to_show, look


def test_a_look_that_works_is_what_it_found():
    assert look("disk", lambda: Finding([("disk", "17 GB")]), 5.0).rows == [("disk", "17 GB")]


@pytest.mark.parametrize("error", [ValueError("two\nlines"), KeyError(), OSError(5, "broken"), TimeoutError("mine")])
def test_a_look_that_breaks_says_how(error):
    def broken() -> Finding:
        raise error

    finding = look("disk", broken, 5.0)
    ((name, value),) = finding.rows
    assert name == "disk" and type(error).__name__ in value and "\n" not in value
    assert not finding.problems, "that a look fails stops no run"


def test_a_look_that_wants_to_leave_does_not_leave():
    assert "SystemExit: 3" in look("plugins", lambda: sys.exit(3), 5.0).rows[0][1]


def test_a_look_that_hangs_is_left_behind():
    released = threading.Event()
    finding = look("disk", lambda: Finding([("", str(released.wait()))]), 0.1)
    assert "no answer within 0.1 seconds" in finding.rows[0][1]
    released.set()


def test_work_begins_before_anybody_waits_for_it():
    began = threading.Event()
    later = Later(began.set)
    assert began.wait(30)
    assert later.result(30) is None
    assert later.result(0) is None, "it can be asked twice"


def test_what_is_shown_steers_no_terminal_and_tells_no_secret(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "c4na" * 10)
    text = fit_to_show(f"a\x1b[31m\x07\x9b\u202e{'c4na' * 10} http://me:s3cret-word@proxy/ \u00e9\nb")
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
    assert "c4na" not in text and "s3cret" not in text
    assert text.endswith("\u00e9\nb")
