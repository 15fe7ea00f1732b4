"""`compose` and `overrides_of`: the command's config from Python, and the way back to the words."""

import string
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import hydra.core.hydra_config
import pytest
from composing import composed
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import dtl.train
from dtl.base.paths import conf_dir
from dtl.base.redaction import is_secret_name
from dtl.commandline.compose import COMMAND, compose
from dtl.commandline.overrides import overrides_of, rerun_words
from dtl.config import RunConfig, to_dict
from dtl.data.config import DataConfig, SourceConfig
from dtl.errors import ConfigError
from dtl.model.config import ArchConfig, ModelConfig
from dtl.training.config import OptimizerConfig, TrainerConfig

GROUPS = {
    group: [f"{group}={choice}" for choice in choices if f"{group}={choice}" != "data=text"]  # needs a path
    for group, choices in COMMAND.groups().items()
}
NEEDED = {"experiment=text_cpu": ["data.path=books/"], "experiment=my_pairs": ["data.qa.path=my_pairs.jsonl"]}
# Every choice of every group once, with the choices of the other groups at the same place; recipes alone.
TOGETHER = [
    [choice for choice in choices if choice] + ["trainer.hours=1"] * ("model=auto" in choices)
    for choices in zip_longest(*(choices for group, choices in GROUPS.items() if group != "experiment"))
]
ALONE = [[choice, *NEEDED.get(choice, [])] for choice in GROUPS["experiment"]]


@pytest.mark.parametrize("words", [[], ["model=large", "data=wiki"], ["experiment=demo"], ["name=mine", "seed=3"]])
def test_the_config_is_the_commands(words):
    assert compose(*words) == composed(*words)


def test_it_is_the_same_command():
    """Its texts are for --help; all else decides about words and messages."""
    assert replace(dtl.train.COMMAND, usage="", details="") == COMMAND


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize(
    "word",
    [
        *("optimizer.lrr=1", "model=smal", "a b", "model.n_heads=7", "trainer.total_steps=x", "model.arch=classic"),
        *(
            "=3",
            "model=",
            "experiment=nope",
            "+model=small",
            "x=3",
            "model=true",
            "schedule=1e-3",
            "optimizer=[a,[b]]",
            "@x=1",
            "++x=3",
            "name=a/b",
            "plugins=[nope]",
            "optimizer.betas=[0.9,",
        ),
        *("data.sources.qa.weight=-1", "wandb.api_key=3", "optimizer.betas=[1,2,3]"),
    ],
)
def test_a_wrong_word_gets_the_commands_message(word, elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dtl-train", word])
    with pytest.raises(SystemExit):
        dtl.train.main()
    shown = capsys.readouterr().err.strip()
    with pytest.raises(ConfigError) as rejected:
        compose(word)
    assert shown == f"Error: {rejected.value}"


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("seed=1,2", "seed=1,2: several values are several runs"),
        ("optimizer.lr=choice(1e-3,3e-3)", "Call it once for each value"),
        ("trainer.total_steps=range(1,5)", "several values are several runs"),
        ("-m", "-m: a flag of the command line"),
        ("--config-dir=my_conf", 'config_dir="my_conf"'),
        ("hydra.run.dir=x", "hydra.run.dir=x: sets how the command starts runs"),
        ("hydra/launcher=joblib", "Leave it out"),
        (3, "3: dtl.compose takes words"),
    ],
)
def test_what_only_a_command_line_can_do_is_rejected_by_name(word, remedy):
    with pytest.raises(ConfigError) as rejected:
        compose(word)
    assert remedy in str(rejected.value)


def test_groups_of_ones_own(elsewhere):
    (elsewhere / "my_conf" / "optimizer").mkdir(parents=True)
    (elsewhere / "my_conf" / "optimizer" / "mine.yaml").write_text("lr: 0.125")
    for folder in ("my_conf", Path("my_conf"), elsewhere / "my_conf"):
        assert compose("optimizer=mine", config_dir=folder).optimizer == OptimizerConfig(lr=0.125)
    with pytest.raises(ConfigError, match="optimizer=mine: there is no such choice"):
        compose("optimizer=mine")
    with pytest.raises(ConfigError, match="config_dir=nowhere: there is no such folder"):
        compose(config_dir="nowhere")


def test_hydras_state_is_unchanged():
    """Inside a job of another application, which reads its own config afterwards."""
    with initialize_config_dir(str(conf_dir()), version_base="1.2"):
        hydra.core.hydra_config.HydraConfig.instance().cfg = running = object()
        before = GlobalHydra.instance().hydra, VersionBase.instance().getbase()
        assert compose("model=medium").name == "medium_qa"
        with pytest.raises(ConfigError):
            compose("model=smal")
        assert HydraConfig.instance().cfg is running
        assert (GlobalHydra.instance().hydra, VersionBase.instance().getbase()) == before
        HydraConfig.instance().cfg = None


def test_threads_get_their_own_configs():
    found: dict[str, list[str]] = {}

    def ask(size: str) -> None:
        found[size] = [compose(f"model={size}").name for _ in range(3)]

    threads = [threading.Thread(target=ask, args=(size,)) for size in ("small", "medium", "large")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {size: [f"{size}_qa"] * 3 for size in ("small", "medium", "large")}


def test_composing_imports_no_torch(elsewhere):
    program = "import sys, dtl; dtl.compose('model=small'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


# --- the way back -------------------------------------------------------------------------------------------------


def assert_same_again(config: RunConfig) -> None:
    again = compose(*overrides_of(config))
    assert again == config
    assert list(again.data.sources) == list(config.data.sources)  # the first one is validated on


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("choices", [["data=text", "data.path=books/"], *TOGETHER, *ALONE], ids=" ".join)
def test_the_words_of_a_config_compose_to_it(choices):
    assert_same_again(compose(*choices))


def test_the_defaults_need_no_words():
    assert overrides_of(compose()) == []
    assert overrides_of(RunConfig()) == ["name=run"]


MIXED = DataConfig(
    sources={"wiki": SourceConfig(kind="wiki", path="a b"), "qa": SourceConfig(kind="qa", weight=0.5)}, loss_on="answer"
)


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(data=MIXED),
        RunConfig(data=DataConfig(sources={"hub": SourceConfig(kind="hub", path="a/b", splits={"train": "x, y"})})),
        RunConfig(data=replace(compose().data, sources={"qa": SourceConfig(kind="qa"), "a": SourceConfig(kind="qa")})),
        RunConfig(data=replace(compose().data, sources={"qa": SourceConfig(kind="qa", path="x", weight=2)})),
        RunConfig(model=ModelConfig(arch=ArchConfig(block="modern"), n_kv_heads=2, dropout=0)),
        RunConfig(optimizer=OptimizerConfig(lr=1e-20, eps=1)),
        RunConfig(trainer=TrainerConfig(stop_criteria=["hours"], stop_options={"a": {"b c": [1, None, "x"]}, "d": {}})),
        RunConfig(name="small_qa", seed=2**62, trainer=TrainerConfig(hours=0.5, early_stopping_patience=None)),
    ],
)
def test_configs_made_by_hand(config):
    assert_same_again(config)


HARD = ["null", "True", "1e5", "${x}", "\\", "'", '"', "a,b", "{a: b}", "-", "~x", "\n", "é"]
TEXTS = st.text() | st.sampled_from(HARD)
VALUES = TEXTS | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.lists(TEXTS, max_size=3)
NAMES = st.text(string.ascii_letters, min_size=1).filter(lambda name: not is_secret_name(name))


@pytest.mark.slow
@settings(max_examples=6, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(path=TEXTS, stop=st.lists(TEXTS.filter(bool), max_size=3), options=st.dictionaries(NAMES, VALUES, max_size=3))
def test_any_value_survives(path, stop, options):
    config = compose()
    config.data.path, config.sampling.stop = path, stop
    config.trainer.stop_criteria, config.trainer.stop_options = ["hours"], options
    assert to_dict(compose(*overrides_of(config))) == to_dict(config)


def test_a_checkpoints_own_settings_are_no_words():
    """`python -m dtl.train init=...` accepts none of them."""
    for word in ("model.dim=64", "tokenizer=byte"):
        with pytest.raises(ConfigError, match=f"{word}: init=outputs/a brings its own size"):
            compose("init=outputs/a", word)
    config = compose("model.dim=64", "model.dropout=0", "tokenizer=byte", "seed=5")
    config.init = "outputs/a"
    assert rerun_words(config) == ["model.dropout=0.0", "seed=5", "init=outputs/a"]
