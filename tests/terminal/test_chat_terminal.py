"""A chat in a pseudo-terminal: keys, changes of the window, the screen."""

import signal
import stat
import sys
import termios
from pathlib import Path

import pytest
from tiny_checkpoints import CONTEXT, make_checkpoint

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals of this kind", allow_module_level=True)

from pty_process import PtyProcess

pytestmark = pytest.mark.slow  # each starts a process, which loads torch
READY = "\x1b[?2004h"  # the prompt waits: pastes are marked from here on
DONE = "tokens/s"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("work") / "outputs" / "2026-01-02" / "03-04-05-6_tiny")


def chat(run_dir: Path, *arguments: str, state: Path, **environment: str) -> PtyProcess:
    """`python -m dtl.chat ckpt=latest` next to the outputs/ of this run, with its history in `state`."""
    command = ["dtl.chat", "ckpt=latest", "device=cpu", *arguments]
    return PtyProcess(command, run_dir.parents[2], {"XDG_STATE_HOME": str(state), **environment})


def test_a_chat_from_its_start_to_its_end(run_dir, tmp_path):
    with chat(run_dir, "sampling.max_new_tokens=100000", state=tmp_path) as terminal:
        before = termios.tcgetattr(terminal.descriptor)
        at = terminal.wait_for(READY)
        assert terminal.lines[0].startswith("DTL tiny, step 7, best validation loss 1.2500")
        assert not any("loading" in line for line in terminal.lines)

        # Ctrl-C stops the answer and not the chat. Nobody sees what is typed meanwhile; what comes after Ctrl-C waits
        # for the prompt (before it, the kernel forgets with the signal, as in every program).
        terminal.send("Tell me.\r")
        at = terminal.wait_for("DTL: ", at)
        terminal.wait_for(lambda text: len(text) > 400, at)
        terminal.send("unseen")
        terminal.resize(51, 33)
        before_stop = len(terminal.output)
        terminal.wait_for(lambda text: len(text) > 100, before_stop)
        assert b"unseen" not in terminal.output[at:]
        terminal.send("\x03/seed 77\r")
        at = terminal.wait_for("(stopped)", at)
        at = terminal.wait_for(READY, terminal.wait_for("uses seed 77", at))
        assert b"unseen" not in terminal.output

        # A narrow window: the prompt is drawn again when it changes, and wraps what is typed.
        terminal.resize(31, 33)
        terminal.send("0123456789" * 4)
        until(lambda: "67890123456789" in terminal.lines, terminal)
        terminal.resize(80, 33)
        until(lambda: "You: " + "0123456789" * 4 in terminal.lines, terminal)

        # Ctrl-C at the prompt clears the line.
        terminal.send("\x03")
        at = terminal.wait_for("To quit: Ctrl-D or quit.", at)
        at = terminal.wait_for(READY, at)

        # A question of 1,000 characters fits, one that does not is rejected.
        terminal.send("/params max_new_tokens=7\r")
        at = terminal.wait_for(READY, terminal.wait_for("max_new_tokens=7", at))
        terminal.send("x" * 1000 + "\r")
        at = terminal.wait_for(READY, terminal.wait_for("seed 77", at))
        terminal.send("y" * CONTEXT + "\r")
        at = terminal.wait_for(READY, terminal.wait_for("do not fit into the model's context", at))

        terminal.send("\x04")
        assert terminal.wait() == 0
        assert terminal.output.rstrip().endswith(b"\x1b[?2004l")
        assert termios.tcgetattr(terminal.descriptor) == before


def until(holds, terminal: PtyProcess) -> None:
    """Read until the condition holds for the screen."""
    terminal.wait_for(lambda _: holds())


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_without_a_checkpoint_the_newest_run_is_offered(run_dir, tmp_path, command):
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    with PtyProcess([f"dtl.{command}", "device=cpu"], run_dir.parents[2], environment) as terminal:
        terminal.wait_for("or a number: ")
        assert terminal.lines[0] == "Runs under outputs, newest first:"
        terminal.send("\r")
        terminal.wait_for(READY)
        assert any(line.startswith("DTL tiny, step 7") for line in terminal.lines)


@pytest.mark.fault("prompts")
def test_history_and_a_paste_of_10_mb(run_dir, tmp_path):
    file = tmp_path / "dtl" / "chat_history"
    with chat(run_dir, "sampling.max_new_tokens=7", state=tmp_path) as terminal:
        at = terminal.wait_for(READY)
        terminal.send("What was first?\r")
        at = terminal.wait_for(READY, terminal.wait_for("seed 1337", at))
        terminal.send("quit\r")
        assert terminal.wait() == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    with chat(run_dir, "sampling.max_new_tokens=7", state=tmp_path) as terminal:
        at = terminal.wait_for(READY)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        terminal.send("\x1b[A\x1b[A")
        until(lambda: "You: What was first?" in terminal.lines, terminal)

        terminal.send("\x1b[200~" + "paste\r" * (10 * 2**20 // 6) + "\x1b[201~")
        at = terminal.wait_for("10,485,7", at)
        at = terminal.wait_for(READY, at)
        until(lambda: terminal.lines.count("You: What was first?") == 2, terminal)

        terminal.send("\r")  # what stood beside the paste is there still
        at = terminal.wait_for(READY, terminal.wait_for("seed 1337", at))
        terminal.send("\x1b[200~two\r\nlines\x1b[201~\r")
        at = terminal.wait_for(READY, terminal.wait_for("seed 1338", at))
        terminal.send("\x04")
        assert terminal.wait() == 0
    assert "+two lines\n" in file.read_text() and "paste" not in file.read_text()


@pytest.mark.fault("chat-interrupt")
@pytest.mark.parametrize("answering", [False, True])
@pytest.mark.parametrize("how", ["SIGTERM", "closed", "closed and SIGHUP ignored"])
def test_an_end_from_outside_is_quiet(run_dir, tmp_path, how, answering):
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN if "ignored" in how else signal.SIG_DFL)
    try:
        terminal = chat(run_dir, "sampling.max_new_tokens=100000", state=tmp_path)
    finally:
        signal.signal(signal.SIGHUP, handler)
    with terminal:
        at = terminal.wait_for(READY)
        if answering:
            terminal.send("Tell me.\r")
            terminal.wait_for(lambda text: len(text) > 100, terminal.wait_for("DTL: ", at))
        if how == "SIGTERM":
            terminal.process.terminate()
            assert terminal.wait() == 128 + signal.SIGTERM
        else:
            terminal.close()
            assert terminal.process.wait(60) == (1 if "ignored" in how else 128 + signal.SIGHUP)
        assert b"Traceback" not in terminal.output


def test_a_dumb_terminal_gets_no_escape_sequences(run_dir, tmp_path):
    with chat(run_dir, "sampling.max_new_tokens=7", state=tmp_path, TERM="dumb") as terminal:
        at = terminal.wait_for("You: ")
        terminal.send("Tell me.\r")
        at = terminal.wait_for("You: ", terminal.wait_for(DONE, at))
        terminal.send("\x04")
        assert terminal.wait() == 0
        assert b"\x1b" not in terminal.output


def test_no_colours_where_none_are_wanted(run_dir, tmp_path):
    with chat(run_dir, "sampling.max_new_tokens=7", state=tmp_path, NO_COLOR="1") as terminal:
        at = terminal.wait_for(READY)
        terminal.send("Tell me.\r")
        terminal.wait_for(READY, terminal.wait_for(DONE, at))
        cells = [cell for row in terminal.screen.buffer.values() for cell in row.values()]
        # Dim is no colour: this screen shows it in grey.
        assert {(cell.fg, cell.bg) for cell in cells} == {("default", "default"), ("brightblack", "default")}
        terminal.send("\x04")
        assert terminal.wait() == 0


def test_answers_go_to_a_file_and_the_rest_to_the_terminal(run_dir, tmp_path):
    command = ["dtl.chat", "ckpt=latest", "device=cpu", "sampling.max_new_tokens=7"]
    with (tmp_path / "answers").open("wb") as file:
        terminal = PtyProcess(command, run_dir.parents[2], answers=file.fileno())
    with terminal:
        at = terminal.wait_for("You: ")
        terminal.send("Tell me.\n")
        terminal.wait_for("You: ", terminal.wait_for("seed 1337", at))
        assert any(line.startswith("You: Tell me.") for line in terminal.lines)  # the kernel's own line editing
        terminal.send("\x04")
        assert terminal.wait() == 0
    assert (tmp_path / "answers").read_bytes().count(b"\n") == 1
