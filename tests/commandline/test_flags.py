"""Flags of Hydra and words of a shell: anywhere on the command line, in any spelling, in any command."""

import importlib
import os
import sys
import tomllib
from pathlib import Path

import pytest

import dtl
from dtl.base.checks import check_one_process
from dtl.commandline.cli import flags_first
from dtl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
MODULES = sorted({entry.partition(":")[0] for entry in SCRIPTS.values()} - {"dtl.__main__"})


@pytest.fixture(autouse=True)
def a_folder_of_its_own(elsewhere: Path) -> None:
    """A working folder without the checkout's outputs/."""


def call(monkeypatch, capsys, *arguments: str, module: str = "dtl.train") -> tuple[int, str]:
    """Call a command in this process; return its exit code and its error output."""
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.fault("torchrun")
def test_one_of_several_processes_is_rejected(monkeypatch, capsys, elsewhere):
    """torchrun -m dtl.train: each would train the same run. One alone is what torchrun --nproc-per-node=1 starts."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = call(monkeypatch, capsys, "data=qa")
    assert code == 2 and said.startswith("Error: WORLD_SIZE=2: DTL trains in one process")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2"):
        dtl.fit(dtl.compose("data=qa"), elsewhere / "run")
    assert not [*elsewhere.iterdir()]
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("SLURM_NTASKS", "3")  # of a script of sbatch, which starts it once
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert call(monkeypatch, capsys, "data=nothing")[1].startswith("Error: data=nothing")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # srun -n 1
    check_one_process()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    with pytest.raises(ConfigError, match=r"SLURM_STEP_NUM_TASKS=3: .* srun has started 3.*under SLURM with srun -n 1"):
        check_one_process()


HYDRAS_OWN = {
    "-sc": "-sc: needs what to do",
    "-sc query=bash": "--shell-completion: Hydra cannot use this (KeyError: 'COMP_LINE')",
    "--resolve": "The --resolve flag",
    "hydra=1": "hydra=1: Hydra cannot use this",
    "hydra/launcher=1": "hydra/launcher=1: Hydra cannot use this",
    "hydra.verbose=7": "hydra.verbose=7: Hydra cannot use this (AssertionError",
    "-m trainer.keep=range(0,1,0)": "trainer.keep=range(0,1,0): has no values",
    "-m seed=range(1,5,-1)": "seed=range(1,5,-1): has no values",
    "-m optimizer.lr=range(0,1,1e-12)": "optimizer.lr=range(0,1,1e-12): has over 10,000 values",
    "-m seed=range(0,inf)": "seed=range(0,inf): has over 10,000 values",
    "-m seed=range(start=1,stop=nan)": "seed=range(start=1,stop=nan): has no values",
}


@pytest.mark.parametrize("words", HYDRAS_OWN)
def test_what_hydra_stumbles_over_is_no_traceback(words, monkeypatch, capsys):
    monkeypatch.delenv("COMP_LINE", raising=False)
    code, said = call(monkeypatch, capsys, *words.split())
    assert code == 2 and said.startswith(f"Error: {HYDRAS_OWN[words]}")
    assert "Traceback" not in said and not Path("outputs").exists()


# --- flags --------------------------------------------------------------------------------------------------------

SPELLINGS = {
    "--config-dir={here}/mine": (["--config-dir=mine"], ["--config-dir", "mine"], ["-cd", "mine"], ["-cd=./mine"]),
    "--config-path={here}/mine": (["--config-path=mine"], ["-cp", "{here}/mine"]),
    "--config-name=night": (["--config-name", "night"], ["-cn=night"]),
    "--multirun": (["-m"], ["--multirun"]),
    "--cfg=job": (["--cfg", "job"], ["-c", "job"]),
    "--resolve": (["--resolve"],),
    "--package=model": (["-p", "model"], ["--package=model"]),
    "--info=searchpath": (["--info", "searchpath"], ["-i", "searchpath"]),
}


@pytest.mark.parametrize("flag", SPELLINGS)
def test_a_flag_may_stand_anywhere_in_any_spelling(flag, elsewhere):
    overrides = ["model=small", "~data", "+x='-m --cfg'"]
    for words in SPELLINGS[flag]:
        for place in range(len(overrides) + 1):
            typed = [*overrides[:place], *(word.format(here=elsewhere) for word in words), *overrides[place:]]
            assert flags_first(typed) == [flag.format(here=elsewhere), *overrides]


def test_several_flags_between_overrides():
    assert flags_first(["a=1", "-m", "b=2", "-cn", "x", "c=3"]) == [
        "--multirun",
        "--config-name=x",
        "a=1",
        "b=2",
        "c=3",
    ]
    assert flags_first(flags_first(["a=1", "-m"])) == ["--multirun", "a=1"]


@pytest.mark.parametrize("flag", ["--confg-dir=x", "-x", "--epochs=3", "--info=nothing", "--config=x"])
def test_a_flag_that_is_unknown_is_one_message(flag):
    with pytest.raises(ConfigError, match=r"Settings are key=value; the flags are -m, --config-dir=FOLDER"):
        flags_first(["a=1", flag])


@pytest.mark.parametrize("flag", ["--cfg", "--config-dir", "--config-name"])
def test_a_flag_without_its_value_shows_an_example(monkeypatch, capsys, flag):
    code, shown = call(monkeypatch, capsys, "model=small", flag)
    assert code == 2 and shown.startswith(f"Error: {flag}: needs a value. For example, {flag}"), shown


def test_a_word_is_no_value_of_a_flag(monkeypatch, capsys):
    code, shown = call(monkeypatch, capsys, "--cfg", "model=small")
    assert code == 2 and "--cfg: needs a value, and model=small is none. For example, --cfg job" in shown


@pytest.mark.parametrize("again", [["--config-dir", "b"], ["-cd=b"], ["-cd", "b"]])
def test_a_flag_given_twice_is_not_the_last_one(monkeypatch, capsys, again):
    code, shown = call(monkeypatch, capsys, "--config-dir=a", "seed=1", *again)
    assert code == 2 and shown.startswith("Error: --config-dir: given more than once, and it takes one value.")


@pytest.mark.parametrize("module", MODULES)
def test_the_version_is_dtls(monkeypatch, capsys, module):
    monkeypatch.setattr(sys, "argv", [module, "--version"])
    importlib.import_module(module).main()
    assert capsys.readouterr().out == f"DTL {dtl.__version__}\n"


@pytest.mark.parametrize("words", ["--config-dir=nowhere model=small", "model=small -cd nowhere"])
def test_a_config_folder_that_is_not_there_is_named(monkeypatch, capsys, elsewhere, words):
    code, shown = call(monkeypatch, capsys, *words.split())
    assert code == 2 and f"--config-dir={elsewhere}/nowhere: there is no such folder." in shown


@pytest.mark.parametrize("words", ["-m --cfg job", "--resolve", "--info --cfg job"])
def test_flags_that_exclude_each_other_are_no_bug(monkeypatch, capsys, words):
    code, shown = call(monkeypatch, capsys, *words.split())
    assert code == 2 and shown.startswith("Error: ") and len(shown.splitlines()) == 1


# --- lists of plugins without brackets ----------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_plugins_need_no_brackets_in_any_command(monkeypatch, capsys, module):
    """zsh ends with `no matches found` for brackets without quotes."""
    required = ["ckpt=x"] if module in ("dtl.chat", "dtl.generate", "dtl.evaluate") else []
    _, shown = call(monkeypatch, capsys, "plugins=not_there,nor_this", *required, module=module)
    assert shown.startswith("Error: ") and "plugins=[not_there]: cannot be imported (No module named" in shown


@pytest.mark.parametrize("word", ["plugins=not_there", "+plugins=not_there", "plugins=[not_there]"])
def test_one_plugin_alone(monkeypatch, capsys, word):
    code, shown = call(monkeypatch, capsys, word)
    assert code == 2 and shown.startswith("Error: plugins=[not_there]: cannot be imported")


def test_plugins_are_a_list_in_a_sweep_too(monkeypatch, capsys):
    code, shown = call(monkeypatch, capsys, "-m", "plugins=not_there,nor_this", "seed=1,2")
    assert code == 2 and "none of the 2 trials" in shown and "plugins=[not_there]: cannot be imported" in shown


# --- null among the values of a sweep -----------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["choice(null,7)", "null,7", "choice(7, null)", "choice('null',7)"])
def test_null_is_a_value_of_a_sweep(monkeypatch, capsys, values):
    """Both trials are rejected, for another reason: each got as far as that."""
    code, shown = call(monkeypatch, capsys, "-m", f"trainer.total_steps={values}", "model.n_heads=7")
    assert code == 2 and "none of the 2 trials" in shown and "must divide model.dim" in shown, shown


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("shuffle(null,7)", "shuffle(null,7) takes no null. Write the values alone: trainer.total_steps=null,7"),
        ("interval(1,null)", "interval() takes numbers, and no null."),
        ("range(1,x)", "range(1,x) cannot be evaluated (mismatch"),
        ("tag(log,choice(null,7))", "takes no null. Write the values alone: trainer.total_steps=null,7"),
    ],
)
def test_a_function_that_fails_is_named(monkeypatch, capsys, word, message):
    code, shown = call(monkeypatch, capsys, "-m", f"trainer.total_steps={word}")
    assert code == 2 and shown.startswith(f"Error: trainer.total_steps={word}: ") and message in shown


# --- the working folder -------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not delete a folder in use")
@pytest.mark.parametrize("module", MODULES)
def test_a_working_folder_that_was_deleted_is_named(monkeypatch, capsys, tmp_path, module):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, shown = call(monkeypatch, capsys, module=module)
    os.chdir(tmp_path)
    assert code == 2 and shown.startswith("Error: The folder in which this command was started no longer exists.")
