"""From data and shape to a prediction; the plan's table, its exit code, and the setting that fits."""

import statistics
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dtl
import dtl.plan
from dtl.base.system import resident_memory
from dtl.benchmarks.config import BenchConfig
from dtl.benchmarks.foresight import FORESEEN, foreseen_error
from dtl.benchmarks.suite import Workplace
from dtl.data.batches import PackedSequences, TrainingData
from dtl.data.cache import Cache
from dtl.data.pack import pack_documents, pack_stream
from dtl.errors import DoesNotFitError
from dtl.foresight import predict
from dtl.foresight.machine import GIB, Machine
from dtl.foresight.predict import (
    DataFacts,
    Setting,
    foresee,
    largest_micro_batch,
    peak_of,
    predicted,
    shape_of,
)
from dtl.foresight.process import NotCachedError, OnlyCached, ProcessMemory, not_prepared
from dtl.foresight.remedies import first_that_fits, remedies
from dtl.foresight.trace import PARTS, Peak, StepShape

MIB = 2**20


def questions(seed=0) -> TrainingData:
    """Packed documents of 2 to 5 tokens of which some have a loss."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 6, 61)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    mask = random.random(offsets[-1]) < 0.3
    mask[offsets[1:] - 1] = True
    tokens = np.arange(offsets[-1]).astype(np.uint16)
    packing = pack_documents(offsets, 17, mask)
    rows = PackedSequences(tokens, packing, pad_id=0, loss_mask=mask, document_mask=True)
    return TrainingData({"qa": rows}, {"qa": 1.0})


def config(**trainer):
    run = dtl.RunConfig()
    settings = {"micro_batch_size": 5, "grad_accum_steps": 2} | trainer
    data = replace(run.data, seq_len=17)
    return replace(run, data=data, trainer=replace(run.trainer, **settings)).on("cpu")


def test_the_largest_micro_batch_is_that_of_the_batches_themselves():
    train, run = questions(), config(max_epochs=2)
    batches = [
        batch
        for epoch in range(2)
        for step in range(train.steps_per_epoch(run.global_batch_size))
        for batch in train.micro_batches(run.seed, epoch, step, 5, 2)
    ]
    n_targets, padded = largest_micro_batch(run, train)
    assert n_targets == max(batch.n_targets for batch in batches)
    assert padded is not None
    sizes = [document_lengths(batch.documents) for batch in batches]
    pads = [
        len(lengths) * max(lengths)
        for lengths, batch in zip(sizes, batches, strict=True)
        if 2 * len(lengths) * max(lengths) ** 2 <= 17**2 * len(batch.rows)
    ]
    assert padded[0] * padded[1] == max(pads)


def document_lengths(documents) -> list[int]:
    """Tokens of each document of a batch."""
    lengths = []
    for row in documents.tolist():
        for number in sorted(set(row)):
            lengths.append(row.count(number))
    return lengths


def test_packed_text_has_a_target_everywhere():
    tokens = np.arange(171).astype(np.uint16)
    rows = PackedSequences(tokens, pack_stream(171, 17), pad_id=0)
    run = config()
    run = replace(run, data=replace(run.data, document_mask=False))
    assert largest_micro_batch(run, TrainingData({"text": rows}, {"text": 1.0}))[0] in (5 * 17, 5 * 17 - 1)


# --- prediction ---------------------------------------------------------------------------------------------------


def peak(activations=100 * MIB, heap=1.5) -> Peak:
    return Peak(dict.fromkeys(PARTS, 0.0) | {"weights": 10.0 * MIB, "activations": activations}, "backward", heap)


def test_a_process_is_its_parts():
    facts = DataFacts(101, 85, n_bytes=7 * MIB)
    found = predicted(peak(), facts, ProcessMemory(300 * MIB, 20 * MIB, 3 * MIB), "cpu")
    assert found.parts == {
        "weights": 10 * MIB,
        "activations": 100 * MIB,
        "gaps between tensors": 50 * MIB,
        "data and tokenizer": 4 * MIB,
        "Python, torch, libraries": 320 * MIB,
    }
    assert found.fits(Machine("", "cpu", 484 * MIB, "")) and not found.fits(Machine("", "cpu", 483 * MIB, ""))
    assert found.fits(Machine("", "cpu", None, ""))


def setting(free: int, tmp_path: Path, per_row=20 * MIB, **trainer) -> Setting:
    """A run whose activations are so many bytes a sequence, a tenth of that with checkpointing."""
    run = config(**{"micro_batch_size": 8, "grad_accum_steps": 3} | trainer)
    made = Setting(
        run, Machine("8GB", "cpu", free, "as given"), "cpu", "fp32", False, None, DataFacts(101, 136), None,
        ProcessMemory(300 * MIB, 20 * MIB, 0), Cache(tmp_path), [],
    )  # fmt: skip

    def predict_it(other: dtl.RunConfig) -> predict.Prediction:
        kept = {"none": 1.0, "selective": 0.5, "full": 0.1}[other.trainer.activation_checkpointing]
        return predicted(peak(other.micro_batch_size * per_row * kept, 1.0), made.facts, made.process, "cpu")

    made.predict = predict_it  # pyright: ignore[reportAttributeAccessIssue]
    return made


def test_the_first_setting_that_fits_trains_the_same_steps(tmp_path):
    made = setting(380 * MIB, tmp_path)  # 330 and 20 a row: two rows
    found = first_that_fits(remedies(made), made.predict, made.machine)
    assert found is not None
    assert found[0].words == ("trainer.micro_batch_size=2", "trainer.grad_accum_steps=12")
    assert found[1].total == 370 * MIB


def test_checkpointing_comes_after_single_rows(tmp_path):
    made = setting(345 * MIB, tmp_path)
    found = first_that_fits(remedies(made), made.predict, made.machine)
    assert found is not None
    assert found[0].words == (
        "trainer.micro_batch_size=1", "trainer.grad_accum_steps=24", "trainer.activation_checkpointing=selective"
    )  # fmt: skip
    made = setting(320 * MIB, tmp_path)
    assert first_that_fits(remedies(made), made.predict, made.machine) is None


def test_a_group_is_tried_from_its_smallest_setting(tmp_path):
    made, tried = setting(380 * MIB, tmp_path), []  # micro-batches of 4, 2 and 1

    def counted(run: dtl.RunConfig) -> predict.Prediction:
        tried.append(run.micro_batch_size)
        return made.predict(run)

    found = first_that_fits(remedies(made), counted, made.machine)
    assert found is not None and found[0].config.micro_batch_size == 2
    assert tried == [1, 2, 4] or tried == [1, 2], "2 fits: 4 must have been looked at"
    tried.clear()
    made = setting(335 * MIB, tmp_path)
    found = first_that_fits(remedies(made), counted, made.machine)
    assert found is not None and found[0].config.trainer.activation_checkpointing == "full"
    assert tried[0] == 1 and len(tried) <= 3


def test_what_every_micro_batch_needs_is_not_tried_with_smaller_ones(tmp_path):
    made = setting(320 * MIB, tmp_path)
    made.facts = DataFacts(50_257, 136)
    assert [len(group) for group in remedies(made)] == [3, 2, 1, 1]
    (moments,), (vocabulary,) = remedies(made, same_model=False)
    assert moments.words[-1] == "optimizer.state_dtype=bf16" and moments.config.micro_batch_size == 1
    assert moments.config.optimizer.state_dtype == vocabulary.config.optimizer.state_dtype == "bf16"
    assert vocabulary.words[-1].startswith("tokenizer.vocab_size=")


@pytest.mark.parametrize(
    "changes", [{"name": "lion"}, {"state_dtype": "bf16"}, {"betas": [0.9, 0.999]}], ids=["other", "small", "too slow"]
)
def test_moments_that_are_not_adams_or_small_already_or_too_slow_are_no_remedy(tmp_path, changes):
    made = setting(320 * MIB, tmp_path)
    made.config = replace(made.config, optimizer=replace(made.config.optimizer, **changes))
    assert "optimizer.state_dtype=bf16" not in {word for group in remedies(made) for r in group for word in r.words}


def test_a_remedy_for_data_that_is_not_read_has_a_margin(tmp_path):
    """It has to be prepared anew: padding and holes are not known."""
    made = setting(332 * MIB, tmp_path, micro_batch_size=1)
    made.facts = DataFacts(50_257, 136)
    read, unread = (replace(predicted(peak(2 * MIB, 1.0), facts, made.process, "cpu")) for facts in (
        DataFacts(101, 136), DataFacts(101, 136, is_read=False)
    ))  # fmt: skip
    assert read.total == unread.total == 332 * MIB
    assert first_that_fits(remedies(made), lambda _: read, made.machine) is not None
    assert first_that_fits(remedies(made), lambda _: unread, made.machine) is None
    more = Machine("8GB", "cpu", round(1.11 * 332 * MIB), "as given")
    assert first_that_fits(remedies(made), lambda _: unread, more) is not None


def test_another_vocabulary_keeps_what_the_data_takes(tmp_path):
    made = setting(332 * MIB, tmp_path)
    del made.predict  # pyright: ignore[reportAttributeAccessIssue]
    made.facts = DataFacts(50_257, 136, n_bytes=71 * MIB)
    other = replace(made.config, tokenizer=replace(made.config.tokenizer, kind="bpe", vocab_size=307))
    found = made.predict(other)
    assert found.parts["data and tokenizer"] == 71 * MIB and not found.facts.is_read


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_what_every_micro_batch_needs_is_a_bound_from_below(ema_decay, tmp_path):
    made = setting(320 * MIB, tmp_path, micro_batch_size=1, ema_decay=ema_decay)
    del made.predict  # pyright: ignore[reportAttributeAccessIssue]
    found = made.predict(made.config)
    assert 0.5 * found.total < made.held(found) <= found.total


# --- the command --------------------------------------------------------------------------------------------------


def run_plan(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["dtl-plan", *words])
    code = 0
    try:
        dtl.plan.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize(("free", "code"), [(8 * GIB, 0), (400 * MIB, 3), (300 * MIB, 3)])
def test_the_exit_code_says_whether_it_fits(free, code, monkeypatch, capsys, tmp_path):
    made = setting(free, tmp_path)
    monkeypatch.setattr(dtl.plan, "planned", lambda *_: made)
    found, text = run_plan(monkeypatch, capsys, "seed=3", "machine=8GB")
    assert found == code
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines if "dtl.train" not in line and len(line.split()) < 12)
    assert "activations" in text and "peak" in text
    if free == 400 * MIB:
        (command,) = (line for line in lines if "dtl.train" in line)
        words = "seed=3 trainer.micro_batch_size=2 trainer.grad_accum_steps=12"
        assert command.strip() == f"python -m dtl.train {words}"
    else:
        assert "dtl.train" not in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("machine=8XB", "machine=8XB: neither memory nor a card"),
        ("model.dimm=8", "Did you mean 'model.dim'"),
        ("resume=latest", "a plan is for a new run"),
        ("cost_per_hour=-1", "cost_per_hour=-1.0: must be at least 0"),
        ("model.n_heads=7", "must divide model.dim"),
    ],
)
def test_bad_words_are_rejected_as_everywhere(word, message, monkeypatch, capsys):
    code, text = run_plan(monkeypatch, capsys, word)
    assert code == 2 and message in text


def test_gradients_that_are_not_there_at_the_peak_have_a_reason(tmp_path):
    """At a peak in the loss of a step without accumulation there are none yet."""
    made = setting(8 * GIB, tmp_path)
    for more, row in (({}, "-   none yet: the backward pass makes them"), ({"gradients": 3.0 * MIB}, "3.0 MiB")):
        found = replace(made.predict(made.config), parts={"weights": 10.0 * MIB, "backward": 1.0} | more)
        (line,) = (line for line in dtl.plan._table(made, found) if line.split()[0] == "gradients")
        assert line.endswith(row) and len(line) <= 80


@pytest.mark.parametrize("name", ["file", "file/below", "folder"])
def test_a_cache_that_is_a_file_is_named(name, tmp_path):
    (tmp_path / "file").write_text("a file")
    note = not_prepared(str(tmp_path / name))
    rule = f"data.cache_dir={tmp_path / name}: must be a folder, and {tmp_path / 'file'} is a file."
    assert note.startswith("The data is not prepared yet: " if name == "folder" else rule)


def test_tab_completes_the_keys_of_a_plan(monkeypatch, capsys):
    for typed, expected in (("mach", "machine="), ("model=la", "model=large")):
        monkeypatch.setenv("COMP_LINE", f"dtl-plan {typed}")
        code, text = run_plan(monkeypatch, capsys, "-sc", "query=bash")
        assert code == 0 and text.split() == [expected]


def test_a_plan_writes_no_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dtl.plan, "planned", lambda *_: setting(8 * GIB, tmp_path / "cache"))
    monkeypatch.setattr("dtl.foresight.process.timing", lambda config, real, compose_seconds: nullcontext(lambda: None))
    code, text = run_plan(monkeypatch, capsys)
    assert code == 0 and "its steps could not be taken here" in text
    assert list(tmp_path.iterdir()) == []


# --- the start of a run -------------------------------------------------------------------------------------------


class Built:
    """The parts of a run that `foresee` reads."""

    def __init__(self, run: dtl.RunConfig, at_once: int | None = None, device: str = "cpu") -> None:
        import torch

        self.trainer = type("Trainer", (), {"sequences_at_once": at_once or run.micro_batch_size})
        self.config, self.device, self.precision = run, torch.device(device), "fp32"
        self.attention = type("Choice", (), {"name": "sdpa"})
        self.data = type("Data", (), {"train": questions()})
        self.tokenizer = type("Tokenizer", (), {"vocab_size": 101})
        self.resumed_from = None
        self.model = type("Model", (), {"n_parameters": lambda self: 7 * MIB})()


def foreseen(monkeypatch, free: int, activations: int, **trainer) -> list[tuple[str, str]]:
    monkeypatch.setattr(predict, "peak_of", lambda *_: peak(activations, 1.0))
    monkeypatch.setattr(predict, "this_machine", lambda _: Machine("", "cpu", free, "as the test says"))
    return foresee(Built(config(**trainer)))  # pyright: ignore[reportArgumentType]


def test_a_run_is_refused_only_beyond_the_margin(monkeypatch):
    now = resident_memory()
    if now is None:
        pytest.skip("no /proc")
    free = 1 * GIB
    ((name, text),) = foreseen(monkeypatch, free, free)  # a little over, with the libraries' pages
    assert name == "memory" and "activations" in text
    with pytest.raises(DoesNotFitError, match=r"trainer\.check_memory=false") as error:
        foreseen(monkeypatch, free, 3 * now + 3 * free)
    assert error.value.exit_code == 3 and "trainer.micro_batch_size=2" in str(error.value)
    assert foreseen(monkeypatch, free, 3 * now + 3 * free, check_memory=False)


def test_a_run_that_begins_split_is_foreseen_as_such(monkeypatch):
    """It is not refused for what it does not do."""
    shapes = []
    monkeypatch.setattr(predict, "peak_of", lambda shape, cache: shapes.append(shape) or peak(1, 1.0))
    run = config(micro_batch_size=5, grad_accum_steps=2)
    for at_once in (None, 3, 1):
        foresee(Built(run, at_once))  # pyright: ignore[reportArgumentType]
    assert [(shape.rows, shape.n_micro_batches) for shape in shapes] == [(5, 2), (3, 4), (1, 10)]


@pytest.mark.parametrize(
    ("rows", "a_sequence", "refused"), [(5, 3, False), (5, 20, True), (1, 20, True), (5, 1, False)]
)
def test_a_run_on_a_gpu_is_refused_only_where_no_split_of_it_fits(rows, a_sequence, refused, monkeypatch):
    """12 GiB free on a card; a step needs so many GiB a sequence."""
    monkeypatch.setattr(predict, "peak_of", lambda shape, cache: peak(shape.rows * a_sequence * GIB, 1.0))
    monkeypatch.setattr(predict, "this_machine", lambda _: Machine("", "cuda", 12 * GIB, "free on the card"))
    run = config(micro_batch_size=rows)
    if refused:
        with pytest.raises(DoesNotFitError, match=r"activation_checkpointing=selective.*trainer\.check_memory=false"):
            foresee(Built(run, device="cuda"))  # pyright: ignore[reportArgumentType]
        return
    ((_, text),) = foresee(Built(run, device="cuda"))  # pyright: ignore[reportArgumentType]
    assert ("it fits split: " in text) == (a_sequence == 3) and "\n" not in text


def test_a_shape_without_a_trace_costs_nothing(tmp_path):
    run = config()
    shape = shape_of(run, DataFacts(101, 85), "fp32", None, "cpu")
    with pytest.raises(NotCachedError):
        peak_of(shape, OnlyCached(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "asks"), [({}, True), ({"check_memory": False}, False)])
def test_a_trial_that_may_not_fit_is_traced_before_it_begins(words, asks, monkeypatch, tmp_path):
    monkeypatch.setenv("DTL_TRIAL_FOLDER", str(tmp_path))
    monkeypatch.setenv("DTL_SWEEP", "sweep")
    monkeypatch.setenv("DTL_TRIAL", "3")
    run, seen = config(**words), []

    def traced(shape: StepShape, cache: Cache) -> Peak:
        seen.append(cache)
        return peak(10 * GIB, 1.0)

    monkeypatch.setattr(predict, "peak_of", traced)
    for free in (100 * MIB, 100 * GIB):
        monkeypatch.setattr(predict, "this_machine", lambda _, free=free: Machine("", "cpu", free, "as the test says"))
        with pytest.raises(DoesNotFitError) if asks and free < GIB else nullcontext():
            foresee(Built(run))  # pyright: ignore[reportArgumentType]
    assert [not isinstance(cache, OnlyCached) for cache in seen] == [asks, False]


# --- against runs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modern", "accumulation", "questions"])
def test_a_plan_is_within_a_tenth_of_a_run(name, tmp_path):
    """Where the first run is not, the median of three is: which hole a tensor falls into is a matter of luck."""

    def error(number):
        (tmp_path / str(number)).mkdir()
        return foreseen_error(
            Workplace(BenchConfig(suite="foresight"), tmp_path / str(number)), name, FORESEEN[name].split()
        )

    errors = [error(0)]
    if abs(errors[0]) > 0.10:
        errors += [error(1), error(2)]
    assert abs(statistics.median(errors)) <= 0.10, errors
