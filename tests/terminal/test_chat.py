"""`python -m dtl.chat` from its command line: rejected settings, output of a pipe, exit codes."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoints import make_checkpoint

import dtl.chat
from dtl.data.tokenizers.prompt import Prompt
from dtl.generation.config import SamplingConfig
from dtl.terminal.config import ChatConfig
from dtl.terminal.dialogue import Leaving
from dtl.terminal.loading import load


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("work") / "outputs" / "2026-01-02" / "03-04-05-6_tiny")


@pytest.fixture
def chat(monkeypatch, capsys, elsewhere):
    """Call the command with arguments and lines for its standard input: exit code, answers, the rest."""

    def call(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dtl-chat", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        try:
            dtl.chat.main()
        except SystemExit as exit_:
            assert isinstance(exit_.code, int)
            return (exit_.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return call


SHORT = ("sampling.max_new_tokens=5", "device=cpu")
NOTE = re.compile(r"^seed (\d+), 5 tokens, \d+ tokens/s$", re.MULTILINE)


def test_each_line_of_a_pipe_is_answered(chat, run_dir):
    code, out, err = chat(f"ckpt={run_dir}", *SHORT, stdin="One?\n\nTwo?\n" + "x" * 10 * 2**20 + "\nlast")
    assert code == 0
    answers = out.split("\n")
    assert len(answers) == 5 and answers[2] == "" and answers[4] == ""
    assert err.startswith("DTL tiny, step 7, best validation loss 1.2500\n21.2 k parameters, context 1,511 tokens, cpu")
    assert NOTE.findall(err) == ["1337", "1338", "1339"]
    assert "10,485,760 characters, of which" in err
    assert "\x1b" not in out + err and "loading" not in out + err


def test_the_seed_repeats_an_answer(chat, run_dir):
    first, second, third = (
        chat(f"ckpt={run_dir}", *SHORT, f"seed={seed}", stdin="One?\nOne?\n")[1] for seed in (5, 5, 6)
    )
    assert first == second
    assert first.split("\n")[1] == third.split("\n")[0]


def test_an_empty_pipe_is_no_error(chat, run_dir):
    code, out, _ = chat(f"ckpt={run_dir}", "device=cpu", stdin="")
    assert (code, out) == (0, "")


def test_a_model_of_plain_text_is_told(chat, tmp_path):
    run_dir = make_checkpoint(tmp_path / "texts", prompt=None)
    assert "it continues what you type" in chat(f"ckpt={run_dir}", "device=cpu")[2]


def test_a_folder_may_have_any_name(chat, tmp_path):
    odd = tmp_path / "it's a, [run]=1"
    make_checkpoint(odd)
    assert chat(f"ckpt={odd}", "device=cpu")[0] == 0


def test_a_question_is_put_as_in_training(chat, tmp_path):
    """A model trained on lower-cased questions gives the same answer in any case; another one does not."""
    lower = make_checkpoint(tmp_path / "lower", Prompt(lower_case=True))
    typed = make_checkpoint(tmp_path / "typed")
    for run_dir, same in ((lower, True), (typed, False)):
        answers = [chat(f"ckpt={run_dir}", *SHORT, "seed=5", stdin=f"{word}\n")[1] for word in ("ONE SEA?", "one sea?")]
        assert (answers[0] == answers[1]) == same


def test_wrong_answers_end_with_1(chat, run_dir):
    Path("pairs.jsonl").write_text(json.dumps({"question": "One?", "answer": "1"}) + "\n")
    code, out, err = chat(f"ckpt={run_dir}", *SHORT, "ask=pairs.jsonl", stdin="not read")
    assert code == 1
    assert "You: One?\nDTL: " in out and "\nwrong, expected: 1\n" in out
    assert "0 of 1 answers is right. Wrong:\n  One?" in err


def test_right_answers_end_with_0(chat, run_dir):
    greedy = SamplingConfig(temperature=0, top_k=None, max_new_tokens=5)
    model = load(run_dir / "checkpoints" / "step-00000007", ChatConfig(device="cpu"))
    answer = "".join(model.continue_text(Prompt().text("One?"), greedy, 0))
    Path("pairs.jsonl").write_text(json.dumps({"question": "One?", "answer": answer}) + "\n")
    code, out, _ = chat(f"ckpt={run_dir}", *SHORT, "sampling.temperature=2", "ask=pairs.jsonl")
    assert (code, out.splitlines()[-1]) == (0, "1 of 1 answers is right.")


@pytest.mark.fault("chat-interrupt")
def test_ctrl_c_twice_within_an_answer_ends_with_130(chat, run_dir, monkeypatch):
    def impatient(*_: object) -> None:
        raise Leaving

    monkeypatch.setattr("dtl.terminal.chat.stream_answer", impatient)
    code, _, err = chat(f"ckpt={run_dir}", *SHORT, stdin="One?\n")
    assert code == 130 and err.endswith("Stopped.\n")


REJECTED = {
    "": "ckpt=null: there is no run under outputs yet.",
    "ckpt=latest": "ckpt=latest: there is no run under outputs yet.",
    "ckpt=no/such": "no/such: no such folder.",
    "ckpt=latest ask=none.jsonl": "ckpt=latest: there is no run",
    "chkpt=x": "chkpt=x: there is no such key. Did you mean 'ckpt'?",
    "sampling=creativ": "sampling=creativ: there is no such choice. Known: conservative, creative, standard.",
    "sampling.temperature=-1": "sampling.temperature=-1.0: must be at least 0",
    "seed=-1": "seed=-1: must be an integer in [0, 2^63).",
    "device=gpu": "device=gpu: one of auto, cpu,",
    "-m ckpt=a,b": "-m: dtl.chat runs once",
}


@pytest.mark.parametrize("arguments", REJECTED)
def test_what_is_wrong_is_said(chat, arguments):
    code, out, err = chat(*arguments.split())
    assert code in (1, 2) and out == ""
    assert f"Error: {REJECTED[arguments]}" in err
    assert [path.name for path in Path().iterdir()] == []


def test_a_missing_file_of_questions_is_told_before_the_model_is_loaded(chat, run_dir):
    code, _, err = chat(f"ckpt={run_dir}", "ask=none.jsonl", "device=cuda:77")
    assert code == 1 and "ask=none.jsonl: there is no such file" in err


def test_help_explains_every_setting(chat):
    code, out, _ = chat("--help=all")
    assert code == 0
    for setting in dtl.chat.COMMAND.settings:
        assert f"    {setting.name}=" in out and len(setting.meaning) > 5
    assert {setting.name for setting in dtl.chat.COMMAND.settings} >= {"ckpt", "ask", "history", "sampling.stop"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii", "TERM": "dumb", "FORCE_COLOR": "1"},
        {"NO_COLOR": "1", "TERM": "xterm-256color"},
    ],
)
def test_a_pipe_works_whatever_the_environment(run_dir, tmp_path, environment):
    done = subprocess.run(
        [sys.executable, "-m", "dtl.chat", f"ckpt={run_dir}", "sampling.max_new_tokens=40", "device=cpu"],
        input="Où?\nTwo?\n".encode(),
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == 2 and b"\x1b" not in done.stdout
    assert b"Traceback" not in done.stderr and b"seed 1338" in done.stderr


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_chat(run_dir, tmp_path):
    command = (
        f"yes One? | {sys.executable} -m dtl.chat ckpt={run_dir} sampling.max_new_tokens=3 device=cpu 2>err | head -2"
    )
    done = subprocess.run(["bash", "-c", f"{command}; echo ${{PIPESTATUS[1]}}"], capture_output=True, cwd=tmp_path)
    assert done.stdout.decode(errors="replace").splitlines()[-1] == "1"
    assert "Traceback" not in (tmp_path / "err").read_text() and "Exception" not in (tmp_path / "err").read_text()
