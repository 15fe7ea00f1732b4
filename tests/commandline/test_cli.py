"""The command line: messages for errors, --help, and no folders left by either."""

import json
import random
import re
import shlex
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from checkpoint_examples import imitate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import dtl.train
from dtl.base.json_files import sealed
from dtl.base.redaction import HIDDEN
from dtl.checkpoints.listing import Checkpoint
from dtl.commandline.cli import run_command
from dtl.commandline.command import ENTRY
from dtl.commandline.overrides import quoted
from dtl.commandline.translate import translate_error
from dtl.config import RunConfig, to_yaml
from dtl.errors import DataError, InterruptedRun
from dtl.run_dir.own_config import with_data_found
from dtl.runner.run import Origin
from dtl.train import COMMAND
from dtl.training.config import OptimizerConfig, TrainerConfig


@pytest.fixture(autouse=True)
def outside_the_checkout(elsewhere: Path) -> None:
    """A working directory without the checkout's outputs/."""


@pytest.fixture
def command(monkeypatch, capsys):
    """Call `python -m dtl.train` with arguments in this process; returns its exit code and standard error."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dtl-train", *arguments])
        try:
            dtl.train.main()
        except SystemExit as exit_:
            assert isinstance(exit_.code, int)
            return exit_.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


@pytest.fixture
def trained(monkeypatch, origins) -> list[RunConfig]:
    """The configs that training was started with; nothing is trained."""
    configs: list[RunConfig] = []

    def train(config: RunConfig, out_dir: Path, origin: Origin) -> float:
        if config.seed == 13:
            raise DataError("an unlucky seed")
        configs.append(config)
        origins.append(origin)
        return 0.0

    monkeypatch.setattr(dtl.train, "train", train)
    return configs


@pytest.fixture
def origins() -> list[Origin]:
    """The origins that training was started with."""
    return []


def left_behind(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != "outputs")


REFUSED = {
    # a key that is not there
    "optimizer.lrr=1": "optimizer.lrr=1: there is no such key. Did you mean 'optimizer.lr'? Keys here: optimizer.name,",
    "trainer.totl_steps=5": "Did you mean 'trainer.total_steps'?",
    "modle.dim=3": "modle.dim=3: there is no such key. Did you mean 'model.dim'?",
    "limit=3": "limit=3: there is no such key. It is a setting of dtl.runs: python -m dtl.runs limit=3",
    "modle=small": "modle=small: there is no such key. Did you mean 'model'?",
    "experment=x": "experment=x: there is no such key. Did you mean 'experiment'?",
    "+experment=x": "+experment=x: there is no such key. Did you mean 'experiment'?",
    "+foo=1": "+foo=1: there is no such key.",
    "++foo.bar=1": "foo.bar=1: there is no such key.",
    "model.dim.x=3": "model.dim.x=3: must be an integer (width of the residual stream). Default: model.dim=256",
    "data.sources.qa.wieght=2": "there is no such key. Did you mean 'data.sources.qa.weight'?",
    "hydra.run.foo=1": "hydra.run.foo=1: there is no such key.",
    # a folder to write to that would be the working directory
    "hydra.run.dir=": "hydra.run.dir='': is no folder.",
    "hydra.run.dir=''": "hydra.run.dir='': is no folder.",
    "-m seed=1,2 hydra.sweep.dir=''": "hydra.sweep.dir='': is no folder.",
    "data.cache_dir=''": "data.cache_dir='': is no folder.",
    # a value of a wrong type
    "optimizer.lr=abc": "optimizer.lr=abc: must be a number (peak learning rate",
    "optimizer.lr=[1,2]": "optimizer.lr=[1,2]: must be a number",
    "experiment=demo optimizer.lr=fast": "untied head)). Default: optimizer.lr=0.0007",  # the recipe's
    "trainer.total_steps=1.5": "trainer.total_steps=1.5: must be an integer or null (stop after",
    "model.dim=null": "model.dim=null: must be an integer (width of the residual stream). Default: model.dim=256",
    "trainer.compile=maybe": "trainer.compile=maybe: must be true/false",
    "tracker.tags=a": "tracker.tags=a: must be a list",
    "data.sources.qa.weight=no": "data.sources.qa.weight=no: must be a number",
    "data.sources.mine.path=x.txt": "data.sources.mine.kind: must be text",
    # a choice or a name that is not there
    "model=huge": "model=huge: there is no such choice. Known: auto, large, medium, qa, small.",
    "data=wikii": "data=wikii: there is no such choice. "
    "Known: fineweb_edu, hub, qa, text, tinystories, wiki, wikitext. Did you mean 'wiki'?",
    "model/arch=moderm": "model/arch=moderm: there is no such choice. "
    "Known: classic, modern, value_embeddings. Did you mean 'modern'?",
    "+experiment=x": "experiment=x: there is no such choice.",
    "trainer=null": "trainer=null: must be the name of a choice. Known: amp4060, auto, cpu, debug.",
    "+model=small": "+model=small: this group already has a choice. To choose another one, leave out the +.",
    "optimizer.name=lion": "optimizer.name=lion: there is no part of this name. Known: adamw, muon. A part of your own",
    "data.tasks=[exact_mach]": "Did you mean 'exact_match'?",
    "model.arch=classic": "model.arch=classic: the architecture is a config group. Write model/arch=modern, value",
    "plugins=[no_such_module]": "plugins=[no_such_module]: cannot be imported (No module named 'no_such_module').",
    # a value that cannot be
    "optimizer.betas=[0.9,0.95,0.99]": "optimizer.betas=[0.9, 0.95, 0.99]: two numbers in [0, 1)",
    "optimizer.lr=-1": "optimizer.lr=-1.0: must be above 0.",
    "optimizer.lr=nan": "optimizer.lr=nan: must be above 0.",
    "trainer.tokens=0.5": "trainer.tokens=0.5: must be at least 1, or null.",
    "trainer.tokens_per_parameter=0": "trainer.tokens_per_parameter=0.0: must be at least 0.001, or null.",
    "experiment=demo trainer.tokens=1e6": "To keep trainer.tokens, add trainer.total_steps=null.",
    "model.dropout=3": "model.dropout=3.0: a probability in [0, 1).",
    "trainer.precision=fp8": "trainer.precision=fp8: one of auto, fp32, bf16, fp16.",
    "tracker.mode=never": "tracker.mode=never: one of auto, online, offline.",
    "seed=-1": "seed=-1: must be an integer in [0, 2^63).",
    "device=gpu": "device=gpu: one of auto, cpu, cuda, cuda:0, mps.",
    "name=../x": "name=../x: it becomes a folder's name.",
    "name=../../x": "name=../../x: it becomes a folder's name.",
    f"name={'x' * 260}": f"name={'x' * 97}...: it becomes a folder's name. Use up to 80 letters",
    "name='a b'": "name=a b: it becomes a folder's name.",
    # values that do not go together
    "model.n_heads=7": "model.n_heads=7: must divide model.dim=256.",
    "model.n_kv_heads=3": "model.n_kv_heads=3: must divide model.n_heads=8",
    "model/arch=classic model.n_kv_heads=2": "model/arch=classic: GPT-2 has as many key/value heads as heads",
    "data.seq_len=1000": "data.seq_len=1000: longer than the model's context, model.max_seq_len=512.",
    "data=text": "data.path=null: data=text needs a file or folder, for example data.path=my_texts/",
    "init=x model=medium": "model=medium: init=x brings its own size",
    # what is no setting at all
    "model.dim": "model.dim: cannot be read as key=value.",
    "=3": "=3: cannot be read as key=value.",
    "name=[a": "name=[a: it becomes a folder's name.",
    "seed=[a": "seed=[a: cannot be read as key=value.",
    "optimizer.lr=1e-3,3e-3": "several values need -m (one run each): python -m dtl.train -m optimizer.lr=1e-3,3e-3",
    "-m resume=latest": "resume=latest: resumes one run; leave out -m.",
    # sweeps
    "-m model.n_heads=7,9 seed=1,2": "Error: none of the 4 trials can be run:\n  model.n_heads=7 seed=1: "
    "model.n_heads=7: must divide model.dim=256. Choose another number of heads, or set model.head_dim. "
    "(the same for 1 more)\n  model.n_heads=9 seed=1: model.n_heads=9: must divide",
    "-m model.n_heads=7,9,11,13": "model.n_heads=11: must divide model.dim=256. Choose another number of heads, or set "
    "model.head_dim.\n  ... and 1 other reason\n",
    "-m optimizer.lrr=1": "Error: optimizer.lrr=1: there is no such key. Did you mean 'optimizer.lr'?",
    "data=qa -m model.n_heads=7": "Error: model.n_heads=7: must divide",
    "-m seed=1,2 hydra.sweep.dir=a/b/c model.n_heads=7": "Error: none of the 2 trials can be run:",
    "hydra.launcher.n_jobs=x": "n_jobs=x: must be an integer (trials that run at the same time). Default",
    "hydra.launcher.n_job=2": "n_job=2: there is no such key. Did you mean 'hydra.launcher.n_jobs'? Keys here: hydra",
    "hydra/sweeper=dtl_optuna hydra.sweeper.n_trials=x": "n_trials=x: must be an integer (configurations in total",
    "hydra.sweeper.n_trials=3": "hydra.sweeper.n_trials=3: only valid with hydra/sweeper=dtl_optuna, which",
    "hydra/launcher=joblib hydra.launcher.hang_minutes=3": "only valid with hydra/launcher=dtl_process",
    "hydra/launcher=joblib hydra.launcher.n_jobs=x": "hydra.launcher.n_jobs=x: Value 'x' of type 'str' could not be",
    "hydra.sweeper=dtl_optuna": "Choose it with a slash, for example hydra/sweeper=dtl_optuna.",
    "-m seed=1,2 hydra.sweeper.max_batch_size=1": "hydra.sweeper.max_batch_size=1: hydra/launcher=dtl_process runs",
    "wandb.key=0123456789": "wandb.key=...: this looks like a key or a password",
}


@pytest.mark.quick_cases(12)
@pytest.mark.fault("wrong-setting", "names")
@pytest.mark.parametrize("arguments", REFUSED)
def test_a_refusal_is_one_message_and_leaves_nothing(command, elsewhere, arguments):
    code, shown = command(*re.findall(r"(?:'[^']*'|\S)+", arguments))
    assert REFUSED[arguments] in shown
    assert shown.startswith("Error: ") and len(shown.splitlines()) <= 6
    assert "Traceback" not in shown and code == 2
    assert left_behind(elsewhere) == []


def test_debug_shows_the_traceback_and_then_the_message(command):
    code, shown = command("optimizer.lrr=1", "debug=true")
    assert code == 2 and "Traceback" in shown
    assert shown.splitlines()[-1].startswith("Error: optimizer.lrr=1: there is no such key.")


def test_resuming_needs_a_run(command, elsewhere):
    code, shown = command("resume=latest")
    assert code == 1 and "no run with checkpoints" in shown and left_behind(elsewhere) == []


def test_a_run_whose_data_is_missing_leaves_nothing(command, elsewhere):
    """Detected only when the data is read, after the run has locked its folder."""
    code, shown = command("data=text", "data.path=nowhere", "tokenizer=byte", "tracker=local")
    assert code == 1 and "nowhere" in shown and "Traceback" not in shown
    assert left_behind(elsewhere) == []


def test_a_run_that_its_own_criterion_ended_resumes_without_it(trained, command, elsewhere, monkeypatch):
    config = RunConfig(trainer=TrainerConfig(stop_criteria=["patience"], stop_options={"a": 1}))
    (elsewhere / "run").mkdir()
    (elsewhere / "run" / "config.yaml").write_text(to_yaml(config))
    monkeypatch.setattr(dtl.train, "_run_folder", lambda spec: elsewhere / "run")
    monkeypatch.setattr(dtl.train, "newest_valid", lambda folder: (Checkpoint(folder, 3), None))
    assert command("resume=run", "trainer.stop_criteria=[]", "trainer.total_steps=9") == (0, "")
    assert trained[0].trainer == TrainerConfig(total_steps=9)


@pytest.fixture
def resumable(elsewhere, monkeypatch) -> Path:
    """The folder of a run with a checkpoint of imitated weights; both have its config."""
    run_dir = elsewhere / "run"
    checkpoint = run_dir / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)
    for folder in (run_dir, checkpoint):
        config = RunConfig(trainer=TrainerConfig(total_steps=9), optimizer=OptimizerConfig(lr=0.001))
        (folder / "config.yaml").write_text(to_yaml(config))
    monkeypatch.setattr(dtl.train, "_run_folder", lambda spec: run_dir)
    monkeypatch.setattr(dtl.train, "newest_valid", lambda folder: (Checkpoint(checkpoint, 3), None))
    return run_dir


@pytest.mark.fault("config-of-run")
def test_a_run_resumes_with_the_config_that_its_checkpoint_vouches_for(resumable, trained, origins, command):
    """One flipped bit in config.yaml was another learning rate, and `bit for bit` was said of it."""
    file = resumable / "config.yaml"
    whole = file.read_text()
    for damaged, said in [
        (whole, None),
        (whole.replace("lr: 0.001", "lr: 0.011"), "optimizer.lr=0.011 instead of 0.001"),
        (whole.replace("total_steps: 9", "total_steps: 8"), "trainer.total_steps=8 instead of 9"),
        (whole.replace("\n  lr: 0", "\n  mr: 0"), "optimizer.lr is missing instead of 0.001"),
        (whole.replace("name: run", "name: rum").replace("seed: 1337", "seed: 1336"), "and 1 more key"),
        (whole.replace("kind: wandb", "kind: local"), "tracker.kind=local instead of wandb"),
        (whole.encode("utf-16"), "cannot be read"),
        ("[" * 5000, "cannot be read"),
        (whole.partition("\nschedule:")[0], "schedule is missing instead of "),
        ("", "cannot be read"),
        (None, "cannot be read"),
    ]:
        file.unlink(missing_ok=True)
        if damaged is not None:
            file.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
        assert command("resume=run") == (0, "")
        assert (trained[-1].optimizer.lr, trained[-1].trainer.total_steps) == (0.001, 9)
        assert trained[-1] == trained[0]
        [*warnings] = origins[-1].warnings
        assert warnings == [] if said is None else said in warnings[0], warnings


@pytest.mark.fault("secrets")
def test_a_resumed_run_without_its_secret_says_which_setting_had_it(resumable, trained, origins, command):
    """Its part would take `[hidden]` for the secret."""
    (folder,) = (resumable / "checkpoints").glob("step-*")
    for file in (folder / "config.yaml", resumable / "config.yaml"):
        values = yaml.safe_load(file.read_text())
        values["tracker"] |= {"project": HIDDEN, "tags": [f"https://me:{HIDDEN}@host.example"]}
        file.write_text(yaml.safe_dump(values))
    assert command("resume=run") == (0, "")
    (said,) = origins[-1].warnings
    assert said.startswith("tracker.project, tracker.tags: held a secret, which ")
    assert f"config.yaml has as {HIDDEN}" in said and "os.environ[NAME]" in said


def test_what_a_session_was_given_holds_until_its_first_checkpoint(resumable, trained, origins, command):
    config = (resumable / "config.yaml").read_text()
    new = config.replace("total_steps: 9", "total_steps: 90").replace("kind: wandb", "kind: local")
    (resumable / "config.yaml").write_text(new)
    given = {"sessions": [{}, {"overrides": ["resume=run", "trainer.total_steps=90", "tracker=local"]}]}
    (resumable / "run.json").write_text(json.dumps(given))
    assert command("resume=run") == (0, "") and not origins[-1].warnings
    assert (trained[-1].trainer.total_steps, trained[-1].tracker.kind) == (90, "local")
    (resumable / "config.yaml").write_text(new.replace("90", "91"))
    assert command("resume=run") == (0, "") and "total_steps=91 instead of 9" in origins[-1].warnings[0]
    assert trained[-1].trainer.total_steps == 9


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("max_epochs", [None, 3])
def test_a_finished_run_says_at_once_that_nothing_is_left(trained, command, elsewhere, capsys, monkeypatch, max_epochs):
    """Before its data and torch are loaded, whatever it was trained on. A new length, and an evaluation that was
    interrupted, are something to do."""
    run_dir = elsewhere / "outputs" / "2026-01-31" / "10-00-00-1 my run"
    imitate(run_dir, step=7)
    limits = TrainerConfig(max_epochs=max_epochs)
    (run_dir / "config.yaml").write_text(to_yaml(RunConfig(plugins=["my_lab"], trainer=limits)))
    monkeypatch.setattr(dtl.train, "newest_valid", lambda folder: (Checkpoint(folder, 7), None))
    for state, seen, words, left in [
        ("finished", True, [], False),
        ("finished", True, ["device=cpu"], False),
        ("finished", True, ["trainer.total_steps=9"], True),
        ("finished", False, [], True),
        ("stopped", True, [], True),
    ]:
        result = {"state": state, "value": 1.5, "step": 7} | ({"seen": {}} if seen else {})
        (run_dir / "result.json").write_text(json.dumps(sealed(result)))
        trained.clear()
        monkeypatch.setattr(sys, "argv", ["dtl-train", "resume=latest", *words])
        dtl.train.main()
        shown = capsys.readouterr().out
        assert bool(trained) == left and ("Nothing is left to train." in shown) != left
        if not left:
            longer = shlex.split(shown.partition("To train further: ")[2].splitlines()[0])
            assert longer[3:] == [
                f"resume={run_dir.relative_to(elsewhere)}",
                "plugins=my_lab",
                *([] if max_epochs is None else ["trainer.max_epochs=null"]),  # which would end it at the same step
                "trainer.total_steps=14",
            ]


@pytest.mark.parametrize("damage", [b"", b"hello", b"a: [b", b"name: \xff\xfe", b"- 1"])
def test_a_finished_run_without_a_readable_config_takes_that_of_its_checkpoint(
    trained, origins, resumable, command, damage
):
    (resumable / "result.json").write_text(
        json.dumps(sealed({"state": "finished", "value": 1.5, "step": 7, "seen": {}}))
    )
    (resumable / "config.yaml").write_bytes(damage)
    assert command("resume=run") == (0, "") and len(trained) == 1
    assert "whose config is used" in " ".join(origins[-1].warnings)


RECIPE, OWN = "experiment=my_pairs", "data.qa.path=own.jsonl"


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("data.qa.path=other.jsonl", ["init=RUN", RECIPE, "optimizer.lr=0.01", "data.qa.path=other.jsonl"]),
        ("data.path=other.jsonl", ["init=RUN", RECIPE, "optimizer.lr=0.01", "data.qa.path=other.jsonl"]),
        ("optimizer.lr=0.5", ["init=RUN", RECIPE, OWN, "optimizer.lr=0.5"]),
        ("optimizer=muon", ["init=RUN", RECIPE, OWN, "optimizer=muon"]),
        ("seed=8", ["init=RUN", RECIPE, OWN, "optimizer.lr=0.01", "seed=8"]),
        ("model.dim=64", [RECIPE, "model.n_layers=1", OWN, "optimizer.lr=0.01", "model.dim=64"]),
        ("data.qa.path=copy.jsonl", None),
        ("data.qa.path=own.jsonl", None),
        ("device=cpu", None),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_no_setting_of_a_resume_is_dropped(trained, command, elsewhere, capsys, monkeypatch, word, meant, finished):
    """Each is obeyed, or refused with the line that trains with it; a finished run says what it does not use."""
    run_dir = elsewhere / "outputs" / "2026-01-31" / "10-00-00-1_run"
    imitate(run_dir, step=7)
    for name in ("own", "copy", "other"):
        (elsewhere / f"{name}.jsonl").write_text(
            '{"question": "Who?", "answer": "%s"}\n' % ("I" + "t" * (name == "other"))
        )
    config = dtl.compose("experiment=my_pairs", "data.qa.path=own.jsonl")
    (run_dir / "config.yaml").write_text(to_yaml(config))
    typed = [RECIPE, "model.n_layers=1", OWN, "optimizer.lr=0.01", "trainer.stop_after_steps=7"]
    (run_dir / "run.json").write_text(json.dumps({"overrides": typed, "cwd": str(elsewhere)}))
    if finished:
        (run_dir / "result.json").write_text(json.dumps(sealed({"state": "finished", "step": 7, "seen": {}})))
    monkeypatch.setattr(dtl.train, "newest_valid", lambda folder: (Checkpoint(folder, 7), None))
    if meant is None:
        monkeypatch.setattr(sys, "argv", ["dtl-train", "resume=latest", word])
        dtl.train.main()
        assert (f"Not used: {word}\n" in capsys.readouterr().out) == finished == (not trained)
        return
    code, shown = command("resume=latest", word)
    if not finished and ".path" in word:
        assert code == 0 and trained  # whether it is the same data is seen once it is read
    else:
        line = shlex.split(shown.replace("\n", " ").rpartition("python -m dtl.train ")[2])
        given = [f"init={run_dir.relative_to(elsewhere)}" if part == "init=RUN" else part for part in meant]
        assert code == 2 and word.partition("=")[2] in shown and not trained
        assert line == given
        assert dtl.compose(*line)


def test_a_run_that_was_stopped_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dtl-train"])

    def job(_: object) -> None:
        raise InterruptedRun("Stopped at step 7 and saved.", 2)

    with pytest.raises(SystemExit) as ended:
        run_command(job, replace(COMMAND, multirun=False))
    assert ended.value.code == 130 and capsys.readouterr().err == "Stopped at step 7 and saved.\n"


@pytest.mark.parametrize("own", [True, False])
def test_a_recipe_says_where_its_text_comes_from(command, elsewhere, own):
    line = "curl -o my.txt https://example.org/my.txt"
    recipe = elsewhere / "mine" / "experiment" / "own.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(
        f"# @package _global_\n#   {line}\ndefaults: [{{override /data: text}}]\ndata: {{path: my.txt}}\n"
    )
    words = ["--config-dir=mine", "experiment=own"] if own else ["experiment=shakespeare_char"]
    code, shown = command(*words, "tracker=local")
    assert code == 1 and f"To get it: {line if own else 'curl -o tinyshakespeare.txt https://'}" in shown, shown
    code, shown = command(*words, "data.path=other.txt")
    assert code == 1 and "other.txt" in shown and "curl" not in shown


def test_resume_does_not_pretend_to_go_back(command, elsewhere):
    """A checkpoint that is not the run's newest is rejected by name, not replaced by the newest."""
    run_dir = elsewhere / "outputs" / "2031-01-02" / "03-04-05-6_small_qa"
    older, _ = imitate(run_dir, 7), imitate(run_dir, 13)
    code, shown = command(f"resume={older}")
    assert code == 2 and "resumes from its newest checkpoint, step-00000013" in shown and f"init={older}" in shown


def test_a_folder_with_a_quote_in_its_name_can_be_resumed(elsewhere):
    run_dir = elsewhere / "o'neil's" / "outputs" / "2031-01-02" / "03-04-05-6_small_qa"
    imitate(run_dir, 7)
    spoken = f"hydra.run.dir={quoted(str(run_dir))}"
    for spec in (quoted(str(run_dir)), f'"{run_dir}"', str(run_dir)):
        assert spoken in dtl.train.prepare_arguments([f"resume={spec}"])


@pytest.mark.parametrize(
    "argument", ["model.dim=4", "init=latest", "data=wiki", "+foo=1", "trainer.micro_batch_size=2"]
)
def test_a_resumed_run_keeps_its_config(command, elsewhere, argument):
    imitate(elsewhere / "outputs" / "2026-01-31" / "10-00-00-1_run", step=7)
    before = left_behind(elsewhere)
    code, shown = command("resume=latest", argument)
    assert code == 2 and shown.startswith(f"Error: {argument}: a resumed run keeps its config. With resume= only")
    assert len(shown.splitlines()) == 1 and left_behind(elsewhere) == before


@pytest.mark.parametrize("name", ["../../x", "a/b", "x" * 260])
def test_a_name_of_a_recipe_leads_nowhere_either(command, elsewhere, name):
    (elsewhere / "in" / "conf" / "experiment").mkdir(parents=True)
    (elsewhere / "in" / "conf" / "experiment" / "mine.yaml").write_text(f"# @package _global_\nname: {name}\n")
    before = left_behind(elsewhere)
    code, shown = command("--config-dir=in/conf", "experiment=mine")
    assert code == 2 and shown.startswith(f"Error: name={name[:90]}") and left_behind(elsewhere) == before


# Data of a run that is somewhere else, seen from another folder.

OWN_DATA = {
    "qa": {"sources": {"qa": {"kind": "qa"}}, "qa": {"path": "pairs.jsonl"}},
    "path": {"sources": {"qa": {"kind": "qa"}}, "path": "pairs.jsonl"},
    "sources": {"sources": {"mine": {"kind": "qa", "path": "pairs.jsonl"}, "facts": {"kind": "qa"}}},
}


@pytest.fixture(params=OWN_DATA)
def moved(request, elsewhere, monkeypatch) -> tuple[str, Path]:
    """A run whose data was given in one of the ways, seen from a folder beside the one it was started in."""
    run_dir = elsewhere / "lab" / "outputs" / "2031-01-02" / "03-04-05-6_mine"
    run_dir.mkdir(parents=True)
    values = OmegaConf.merge(OmegaConf.structured(RunConfig), {"data": {"sources": {}}})
    values.data.sources = {}
    values = OmegaConf.merge(values, {"data": OWN_DATA[request.param]})
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(values))
    (run_dir / "run.json").write_text(json.dumps({"cwd": str(elsewhere / "lab")}))
    pairs = [{"question": f"{n}?", "answer": f"{n}"} for n in range(9)]
    (elsewhere / "lab" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (elsewhere / "desk").mkdir()
    monkeypatch.chdir(elsewhere / "desk")
    monkeypatch.setattr(dtl.train, "_run_folder", lambda spec: run_dir)
    monkeypatch.setattr(dtl.train, "newest_valid", lambda folder: (Checkpoint(folder, 3), None))
    return request.param, elsewhere


def path_of(config: RunConfig) -> str | None:
    return next(iter(config.data.resolved_sources().values())).path


def test_a_run_finds_its_data_from_another_folder(moved, trained, command):
    _, folder = moved
    assert command("resume=run") == (0, "")
    assert path_of(trained[0]) == str(folder / "lab" / "pairs.jsonl")
    (folder / "lab").rename(folder / "hall")  # all of it: run.json names a folder that is gone
    config = {"data": {"sources": {"a": {"kind": "qa"}}, "path": "pairs.jsonl"}}
    found = with_data_found(config, folder / "hall" / "outputs" / "run")
    assert found["data"]["path"] == str(folder / "hall" / "pairs.jsonl")


@pytest.mark.quick_cases(1)
def test_a_resumed_run_is_told_where_its_data_is_now(moved, trained, command):
    way, folder = moved
    (folder / "lab" / "pairs.jsonl").rename(folder / "desk" / "here.jsonl")
    key = {"qa": "data.qa.path", "path": "data.path", "sources": "data.sources.mine.path"}[way]
    code, shown = command("resume=run")
    assert code == 1 and f"add its place: {key}=NEW" in shown
    (folder / "desk" / "pairs2.jsonl").touch()  # another file, which is not what the run was trained on
    shown = command("resume=run")[1]
    assert "pairs2.jsonl" in shown and "Did you mean" not in shown
    keys = ["data.sources.mine.path"] if way == "sources" else ["data.path", "data.qa.path", "data.sources.qa.path"]
    for given in keys:
        assert command("resume=run", f"{given}=here.jsonl") == (0, "")
        assert path_of(trained[-1]) == str(folder / "desk" / "here.jsonl")
    code, shown = command("resume=run", "data.sources.other.path=here.jsonl")
    assert code == 2 and "data.sources.other.path=here.jsonl: this run has no such source" in shown


def test_a_name_on_the_hub_is_no_path(tmp_path):
    (tmp_path / "me" / "x").mkdir(parents=True)
    (tmp_path / "run.json").write_text(json.dumps({"cwd": str(tmp_path)}))
    config = {"data": {"sources": {"hub": {"kind": "hub", "path": "me/x"}}, "path": "me/x", "cache_dir": None}}
    assert with_data_found(config, tmp_path) == config


def test_a_bad_job_does_not_stop_a_sweep_of_hydras_own_launcher(command, trained, elsewhere):
    code, shown = command("-m", "hydra/launcher=basic", "model.n_heads=7,4,13,8", "tracker=local")
    assert [config.model.n_heads for config in trained] == [4, 8]
    assert "Error: model.n_heads=7: must divide" in shown and "Error: model.n_heads=13: must divide" in shown
    assert code == 1 and "Traceback" not in shown
    assert not [path for path in elsewhere.rglob("*") if path.name in ("0", "2")]


def test_an_error_in_training_does_not_stop_the_sweep_either(command, trained):
    code, shown = command("-m", "hydra/launcher=basic", "seed=12,13,14")
    assert [config.seed for config in trained] == [12, 14]
    assert shown.splitlines()[0] == "Error: an unlucky seed" and code == 1


def test_entries_of_a_mapping_need_no_plus(command, trained, elsewhere):
    (elsewhere / "x.txt").write_text("A text of one's own.")
    new = ("data.sources.mine.kind=text", "data.sources.mine.path=x.txt", "data.sources.qa.weight=0.5")
    own = ("trainer.stop_criteria=[patience]", "trainer.stop_options={a: 1}")
    assert command(*new, *own, "model.arch.options.b=[c]", "model.arch.block=modern") == (
        2,
        "Error: model.arch.options={'b': ['c']}: model.arch.block=modern has none. "
        "They are for a user-defined block.\n",
    )
    assert command(*new, *own)[0] == 0
    (config,) = trained
    assert list(config.data.sources) == ["qa", "mine"] and config.data.sources["qa"].weight == 0.5
    assert (config.data.sources["mine"].kind, config.data.sources["mine"].path) == ("text", "x.txt")
    assert config.trainer.stop_options == {"a": 1}


def test_an_experiment_is_a_recipe_that_the_command_line_beats(command, trained, elsewhere):
    recipe = elsewhere / "recipes" / "experiment" / "long.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(
        "# @package _global_\ndefaults: [{override /model: medium}]\nname: long\nseed: 5\ntrainer: {total_steps: 9}\n"
    )
    assert command(f"--config-dir={recipe.parents[1]}", "experiment=long", "seed=6")[0] == 0
    (config,) = trained
    assert (config.model.dim, config.trainer.total_steps, config.seed, config.name) == (512, 9, 6, "long")


WRONG_RECIPES = {
    "trainer: {totl_steps: 9}": "trainer.totl_steps in experiment/mine.yaml: there is no such key. Did you mean 'tr",
    "trainer: {total_steps: soon}": "trainer.total_steps=soon in experiment/mine.yaml: must be an integer or null",
    "foo: 1": "foo in experiment/mine.yaml: there is no such key.",
    "defaults: [{override /model: smol}]": "model=smol: there is no such choice.",
    "trainer: [": "mine.yaml, line 2: not valid YAML",
    "model: {n_heads: 7}": "model.n_heads=7: must divide model.dim=256.",
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("wrong", WRONG_RECIPES)
def test_a_wrong_recipe_is_named(command, elsewhere, wrong):
    recipe = elsewhere / "recipes" / "experiment" / "mine.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(f"# @package _global_\n{wrong}")
    code, shown = command(f"--config-dir={recipe.parents[1]}", "experiment=mine")
    assert WRONG_RECIPES[wrong] in shown
    assert code == 2 and "Traceback" not in shown and len(shown.splitlines()) == 1
    assert not (elsewhere / "outputs").exists() or not list((elsewhere / "outputs").iterdir())


def test_a_run_gets_a_folder_of_its_own(command, trained, elsewhere):
    assert command("name=mine")[0] == 0
    (hydra,) = elsewhere.glob("outputs/*/*_mine/.hydra")
    assert re.fullmatch(r"\d\d-\d\d-\d\d-\d+_mine", hydra.parent.name)
    assert {path.name for path in hydra.iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}


# --- suggestions --------------------------------------------------------------------------------------------------


def misspelt(word: str, chance: random.Random) -> str:
    """A word with one letter deleted, inserted, replaced, or swapped with the next."""
    i, letter = chance.randrange(len(word) - 1), chance.choice(string.ascii_lowercase)
    before, at, after = word[:i], word[i], word[i + 1 :]
    swapped = before + after[0] + at + after[1:]
    return chance.choice([before + after, before + letter + at + after, before + letter + after, swapped])


@pytest.mark.slow
def test_a_misspelt_key_finds_its_right_spelling():
    chance, schema = random.Random(7), OmegaConf.structured(RunConfig)
    names = [key.name for key in COMMAND.settings if ENTRY not in key.name]
    mappings = [key.name for key in COMMAND.settings if key.type == "mapping"]
    right = wrong = 0
    while right + wrong < 300:
        name = chance.choice(names)
        typed = misspelt(name, chance)
        if typed in {*names, *COMMAND.groups()} or typed.strip(".") != typed or typed.startswith(tuple(mappings)):
            continue
        with pytest.raises(OmegaConfBaseException) as caught:
            OmegaConf.merge(schema, OmegaConf.from_dotlist([f"{typed}=1"]))
        found = f"Did you mean '{name}'?" in str(translate_error(caught.value, [f"{typed}=1"], COMMAND))
        right, wrong = right + found, wrong + (not found)
    assert right / (right + wrong) >= 0.95


# --- help and the real command ------------------------------------------------------------------------------------


def test_help_names_every_group_every_choice_and_every_key(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dtl-train", "--help=all"])
    dtl.train.main()
    page = capsys.readouterr().out
    for group, choices in COMMAND.groups().items():
        if choices:
            listed = r"\s+\|\s+".join(map(re.escape, choices))  # over several lines where they are many
            assert re.search(rf"^  {group} +{listed}$", page, re.MULTILINE)
    for key in COMMAND.settings:
        assert re.search(rf"^    {re.escape(key.name)}=\S*  \({key.type}\)\n        \S", page, re.MULTILINE), key
    sweeps = page.partition("\nSweeps: ")[2]
    assert [key.name for keys in COMMAND.sweep_settings.values() for key in keys] == re.findall(
        r"^    (hydra\S+)=", sweeps, re.M
    )
    assert "    hydra.launcher.n_jobs=1  (integer)\n        trials that run at the same time\n" in sweeps
    assert "    hydra.sweeper.hours=null  (number or null)\n        for all sessions of the sweep" in sweeps
    assert len(re.findall(r"^  python -m dtl\.train ", page, re.MULTILINE)) == 6
    assert max(map(len, page.splitlines())) <= 140


def test_the_command_as_it_is_typed(elsewhere):
    process = [sys.executable, "-m", "dtl.train"]
    helped = subprocess.run([*process, "-h"], capture_output=True, text=True)
    assert (helped.returncode, helped.stderr) == (0, "") and "resume the last run" in helped.stdout
    refused = subprocess.run([*process, "trainer.hours=soon"], capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Error: trainer.hours=soon: must be a number or null")
    shown = subprocess.run([*process, "--cfg", "job", "--resolve", "model=qa"], capture_output=True, text=True)
    assert shown.returncode == 0 and "max_seq_len: 1024" in shown.stdout and "name: qa_qa" in shown.stdout
    assert left_behind(elsewhere) == []
