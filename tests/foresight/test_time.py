"""The time of a run before it starts: from seconds of its pieces to a forecast, and its lines."""

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import dtl
import dtl.foresight.time
import dtl.plan
import dtl.training.trainer
from dtl.benchmarks.config import BenchConfig
from dtl.benchmarks.foresight import TIME_ERROR, TIMED, foreseen_time_error
from dtl.benchmarks.suite import Workplace
from dtl.config import to_dict
from dtl.foresight import process
from dtl.foresight.predict import planned_length
from dtl.foresight.process import timing
from dtl.foresight.time import (
    REAL,
    SHALLOW,
    Forecast,
    Limits,
    Part,
    Run,
    answer_tokens,
    forecast,
    made_data,
    of_depth,
    some_model,
    timed,
    watts,
)
from dtl.model.transformer import TransformerBlock, TransformerLM
from dtl.runner.length import RunLength

COSTS = {
    "build": 0.25, "step": 2.0, "evaluation": 0.5, "token": 0.125, "bytes": 1000.0, "clock": 1.5, "answers": 4.0,
    "scored": 3.0, "token_bytes": 0.75, "index": 0.375, "look_up": 0.5,
}  # fmt: skip
WORDS = ("data=qa", "tokenizer=byte", "model.dim=16", "model.n_layers=2", "model.n_heads=2", "device=cpu",
         "tracker=local", "trainer.machine=cpu", "data.seq_len=128", "trainer.precision=fp32")  # fmt: skip


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The shipped questions, prepared, and a tiny model."""
    config = dtl.compose(*WORDS, f"data.cache_dir={tmp_path_factory.mktemp('cache')}").on("cpu")
    data = dtl.open_data(config)
    return Run(config, torch.device("cpu"), "fp32", data.tokenizer.vocab_size, data.train, data)


def with_trainer(run: Run, **settings) -> Run:
    return replace(run, config=replace(run.config, trainer=replace(run.config.trainer, **settings)))


def by_name(found: Forecast) -> dict[str, Part]:
    return {part.what: part for part in found.parts}


# --- depth --------------------------------------------------------------------------------------------------------


def test_seconds_are_linear_in_the_layers():
    def of(n: int) -> dict[str, float]:
        return {"step": 3.0 + 0.5 * n, "build": 0.1 * n, "token": 7.0, "clock": 1.25}

    assert of_depth({1: of(1), 4: of(4)}, 23) == pytest.approx(of(23))
    assert of_depth({3: of(3)}, 3) == of(3)


def test_a_layer_takes_no_less_than_nothing_and_the_clock_is_that_of_the_freest_moment():
    few, more = {"step": 3.0, "clock": 1.5}, {"step": 2.9, "clock": 1.1}
    assert of_depth({1: few, 4: more}, 50) == {"step": 3.0, "clock": 1.1}


# --- a forecast ---------------------------------------------------------------------------------------------------


def test_a_run_is_the_sum_of_its_pieces(qa):
    run = with_trainer(qa, total_steps=90, eval_every_steps=40, save_every_steps=45, save_every_epochs=None,
                       eval_max_batches=3)  # fmt: skip
    found = forecast(run, COSTS, 5.0, [1, 4], byte=0.002)
    parts = by_name(found)
    assert (parts["start"].each, parts["steps"].count, parts["steps"].each) == (5.25, 90, 2)
    assert (parts["evaluations"].count, parts["evaluations"].each) == (3, 3 * 0.5)
    assert (parts["samples"].count, parts["samples"].each) == (3, answer_tokens(run.data) * 0.125)
    assert (parts["checkpoints"].count, parts["checkpoints"].each) == (4, 2.0)
    # validation and test, then at least 16 questions of five kinds, four of which have an expected answer
    at_the_end = parts["evaluation at the end"]
    assert at_the_end.each > 0.25 + 6 * 0.5 + 0.75 + 0.375 + 16 / 64 * (5 * 4.0 + 4 * 3.5)
    assert found.total == pytest.approx(sum(part.count * part.each for part in found.parts))
    assert found.hours == pytest.approx(found.total * 1.5 / 3600) and found.is_whole


def test_more_training_asks_more_at_its_end_up_to_all(qa):
    seconds = [
        by_name(forecast(with_trainer(qa, total_steps=n), COSTS, 0.0, [1], 0.0))["evaluation at the end"].each
        for n in (90, 900, 90_000, 900_000)
    ]
    assert seconds[0] < seconds[1] < seconds[2] == seconds[3]


def test_hours_end_the_forecast_before_the_last_step(qa):
    found = forecast(with_trainer(qa, total_steps=5000, hours=0.5), COSTS, 0.0, [1], 0.0)
    assert by_name(found)["steps"].count == 1800 / (2.0 * 1.5)


def test_data_that_is_not_prepared_has_steps_and_no_more(qa):
    bare = replace(qa, data=None, train=made_data(qa.config, qa.vocab_size))
    found = forecast(bare, COSTS, 5.0, [2], 0.0)
    assert not found.is_whole and list(dtl.plan.time_lines(found, bare.config, None))[1].split() == [
        "a", "step", "takes", "2", "s", "of", "processor", "time",
    ]  # fmt: skip
    known = with_trainer(bare, total_steps=70)
    assert [part.what for part in forecast(known, COSTS, 5.0, [2], 0.0).parts] == ["start", "steps"]


@pytest.mark.parametrize("words", [{"tokens": 71_000.0}, {"tokens_per_parameter": 3.0, "max_epochs": 1}])
@pytest.mark.parametrize("prepared", [True, False])
def test_a_length_in_tokens_is_planned_in_steps(qa, words, prepared):
    """As `build_run` has it; of data that is not prepared, all steps are whole."""
    config, data = with_trainer(qa, **words).config, qa.data if prepared else None
    planned = planned_length(config, data, qa.vocab_size)
    model = TransformerLM(config.model, qa.vocab_size)
    tokens = words.get("tokens") or 3.0 * model.n_parameters(embeddings=False)
    whole = tokens / (config.global_batch_size * config.seq_len)
    assert planned.trainer.total_steps is not None and planned.trainer.tokens is None
    assert whole <= planned.trainer.total_steps <= (1.1 if prepared else 1) * whole + 1
    run = replace(qa, config=planned, data=data)
    steps = by_name(forecast(run, COSTS, 0.0, [1], 0.0))["steps"].count
    assert steps == min(
        planned.trainer.total_steps,
        sys.maxsize
        if not prepared
        else RunLength.of(planned, qa.train.steps_per_epoch(config.global_batch_size)).last_step,
    )
    assert planned_length(qa.config, data, qa.vocab_size) is qa.config


def test_one_of_a_thing_is_not_many():
    parts = [Part("steps", 1, 2.0), Part("evaluations", 1, 0.5), Part("samples", 3, 0.5)]
    text = "\n".join(dtl.plan.time_lines(made(parts=parts), dtl.RunConfig(), None))
    assert "1 step of" in text and "1 evaluation of" in text and "3 samples of" in text


def test_made_data_has_the_shape_of_the_config(qa):
    batch = made_data(qa.config, 101).micro_batches(0, 0, 0, qa.config.micro_batch_size, 1)[0]
    assert batch.inputs.shape == (4, 128) and batch.n_targets >= 4 * 128 - 1
    assert int(batch.inputs.max()) < 101


# --- measuring ----------------------------------------------------------------------------------------------------


def test_accumulated_passes_are_timed_once(qa, monkeypatch):
    """The clock of the test advances by one in each forward and backward pass, and by a tenth in each update."""
    now = [0.0]
    monkeypatch.setattr(Run, "clock", lambda _: now[0])
    accumulate, update = dtl.training.trainer.Trainer.accumulate_gradients, dtl.training.trainer.Trainer.update_weights

    def slow_pass(self, batches):
        now[0] += 1.0 * len(batches)
        return accumulate(self, batches)

    def slow_update(self, overflowed):
        now[0] += 0.1
        return update(self, overflowed)

    monkeypatch.setattr(dtl.training.trainer.Trainer, "accumulate_gradients", slow_pass)
    monkeypatch.setattr(dtl.training.trainer.Trainer, "update_weights", slow_update)
    run = with_trainer(qa, grad_accum_steps=7)
    assert timed(run, 1, Limits(2, 2, 0.0))["step"] == pytest.approx(7.1)


@pytest.mark.parametrize(("limits", "first"), [(Limits(2, 2, 0.0), 1), (Limits(2, 2, 0.0, compiles=True), 3)])
def test_one_sequence_warms_up_what_is_slow_and_a_real_probe_takes_whole_steps(qa, monkeypatch, limits, first):
    monkeypatch.setattr(dtl.foresight.time, "SLOW_FLOP", 0.0)
    accumulate, sizes = dtl.training.trainer.Trainer.accumulate_gradients, []

    def seen(self, batches):
        sizes.append([len(batch.rows) for batch in batches])
        return accumulate(self, batches)

    monkeypatch.setattr(dtl.training.trainer.Trainer, "accumulate_gradients", seen)
    found = timed(with_trainer(qa, micro_batch_size=3), 2, limits)
    assert sizes == [[first], [3], [3]]
    assert COSTS.keys() == found.keys()


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_any_weights_has_the_shape_of_a_new_one(qa, tied):
    config, device = replace(qa.config.model, tie_embeddings=tied), torch.device("cpu")
    new, found = TransformerLM(config, qa.vocab_size), some_model(config, qa.vocab_size, device)
    shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in (new, found)]
    assert shapes[0] == shapes[1] and (found.head.weight is found.embedding.weight) is tied
    assert all(p.isfinite().all() and p.abs().max() > 0 for p in found.parameters())
    assert len(found.head.weight.unique(dim=0)) == qa.vocab_size  # no token is as likely as another


def test_a_block_with_buffers_builds_itself(qa, monkeypatch):
    made = TransformerBlock.__init__

    def with_buffer(self, config, layer):
        made(self, config, layer)
        self.register_buffer("numbers", torch.arange(5))

    monkeypatch.setattr(TransformerBlock, "__init__", with_buffer)
    found = some_model(qa.config.model, qa.vocab_size, torch.device("cpu"))
    assert found.blocks[0].numbers.tolist() == [0, 1, 2, 3, 4]


def test_all_pieces_of_a_run_are_timed_and_its_random_data_has_none_besides_steps(qa):
    found = timed(qa, 2, Limits(1, 1, 0.0))
    assert COSTS.keys() == found.keys() and all(seconds >= 0 for seconds in found.values())
    bare = replace(qa, data=None, train=made_data(qa.config, qa.vocab_size))
    assert timed(bare, 1, Limits(1, 1, 0.0)).keys() == {"build", "step", "clock", "bytes"}
    assert timed(bare, 3, Limits(1, 1, 0.0))["bytes"] > found["bytes"]


def test_compiling_is_a_part_and_power_is_no_seconds(qa, monkeypatch):
    monkeypatch.setattr(dtl.foresight.time, "watts", lambda device: 70.0)
    monkeypatch.setattr("dtl.training.trainer.compiled_if_possible", lambda function: function)
    compiled = with_trainer(qa, compile=True, total_steps=9)
    assert "compiling" not in timed(compiled, 1, Limits(1, 1, 0.0))
    costs = timed(compiled, 1, Limits(1, 1, 0.0, compiles=True))
    assert costs["compiling"] >= 0 and costs["watts"] == 70
    found = forecast(compiled, of_depth({1: COSTS | {"watts": 60.0}, 4: COSTS | {"watts": 70.0}}, 9)
                     | {"compiling": 33.0}, 0.0, [1, 4], 0.0)  # fmt: skip
    assert by_name(found)["compiling"].each == 33 and found.watts == 70


def test_the_first_time_warms_up(qa, monkeypatch):
    now, seconds = [0.0], iter([50.0, 2.0, 9.0, 3.0])
    monkeypatch.setattr(Run, "clock", lambda _: now[0])

    def work():
        now[0] += next(seconds)

    assert qa.seconds(work, Limits(3, 3, 0.0)) == 3.0
    assert REAL.least > SHALLOW.least >= 1


@pytest.mark.parametrize(("first", "times"), [(0.2, 2), (0.3, 1)])
def test_a_long_first_time_counts(qa, monkeypatch, first, times):
    """So that a large model is not evaluated twice."""
    run, clock = qa, iter([0.0, first, 10.0, 10.1])
    monkeypatch.setattr(Run, "clock", lambda self: next(clock))
    done: list[int] = []
    found = run.seconds(lambda: done.append(1), Limits(1, 1, 0.0, counts_first=0.25))
    assert len(done) == times and found == pytest.approx(first if times == 1 else 0.1)


def test_the_process_ends_with_its_context(qa, monkeypatch):
    children = []

    def sleeping(*_, **__):
        program = [sys.executable, "-c", "import time; time.sleep(600)"]
        children.append(subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return children[-1]

    monkeypatch.setattr(process, "start_child", sleeping)
    with timing(qa.config, False, 0.0):
        assert children[0].poll() is None
    assert children[0].poll() is not None


def test_a_process_that_fails_has_no_time(qa, monkeypatch):
    failing = [sys.executable, "-c", "raise SystemExit(1)"]
    monkeypatch.setattr(
        process,
        "start_child",
        lambda *_, **__: subprocess.Popen(failing, stdin=subprocess.PIPE, stdout=subprocess.PIPE),
    )
    with timing(qa.config, False, 0.0) as wait:
        assert wait() is None


@pytest.mark.parametrize(("n_layers", "slow", "depths"), [(4, 1e3, [4]), (7, 1e3, [1, 3]), (7, 1e30, [1, 4])])
def test_no_step_is_taken_while_the_plan_computes(qa, monkeypatch, capsys, n_layers, slow, depths):
    """Beside it, on two cores, a step of two threads took twice as long as in the run."""
    events: list[object] = []

    class Input:
        def readline(self) -> str:
            return json.dumps(to_dict(replace(qa.config, model=replace(qa.config.model, n_layers=n_layers))))

        def read(self) -> str:
            events.append("the plan has computed")
            return ""

    monkeypatch.setattr("sys.stdin", Input())
    monkeypatch.setattr(dtl.foresight.time, "SLOW_FLOP", slow)
    monkeypatch.setattr(dtl.foresight.time, "timed", lambda run, depth, limits: events.append(depth) or COSTS)
    dtl.foresight.time.main(["false", "57.0"])
    assert events == ["the plan has computed", *depths]
    found = Forecast.of(json.loads(capsys.readouterr().out))
    assert found.layers == depths and by_name(found)["start"].each > 57


def test_power_is_that_of_a_card_that_tells(monkeypatch):
    assert watts(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 123_000)
    assert watts(torch.device("cuda")) == 123

    def missing(device):
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "power_draw", missing)
    assert watts(torch.device("cuda")) is None


# --- the screen ---------------------------------------------------------------------------------------------------


def made(**values) -> Forecast:
    parts = [
        Part("start", 1, 4.2),
        Part("steps", 123_456, 0.0517),
        Part("evaluations", 1234, 12.5),
        Part("samples", 1234, 0.0042),
        Part("checkpoints", 77, 100.0),
        Part("evaluation at the end", 1, 3600.0),
    ]
    given = {"device_type": "cpu", "parts": parts, "step": 0.0517, "clock": 2.5, "layers": [1, 4], "threads": 2,
             "is_own_model": False, "is_whole": True}  # fmt: skip
    return Forecast(**given | values)


def test_the_lines_fit_a_terminal_and_have_the_price():
    shown = list(dtl.plan.time_lines(made(), dtl.RunConfig(), 0.5))
    assert all(len(line) <= 80 for line in shown)
    text = "\n".join(shown)
    assert "models of 1 and 4 layers, 2 threads" in text and "123,456 steps of 52 ms" in text
    hours = made().total * 2.5 / 3600
    assert "price" in text and f"{0.5 * hours:,.2f} at 0.5 an hour" in text
    assert "on the clock" in text and "may end sooner" in text and "kWh" not in text


def test_a_card_has_energy_and_no_processor_time():
    found = made(device_type="cuda", clock=1.0, watts=250.0, layers=[7], is_own_model=True)
    text = "\n".join(dtl.plan.time_lines(found, dtl.RunConfig(), None))
    assert f"{250 * found.total / 3.6e6:,.2f} kWh at 250 W" in text and "its own model" in text
    assert "processor" not in text and "threads" not in text and "price" not in text and "clock" not in text


@pytest.mark.parametrize("word", ["probe=true", "cost_per_hour=0.3"])
def test_another_machine_has_no_time(word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dtl-plan", "machine=8GB", word])
    with pytest.raises(SystemExit) as stop:
        dtl.plan.main()
    key = word.partition("=")[0]
    assert stop.value.code == 2 and f"{key}=" in capsys.readouterr().err


def test_the_plan_shows_the_time_of_a_run_that_fits(monkeypatch, capsys):
    asked = []

    def told(config, real, compose_seconds):
        asked.append((config.cost_per_hour, real, compose_seconds > 0))
        return nullcontext(lambda: json.loads(json.dumps(asdict(made()))))

    monkeypatch.setattr(dtl.plan, "planned", lambda *_: None)
    monkeypatch.setattr(process, "timing", told)
    for fits in (True, False):
        monkeypatch.setattr(dtl.plan, "show", lambda *_, fits=fits: fits)
        monkeypatch.setattr(sys, "argv", ["dtl-plan", "cost_per_hour=0.25", "probe=true"])
        with nullcontext() if fits else pytest.raises(SystemExit):
            dtl.plan.main()
        assert ("whole run, about" in capsys.readouterr().out) == fits
    assert asked == [(0.25, True, True)] * 2


# --- against runs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_plan_is_near_a_run(tmp_path: Path):
    """Within twice the goal: the machine that runs the tests does other things, too."""
    place = Workplace(BenchConfig(suite="foresight"), tmp_path)
    assert abs(foreseen_time_error(place, "questions", TIMED["questions"].split())) <= 2 * TIME_ERROR
