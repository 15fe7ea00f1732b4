"""Words as people type them: paths and texts that mean what they say, and other programs' words with the right ones."""

import importlib
import shlex
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

import dtl.diagnose
import dtl.train
from dtl.base.paths import conf_dir
from dtl.checkpoints.find import find_checkpoint
from dtl.commandline.command import ENTRY, Command
from dtl.commandline.compose import compose
from dtl.commandline.corrections import check_words
from dtl.commandline.overrides import as_shown, to_hydra_syntax, unquoted
from dtl.config import RunConfig
from dtl.errors import CheckpointError, ConfigError

COMMANDS: dict[str, Command] = {
    file.stem: importlib.import_module(f"dtl.{file.stem}").COMMAND for file in sorted(conf_dir().glob("*.yaml"))
}
TRAIN = COMMANDS["train"]
PATHS = [
    (name, key.name.replace(ENTRY, "mine"))
    for name, command in COMMANDS.items()
    for key in command.settings
    if key.is_path
] + [("train", "hydra.run.dir"), ("train", "hydra.sweep.dir")]
TYPED = [
    "~/texts",
    "my texts",
    "été/böse.txt",
    "a=b.txt",
    "text (1).txt",
    "it's.txt",
    "a, b.txt",
    "[x]",
    "{y}",
    "C:\\a",
]
TYPED += ["2024_11_28", "3e-4", "007", "a;b&c#d!", "*.txt", "x:y", "-"]
ODD = st.text(alphabet=st.sampled_from("'\"\\$[](){}, =:~+-#1aé.\t/"), min_size=1)


@pytest.fixture(autouse=True)
def outside_the_checkout(elsewhere: Path) -> None:
    """A working directory without the checkout's outputs/."""


def read_by_hydra(word: str, command: Command = TRAIN, sweeps: bool = False) -> object:
    override = OverridesParser.create().parse_override(to_hydra_syntax(word, command, sweeps))
    assert not override.is_sweep_override(), word
    value = override.value()
    return getattr(value, "text", value)


def as_opened(path: str, key: str) -> str:
    """Hydra opens its own folders itself, and knows no `~`."""
    return str(Path(path).expanduser()) if key.startswith("hydra.") and path.startswith("~") else path


@pytest.mark.parametrize(("name", "key"), PATHS)
def test_a_path_arrives_as_it_was_typed(name, key):
    for path in TYPED:
        assert str(read_by_hydra(f"{key}={path}", COMMANDS[name])) == as_opened(path, key)


@settings(max_examples=200, deadline=None)
@given(ODD)
def test_any_path_arrives(path):
    quoted_already = len(path) > 1 and path[0] == path[-1] and path[0] in "'\""
    if "${" not in path and not quoted_already:
        assert str(read_by_hydra(f"data.path={path}")) == path


def test_keys_of_files_and_folders_are_paths():
    """Their names are listed once, for all commands; whatever speaks of a file or folder is among them."""
    others = ("name", "group", "model", "verify", "column", "encoding")  # speak of one, and are none
    for command in COMMANDS.values():
        for key in command.settings:
            speaks_of_one = key.is_text and any(word in key.meaning for word in ("file", "folder"))
            assert not speaks_of_one or key.is_path or key.name.rpartition(".")[2] in others, key


TEXTS = [key.name.replace(ENTRY, "mine") for key in TRAIN.settings if key.is_text and key.name != "data.qa.prompt"]


@pytest.mark.parametrize("key", TEXTS)
def test_a_text_is_no_number(key):
    for text in ("2024_11_28", "3e-4", "12e4567", "1e3", "007", "true", "nan", "-1", "0x1F", "1_000"):
        assert read_by_hydra(f"{key}={text}") == text
        assert read_by_hydra(f"{key}='{text}'") == text
    assert read_by_hydra(f"{key}=null") is None


@pytest.mark.parametrize("key", ["tracker.tags", "data.tasks", "sampling.stop", "trainer.stop_criteria"])
def test_a_list_of_texts_has_no_numbers(key):
    values = read_by_hydra(f"{key}=[1e3, 2024_11_28,true, a b,é]")
    assert isinstance(values, list)
    assert [getattr(value, "text", value) for value in values] == ["1e3", "2024_11_28", "true", "a b", "é"]
    assert read_by_hydra(f"{key}=[]") == []
    values = read_by_hydra(f"""{key}=['x', 1_000,null,"y, z"]""")
    assert isinstance(values, list)
    assert [getattr(value, "text", value) for value in values] == ["x", "1_000", "null", "y, z"]


def test_texts_in_a_config(tmp_path, monkeypatch):
    monkeypatch.setenv("FOLDER_OF_MINE", "my texts")
    config = compose("name=2024_11_28", "tracker.tags=[1e3,3e-4]", "data=text", "data.path=${oc.env:FOLDER_OF_MINE}/a")
    assert (config.name, config.tracker.tags) == ("2024_11_28", ["1e3", "3e-4"])
    assert config.data.path == "my texts/a"


A_TEXT, IN_A_LIST = "tracker: {{group: {}}}", "tracker: {{tags: [a, {}]}}"


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        *((A_TEXT, typed) for typed in ("2024_11_28", "0x1F", "007", ".inf")),
        *((IN_A_LIST, typed) for typed in ("1:30", "off", "1e3")),
    ],
)
def test_a_text_that_yaml_reads_as_another_is_named(tmp_path, typed, line):
    (tmp_path / "experiment").mkdir()
    recipe = tmp_path / "experiment" / "mine.yaml"
    recipe.write_text(f"# @package _global_\n{line.format(typed)}\noptimizer: {{lr: 1e-3}}\n")
    with pytest.raises(
        ConfigError, match=rf"mine\.yaml: {typed} is text, and YAML reads .* Write it in quotes: '{typed}'"
    ):
        compose("experiment=mine", config_dir=tmp_path)
    recipe.write_text(recipe.read_text().replace(typed, f"'{typed}'"))
    config = compose("experiment=mine", config_dir=tmp_path)
    assert typed in (config.tracker.group, *config.tracker.tags) and config.optimizer.lr == 1e-3


def values_of(word: str) -> list[str]:
    override = OverridesParser.create().parse_override(to_hydra_syntax(word, TRAIN, sweeps=True))
    assert override.is_sweep_override()
    return [unquoted(value) for value in override.sweep_string_iterator()]


def test_in_a_sweep_commas_separate_values(elsewhere):
    assert values_of("data.path=a (1).txt,~/b.txt") == ["a (1).txt", "~/b.txt"]
    assert values_of("name=1e3,2024_11_28") == ["1e3", "2024_11_28"]
    assert values_of("device=choice(cpu,cuda)") == ["cpu", "cuda"]
    assert values_of("data.path=null,a") == ["null", "a"]
    (elsewhere / "a, b.txt").touch()
    assert read_by_hydra("data.path=a, b.txt", sweeps=True) == "a, b.txt"


def test_several_files_still_need_a_sweep(elsewhere):
    for name in ("a.txt", "b.txt"):
        (elsewhere / name).touch()
    with pytest.raises(ConfigError, match="several values are several runs"):
        compose("data=text", "data.path=a.txt,b.txt")


@settings(max_examples=100, deadline=None)
@given(ODD)
def test_a_word_that_is_shown_can_be_typed_again(text):
    word = to_hydra_syntax(f"data.sources.mine.path={text}", TRAIN)
    assert read_by_hydra(as_shown(word)) == read_by_hydra(word)


# --- words of other programs --------------------------------------------------------------------------------------

NANOGPT = """--dataset=wiki --n_layer=6 --n_head=6 --n_embd=384 --block_size=256 --batch_size=64 --max_iters=5000
--learning_rate=1e-3 --gradient_accumulation_steps=4 --eval_interval=250 --eval_iters=20 --log_interval=10
--weight_decay=0.1 --dropout=0.2 --grad_clip=1.0 --warmup_iters=100 --dtype=bfloat16 --compile=False --device=cpu
--seed=7 --wandb_log=False --out_dir=out"""
TRAINER = """--num_train_epochs 3 --per_device_train_batch_size 8 --output_dir out --max_steps 100 --logging_steps 10
--eval_steps 50 --save_steps 50 --save_total_limit 2 --warmup_steps 20 --lr_scheduler_type cosine --max_grad_norm 1.0
--label_smoothing_factor 0.1 --gradient_checkpointing --bf16 --report_to none --run_name mine --do_train
--hidden_size 64 --num_hidden_layers 2 --num_attention_heads 2 --num_key_value_heads 1 --intermediate_size 96"""
RIGHT = {
    "--model small": "model=small",
    "--model=small --device cpu": "model=small device=cpu",
    "model small": "model=small",
    "model small data qa": "model=small data=qa",
    "lr=1e-3": "optimizer.lr=1e-3",
    "epochs=5": "trainer.max_epochs=5",
    "max_epochs=5 --micro_batch_size 7": "trainer.max_epochs=5 trainer.micro_batch_size=7",
    "batch_size=32 seed=3": "trainer.micro_batch_size=32 seed=3",
    "-m lr=1e-3,3e-3": "-m optimizer.lr=1e-3,3e-3",
    "--config-dir mine --epochs 3": "--config-dir mine trainer.max_epochs=3",
    "lr = 1e-3": "optimizer.lr=1e-3",
    "optimizer.lr= 1e-3": "optimizer.lr=1e-3",
    "optimizer.lr =1e-3": "optimizer.lr=1e-3",
    "--trainer-total-steps 5": "trainer.total_steps=5",
    "--no-compile": "trainer.compile=false",
    "--data my.txt": "data=text data.path=my.txt",
    "data my.txt": "data=text data.path=my.txt",
    "--data my_pairs.jsonl": "experiment=my_pairs data.qa.path=my_pairs.jsonl",
    "--tokenizer my_model/ model=small": "tokenizer=gpt2 tokenizer.path=my_model/ model=small",
    "train.py --lr 1e-3": "optimizer.lr=1e-3",
    "python config/train_char.py": "",
    "--eps -3": "optimizer.eps=-3",
    "~/texts": "data=text 'data.path=~/texts'",
    "my_pairs.jsonl": "experiment=my_pairs data.qa.path=my_pairs.jsonl",
    "my_pairs.jsonl model=small": "data=qa data.qa.path=my_pairs.jsonl model=small",
    "data=qa my_pairs.jsonl": "data=qa data.qa.path=my_pairs.jsonl",
    '"texts (1)=a/b.txt"': "data=text 'data.path=texts (1)=a/b.txt'",
    "data=my_pairs.jsonl": "experiment=my_pairs data.qa.path=my_pairs.jsonl",
    "data=my_pairs.jsonl model=small": "data=qa data.qa.path=my_pairs.jsonl model=small",
    "data=my_texts/": "data=text data.path=my_texts/",
    "data=~/texts": "data=text 'data.path=~/texts'",
    "tokenizer=my_model/": "tokenizer=gpt2 tokenizer.path=my_model/",
    "trainer.device=cuda seed=3": "device=cuda seed=3",
    "optimizer.batch_size=3": "trainer.micro_batch_size=3",
    "model.seed=3": "seed=3",
    "trainer.lr=1e-3": "optimizer.lr=1e-3",
    "resume=last": "resume=latest",
    "init=newest": "init=latest",
    "small": "model=small",
    "resume": "resume=latest",
    "resume latest": "resume=latest",
    "--init_from=resume": "resume=latest",
    NANOGPT: "data=wiki model.n_layers=6 model.n_heads=6 model.dim=384 model.max_seq_len=256 "
    "trainer.micro_batch_size=64 trainer.total_steps=5000 optimizer.lr=1e-3 trainer.grad_accum_steps=4 "
    "trainer.eval_every_steps=250 trainer.eval_max_batches=20 trainer.log_every_steps=10 "
    "optimizer.weight_decay=0.1 model.dropout=0.2 "
    "trainer.max_grad_norm=1.0 schedule.warmup_steps=100 trainer.precision=bf16 trainer.compile=False "
    "device=cpu seed=7 tracker=local hydra.run.dir=out",
    TRAINER: "trainer.max_epochs=3 trainer.micro_batch_size=8 hydra.run.dir=out trainer.total_steps=100 "
    "trainer.log_every_steps=10 trainer.eval_every_steps=50 trainer.save_every_steps=50 trainer.keep=2 "
    "schedule.warmup_steps=20 schedule=cosine trainer.max_grad_norm=1.0 trainer.loss.label_smoothing=0.1 "
    "trainer.activation_checkpointing=full trainer.precision=bf16 tracker=local name=mine model.dim=64 "
    "model.n_layers=2 model.n_heads=2 model.n_kv_heads=1 model.ffn_dim=96",
}


@pytest.mark.parametrize("typed", RIGHT)
def test_the_right_command_is_shown_and_has_no_wrong_word(typed):
    with pytest.raises(ConfigError) as rejected:
        check_words(shlex.split(typed), TRAIN)
    line = str(rejected.value).splitlines()[1]
    assert line == f"  python -m dtl.train {RIGHT[typed]}".rstrip()
    check_words(shlex.split(line)[3:], TRAIN)


OF_A_COMMAND = ("-", "hydra.", "resume=", "init=", "data", "experiment=my_pairs", "tokenizer", "optimizer.eps=-3")
LINES = [shlex.split(line) for line in reversed(RIGHT.values()) if not {"--config-dir", "-m"} & {*shlex.split(line)}]
COMPOSED = dict.fromkeys(tuple(word for word in words if not word.startswith(OF_A_COMMAND)) for words in LINES)


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("words", [words for words in COMPOSED if words], ids=" ".join)
def test_the_right_command_is_accepted(words):
    compose(*words)


@pytest.mark.parametrize(
    ("typed", "rule"),
    [
        ("lr=1e-3 seed=3 epochs=5", "DTL calls this optimizer.lr, trainer.max_epochs."),
        ("path=my_texts", "DTL calls this data.path."),
        ("lr=1e-3 --epochs 5", "DTL's settings are key=value."),
        ("model small", "DTL's settings are key=value."),
        ("my_texts/", "DTL's settings are key=value."),
    ],
)
def test_what_is_key_and_value_already_is_told_the_full_key(typed, rule):
    with pytest.raises(ConfigError) as rejected:
        check_words(typed.split(), TRAIN)
    assert f": {rule} The same command" in str(rejected.value)


def test_a_path_that_the_shell_split_is_told_about_quotes(elsewhere):
    (elsewhere / "my own texts").mkdir()
    with pytest.raises(ConfigError) as rejected:
        check_words(["data=text", "data.path=my", "own", "texts"], TRAIN)
    assert str(rejected.value).startswith("data.path=my own texts: a value with spaces needs quotes. The same command")
    assert str(rejected.value).endswith("  python -m dtl.train data=text 'data.path=my own texts'")


def test_a_file_whose_name_has_an_equals_sign(elsewhere):
    (elsewhere / "a=b.txt").touch()
    with pytest.raises(ConfigError, match=r"\n  python -m dtl\.train data=text data\.path=a=b\.txt$"):
        check_words(["a=b.txt"], TRAIN)
    check_words(["a=c.txt"], TRAIN)  # a key that does not exist: Hydra's error has the hint


@pytest.mark.parametrize(
    ("name", "typed", "right"),
    [
        ("chat", ["--model", "outputs/a b", "--device=cpu"], "'ckpt=outputs/a b' device=cpu"),
        ("chat", ["latest"], "ckpt=latest"),
        ("chat", ["--checkpoint", "latest", "--temperature", "0.7"], "ckpt=latest sampling.temperature=0.7"),
        ("generate", ["--prompt", "Once upon a time", "ckpt=latest"], "'prompt=Once upon a time' ckpt=latest"),
        ("generate", ["Once upon a time", "ckpt=latest"], "'prompt=Once upon a time' ckpt=latest"),
        ("generate", ["What is a=b?", "ckpt=latest"], "'prompt=What is a=b?' ckpt=latest"),
        (
            "generate",
            ["--start=x", "--max_new_tokens=5", "--top_k=3"],
            "prompt=x sampling.max_new_tokens=5 sampling.top_k=3",
        ),
        ("generate", ["ckpt=latest", "prompt=Hello,", "world"], "ckpt=latest 'prompt=Hello, world'"),
        ("generate", ["ckpt=latest", "Hello", "big", "world"], "ckpt=latest 'prompt=Hello big world'"),
        ("generate", ["--start", "Hello,", "world", "ckpt=latest"], "'prompt=Hello, world' ckpt=latest"),
        ("generate", ["prompt", "=", "Once", "upon", "seed=3"], "'prompt=Once upon' seed=3"),
        ("generate", ["prompt", "Once", "upon", "seed=3"], "'prompt=Once upon' seed=3"),
        ("evaluate", ["outputs/a"], "ckpt=outputs/a"),
        ("evaluate", ["ckpt=my/pairs.jsonl"], "ckpt=latest data=qa data.qa.path=my/pairs.jsonl"),
        ("evaluate", ["--model", "my.txt"], "ckpt=latest data=text data.path=my.txt"),
        ("evaluate", ["outputs/a", "pairs.csv"], "ckpt=outputs/a data=qa data.qa.path=pairs.csv"),
        ("chat", ["pairs.jsonl", "seed=3"], "ckpt=latest ask=pairs.jsonl seed=3"),
        ("chat", ["ckpt=last"], "ckpt=latest"),
        ("chat", ["ckpt=lastest"], "ckpt=latest"),
        ("train", ["resume=lates"], "resume=latest"),
        ("report", ["runs=last"], "runs=latest"),
        ("report", ["outputs/a"], "runs=outputs/a"),
        ("sweep", ["outputs/multirun/a"], "status=outputs/multirun/a"),
        ("prepare", ["my_texts/"], "data=text data.path=my_texts/"),
    ],
)
def test_other_commands_too(name, typed, right):
    with pytest.raises(ConfigError) as rejected:
        check_words(typed, COMMANDS[name])
    line = str(rejected.value).splitlines()[1]
    assert line == f"  python -m dtl.{name} {right}"
    check_words(shlex.split(line)[3:], COMMANDS[name])


def test_a_text_without_quotes_where_there_is_no_prompt():
    with pytest.raises(ConfigError, match=r"^What is it: .*\n  echo 'What is it' \| python -m dtl\.chat ckpt=latest$"):
        check_words(["ckpt=latest", "What", "is", "it"], COMMANDS["chat"])
    for words in (["ask=Who is the cook?"], ["ask=Who", "is", "the", "cook?", "seed=3"]):
        with pytest.raises(
            ConfigError, match=r"takes a file .*\n  echo 'Who is the cook\?' \| python -m dtl\.chat ckpt="
        ):
            check_words(["ckpt=latest", *words], COMMANDS["chat"])
    with pytest.raises(ConfigError, match=r"\n  python -m dtl\.chat 'ask=my pairs\.csv'$"):
        check_words(["ask=my", "pairs.csv"], COMMANDS["chat"])
    with pytest.raises(ConfigError, match=r"\n  python -m dtl\.generate ckpt=latest 'prompt=Hello, world'$"):
        check_words(["prompt=Hello,", "world"], TRAIN)
    for name in ("chat", "generate"):
        with pytest.raises(ConfigError, match=rf"\n  python -m dtl\.{name} ckpt=latest < my\.txt$"):
            check_words(["ckpt=my.txt"], COMMANDS[name])


def test_a_run_by_its_name(elsewhere):
    """The newest run that is called so; where there is none and a recipe trains one, its line."""
    for command in ("chat", "evaluate"):
        with pytest.raises(
            ConfigError, match=r"recipe.*\n  python -m dtl\.train experiment=my_pairs data\.qa\.path=\S+$"
        ):
            check_words(["my_pairs"], COMMANDS[command])
    for time in ("10-00-00-1", "11-00-00-1"):
        (elsewhere / "outputs" / "2026-01-31" / f"{time}_my_pairs" / "checkpoints").mkdir(parents=True)
    for command in ("chat", "evaluate"):
        with pytest.raises(ConfigError, match=r"ckpt=outputs/2026-01-31/11-00-00-1_my_pairs$"):
            check_words(["my_pairs"], COMMANDS[command])
        check_words(["pairs"], COMMANDS[command])  # nothing that is known
    with pytest.raises(CheckpointError, match="Similar: outputs/2026-01-31/11-00-00-1_my_pairs, "):
        find_checkpoint("my_pairs", Path("outputs"))


def test_a_choice_of_ones_own_may_have_the_name_of_a_folder(elsewhere):
    (elsewhere / "poems").mkdir()
    check_words(["--config-dir=mine", "data=poems"], TRAIN)
    with pytest.raises(ConfigError, match=r"data=text data\.path=poems$"):
        check_words(["data=poems"], TRAIN)


@pytest.mark.parametrize("typed", [["--prompt", "it's"], ["prompt=it's"], ["--prompt=it's"]])
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("chat", ["echo", "it's", "|", "python", "-m", "dtl.chat", "ckpt=latest"]),
        ("train", ["python", "-m", "dtl.generate", "ckpt=latest", "prompt=it's"]),
    ],
)
def test_a_prompt_for_a_command_without_one(typed, name, line):
    with pytest.raises(ConfigError) as rejected:
        check_words(typed, COMMANDS[name])
    assert shlex.split(str(rejected.value).splitlines()[1]) == line


@pytest.mark.parametrize(
    ("flag", "key"), [("--model", "model"), ("--lr", "optimizer.lr"), ("--max-iters", "trainer.total_steps")]
)
def test_a_flag_that_needs_a_value_is_told_so(flag, key):
    for words in ([flag], [flag, "seed=3"], [flag, "--compile"]):
        with pytest.raises(ConfigError, match=f"^{flag}: needs a value. Settings are key=value: {key}=...$"):
            check_words(words, TRAIN)


def test_what_has_no_counterpart_is_left_out_and_said():
    with pytest.raises(ConfigError) as rejected:
        check_words(["--lr=3", "--bias=False", "--modle", "small"], TRAIN)
    message, line = str(rejected.value).splitlines()
    assert (
        "--bias" in message
        and "--modle. Did you mean 'model'?" in message
        and line == "  python -m dtl.train optimizer.lr=3"
    )


@pytest.mark.parametrize(
    "words",
    [
        "model=small data=qa -m seed=1,2",
        "~data.sources.qa +data.sources.mine.kind=text",
        "trainer.stop_options.lr=1 data.sources.mine.options.epochs=2 model.arch.options={lr: 3}",
        "hydra.launcher.n_jobs=2 hydra/launcher=joblib optimizer@optimizer=muon ++optimizer.lr=3",
        "foo=1 +lr=2 bar",
        "--config-dir=mine --cfg job --resolve optimizer=own",
        "name= seed=3",
    ],
)
def test_words_of_dtl_and_unknown_ones_are_left_alone(words):
    check_words(words.split(), TRAIN)


@pytest.mark.parametrize("key", [key.name for key in TRAIN.settings if ENTRY not in key.name])
def test_every_setting_is_found_as_a_flag(key):
    for typed in ([f"--{key}", "1"], [f"--{key.replace('.', '-').replace('_', '-')}=1"]):
        with pytest.raises(ConfigError) as rejected:
            check_words(typed, TRAIN)
        assert str(rejected.value).splitlines()[1] in (
            f"  python -m dtl.train {key}=1",
            "  python -m dtl.train data=text data.path=1",
        )


def test_from_python_the_call_is_shown():
    with pytest.raises(ConfigError) as rejected:
        compose("lr=1e-3", "model=small")
    assert str(rejected.value).splitlines()[1] == "  dtl.compose('optimizer.lr=1e-3', 'model=small')"


def test_a_key_is_never_shown(monkeypatch):
    with pytest.raises(ConfigError) as rejected:
        check_words(["--lr=3", "--wandb_api_key", "0123456789abcdef"], TRAIN)
    assert "0123456789abcdef" not in str(rejected.value)


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["data=text", "data.path=my", "texts"], "'data.path=my texts'"),
        (["experiment=my_pairs", "data.qa.path=my", "data/pairs.csv"], "'data.qa.path=my data/pairs.csv'"),
        (["experiment=my_pairs", "data.qa.path=your", "lost", "pairs.csv"], "'data.qa.path=your lost pairs.csv'"),
        (["resume=my", "old", "run"], "'resume=my old run'"),
    ],
)
def test_a_path_with_a_space_and_without_quotes(elsewhere, words, right):
    for name in ("my texts", "my old run", "my data", "my"):  # the first word is a folder, too
        (elsewhere / name).mkdir()
    (elsewhere / "my data" / "pairs.csv").touch()
    with pytest.raises(ConfigError) as error:
        check_words(words, TRAIN)
    assert str(error.value).endswith(right)


def test_a_run_with_a_path_that_needs_quotes(monkeypatch, capsys, elsewhere):
    """From the command line to the config of the run, the record included."""
    folder = elsewhere / "my texts (1), é=b's"
    folder.mkdir()
    (folder / "a.txt").write_text("A text. " * 99)
    monkeypatch.setenv("HOME", str(elsewhere))
    configs: list[RunConfig] = []
    monkeypatch.setattr(dtl.train, "train", lambda config, *_: configs.append(config) or 0.0)
    for path in (folder.name, f"~/{folder.name}", "${oc.env:HOME}/" + folder.name):
        monkeypatch.setattr(
            sys, "argv", ["dtl-train", "data=text", f"data.path={path}", f"hydra.run.dir=~/runs of {len(configs)}"]
        )
        dtl.train.main()
        assert configs[-1].data.path in (folder.name, f"~/{folder.name}", str(folder))
    assert sorted(file.name for file in elsewhere.glob("runs of *")) == ["runs of 0", "runs of 1", "runs of 2"]


def test_a_switch_of_the_name_of_a_run_is_no_run():
    check_words(["resume=true"], dtl.diagnose.COMMAND)
    with pytest.raises(ConfigError, match="resume=latest"):
        check_words(["resume=true"], dtl.train.COMMAND)
