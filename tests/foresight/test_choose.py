"""model=auto: the rule on made speeds, and runs whose choice is ordinary config."""

import itertools
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import dtl
import dtl.plan
import dtl.train
from dtl.config import refuse_auto_in_sweep
from dtl.data.cache import Cache
from dtl.data.sources import plan_sources
from dtl.diagnostics import resume
from dtl.errors import ConfigError
from dtl.foresight import choose as choosing
from dtl.foresight.choose import Limits, Size, choose, fitting_batch, limits_of, sized, sizes
from dtl.foresight.machine import Machine
from dtl.foresight.predict import DataFacts, Setting
from dtl.model.config import ModelConfig
from dtl.model.transformer import TransformerLM
from dtl.run_dir.state import read_config
from dtl.runner.budget import budget_of
from dtl.runner.length import RunLength
from dtl.tracking.metrics import read_metrics

LADDER = [Size(ModelConfig(), n, 6.0 * n + 50) for n in (11, 37, 101, 331, 1009, 3001, 9001)]


# --- the rule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.1, 7.0, 190.0, 3e4, 1e9])
@pytest.mark.parametrize("tokens", [100.0, 3e4, 1e9])
def test_the_largest_size_whose_tokens_fit_is_chosen(seconds, tokens):
    limits = Limits(seconds, 3 * tokens, tokens, per_parameter=13)
    choice = choose(LADDER, lambda size: 5e4 / size.flops, limits)
    fitting = [s for s in LADDER if 13 * s.n_parameters <= min(tokens, seconds * 5e4 / s.flops)]
    assert choice.size is (fitting or LADDER)[-1 if fitting else 0]
    assert choice.tokens == pytest.approx(min(3 * tokens, seconds * 5e4 / choice.size.flops))  # all of the time
    assert choice.of_data == (3 * tokens < seconds * 5e4 / choice.size.flops)
    assert len(choice.measured) <= choosing.MOST_PROBES


@pytest.mark.parametrize("power", [0.3, 0.7])
def test_a_machine_that_computes_large_products_faster_is_found_out(power):
    """What is chosen was measured and fits; what is larger was measured and does not, or is expected not to."""

    def speed(size: Size) -> float:
        return 5e4 / size.flops**power

    limits = Limits(190.0, 1e9, 1e9, per_parameter=13)
    choice = choose(LADDER, speed, limits)
    assert choice.measured[choice.size] == speed(choice.size)
    assert 13 * choice.size.n_parameters <= 190 * speed(choice.size)
    assert choice.size.n_parameters > choose(LADDER, lambda size: 5e4 / size.flops, limits).size.n_parameters


def test_a_size_without_room_is_not_chosen():
    choice = choose(LADDER, lambda size: 5e4 / size.flops if size.n_parameters < 300 else 0.0, Limits(1e9, 1e9, 1e9))
    assert choice.size.n_parameters == 101 and choice.tokens == 1e9


def test_evaluations_take_their_part_of_the_time():
    """Up to a tenth during training; all of them together at most half."""
    assert Limits(10.0, 1e9, 1e9, evaluated=30, evaluated_at_end=60).reached(70.0) == 700 - 7 * 10 - 20
    assert Limits(1000.0, 1e9, 1e9, evaluated=30).reached(70.0) == 70_000 - choosing.MOST_EVALUATIONS * 10
    assert Limits(10.0, 1e9, 1e9, evaluated=3, evaluated_at_end=6000).reached(70.0) == 350
    assert Limits(10.0, 1e9, 1e9, evaluated=30, every=40).reached(70.0) == 700 / 1.25


def test_no_size_of_the_ladder_is_more_than_three_times_the_one_below():
    ladder = list(sizes(dtl.compose("model=auto", "trainer.hours=1", "data=wiki"), 65))
    assert [str(size) for size in ladder[:4]] == ["64 x 2", "96 x 2", "128 x 3", "192 x 4"]
    for below, above in itertools.pairwise(ladder):
        assert 1.2 < above.n_parameters / below.n_parameters < 3.2 and above.flops > below.flops
    assert all(size.model.dim % size.model.n_heads == 0 for size in ladder)


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(elsewhere: Path) -> list[str]:
    (elsewhere / "text.txt").write_text("".join(f"{n} is a number before {n + 1}.\n" for n in range(700)))
    return [
        *("model=auto", "model.max_seq_len=31", "tokenizer=byte", "data=text", "data.path=text.txt", "seed=11"),
        *("trainer.hours=0.01", "trainer.micro_batch_size=3", "trainer.grad_accum_steps=1", "tracker=local"),
        *("device=cpu", "sampling.max_new_tokens=3", "trainer.precision=fp32", "trainer.sample_every_evals=0"),
    ]


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths whose speed was asked for; made ones, with which the smallest is chosen and trains for 11 steps."""
    widths: list[int] = []

    def speed(config: dtl.RunConfig, data, *_) -> float:
        widths.append(config.model.dim)
        limits = limits_of(config, data)  # enough for one evaluation
        return (1000 + (limits.evaluated + limits.evaluated_at_end) / 3) / limits.seconds

    monkeypatch.setattr(choosing, "tokens_per_second", speed)
    return widths


def chosen(config: dtl.RunConfig) -> choosing.Chosen:
    return sized(config, plan_sources(config.data, config.seed), lambda message: None)


def test_the_printed_words_give_the_chosen_config(words, speeds):
    config = dtl.compose(*words)
    found = chosen(config)
    assert found.config == dtl.compose(*words, *found.words)
    model, trainer = found.config.model, found.config.trainer
    assert (model.auto, model.dim, model.n_layers, model.n_heads) == (False, 64, 2, 1)
    assert trainer.lengths == {"total_steps": 11} and trainer.hours == 0.01
    assert trainer.eval_every_steps == 11  # at the end: an evaluation takes much of so short a run
    assert found.lines[-1].split()[-len(found.words) :] == found.words and speeds == [64]
    own = dtl.compose(*words, "trainer.tokens_per_parameter=7", "trainer.eval_every_steps=5")
    assert chosen(own).config == dtl.compose(*words, "trainer.eval_every_steps=5", *chosen(own).words)


def test_the_printed_command_gives_the_chosen_config_alone_and_in_a_sweep(words, speeds):
    """Dropout is 0.0 with model=auto and 0.1 without it."""
    words = [*words, "trainer.tokens_per_parameter=7"]
    config = dtl.compose(*words)
    found = sized(config, plan_sources(config.data, config.seed), lambda message: None, words)
    python, minus_m, command, *printed = shlex.split(found.lines[-1])
    assert (python, minus_m, command) == ("python", "-m", "dtl.train") and found.config.model.dropout == 0.0
    assert dtl.compose(*printed) == found.config
    keys = [word.partition("=")[0] for word in printed]
    assert len(keys) == len(set(keys))
    trial = dtl.compose(*printed, "seed=2")
    refuse_auto_in_sweep(trial)
    assert trial == replace(found.config, seed=2)


def test_the_command_prints_its_own_words(words, speeds, monkeypatch, capsys):
    monkeypatch.setattr(dtl.train, "train", lambda config, *_: 0.0)
    monkeypatch.setattr(sys, "argv", ["dtl-train", *words, "hydra.run.dir=first"])
    dtl.train.main()
    shown = " ".join(capsys.readouterr().out.split())
    assert f"python -m dtl.train {' '.join(words)} model.auto=false model.dim=64" in shown


def test_the_words_of_the_command_are_a_fixed_run_also_where_a_resume_is_proved(tmp_path, monkeypatch):
    class Ran(Exception):
        pass

    def run(*_) -> None:
        raise Ran

    monkeypatch.setattr(resume, "_run", run)
    with pytest.raises(Ran):
        resume.prove_resume(["model=auto", "model.auto=false", "model.dim=64"], tmp_path)
    with pytest.raises(ConfigError, match=r"^model=auto: each run would choose for itself"):
        resume.prove_resume(["model=auto"], tmp_path)


@pytest.mark.parametrize("at_most", [2, None])
def test_the_closing_evaluation_is_as_long_as_a_run_does_it(words, at_most):
    config = dtl.compose(*words, f"trainer.eval_max_batches={'null' if at_most is None else at_most}")
    data = dtl.open_data(config)
    rows = [split for split in (data.validation, data.test) if split is not None]
    assert len(rows) == 2 and all(len(split) > 6 for split in rows)
    counted = [len(split) if at_most is None else at_most * 3 for split in rows]
    assert limits_of(config, data).evaluated_at_end == 31 * sum(counted)
    assert limits_of(config, data).evaluated == 31 * counted[0]


def test_little_text_ends_the_run_before_the_time_and_this_is_said(words, monkeypatch):
    monkeypatch.setattr(choosing, "tokens_per_second", lambda *_: 1e9)
    config = dtl.compose(*words)
    found, data = chosen(config), dtl.open_data(config)
    assert found.config.trainer.total_steps == 20 * data.train.steps_per_epoch(3)
    given = dtl.compose(*words, "trainer.max_epochs=3")
    assert chosen(given).config.trainer.total_steps == 3 * data.train.steps_per_epoch(3)
    assert any(line.startswith("The data is the limit, not the time: more than 20 epochs") for line in found.lines)


def test_a_plan_says_what_the_data_can_give(words, tmp_path):
    size = ("model.dim=16", "model.n_heads=2")
    config = dtl.compose(*words[1:], *size, "trainer.total_steps=7", "trainer.hours=null").on("cpu")
    data = dtl.open_data(config)
    facts, machine = DataFacts(258, 1), Machine("", "cpu", None, "")
    made = Setting(config, machine, "cpu", "fp32", False, None, facts, None, None, Cache(tmp_path), [], data)
    first, *others = dtl.plan.budget_lines(made)
    length = RunLength.of(config, data.train.steps_per_epoch(3))
    assert first == "Data: 7 steps"
    assert others == [f"  {line}" for line in budget_of(data, length, TransformerLM(config.model, 258)).lines()]
    assert list(dtl.plan.budget_lines(replace(made, data=None))) == []


def test_a_run_records_its_choice_and_a_rerun_measures_nothing(words, speeds, monkeypatch):
    def train(run: str, *more: str) -> Path:
        monkeypatch.setattr(sys, "argv", ["dtl-train", *more, f"hydra.run.dir={run}"])
        dtl.train.main()
        return Path(run)

    first = train("first", *words)
    own, record = read_config(first), json.loads((first / "run.json").read_text())
    assert (own["model"]["auto"], own["model"]["dim"], own["trainer"]["total_steps"]) == (False, 64, 11)
    again = train("again", *[word for word in record["overrides"] if "hydra" not in word])
    losses = [[row["train/loss"] for row in read_metrics(run) if "train/loss" in row] for run in (first, again)]
    assert len(losses[0]) == 11 and losses[0] == losses[1]  # measuring has left no trace
    assert speeds == [64]
    train("first", "resume=first", "trainer.total_steps=12")
    assert speeds == [64] and json.loads((first / "result.json").read_text())["step"] == 12


def test_plan_and_python_choose_too(words, speeds, monkeypatch, capsys):
    monkeypatch.setattr(dtl.plan, "show", lambda display, setting, given: given[-1] == "trainer.eval_every_steps=11")
    monkeypatch.setattr(dtl.plan, "planned", lambda config, _: config)
    monkeypatch.setattr(sys, "argv", ["dtl-plan", *words])
    dtl.plan.main()
    printed = " ".join(capsys.readouterr().out.split())
    assert "model.auto=false model.dim=64 model.n_layers=2" in printed
    assert printed.rpartition("python -m dtl.train ")[2].startswith(" ".join(words[:2])), "the words that were typed"
    assert dtl.steps(dtl.compose(*words)).config.trainer.total_steps == 11
    assert dtl.fit(dtl.compose(*words), "mine").model().config.dim == 64


def test_speed_is_that_of_real_steps(words):
    """The only test that measures: it gives a speed, and leaves the random state as it was."""
    config = dtl.compose(*words, "trainer.hours=0.01").on("cpu")
    data = dtl.open_data(config)
    size = next(sizes(config, data.tokenizer.vocab_size))
    speed = choosing.tokens_per_second(replace(config, model=size.model), data, choosing.choose_device("cpu")[0], 0.0)
    assert speed > 0


def test_the_micro_batch_is_halved_until_it_fits(words):
    config = replace(dtl.compose(*words, "trainer.micro_batch_size=24"), model=ModelConfig(dim=64, n_layers=3))
    found = fitting_batch(config, 258, 30 * 2**20)
    assert found is not None and found.micro_batch_size < 24 and found.global_batch_size == 24
    assert fitting_batch(config, 258, None) == config and fitting_batch(config, 258, 2**20) is None


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.hours=null", "model=auto: chooses the model that a time is enough for. Add it: trainer.hours=1"),
        (
            "trainer.hours=1e-9",
            "trainer.hours=1e-09: model=auto takes some seconds to measure, and needs at least 0.01",
        ),
        ("model.dim=128", "model.dim=128: model=auto chooses the size. Leave it out; if a recipe sets it, leave out"),
        ("trainer.total_steps=9", "trainer.total_steps=9: model=auto chooses the length by trainer.hours."),
        ("trainer.tokens=9e5", "trainer.tokens=900000: model=auto chooses the length by trainer.hours."),
        ("init=run", "init=run: brings its own size."),
        ("data.loss_on=answer", "model=auto: chooses by the tokens of text, and questions are learnt by repetition."),
    ],
)
def test_what_contradicts_the_choice_is_refused(words, word, message):
    with pytest.raises(ConfigError) as error:
        dtl.compose(*words, word)
    assert str(error.value).startswith(message)


def test_a_sweep_and_a_model_alone_have_no_time_to_choose_by(words, speeds, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dtl-train", "-m", *words, "seed=1,2"])
    with pytest.raises(SystemExit):
        dtl.train.main()
    shown = " ".join(capsys.readouterr().err.split())
    assert "sweep the command that it prints. (the same for 1 more)" in shown and speeds == []
    with pytest.raises(ConfigError, match=r"^model=auto: has a size in a run only"):
        dtl.create_model("auto")
