"""Config files of the user: a recipe, a group of their own, and what is said when one is written wrongly."""

import os
import re
import sys
from pathlib import Path

import pytest
import yaml
from hydra.types import RunMode

import dtl.train
from dtl.base.paths import conf_dir, experiments_dir
from dtl.commandline.compose import compose
from dtl.config import RunConfig
from dtl.errors import ConfigError

RECIPE = "# @package _global_\n"
TWICE = RECIPE + "defaults: [{/optimizer: muon}]\n"


@pytest.fixture
def train(monkeypatch, capsys, elsewhere):
    """Call `python -m dtl.train --config-dir=mine` with the files of `mine/`; returns exit code and error output."""

    def call(*arguments: str, **files: str) -> tuple[int, str]:
        for name, text in files.items():
            file = elsewhere / "mine" / f"{name.replace('__', '/')}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.setattr(sys, "argv", ["dtl-train", "--config-dir=mine", *arguments])
        try:
            dtl.train.main()
        except SystemExit as ended:
            return int(ended.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


@pytest.fixture
def trained(monkeypatch) -> list[RunConfig]:
    """The configs that training was started with; nothing is trained."""
    configs: list[RunConfig] = []
    monkeypatch.setattr(dtl.train, "train", lambda config, *_: configs.append(config) or 0.0)
    return configs


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and "mine" not in path.parts]


@pytest.mark.parametrize("name", ["night", "series/night"])
def test_a_recipe_of_ones_own(train, trained, name):
    text = RECIPE + "defaults: [{override /optimizer: muon}]\nseed: 3\ntrainer: {total_steps: 7}\n"
    code, shown = train(f"experiment={name}", "trainer.total_steps=9", **{f"experiment__{name}": text})
    assert code == 0, shown
    (config,) = trained
    assert (config.optimizer.name, config.seed, config.trainer.total_steps) == ("muon", 3, 9)


def test_a_config_of_ones_own_in_place_of_train(train, trained):
    own = (conf_dir() / "train.yaml").read_text(encoding="utf-8").replace("optimizer: adamw", "optimizer: muon")
    code, shown = train("--config-name=night", "seed=5", night=own)
    assert code == 0, shown
    assert (trained[0].optimizer.name, trained[0].seed) == ("muon", 5)
    code, shown = train("--config-name=day", day="defaults: [train, _self_]\nname: mine\n")
    assert code == 2 and "Write it as a recipe: my_conf/experiment/NAME.yaml" in shown
    code, shown = train("--config-name=dya")
    assert code == 2 and "--config-name=dya: there is no dya.yaml in " in shown and "mine" in shown


@pytest.mark.quick_cases(2)
@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    "text",
    [
        "seed: 3\n",
        "optimizer: {lr: 1e-3}\n",
        "defaults: [{override /model: medium}]\n",
        "# @package _globl_\nseed: 3\n",
        "# a comment\n\ntrainer: {total_stesp: 3}\n",
        "# a comment\n# @package _global_\ndefaults: [{override /model: medium}]\n",  # Hydra overlooks it there
    ],
)
@pytest.mark.parametrize("name", ["x", "series/x"])
def test_a_recipe_without_its_first_line_is_named_with_the_line(train, elsewhere, text, name):
    for arguments in ([], ["-m", "seed=1,2"]):
        code, shown = train(*arguments, f"experiment={name}", **{f"experiment__{name}": text})
        assert code == 2 and "Write it as the first line, before any other comment: # @package _global_" in shown, shown
        assert f"experiment={name}: mine/experiment/{name}.yaml" in shown and left_behind(elsewhere) == []


def test_a_recipe_with_its_first_line_is_not_blamed_for_it(train):
    code, shown = train("experiment=x", experiment__x=RECIPE + "sed: 3\n")
    assert code == 2 and "sed in experiment/x.yaml: there is no such key. Did you mean 'seed'?" in shown


FORMS = {
    "optimizer: muon": "'optimizer: muon': optimizer is a config group, chosen in the defaults list: "
    "defaults: [{override /optimizer: muon}]",
    "model: {arch: classic}": "defaults: [{override /model/arch: classic}]",
    "model/arch: classic": "defaults: [{override /model/arch: classic}]",
    "defaults: [{optimizer: muon}]": "write override and a slash: defaults: [{override /optimizer: muon}]",
    "defaults: [{/optimizer: muon}]": "defaults: [{override /optimizer: muon}]",
    "defaults: [{override optimizer: muon}]": "defaults: [{override /optimizer: muon}]",
    "defaults: {override /optimizer: muon}": "defaults is a list. Write defaults: [{override /optimizer: muon}]",
    "optimizer.lr: 3e-3": "a key in a file has no dots. Write optimizer: {lr: 3e-3}",
    "- a\n- b": "a recipe is made of lines key: value.",
}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("text", FORMS)
def test_the_form_of_a_recipe_is_explained(train, trained, elsewhere, text):
    for arguments in ([], ["-m", "seed=1,2"]):
        code, shown = train(*arguments, "experiment=x", experiment__x=RECIPE + text)
        assert code == 2 and FORMS[text] in shown and "mine/experiment/x.yaml" in shown, shown
        assert len(shown.splitlines()) == 1 and left_behind(elsewhere) == []
    right = re.search(r"(defaults: \[.*\]|optimizer: \{.*\})$", FORMS[text])
    if right:
        assert train("experiment=x", experiment__x=RECIPE + right[1])[0] == 0


def test_a_choice_made_twice_by_a_group_of_ones_own(train):
    code, shown = train("experiment=x", experiment__x=RECIPE + "defaults: [base]", experiment__base=TWICE)
    assert code == 2 and "defaults: [{override /optimizer: NAME}]" in shown and "Multiple values" not in shown


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name: caf\xe9\n", "line 2: not UTF-8. Save the file as UTF-8."),
        ("name: x\n".encode("utf-16"), "line 2: not UTF-8."),
        (b"name: a\0b\n", "line 2: has a control character."),
    ],
)
@pytest.mark.parametrize("group", ["experiment", "optimizer"])
def test_a_file_that_is_not_text_is_named_with_its_line(train, elsewhere, content, problem, group):
    file = elsewhere / "mine" / group / "x.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(RECIPE.encode() + content)
    for arguments in ([], ["-m", "seed=1,2"]):
        code, shown = train(*arguments, f"{group}=x")
        assert code == 2 and shown.startswith(f"Error: mine/{group}/x.yaml, {problem}"), shown
        assert left_behind(elsewhere) == []


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["seed=1,2"], "python -m dtl.train -m --config-dir=mine seed=1,2\n"),
        (["seed=1,2", "name=night", "plugins=a,b"], "-m --config-dir=mine seed=1,2 name=night 'plugins=[a,b]'\n"),
        (["optimizer.lr=choice(1,2)", "seed=3"], "-m --config-dir=mine 'optimizer.lr=choice(1,2)' seed=3\n"),
        (["data.sources.mine.weight=1,2"], "-m --config-dir=mine data.sources.mine.weight=1,2\n"),
        (["optimizer.lr=interval(1,2)"], "-m hydra/sweeper=dtl_optuna --config-dir=mine 'optimizer.lr=interval(1,2)'"),
        (["optimizer.lr=interval(1,2)", "-m"], "-m hydra/sweeper=dtl_optuna --config-dir=mine 'optimizer.lr=interval("),
    ],
)
def test_the_line_that_runs_several_values_has_all_words(train, words, line):
    code, shown = train(*words, optimizer__own="lr: 3\n")
    assert code == 2 and line in shown, shown


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (RECIPE + "lr: 3\n", "Leave out the line '# @package _global_': what is in the file then belongs to optimizer"),
        ("optimizer: {lr: 3}\n", "belongs to optimizer already: leave out the line 'optimizer:'"),
        ("lrr: 3\n", "Did you mean 'optimizer.lr'?"),
    ],
)
def test_a_choice_whose_keys_are_in_the_wrong_place(train, text, hint):
    code, shown = train("optimizer=own", optimizer__own=text)
    assert code == 2 and " in optimizer/own.yaml: there is no such key." in shown and hint in shown


def test_choices_of_ones_own_are_among_the_known(train):
    code, shown = train("optimizer=onw", optimizer__own="lr: 3\n")
    assert code == 2 and "Known: adamw, muon, own. Did you mean 'own'?" in shown
    code, shown = train("experiment=nihgt", experiment__night=RECIPE)
    assert code == 2 and "Did you mean 'night'?" in shown


INTERPOLATIONS = {
    "${oc.env:NO_SUCH_VARIABLE}": "the environment variable NO_SUCH_VARIABLE is not set. "
    "Type export NO_SUCH_VARIABLE=..., or write a default: ${oc.env:NO_SUCH_VARIABLE,DEFAULT}.",
    "${trainer.total_stesp}": "refers to trainer.total_stesp, and there is no such key. "
    "Did you mean 'trainer.total_steps'?",
    "${times:3,4}": "refers to ${times:...}, which is not known. Known: oc.env.",
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("value", INTERPOLATIONS)
@pytest.mark.parametrize("key", ["trainer.total_steps", "name"])
def test_a_value_that_leads_nowhere_is_named_with_its_place(train, elsewhere, value, key):
    """In a recipe, on the command line and in a sweep; `name` is needed before the settings are read."""
    section, _, leaf = key.rpartition(".")
    recipe = RECIPE + (f"{section}:\n  {leaf}: {value}\n" if section else f"{leaf}: {value}\n")
    code, shown = train("experiment=x", experiment__x=recipe)
    assert code == 2 and " in mine/experiment/x.yaml: " in shown and INTERPOLATIONS[value] in shown, shown
    code, given = train(f"{key}={value}")
    assert code == 2 and given == f"Error: {key}={value}: {INTERPOLATIONS[value]}\n"
    code, swept = train("-m", "seed=1,2", "experiment=x")
    assert code == 2 and INTERPOLATIONS[value][:40] in swept
    assert left_behind(elsewhere) == []


def test_a_variable_that_is_set_is_typed_as_what_is_written(train, trained, monkeypatch):
    monkeypatch.setenv("STEPS_OF_MINE", "11")
    text = RECIPE + "trainer: {total_steps: '${oc.env:STEPS_OF_MINE}'}\n"
    assert train("experiment=x", experiment__x=text)[0] == 0 and trained[0].trainer.total_steps == 11
    monkeypatch.setenv("STEPS_OF_MINE", "many")
    code, shown = train("experiment=x")
    assert code == 2 and "trainer.total_steps=many: must be an integer" in shown


def test_braces_that_do_not_close(train):
    code, shown = train("experiment=x", experiment__x=RECIPE + "trainer: {total_steps: '${oc.env:A'}\n")
    assert code == 2 and "trainer.total_steps: its ${...} cannot be read: see its braces." in shown


def test_a_value_that_a_recipe_leaves_open_is_asked_for(train, trained, elsewhere, capsys, monkeypatch):
    """Also where another file builds on it; one that is given there or on the command line is not."""
    line = "# Run: python -m dtl.train experiment=x data.qa.path=mine.jsonl   and more\n"
    asking = f"{RECIPE}{line}data: {{qa: {{path: '???'}}}}\n"
    files = {"experiment__x": asking, "experiment__y": RECIPE + "defaults: [x]\ntrainer: {total_steps: '???'}\n"}
    code, shown = train("experiment=x", "seed=3", **files)
    assert code == 2 and "experiment=x: needs data.qa.path, " in shown and not trained
    assert shown.endswith("experiment=x seed=3 data.qa.path=mine.jsonl\n")
    code, shown = train("-m", "experiment=y", "seed=1,2")
    assert code == 2 and shown.endswith("experiment=y seed=1,2 data.qa.path=FILE trainer.total_steps=VALUE\n")
    assert left_behind(elsewhere) == []
    (elsewhere / "a.jsonl").write_text('{"question": "Who?", "answer": "I"}\n')
    for words in (
        ["experiment=x", "data.path=a.jsonl"],
        ["experiment=y", "data.sources.qa.path=a.jsonl", "trainer.total_steps=3"],
    ):
        assert train(*words)[0] == 0 and "a.jsonl" in str(trained[-1].data)
    own = RECIPE + "defaults: [x]\ndata: {qa: {path: a.jsonl}}\n"
    assert train("experiment=z", experiment__z=own)[0] == 0 and trained[-1].data.qa.path == "a.jsonl"
    capsys.readouterr()
    monkeypatch.setattr(
        sys, "argv", ["dtl-train", "--config-dir=mine", "experiment=x", "--cfg", "job", "-p", "data.qa"]
    )
    dtl.train.main()
    assert "path: ???\n" in capsys.readouterr().out


DEEP = "a: " + "[" * 60_013  # OmegaConf's reader overflows the stack
REPEATED = "a0: &a0 [1, 2]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 31))


@pytest.mark.parametrize(
    ("where", "text", "rule"),
    [
        ("experiment__x", DEEP, "more than 50 levels"),
        ("experiment__x", REPEATED, "10,000 parts"),
        ("optimizer__x", REPEATED, "10,000 parts"),
        ("optimizer__x", "a: &a [*a]", "*a is a part of itself"),
        ("x", DEEP, "more than 50 levels"),
        ("x", "a: b\n" * 60_013, "cannot be read (larger than 0.25 MiB)"),
    ],
)
def test_a_file_that_is_no_config_is_not_parsed(train, trained, text, rule, where):
    """Of a folder that comes from somebody else, wherever it is chosen."""
    header = RECIPE if where.startswith("experiment") else ""
    word = "--config-name=x" if where == "x" else f"{where.partition('__')[0]}=x"
    code, shown = train(word, **{where: header + text})
    assert (code, trained) == (2, []) and shown.startswith("Error: ") and rule in shown
    assert f"{where.replace('__', '/')}.yaml: " in shown and len(shown.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_in_a_config_folder_is_not_opened(train, trained, elsewhere):
    (elsewhere / "mine").mkdir()
    os.mkfifo(elsewhere / "mine" / "a.yaml")  # opening it would wait for ever
    code, shown = train("--config-name=a")
    assert code == 2 and "--config-name=a: mine/a.yaml is not a regular file. Leave it out." in shown
    code, shown = train("experiment=x", experiment__x=RECIPE + "seed: ${nowhere}\n")
    assert code == 2 and "nowhere" in shown


def test_a_choice_that_is_no_file_is_not_offered_again(elsewhere):
    """As an unknown choice it would be asked for under its own name."""
    folder = elsewhere / "mine" / "experiment"
    (folder / "folder.yaml").mkdir(parents=True)
    (folder / "link.yaml").symlink_to("nowhere")
    fifo = "fifo" if hasattr(os, "mkfifo") else "folder"
    if fifo == "fifo":
        os.mkfifo(folder / "fifo.yaml")
    (folder / "tag.yaml").write_text(RECIPE + "optimizer: {lr: !!python/object:os.system 1}\n")
    (elsewhere / "pairs.csv").touch()
    for choice, problem in (
        ("folder", "experiment/folder.yaml: cannot be read (not a regular file). Put"),
        (fifo, f"experiment/{fifo}.yaml: cannot be read (not a regular file). Put"),
        ("link", "experiment/link.yaml: cannot be read (No such file or directory). Put"),
        ("tag", "line 2: not valid YAML (could not determine a constructor for the tag"),
    ):
        with pytest.raises(ConfigError) as rejected:
            compose(f"experiment={choice}", config_dir="mine")
        assert problem in str(rejected.value) and "Did you mean" not in str(rejected.value)
    with pytest.raises(ConfigError, match=r"pairs\.csv: is a file, not a folder"):
        compose(config_dir="pairs.csv")


def test_a_config_may_repeat_itself_by_aliases(train, trained):
    text = RECIPE + "seed: &three 3\ntrainer: &t {total_steps: 7}\nsampling: {max_new_tokens: *three}\n"
    assert train("experiment=x", experiment__x=text) == (0, "")
    assert (trained[0].trainer.total_steps, trained[0].sampling.max_new_tokens) == (7, 3)


def test_a_recipe_that_builds_on_itself_is_named(train, trained):
    files = {"experiment__x": RECIPE + "defaults: [y]\n", "experiment__y": RECIPE + "defaults: [/experiment: x]\n"}
    code, shown = train("experiment=x", **files)
    chain = "experiment/x -> experiment/y -> experiment/x"
    assert (code, trained) == (2, []) and f"experiment=x: builds on itself ({chain}). Take it out of" in shown


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("flag", ["--config-dir=conf", "-cd=conf", "hydra.searchpath=[file://conf]"])
def test_a_recipe_may_choose_to_be_a_sweep(flag, elsewhere, monkeypatch):
    """Hydra looks for hydra.mode in a composition of its own, which is spared where nobody can have set it."""
    (elsewhere / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweep: {dir: s}\n"
    (elsewhere / "conf" / "experiment" / "both.yaml").write_text(text)
    modes = []
    monkeypatch.setattr("hydra._internal.utils._run_app", lambda mode, **_: modes.append(mode))
    for words in ([flag, "experiment=both"], ["hydra.mode=MULTIRUN"], ["experiment=demo"], ["experiment=demo", "-m"]):
        monkeypatch.setattr(sys, "argv", ["dtl-train", *words])
        dtl.train.main()
    assert modes == [RunMode.MULTIRUN, RunMode.MULTIRUN, None, None]


def test_no_file_of_dtl_sets_the_mode():
    files = [*conf_dir().rglob("*.yaml"), *experiments_dir().rglob("*.yaml")]
    hydra = [(yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("hydra") or {} for file in files]
    assert len(files) > 30 and not [section for section in hydra if "mode" in section]
