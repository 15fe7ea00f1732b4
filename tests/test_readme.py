"""The commands of README.md and docs/*.md, run as written: long ones shrunken, those that need the hub composed only.

Also: every page is linked, every link exists, the README stays short.
"""

import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from datetime import datetime
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import dtl
import dtl.chat
import dtl.config
import dtl.diagnose
import dtl.evaluate
import dtl.generate
import dtl.plan
import dtl.prepare
import dtl.report
import dtl.runs
import dtl.sweep
import dtl.train
from dtl.base.paths import conf_dir
from dtl.registry import OPTIMIZERS

ROOT = Path(__file__).resolve().parent.parent
MAX_README_LINES = 220
# The README first: its runs are those that `latest` and the pages' commands refer to.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
ALL_TEXT = "\n".join(PAGES.values())


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Lines indented by four spaces, without `$` and its output, and the lines of bash blocks; without comments."""
    indented = re.findall(r"^    (?!\$)(\S.*)$", without_blocks(text), flags=re.MULTILINE)
    fenced = "".join(blocks(text, "bash")).replace("\\\n", "").splitlines()
    return [line.partition("  #")[0].strip() for line in (*indented, *fenced) if not line.startswith("Error:")]


COMMANDS = list(dict.fromkeys(command for page in PAGES.values() for command in commands(page)))
SEARCHES = [command for command in COMMANDS if "hydra/sweeper=dtl_optuna" in command]
TRAIN = [command for command in COMMANDS if command.startswith("python -m dtl.train") and command not in SEARCHES]
# Commands within prose and tables: composed, not run.
INLINE = list(
    dict.fromkeys(
        command
        for page in PAGES.values()
        for command in re.findall(r"`(python -m dtl\.[^`]+)`", without_blocks(page))
        if command not in COMMANDS
    )
)
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
    "python -m dtl.chat": (2, "choose a model. Runs under outputs"),
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
    rows = [f"Was ist {n} plus {n}?;{2 * n}\n" for n in range(101)]
    (folder / "my_table.csv").write_text("Frage;Antwort\n" + "".join(rows))
    recipes = re.findall(r"`(my_conf/\S+\.yaml)`:\n\n```yaml\n(.*?)```", ALL_TEXT, re.DOTALL)
    assert recipes
    for name, text in recipes:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def shrunken(command: str) -> list[str]:
    words = shlex.split(command)[3:]
    if any(word.startswith("resume=") for word in words):
        return [*(word for word in words if not word.startswith("trainer.")), *RESUMED]
    if any(word.startswith("init=") for word in words):
        return [*words, *INITIALISED]
    if "model=auto" in words:  # chooses its size and length
        others = [word for word in words if not word.startswith("trainer.hours")]
        return [*others, "trainer.hours=1e-2", *(word for word in INITIALISED if "total_steps" not in word)]
    if any(word.startswith("trainer.tokens") for word in words):
        others = [word for word in words if not word.startswith("trainer.tokens=")]
        others += ["trainer.tokens=999"] if len(others) < len(words) else []
        return [*others, *(word for word in SHRUNKEN if "total_steps" not in word)]
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
    load_without_dtl(desk)
    talk_in_each_way(monkeypatch, capsys)
    prepare_and_evaluate(monkeypatch, capsys)
    plan_ahead(monkeypatch, capsys)
    look_at_a_sweep(monkeypatch, capsys)
    keep_in_order(monkeypatch, capsys)
    report_on(monkeypatch, capsys)
    search(monkeypatch, capsys)


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
                patched.setattr(dtl.data.collect, "plan_sources", lambda *_: [])
            try:
                dtl.train.main()
            except SystemExit as exit_:
                pytest.fail(f"{command}: exit {exit_.code}\n{capsys.readouterr().err}")
        shown = capsys.readouterr()
        assert not shown.err, f"{command}: {shown.err}"
        ended = re.search(r"^Finished|\d finished", shown.out, re.MULTILINE) is not None
        assert ended == (command not in NEED_THE_HUB and "--help" not in command), command


def load_without_dtl(desk):
    """The Python examples, with the folder of a run in the place of `<date>/<run>`."""
    examples = list(dict.fromkeys(block for block in blocks(ALL_TEXT, "python") if "transformers" in block))
    assert examples
    best = max(file.parent for file in desk.glob("outputs/*/*/checkpoints/best/chat_template.jinja"))
    for example in examples:
        assert "outputs/<date>/<run>/checkpoints/best" in example
        names: dict = {}
        exec(example.replace("<date>/<run>", best.relative_to(desk / "outputs").parts[0] + "/" + best.parts[-3]), names)
        assert names["model"].num_parameters() > 0 and names["tokenizer"]("What is it?")["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "\nimport dtl\n" in text])
def test_pages_in_python(page, elsewhere, monkeypatch, capsys):
    """The blocks of a page are one script; its runs are short and small."""
    compose = dtl.compose
    monkeypatch.setattr(dtl, "compose", lambda *words: compose(*words, *SHRUNKEN))
    names: dict = {}
    try:
        for block in blocks(PAGES[page], "python"):
            if "transformers" not in block:
                exec(compile(block, page, "exec"), names)
    finally:
        OPTIMIZERS._parts.pop("plain", None)
    assert names["result"].best_loss > 0 and (elsewhere / "outputs" / "mine" / "result.json").is_file()
    shown = capsys.readouterr().out
    assert "<|endoftext|>»" in shown
    assert all(text in shown for text in blocks(PAGES[page], "text"))


def search(monkeypatch, capsys):
    """Two trials instead of thirty, and the winner is not run again."""
    assert len(SEARCHES) == 1
    for command in SEARCHES:
        sizes = [word for word in SHRUNKEN if not word.startswith("model.")]
        few = [*sizes, "tokenizer=byte", "hydra.sweeper.n_trials=2", "sweep.confirm=0"]
        monkeypatch.setattr(dtl.config, "_started", datetime(2031, 1, 2, 4))
        monkeypatch.setattr(sys, "argv", ["dtl-train", *shlex.split(command)[3:], *few])
        dtl.train.main()
        shown = capsys.readouterr().out
        assert "search of 2 trials" in shown and "the best of 2" in shown


def look_at_a_sweep(monkeypatch, capsys):
    (command,) = [command for command in COMMANDS if command.startswith("python -m dtl.sweep")]
    monkeypatch.setattr(sys, "argv", ["dtl-sweep", *shlex.split(command)[3:]])
    dtl.sweep.main()
    assert re.search(r"finished; (\d) finished, of \1\b", capsys.readouterr().out)


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
    assert len(found) == 5
    for command in found:
        module = dtl.prepare if "dtl.prepare" in command else dtl.evaluate
        few = ["questions=3", "max_batches=1"] if module is dtl.evaluate else []
        monkeypatch.setattr(sys, "argv", [f"dtl-{module.COMMAND.name}", *shlex.split(command)[3:], *few])
        module.main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err and ("tokens" in shown.out), f"{command}: {shown.err}"


def plan_ahead(monkeypatch, capsys):
    """Of small models: what a plan of a large one takes is its operators, which are many."""
    found = [shlex.split(command)[3:] for command in COMMANDS if command.startswith("python -m dtl.plan")]
    assert len(found) == 7
    for words in found:
        kept = [word for word in words if not word.startswith("model=")]
        small = ["model.dim=32", "model.n_layers=1", "model.n_heads=2"]
        monkeypatch.setattr(sys, "argv", ["dtl-plan", *kept, *small])
        dtl.plan.main()
        shown = capsys.readouterr()
        assert "peak" in shown.out and "It fits" in shown.out, f"{words}: {shown.err}"


def keep_in_order(monkeypatch, capsys):
    found = [shlex.split(command)[3:] for command in COMMANDS if command.startswith("python -m dtl.runs")]
    assert len(found) == 2
    for words in found:
        monkeypatch.setattr(sys, "argv", ["dtl-runs", *words, "yes=true"])
        dtl.runs.main()
        shown = capsys.readouterr().out
        assert (
            ("nothing to delete" in shown or " freed." in shown) if "delete=" in words[0] else "outputs: 3 of" in shown
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
    """A new kind of command in the README or in a page needs a test here."""
    known = ("python -m dtl.train", "make ", "source .venv/bin/activate", "wandb leet run ", "wandb sync ")
    known += ("python -m dtl.diagnose", "python -m dtl.prepare", "python -m dtl.evaluate", "python -m dtl.runs")
    known += ("python -m dtl.plan", "git clone <", "uv venv ", "uv pip install ")
    known += ("python -m dtl.report", "python -m dtl.sweep", 'pip install -e ".[offline]"')
    assert [command for command in COMMANDS if not command.startswith(known) and not TALK.fullmatch(command)] == []


@pytest.mark.parametrize("command", INLINE)
def test_commands_in_prose_compose(command):
    _, _, module, *words = shlex.split(command)
    of_train: list[str] = []  # beside resume=true
    if module == "dtl.diagnose":
        words = dtl.diagnose._own(words, of_train)
    for known, given in ((importlib.import_module(module).COMMAND, words), (dtl.train.COMMAND, of_train)):
        dtl.config.register(known.name, known.schema)
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            compose(known.name, overrides=[word for word in given if word != "-m"])


def test_the_wrong_key_is_answered_as_shown(elsewhere, monkeypatch, capsys):
    examples = set(re.findall(r"^    \$ python -m dtl\.train (.*)\n    (Error: .*), \.\.\.$", ALL_TEXT, re.MULTILINE))
    assert len(examples) == 1
    for words, shown in examples:
        monkeypatch.setattr(sys, "argv", ["dtl-train", *shlex.split(words)])
        with pytest.raises(SystemExit):
            dtl.train.main()
        assert capsys.readouterr().err.startswith(shown)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^    )make ([a-z-]+)", ALL_TEXT, re.MULTILINE))))
def test_make_targets(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", sorted(set(re.findall(r"(?:`|^    )wandb ([a-z]+(?: run)?)", ALL_TEXT, re.MULTILINE)))
)
def test_wandb_commands(words):
    command = [sys.executable, "-m", "wandb", *words.split(), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_extras_are_known():
    named = set(re.findall(r"\.\[([a-z]+)\]", ALL_TEXT)) | set(re.findall(r"--extra ([a-z]+)", ALL_TEXT))
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert named and named <= extras
    listed = set(re.findall(r"^\| `([a-z]+)` \|", PAGES["docs/install.md"], flags=re.MULTILINE))
    assert listed == extras


def test_dependencies_are_listed():
    """docs/dependencies.md names every package that DTL itself needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]}
    rows = re.findall(r"^\| ([a-z].*?) \|", PAGES["docs/dependencies.md"], flags=re.MULTILINE)
    assert {name for row in rows for name in row.split(", ")} - {"package"} == names


def test_settings_named_in_prose_exist():
    """`data.path=...`, `trainer.precision=fp16`: a key that some command has."""
    known = {key.name for key in dtl.train.COMMAND.settings}
    known |= {key.name for keys in dtl.train.COMMAND.sweep_settings.values() for key in keys}
    sections = {name.partition(".")[0] for name in known if "." in name} - {"hydra"} | {"hydra.sweeper"}
    named = set()
    for page in PAGES.values():
        for code in re.findall(r"`([^`\n]+)`", without_blocks(page)):
            words = [word for word in code.split() if not word.endswith(".safetensors")]
            named |= {word.partition("=")[0] for word in words if word.startswith(tuple(f"{s}." for s in sections))}
    assert len(named) > 10
    generic = {re.sub(r"^data\.sources\.(?!<name>)\w+", "data.sources.<name>", name) for name in named}
    assert generic - known == set()


def test_groups_are_listed():
    """The table of groups names every choice in conf/."""
    for group, choices in dtl.train.COMMAND.groups().items():
        if group == "experiment":
            continue
        row = re.search(rf"^\| `{group}` \|(.*?)\|", PAGES["docs/training.md"], flags=re.MULTILINE)
        assert row, group
        assert set(re.findall(r"`([a-z0-9_]+)`", row[1])) == set(choices), group


def test_the_readme_is_short():
    assert len(README.splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_each_page_is_linked_and_links_back(page):
    """Twice from the README: at its place, and in the list at the end. A page opens with what it is for."""
    assert README.count(f"]({page})") + README.count(f"]({page}#") >= 2, page
    assert re.search(rf"^- \[[^\]]+\]\({page}\): ", README, flags=re.MULTILINE), page
    title, blank, *rest = PAGES[page].splitlines()
    assert title.startswith("# ") and not blank
    opening = " ".join(rest).partition("  ")[0]
    assert re.fullmatch(r"[A-Z](?:`[^`]+`|[^.`])*\. Back to the \[README\]\(\.\./README\.md\)\.", opening), opening


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings: lower case, spaces to hyphens, punctuation left out."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_each_link_exists(page):
    folder = (ROOT / page).parent
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(PAGES[page])) if "://" not in link]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = folder / path if path else ROOT / page
        assert target.is_file() and Path(os.path.normpath(target)).is_relative_to(ROOT), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"
