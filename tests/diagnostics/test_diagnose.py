"""python -m dtl.diagnose: one screen whatever fails, the verdict, the exit code, the time limits."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyte
import pytest
from omegaconf import OmegaConf

import dtl.diagnose
from dtl.base.paths import conf_dir
from dtl.diagnose import DiagnoseConfig
from dtl.diagnostics import diagnosis
from dtl.diagnostics.diagnosis import examine, first_run, verdict
from dtl.diagnostics.findings import Finding
from dtl.diagnostics.graphics import Card, TorchFacts, profile_config
from dtl.training.config import TrainerConfig

ROWS = [
    "Python",
    "torch",
    "GPU",
    "precisions",
    "trainer=auto",
    "",
    "freed memory",
    "processor",
    "memory",
    "disk",
    "packages",
    "tokenizer",
    "hub",
    "W&B",
    "plugins",
    "last run",
]
KEY = "c4na" * 10


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch, elsewhere):
    """No vocabulary is built and no server asked, in a folder without runs."""
    monkeypatch.setattr(diagnosis, "hub_problem", lambda: None)
    monkeypatch.setattr(diagnosis, "look_at_wandb", lambda: Finding([("W&B", "stand-in")]))
    monkeypatch.setattr(diagnosis, "look_at_vocabulary", lambda _: Finding([("tokenizer", "stand-in")]))
    monkeypatch.setattr(diagnosis, "torch_facts", lambda: TorchFacts("2.13.0+cpu", 1))
    for name in ("IMPORT_SECONDS", "QUICK_SECONDS", "NETWORK_SECONDS"):
        monkeypatch.setattr(diagnosis, name, 300.0)  # of work that ends, on a busy machine


@pytest.fixture
def diagnosed(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Call the command in this process; exit code, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dtl-diagnose", *arguments])
        code: object = 0
        try:
            dtl.diagnose.main()
        except SystemExit as exit_:
            code = exit_.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return call


def names(finding: Finding) -> list[str]:
    return [name for name, _ in finding.rows]


def test_a_machine_on_which_all_is_well(diagnosed):
    code, out, err = diagnosed()
    assert (code, err) == (0, "")
    title, *rows, last = out.splitlines()
    assert title == f"DTL {dtl.__version__}"
    assert [row[:14].strip() for row in rows if not row.startswith("Warning")] == ROWS
    assert last == "No problems found. Next: python -m dtl.train experiment=demo"
    assert list(Path.cwd().iterdir()) == [], "looking leaves nothing behind"


def test_busy_cores_are_a_warning(diagnosed, monkeypatch):
    """Of the threads that torch takes here, which are one in these tests."""
    asked: list[int] = []
    monkeypatch.setattr(diagnosis, "thread_warning", lambda threads: asked.append(threads) or "all cores are busy.")
    code, out, _ = diagnosed()
    assert code == 0 and "all cores are busy." in out and asked == [1]


def test_something_in_the_way(diagnosed):
    code, out, err = diagnosed("plugins=[diagnosed_nowhere]")
    assert code == 1
    assert "No problems found" not in out and "last run" in out
    assert "Traceback" not in err and "executing job" not in err
    assert err.startswith("Error: One problem prevents a good run here:\n  1. plugins=[diagnosed_nowhere]:")


@pytest.mark.parametrize("argument", ["+nonsense=1", "nonsense=1", "plugins=3", "-m"])
def test_a_wrong_command_line(diagnosed, argument):
    code, out, err = diagnosed(argument)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ") and len(err.splitlines()) <= 2


@pytest.mark.fault("secrets")
def test_no_secret_is_shown_however_it_gets_there(diagnosed, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(diagnosis, "look_at_wandb", lambda: Finding([("W&B", f"key {KEY}")]))
    Path("diagnosed_telling.py").write_text("import os\nraise ValueError(os.environ['WANDB_API_KEY'] + '\\x1b[2J')")
    monkeypatch.setattr(diagnosis, "look_at_memory", lambda: Finding(warnings=[f"{KEY} \x1b[2J"]))
    code, out, err = diagnosed("plugins=[diagnosed_telling]")
    assert code == 1 and "ValueError: [hidden]" in err and "key [hidden]" in out
    assert KEY not in out + err and "\x1b[2J" not in out + err


# --- what breaks, breaks alone --------------------------------------------------------------------------------------

LOOKS = {
    "look_at_python": ["Python"],
    "judge": ["GPU"],
    "look_at_profile": ["trainer=auto"],
    "look_at_processor": ["processor"],
    "look_at_memory": ["memory"],
    "look_at_disk": ["disk"],
    "look_at_packages": ["packages"],
    "look_at_vocabulary": ["tokenizer"],
    "judge_hub": ["hub"],
    "hub_problem": ["hub"],
    "look_at_wandb": ["W&B"],
    "look_at_plugins": ["plugins"],
    "look_at_last_run": ["last run"],
}


@pytest.mark.parametrize("broken", LOOKS)
def test_a_look_that_breaks_costs_its_own_rows(monkeypatch, broken):
    def fail(*_: object) -> Finding:
        raise RuntimeError("it is broken")

    monkeypatch.setattr(diagnosis, broken, fail)
    finding, _ = examine(DiagnoseConfig(), Path("outputs"))
    failed = [name for name, value in finding.rows if "RuntimeError: it is broken" in value]
    assert failed == LOOKS[broken]
    lost = {"judge": {"torch", "precisions"}, "look_at_profile": {"", "freed memory"}}.get(broken, set())
    assert names(finding) == [name for name in ROWS if name not in lost]
    assert not finding.problems


def test_looks_that_hang(monkeypatch):
    released = threading.Event()
    for name in ("IMPORT_SECONDS", "QUICK_SECONDS", "NETWORK_SECONDS"):
        monkeypatch.setattr(diagnosis, name, 0.05)
    for name in (*LOOKS, "torch_facts"):
        monkeypatch.setattr(diagnosis, name, lambda *_: Finding([("late", str(released.wait()))]))
    finding, facts = examine(DiagnoseConfig(), Path("outputs"))
    released.set()
    assert names(finding) == [
        name for name in ROWS if name not in ("GPU", "precisions", "trainer=auto", "", "freed memory")
    ]
    assert all("no answer within 0.05 seconds" in value for _, value in finding.rows)
    assert facts is None and len(finding.problems) == 1, "torch alone is what no run can do without"


@pytest.mark.parametrize("error", [ImportError("libcudnn.so.9"), OSError("WinError 126"), RuntimeError("odd")])
def test_a_torch_that_does_not_work(monkeypatch, error):
    def broken() -> TorchFacts:
        raise error

    monkeypatch.setattr(diagnosis, "torch_facts", broken)
    finding, facts = examine(DiagnoseConfig(), Path("outputs"))
    assert facts is None and len(finding.rows) > 8
    (problem,) = finding.problems
    assert str(error) in problem and "pip uninstall -y torch" in problem
    monkeypatch.setattr(diagnosis, "installed_version", lambda _: None)
    finding, _ = examine(DiagnoseConfig(), Path("outputs"))
    assert not finding.problems, "one that is missing is named with the packages, once"


# --- words ----------------------------------------------------------------------------------------------------------


def test_the_verdict_counts():
    assert verdict(["one\nmore"]) == "One problem prevents a good run here:\n  1. one\n     more"
    assert verdict(["a", "b"]) == "2 problems prevent a good run here:\n  1. a\n  2. b"


def test_the_first_run_is_one_that_this_machine_can_do():
    card = Card("card", (8, 9), 1, 1)
    assert first_run(TorchFacts("2", 1, cards=(card,))) == "python -m dtl.train model=qa data=qa"
    assert first_run(TorchFacts("2", 1, mps=True)) == "python -m dtl.train model=qa data=qa"
    assert first_run(None) == first_run(TorchFacts("2", 1)) == "python -m dtl.train experiment=demo"


def test_the_profile_is_what_a_run_would_get():
    """As Hydra composes it: see `batch` in test_configs.py."""
    qa, wiki = profile_config("qa"), profile_config("wiki")
    assert (qa.micro_batch_size, qa.grad_accum_steps) == (4, 1)
    assert (wiki.micro_batch_size, wiki.grad_accum_steps) == (8, 1)
    given = OmegaConf.load(conf_dir() / "trainer" / "auto.yaml")
    assert qa.trainer == wiki.trainer == TrainerConfig(**given)  # type: ignore[arg-type]


# --- a process of its own -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_network_that_swallows_everything(tmp_path):
    """Servers that accept and never answer: both are called at once, and neither delays the process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = os.environ | {
            "HF_ENDPOINT": silent,
            "HF_HUB_OFFLINE": "0",
            "WANDB_BASE_URL": silent,
            "WANDB_MODE": "online",
            "WANDB_API_KEY": KEY,
            "no_proxy": "*",
            "NO_COLOR": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "dtl.diagnose"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    assert done.stdout.count("cannot be reached") == 2 and "an API key exists, runs go offline" in done.stdout
    assert KEY not in done.stdout + done.stderr and "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert done.returncode == 0, done.stderr


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import dtl.diagnose
sys.argv[1:] = []
dtl.diagnose.main()
"""


def test_packages_that_are_missing_cost_their_rows_alone(tmp_path):
    """Only these are required: hydra, omegaconf, yaml, rich, packaging."""
    missing = "torch numpy tokenizers safetensors huggingface_hub filelock wandb einops transformers datasets pyarrow"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.replace("sys.argv[1].split()", repr(missing.split()))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    shown = dict(line.split("  ", 1) for line in done.stdout.splitlines()[1:])
    assert "No module named 'torch'" in shown["torch"]
    assert {*ROWS} - {*shown} == {"GPU", "precisions", "trainer=auto", "", "freed memory"}
    assert all("No module named" in shown[name] for name in ("tokenizer", "disk", "last run"))
    assert done.returncode == 1 and "torch does not work here" in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", [80, 100])
def test_one_screen(tmp_path, columns):
    import pty  # Unix only

    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "LINES": "30", "TERM": "xterm-256color", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dtl.diagnose"],
        cwd=tmp_path,
        env=environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(leader)
    assert process.wait() == 0, shown
    screen = pyte.Screen(columns, 30)
    pyte.ByteStream(screen).feed(shown)
    lines = [line.rstrip() for line in screen.display if line.strip()]
    assert lines[0].startswith("DTL ") and lines[-1].startswith("No problems found. ")
    assert 17 <= len(lines) <= 29, "it has not scrolled"
