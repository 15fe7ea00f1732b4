"""The checkpoint that ckpt= names, and the message without one: before torch, and with damaged runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_examples import imitate

from dtl.base.json_files import sealed
from dtl.errors import CheckpointError, ConfigError
from dtl.run_dir.state import read_config, read_run_state
from dtl.terminal.choose import checkpoint_to_use

OUTPUTS = Path("outputs")


@pytest.fixture(autouse=True)
def outside_the_checkout(elsewhere: Path) -> None:
    """No run of the checkout's outputs/ may be found."""


def make_run(day: int, name: str, saved: int | None = 7, **result: object) -> Path:
    run_dir = OUTPUTS / f"2026-01-{day:02}" / f"03-04-05-6_{name}"
    (run_dir / "checkpoints").mkdir(parents=True)
    if saved is not None:
        imitate(run_dir, saved)
    (run_dir / "config.yaml").write_text(f"name: {name}\n")
    if result:
        (run_dir / "result.json").write_text(json.dumps(sealed(result)))
    return run_dir


def message_of(spec: str | None = None) -> str:
    with pytest.raises(ConfigError) as rejected:
        checkpoint_to_use(spec, OUTPUTS, "chat")
    assert rejected.value.exit_code == 2
    return str(rejected.value)


@pytest.mark.parametrize("spec", [None, "latest"])
def test_without_any_run_one_is_made(spec):
    message = message_of(spec)
    assert message.startswith(f"ckpt={spec or 'null'}: there is no run under outputs yet.")
    assert "python -m dtl.train model=qa data=qa" in message and "make demo" in message
    assert max(map(len, f"Error: {message}".splitlines())) < 80


def test_runs_are_listed_newest_first_with_the_lines_to_type():
    make_run(1, "old", 120, state="finished", value=1.57468, step=300)
    make_run(2, "cut", 40)
    make_run(3, "new", None, state="failed", value=None, step=0)
    lines = message_of().splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["outputs/2026-01-03/03-04-05-6_new", "new", "failed", "step", "0"],
        ["outputs/2026-01-02/03-04-05-6_cut", "cut", "unfinished", "step", "40"],
        ["outputs/2026-01-01/03-04-05-6_old", "old", "finished", "step", "300", "loss", "1.5747"],
    ]
    # The example is one that can be talked to.
    assert "  python -m dtl.chat ckpt=outputs/2026-01-02/03-04-05-6_cut" in lines
    assert "  python -m dtl.chat ckpt=latest" in lines
    assert any("python -m dtl.train model=qa data=qa" in line for line in lines)


def test_of_many_runs_ten_are_listed():
    for day in range(1, 14):
        make_run(day, f"run{day}")
    message = message_of()
    assert "(the last 10 of 13, newest first)" in message
    assert message.count("unfinished") == 10 and "run13" in message and "run3 " not in message


def test_names_from_a_folder_cannot_harm():
    run_dir = make_run(1, "x")
    (run_dir / "config.yaml").write_text('name: "a\\e[2Jb\\nc"\n')
    (run_dir / "result.json").write_text(json.dumps(sealed({"state": "\u202eevil\x9b", "step": "many", "value": [1]})))
    line = message_of().splitlines()[1]
    assert "a␛[2Jb c" in line and "\ufffdevil\ufffd" in line and "step 7" in line


NO_CONFIGS = [
    "",
    "- a\n",
    "{",
    "name: [1, 2]\n",
    "a: &a [*a]\n",
    "!!python/object/apply:os.system [touch hacked]\n",
    "\x00",
    "name:",
]


@pytest.mark.parametrize("contents", NO_CONFIGS)
def test_a_config_that_is_none_leaves_a_gap(contents):
    run_dir = make_run(1, "gap")
    (run_dir / "config.yaml").write_text(contents)
    (run_dir / "result.json").write_text(contents)
    assert isinstance(read_run_state(run_dir).name, str)
    assert read_run_state(run_dir).state == "unfinished"
    assert isinstance(read_config(run_dir), dict)
    assert not Path("hacked").exists()


def test_a_huge_config_is_not_read():
    run_dir = make_run(1, "huge")
    (run_dir / "config.yaml").write_text("name: x\n" + "#" * 2**20)
    assert read_config(run_dir) == {}


def test_a_wrong_checkpoint_is_told_as_everywhere():
    make_run(1, "here")
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint_to_use("outputs/2026-01-01/03-04-05-6_her", OUTPUTS, "chat")


def test_a_checkpoint_is_found():
    run_dir = make_run(1, "here")
    for spec in ("latest", str(run_dir)):
        assert checkpoint_to_use(spec, OUTPUTS, "chat") == run_dir / "checkpoints" / "step-00000007"


def typed(*lines: str | type[Exception]):
    """What `input` would return, and what it was called with."""
    shown: list[str] = []

    def ask(question: str) -> str:
        shown.append(question)
        line = lines[len(shown) - 1]
        if isinstance(line, str):
            return line
        raise line

    return ask, shown


def test_without_a_name_the_newest_usable_run_is_offered():
    usable = make_run(1, "here")
    make_run(2, "no_checkpoint", None, state="failed", step=0)
    ask, shown = typed("")
    assert checkpoint_to_use(None, OUTPUTS, "chat", ask) == usable / "checkpoints" / "step-00000007"
    lines = shown[0].splitlines()
    assert lines[0] == "Runs under outputs, newest first:" and lines[-1] == f"Enter for {usable}, or a number: "
    assert [line.split() for line in lines[1:3]] == [
        ["1", "2026-01-02/03-04-05-6_no_checkpoint", "failed", "step", "0"],
        ["2", "2026-01-01/03-04-05-6_here", "unfinished", "step", "7"],
    ]


def test_another_run_is_chosen_by_its_number():
    for day in range(1, 5):
        make_run(day, f"run{day}")
    ask, shown = typed("5", "0", "two", "\u0663", "\x1b[2J", " 3 ")
    assert checkpoint_to_use(None, OUTPUTS, "chat", ask).parent.parent.name == "03-04-05-6_run2"
    assert shown[1] == f"5: there is no run with this number. {shown[0].splitlines()[-1]}" and len(shown) == 6
    assert not any("\x1b" in line for line in shown)


def test_leaving_the_offer_is_no_error():
    make_run(1, "here")
    with pytest.raises(KeyboardInterrupt):
        checkpoint_to_use(None, OUTPUTS, "chat", typed(EOFError)[0])


def test_nothing_is_offered_where_nothing_can_be_used():
    ask, shown = typed()
    with pytest.raises(ConfigError, match="there is no run under outputs yet"):
        checkpoint_to_use(None, OUTPUTS, "chat", ask)
    make_run(1, "empty", None)
    with pytest.raises(ConfigError, match="ckpt=null: choose a model"):
        checkpoint_to_use(None, OUTPUTS, "chat", ask)
    assert not shown


def test_it_is_all_said_without_torch():
    make_run(1, "here")
    program = """
import sys
import dtl.chat
sys.argv = ["dtl-chat"]
try:
    dtl.chat.main()
finally:
    print(*sorted({"torch", "transformers", "tokenizers", "datasets", "prompt_toolkit"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert "ckpt=null: choose a model" in done.stderr and "here" in done.stderr
    assert done.stdout.split() == []
