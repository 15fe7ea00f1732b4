"""The README's commands, run as they stand there: long ones shrunken, those that need the hub composed only."""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

import dtl.chat
import dtl.config
import dtl.diagnose
import dtl.evaluate
import dtl.generate
import dtl.prepare
import dtl.report
import dtl.runs
import dtl.sweep
import dtl.train

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("  #")[0].strip()
    for line in re.findall(r"^    (?!\$)(\S.*)$", README, flags=re.MULTILINE)
    if not line.startswith("Error:")
]
TRAIN = [command for command in COMMANDS if command.startswith("python -m dtl.train")]
SHRUNKEN = [
    *("model.dim=16", "model.n_layers=1", "model.n_heads=2", "trainer.total_steps=2", "trainer.micro_batch_size=2"),
    *("trainer.eval_max_batches=1", "sampling.max_new_tokens=2", "data.tasks=[]", "tracker=local"),
]
RESUMED = ["trainer.total_steps=3", "tracker=local"]  # what may stand beside resume=
INITIALISED = [word for word in SHRUNKEN if not word.startswith("model.")]
TALK = re.compile(r"(?:echo (?P<typed>.+) \| )?python -m dtl\.(?P<command>chat|generate)(?P<arguments>.*)")
SHORT = ["sampling.max_new_tokens=3"]
# What ends otherwise than with 0, and why.
ENDINGS = {
    "python -m dtl.chat": (2, "say which model. Runs under outputs"),
    "python -m dtl.chat ckpt=latest ask=my_pairs.jsonl": (1, "of 101 answers are right. Wrong:"),
}
NEED_THE_HUB = (
    "python -m dtl.train data=wiki",
    "python -m dtl.train data=tinystories",
    "python -m dtl.train data=hub data.path=owner/name",
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands name: texts, articles, pairs."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_texts").mkdir()
    for number in range(23):
        (folder / "my_texts" / f"{number}.txt").write_text(f"Text {number} is about the number {number}. " * 7)
    articles = [
        {"title": f"Number {n}", "text": f"{n} is a number between {n - 1} and {n + 1}. " * 29} for n in range(97)
    ]
    (folder / "FOLDER").mkdir()
    (folder / "FOLDER" / "articles.jsonl").write_text("".join(json.dumps(article) + "\n" for article in articles))
    pairs = [{"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(101)]
    (folder / "my_pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def shrunken(command: str) -> list[str]:
    words = shlex.split(command)[3:]
    if any(word.startswith("resume=") for word in words):
        return [*(word for word in words if not word.startswith("trainer.")), *RESUMED]
    if any(word.startswith("init=") for word in words):
        return [*words, *INITIALISED]
    return [*words, *SHRUNKEN]


def published_gpt2(desk: Path) -> None:
    """path/to/gpt2: a Hugging Face folder without anything of DTL's beside it."""
    classic = max(
        desk.glob("outputs/*/*/checkpoints/best"), key=lambda best: "gpt2" in (best / "config.json").read_text()
    )
    target = desk / "path" / "to" / "gpt2"
    target.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(classic / name, target / name)


@pytest.mark.slow
def test_commands_that_train_and_talk(desk, monkeypatch, capsys):
    """In one folder, as a reader would type them: first all that train, then all that use what was trained."""
    monkeypatch.chdir(desk)
    monkeypatch.setenv("XDG_CACHE_HOME", str(desk / "cache"))
    train_each(desk, monkeypatch, capsys)
    talk_in_each_way(monkeypatch, capsys)
    prepare_and_evaluate(monkeypatch, capsys)
    look_at_a_sweep(monkeypatch, capsys)
    keep_in_order(monkeypatch, capsys)
    report_on(monkeypatch, capsys)


def train_each(desk, monkeypatch, capsys):
    assert len(TRAIN) >= 14
    for second, command in enumerate(TRAIN):
        # Each command is a process of its own for a reader, and gets a folder of its own by the clock.
        monkeypatch.setattr(dtl.config, "_started", datetime(2031, 1, 2, 3, 4, second))
        monkeypatch.setattr(sys, "argv", ["dtl-train", *shrunken(command)])
        if "path/to/gpt2" in command:
            published_gpt2(desk)
        with monkeypatch.context() as patched:
            if command in NEED_THE_HUB:
                patched.setattr(dtl.train, "train", lambda config, *_: 0.0)
                patched.setattr(dtl.train, "pinned", lambda data, _: data)
            try:
                dtl.train.main()
            except SystemExit as exit_:
                pytest.fail(f"{command}: exit {exit_.code}\n{capsys.readouterr().err}")
        shown = capsys.readouterr()
        assert not shown.err, f"{command}: {shown.err}"
        ended = re.search(r"^Finished|\d finished", shown.out, re.MULTILINE) is not None
        assert ended == (command not in NEED_THE_HUB and "--help" not in command), command


def look_at_a_sweep(monkeypatch, capsys):
    (command,) = [command for command in COMMANDS if command.startswith("python -m dtl.sweep")]
    monkeypatch.setattr(sys, "argv", ["dtl-sweep", *shlex.split(command)[3:]])
    dtl.sweep.main()
    assert "finished; 3 finished, of 3" in capsys.readouterr().out


def talk_in_each_way(monkeypatch, capsys):
    found = [(command, match) for command in COMMANDS if (match := TALK.fullmatch(command))]
    assert {match["command"] for _, match in found} == {"chat", "generate"} and len(found) >= 9
    for command, match in found:
        typed = shlex.split(match["typed"])[0] if match["typed"] else "What is it?"
        monkeypatch.setattr(sys, "argv", [f"dtl-{match['command']}", *shlex.split(match["arguments"]), *SHORT])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{typed}\n".encode())))
        code = 0
        try:
            {"chat": dtl.chat.main, "generate": dtl.generate.main}[match["command"]]()
        except SystemExit as exit_:
            code = exit_.code
        shown = capsys.readouterr()
        expected, words = ENDINGS.get(command, (0, "DTL "))
        assert (code, "Traceback" in shown.err) == (expected, False), f"{command}: {shown.err}"
        assert words in shown.err, f"{command}: {shown.err}"


def prepare_and_evaluate(monkeypatch, capsys):
    found = [command for command in COMMANDS if command.startswith(("python -m dtl.prepare", "python -m dtl.evaluate"))]
    assert len(found) == 4
    for command in found:
        module = dtl.prepare if "dtl.prepare" in command else dtl.evaluate
        few = ["questions=3", "max_batches=1"] if module is dtl.evaluate else []
        monkeypatch.setattr(sys, "argv", [f"dtl-{module.COMMAND.name}", *shlex.split(command)[3:], *few])
        module.main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err and ("tokens" in shown.out), f"{command}: {shown.err}"


def keep_in_order(monkeypatch, capsys):
    found = [shlex.split(command)[3:] for command in COMMANDS if command.startswith("python -m dtl.runs")]
    assert len(found) == 2
    for words in found:
        monkeypatch.setattr(sys, "argv", ["dtl-runs", *words, "yes=true"])
        dtl.runs.main()
        shown = capsys.readouterr().out
        assert (
            ("nothing to delete" in shown or "came free" in shown)
            if "delete=" in words[0]
            else "outputs: 3 of" in shown
        )


def report_on(monkeypatch, capsys):
    found = [shlex.split(command)[3:] for command in COMMANDS if command.startswith("python -m dtl.report")]
    assert len(found) == 3
    for words in found:
        monkeypatch.setattr(sys, "argv", ["dtl-report", *words])
        dtl.report.main()
        assert "report.html" in capsys.readouterr().out, words


def test_diagnose(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dtl-diagnose"])
    dtl.diagnose.main()
    assert "torch" in capsys.readouterr().out


def test_every_command_is_known():
    """A new kind of command in the README needs a test here."""
    known = ("python -m dtl.train", "make ", "source .venv/bin/activate", "wandb leet run ", "wandb sync ")
    known += ("python -m dtl.diagnose", "python -m dtl.prepare", "python -m dtl.evaluate", "python -m dtl.runs")
    known += ("python -m dtl.report", "python -m dtl.sweep")
    assert [command for command in COMMANDS if not command.startswith(known) and not TALK.fullmatch(command)] == []


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z-]+)", README))))
def test_make_targets(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [["leet", "run"], ["sync"]])
def test_wandb_commands(words):
    done = subprocess.run([sys.executable, "-m", "wandb", *words, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_groups_are_listed():
    """The table of groups names every choice that lies in conf/."""
    for group, choices in dtl.train.COMMAND.groups().items():
        if group == "experiment":
            continue
        row = re.search(rf"^\| `{group}` \|(.*?)\|", README, flags=re.MULTILINE)
        assert row, group
        assert set(re.findall(r"`([a-z0-9_]+)`", row[1])) == set(choices), group


def test_the_python_example_names_what_a_checkpoint_holds():
    """The example's folder is the one that a run makes."""
    assert "checkpoints/best" in README and "AutoModelForCausalLM.from_pretrained(folder)" in README
