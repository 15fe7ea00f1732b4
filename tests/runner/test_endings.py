"""The ends of a run: by patience, by time, by a number that is not finite, for want of memory. What is said then,
and what is kept."""

import io
import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composing import composed
from pyte import Screen as Terminal
from pyte import Stream
from rich.console import Console
from tiny_runs import go_on, outcome, result, start, steps_kept, tiny_config

from dtl.base.display import Display, shown
from dtl.checkpoints.listing import best_checkpoint, list_checkpoints
from dtl.commandline.overrides import to_hydra_syntax, unquoted
from dtl.config import RunConfig
from dtl.data.config import DataConfig, SourceConfig
from dtl.errors import ConfigError, DataError, TrainingError
from dtl.model.transformer import TransformerLM
from dtl.run_dir.state import read_run_state
from dtl.runner import build, run
from dtl.runner.run import Origin, _memory_advice, smaller_step, train
from dtl.runner.screens import quicker_run
from dtl.tracking.metrics import read_metrics
from dtl.train import COMMAND
from dtl.training.evaluate import Evaluation
from dtl.training.optimizer import build_optimizers
from dtl.training.trainer import Trainer

ADVANCE = Trainer.advance


# --- what is said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "limits", "following"),
    [
        ("qa", {}, "dtl.chat ckpt={}"),
        ("text", {}, "dtl.generate ckpt={}"),
        ("qa", {"stop_after_steps": 1}, "dtl.train resume={}"),
    ],
)
def test_the_last_screen_says_what_to_type_next(
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    limits: dict[str, Any],
    following: str,
) -> None:
    config = tiny_config(pairs, **({"total_steps": 2} | limits))
    if source == "text":
        (tmp_path / "poem.txt").write_text("Roses are red. " * 99)
        text = {"text": SourceConfig(kind="text", path=str(tmp_path / "poem.txt"))}
        config = replace(config, data=DataConfig(sources=text, seq_len=73))
    start(config, tmp_path / "run")
    assert f"python -m {following.format(shown(tmp_path / 'run'))}\n" in capsys.readouterr().out


def test_what_begins_anew_sets_aside_the_rows_of_an_attempt_that_saved_nothing(pairs: Path, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"step": step, "train/loss": 3.5}) + "\n" for step in range(5))
    (tmp_path / "metrics.jsonl").write_text(rows)
    start(tiny_config(pairs, total_steps=2), tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path) if "train/loss" in row] == [1, 2]
    assert (tmp_path / "metrics.lost.jsonl").read_text() == rows


# --- the start screen ---------------------------------------------------------------------------------------------


def questions_of_ones_own(n: int, *more: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"question": f"What is the square of {i}?", "answer": f"{i * i}."} for i in range(n)] + list(more)


def shown_before_the_first_step(monkeypatch: pytest.MonkeyPatch, height: int, begin: Callable[[], object]) -> list[str]:
    """The lines of a terminal of 80 columns below the line of the command and the first sign of life."""
    stream, seen = io.StringIO("\n"), list[str]()
    console = Console(file=stream, force_terminal=True, width=80, height=height, color_system=None)
    monkeypatch.setattr(run, "lasting_display", lambda: Display(console))
    monkeypatch.setattr(Display, "start_progress", lambda *_: seen.append(stream.getvalue()))
    begin()
    terminal = Terminal(80, 200)
    Stream(terminal).feed("command\r\nOpening the data, loading torch ...\r\n" + seen[0].replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in terminal.display).rstrip().split("\n")


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("records", "notes"),
    [
        (questions_of_ones_own(10), []),
        (questions_of_ones_own(60), []),
        (
            questions_of_ones_own(10, {"question": "What is the square of 3?", "answer": "ten"}, {"x": 1})
            + questions_of_ones_own(1)
            + questions_of_ones_own(1, {"question": "word " * 90, "answer": "none"}, {"question": "", "answer": "b"}),
            [
                "has the answers",
                "each a copy of another",
                "longer than a sequence",
                "no field for a question",
                "an empty question",
            ],
        ),
    ],
)
def test_the_start_screen_fits_a_terminal_and_loses_no_note(records, notes, tmp_path, monkeypatch):
    """With the command above it, and the progress of two rows and the cursor below. details.txt has all notes."""
    file = tmp_path / "folder" / "of" / "questions" / "my_own_pairs.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = replace(tiny_config(file, total_steps=200, stop_after_steps=1), name="my_pairs")
    for height, session in ((24, start), (24, go_on), (99, start))[: 3 if notes else 1]:
        run_dir = tmp_path / f"run-{height}"
        lines = shown_before_the_first_step(monkeypatch, height, lambda s=session, d=run_dir: s(config, d))
        assert len(lines) <= height - 3, lines
        assert lines[2].startswith("DTL my_pairs") and any("my_own_pairs.jsonl" in line for line in lines)
        details = (run_dir / "details.txt").read_text()
        assert all(note in details for note in notes) and details.count("\nattention ") == details.count("DTL my_pairs")
        missing = [note for note in notes if note not in " ".join(lines)]
        assert bool(missing) == any("more note" in line and "details.txt" in line for line in lines), lines
        assert not missing or height == 24


def test_a_block_without_a_twin_is_said_before_the_first_step(pairs: Path, tmp_path: Path, monkeypatch):
    plain = tiny_config(pairs, total_steps=2, stop_after_steps=1)
    for block, rows in (("modern", 0), ("value_embeddings", 1)):
        config = replace(plain, model=replace(plain.model, arch=replace(plain.model.arch, block=block)))
        folder = tmp_path / block
        lines = shown_before_the_first_step(monkeypatch, 24, lambda c=config, f=folder: start(c, f))
        said = f"block {block}: DTL alone reads its checkpoints"
        assert sum(said in line for line in lines) == rows
        assert (folder / "details.txt").read_text().count(said) == rows


# --- the end screen -----------------------------------------------------------------------------------------------


def test_the_end_screen_shows_the_right_answers_and_the_best_step(pairs: Path, tmp_path: Path, capsys) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"question": f"{i} squared?", "answer": f"{i * i}."}) + "\n" for i in range(7)))
    config = tiny_config(few, total_steps=2)
    start(replace(config, data=replace(config.data, validation_fraction=0)), tmp_path / "a")
    questions, _, end = capsys.readouterr().out.partition("\nQuestions\n")[2].partition("\nFinished\n")
    assert re.match(r"wordings +asked +right .*\ntrain +7 +\d ", questions)
    assert re.search(r"^best +the last step, as nothing is held out$", end, re.MULTILINE)
    assert not any(word in end.lower() for word in ("none", "nan"))
    start(tiny_config(pairs, total_steps=2, eval_every_steps=None), tmp_path / "b")
    questions, _, end = capsys.readouterr().out.partition("\nQuestions\n")[2].partition("\nFinished\n")
    assert re.search(r"^train +\d+ +\d+ .*\nvalidation +\d+ +\d+ ", questions, re.MULTILINE)
    assert re.search(r"^best +step 2, validation loss \d+\.\d+$", end, re.MULTILINE)
    start(tiny_config(pairs, total_steps=2, stop_after_steps=1, eval_every_steps=None), tmp_path / "c")
    assert re.search(r"\nbest +none: the validation loss is not measured yet\n", capsys.readouterr().out)


# --- too slow for a CPU -------------------------------------------------------------------------------------------

SHIPPED, MINE = SourceConfig("qa"), SourceConfig("qa", "mine.jsonl")
SLOW = {
    "data=text \"data.path='my texts/it (1).txt'\"": ("text_cpu", None),
    "model=medium data=wiki trainer.max_epochs=3 data.seq_len=512 device=cpu": ("text_cpu", None),
    "model=qa data=qa +experiment=qa_muon optimizer.lr=1e-3 seed=7": ("qa_full", SHIPPED),
    "model=qa data=qa +experiment=qa_muon optimizer.lr=1e-3 data.qa.path=mine.jsonl seed=7": ("my_pairs", MINE),
    "data=text data.path=x.txt model/arch=classic tokenizer=bpe tracker=local plugins=[my_lab]": ("text_cpu", None),
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("words", SLOW)
def test_what_is_proposed_keeps_the_data_and_fits_a_cpu(words: str) -> None:
    recipe, pairs = SLOW[words]
    given = shlex.split(words)
    sentence = quicker_run(parts_of(pairs), given, ["--config-dir=/my conf"], None)
    assert sentence is not None
    command = shlex.split(sentence[sentence.index("python -m") :])
    assert command[:5] == ["python", "-m", "dtl.train", "--config-dir=/my conf", f"experiment={recipe}"]
    kept = command[5:]
    assert kept == [word for word in given if word.startswith(("data", "device", "seed", "tracker", "plugins"))
                    and not word.startswith("data.seq_len")]  # fmt: skip
    config = composed(*[to_hydra_syntax(word, COMMAND) for word in command[4:] if not word.startswith("plugins")])
    path = next((word.partition("=")[2] for word in given if word.startswith("data.path")), None)
    assert config.data.path == (path and unquoted(path))
    as_recommended = composed(f"experiment={recipe}", *(["data.path=x"] if pairs is None else []))
    assert (config.trainer.total_steps, config.model) == (as_recommended.trainer.total_steps, as_recommended.model)


@pytest.mark.parametrize(("has_bf16", "minutes"), [(True, 5), (False, 8)])
def test_questions_take_longer_without_bf16_units(
    has_bf16: bool, minutes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtl.runner.screens.cpu_has_bf16", lambda: has_bf16)
    sentence = quicker_run(parts_of(SHIPPED), [], [], None)
    assert sentence == f"About {minutes} minutes on two cores: python -m dtl.train experiment=qa_full"


@pytest.mark.parametrize(("n_pairs", "minutes", "ends"), [(500, 2, False), (2000, 8, False), (90_000, 10, True)])
def test_many_pairs_of_ones_own_get_as_many_steps_as_ten_minutes_have(n_pairs: int, minutes: int, ends: bool) -> None:
    sentence = quicker_run(parts_of(MINE, n_pairs=n_pairs), ["data.qa.path=mine.jsonl"], [], None)
    assert sentence is not None and sentence.startswith(f"About {minutes} minutes on two cores: ")
    assert sentence.endswith("data.qa.path=mine.jsonl" + " trainer.total_steps=4000" * ends)


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"resumed_from": Path("x")}, {"init": "run"}])
def test_nothing_is_proposed_to_who_cannot_or_does_not_want_to_change(other: dict[str, str]) -> None:
    assert quicker_run(parts_of(None, **other), ["data=text"], [], None) is None


def test_the_quickest_recipe_can_be_ended():
    """On a slow machine its time is said as that of any other run."""
    sentence = quicker_run(parts_of(None), ["experiment=text_cpu", "data.path=a b"], [], "text_cpu")
    assert sentence is not None
    assert sentence.endswith("python -m dtl.train experiment=text_cpu 'data.path=a b' trainer.hours=0.5")


def parts_of(
    pairs: SourceConfig | None,
    device: str = "cpu",
    resumed_from: Path | None = None,
    init: str | None = None,
    n_pairs: int = 1,
) -> Any:
    """As much of a run's parts as the proposal depends on."""
    return SimpleNamespace(
        device=torch.device(device),
        resumed_from=resumed_from,
        config=RunConfig(init=init, data=DataConfig(sources={"one": pairs or SourceConfig("text", "x")})),
        data=SimpleNamespace(pairs={"train": [pairs] * n_pairs} if pairs else {}),
    )


@pytest.mark.parametrize(("minutes_a_step", "told"), [(5.0, True), (0.5, False)])
def test_slow_first_steps_are_answered_once(
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    minutes_a_step: float,
    told: bool,
) -> None:
    monkeypatch.setattr(Trainer, "advance", lambda self, batches, _: ADVANCE(self, batches, 60 * minutes_a_step))
    words = ["data=qa", f"data.qa.path={pairs}"]
    train(tiny_config(pairs), tmp_path, Origin(overrides=words, choices={"data": "qa"}))
    shown = capsys.readouterr().out
    assert shown.count("At this speed the run needs about") == told
    line = next((line for line in shown.splitlines() if line.startswith("At this speed")), "")
    # After two of 12 steps, the first of which counts no more: 50 minutes, and evaluations that are guessed from them.
    assert (re.search(r" 1:\d\d:\d\d on this CPU", line) is not None) == told, line
    assert line.endswith(f" data=qa data.qa.path={pairs}") == told


# --- limits -------------------------------------------------------------------------------------------------------


def with_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Validation losses as they are wished, one an evaluation; the last one again and again."""

    def evaluate(*_: Any, **__: Any) -> Evaluation:
        return Evaluation(losses.pop(0) if len(losses) > 1 else losses[0], 5)

    monkeypatch.setattr("dtl.runner.session.evaluate", evaluate)


def test_patience_ends_a_run_and_the_best_stays(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_losses(monkeypatch, [3.0, 2.0, 2.5, 2.0, 1.0])
    config = tiny_config(pairs, total_steps=40, eval_every_steps=2, early_stopping_patience=2)
    assert start(config, tmp_path) == 2.0
    assert result(tmp_path) == result(tmp_path) | {"state": "finished", "step": 8, "value": 2.0}
    best = best_checkpoint(tmp_path)
    assert best is not None and best.step == 4
    # Killed before it could say so, it would not train on either.
    go_on(config, tmp_path)
    assert result(tmp_path)["step"] == 8
    reason = "Stopped early: 2 evaluations without improvement (trainer.early_stopping_patience=2)."
    assert result(tmp_path)["reason"] == reason == read_run_state(tmp_path).reason
    assert reason in (tmp_path / "details.txt").read_text()


def test_patience_is_remembered_over_a_pause(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_losses(monkeypatch, [3.0, 4.0, 4.0, 4.0])
    config = tiny_config(pairs, total_steps=40, eval_every_steps=2, early_stopping_patience=3)
    start(replace(config, trainer=replace(config.trainer, stop_after_steps=5)), tmp_path)
    go_on(config, tmp_path)
    assert result(tmp_path)["step"] == 8


@pytest.mark.fault("nan-best")
def test_a_loss_that_is_not_finite_is_never_the_best(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_losses(monkeypatch, [math.nan, 2.0, math.nan, -math.inf])
    assert start(tiny_config(pairs), tmp_path) == 2.0
    best = best_checkpoint(tmp_path)
    assert best is not None and best.step == 6


def test_a_run_without_any_finite_loss_ends_without_a_best(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_losses(monkeypatch, [math.nan])
    config = tiny_config(pairs)
    config.data.tasks = ["exact_match"]
    assert math.isnan(start(config, tmp_path))
    assert result(tmp_path) == result(tmp_path) | {"state": "finished", "value": None}


def test_hours_end_a_run_which_goes_on_with_more(
    pairs: Path, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advance(self: Trainer, batches: Any, seconds: float) -> None:
        ADVANCE(self, batches, 60.0)  # a minute a step

    monkeypatch.setattr(Trainer, "advance", advance)
    start(tiny_config(pairs, hours=0.11), tmp_path)
    assert result(tmp_path) == result(tmp_path) | {"state": "finished", "step": 7}
    go_on(tiny_config(pairs, hours=0.15), tmp_path)
    assert result(tmp_path)["step"] == 9
    go_on(tiny_config(pairs, hours=None), tmp_path)
    assert result(tmp_path)["step"] == 12
    newest = list_checkpoints(tmp_path)[0].path
    weights = outcome(tmp_path)["files"][f"{newest.name}/model.safetensors"]
    assert weights == uninterrupted["files"][f"{newest.name}/model.safetensors"]


# --- a run that fails ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["in time", "late"])
def checked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers that read whether a step is finite before its update, as on a CPU, or a step later, as on CUDA."""
    build = Trainer.__init__

    def built(self: Trainer, *arguments: Any, **settings: Any) -> None:
        build(self, *arguments, **settings)
        if request.param == "late":
            self.check_late()

    monkeypatch.setattr(Trainer, "__init__", built)


@pytest.mark.quick_cases(2)
@pytest.mark.fault("nan")
@pytest.mark.parametrize("good", [6, 7])  # of step 7 nothing is due, step 8 is to be saved
def test_a_loss_that_is_not_finite_keeps_what_was_good(
    pairs: Path,
    uninterrupted: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checked: None,
    good: int,
) -> None:
    accumulate = Trainer.accumulate_gradients

    def poisoned(self: Trainer, batches: Any) -> torch.Tensor:
        return accumulate(self, batches) * (math.nan if self.state.step == good else 1.0)

    monkeypatch.setattr(Trainer, "accumulate_gradients", poisoned)
    bad = good + 1
    with pytest.raises(TrainingError, match=rf"(?s)Step {bad}: the loss is nan.*Kept: step-00000006.*checkpoints"):
        start(tiny_config(pairs), tmp_path)
    assert result(tmp_path) == result(tmp_path) | {"state": "failed", "step": good}
    assert f"Step {bad}" in result(tmp_path)["error"]
    record = json.loads((tmp_path / "non_finite.json").read_text())
    assert record["step"] == bad and len(sum(record["rows"], [])) == 4  # noqa: RUF017 (two lists)
    assert steps_kept(tmp_path)[0] == 6
    assert [row["step"] for row in read_metrics(tmp_path) if "train/loss" in row] == list(range(1, bad))
    # The cause gone, the run goes on from there as if nothing had happened.
    monkeypatch.setattr(Trainer, "accumulate_gradients", accumulate)
    go_on(tiny_config(pairs), tmp_path)
    assert outcome(tmp_path) == uninterrupted


def test_the_first_screen_of_a_run_shows_a_training_text(pairs, tmp_path, capsys) -> None:
    """As the model sees it, with its loss marked; a resumed run does not repeat it."""
    start(tiny_config(pairs, total_steps=2, stop_after_steps=1), tmp_path)
    assert "training text as the model sees it" in (shown := capsys.readouterr().out) and "  Answer:« " in shown
    go_on(tiny_config(pairs, total_steps=2), tmp_path)
    assert "as the model sees it" not in capsys.readouterr().out


@pytest.mark.fault("out-of-memory")
def test_out_of_memory_says_what_fits_next(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_calls = 0

    def cramped(self: Trainer, batches: Any) -> torch.Tensor:
        nonlocal n_calls
        n_calls += 1
        if n_calls >= 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return torch.tensor(1.0)

    monkeypatch.setattr(Trainer, "accumulate_gradients", cramped)
    with pytest.raises(TrainingError, match=r"Try next: trainer\.activation_checkpointing=selective") as told:
        start(tiny_config(pairs), tmp_path)
    assert "micro-batches of 1 x 73 tokens" in str(told.value)
    assert len(str(told.value).splitlines()) <= 6
    assert result(tmp_path)["state"] == "failed"


@pytest.mark.parametrize("micro, accumulation", [(8, 4), (7, 2), (5, 1), (3, 1), (2, 3), (5, 3), (6, 1)])
def test_the_advice_keeps_the_rows_of_a_step(pairs: Path, micro: int, accumulation: int) -> None:
    config = tiny_config(pairs, micro_batch_size=micro, grad_accum_steps=accumulation)
    with pytest.raises(TrainingError) as told, _memory_advice(lambda: smaller_step(config)):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    settings = dict(word.split("=") for word in str(told.value).split() if word.startswith("trainer."))
    smaller = int(settings["trainer.micro_batch_size"])
    assert 1 <= smaller <= (micro + 1) // 2
    assert smaller * int(settings["trainer.grad_accum_steps"]) == micro * accumulation


def test_the_advice_goes_on_when_a_batch_is_one_row(pairs: Path) -> None:
    def advice(config: RunConfig) -> str:
        with pytest.raises(TrainingError) as told, _memory_advice(lambda: smaller_step(config)):
            raise MemoryError
        return str(told.value)

    for checkpointing, expected in {
        "none": "trainer.activation_checkpointing=selective",
        "selective": "trainer.activation_checkpointing=full",
        "full": "data.seq_len=36",
    }.items():
        config = tiny_config(pairs, micro_batch_size=1, activation_checkpointing=checkpointing)
        assert f"Try next: {expected}" in advice(config)


@pytest.mark.fault("out-of-memory")
def test_a_model_that_cannot_fit_is_rejected_before_it_is_built(pairs, tmp_path, monkeypatch) -> None:
    """Weights, gradients and the two moments of AdamW: 16 bytes a parameter."""
    monkeypatch.setattr(build, "device_memory", lambda device: 1000)
    with pytest.raises(
        ConfigError, match=r"^model\.dim=\d+ model\.n_layers=\d+: .* Only a smaller model helps"
    ) as told:
        start(tiny_config(pairs), tmp_path)
    assert "micro_batch_size" not in str(told.value)
    model = TransformerLM(tiny_config(pairs).model, 97)
    needed = 16 * model.n_parameters()
    optimizers = build_optimizers(model, tiny_config(pairs).optimizer)
    assert build.training_bytes(model, optimizers, averaged=False) == needed
    assert build.training_bytes(model, optimizers, averaged=True) == needed + 4 * model.n_parameters()
    for memory in (needed, None):
        monkeypatch.setattr(build, "device_memory", lambda device, memory=memory: memory)
        build._raise_if_too_large(tiny_config(pairs), 97, torch.device("cpu"))


def test_advice_that_cannot_help_is_not_given(pairs, tmp_path, monkeypatch) -> None:
    def cramped(self: Trainer, batches: Any) -> torch.Tensor:
        needed.append(build.training_bytes(self.model, self.optimizers, averaged=False))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    needed: list[int] = []
    monkeypatch.setattr(Trainer, "accumulate_gradients", cramped)
    monkeypatch.setattr(run, "device_memory", lambda device: int(needed[0] / 0.95))
    with pytest.raises(TrainingError, match=r"Out of memory\. model\.dim=.* Only a smaller model helps") as told:
        start(tiny_config(pairs), tmp_path / "a")
    assert "Try next" not in str(told.value)
    monkeypatch.setattr(run, "device_memory", lambda device: 2 * needed[0])
    with pytest.raises(TrainingError, match=r"Try next: trainer\.activation_checkpointing=selective"):
        start(tiny_config(pairs), tmp_path / "b")


def test_too_little_memory_before_the_first_step_is_no_matter_of_micro_batches(pairs, tmp_path, monkeypatch) -> None:
    def cramped(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(build, "prepare_data", cramped)
    with pytest.raises(TrainingError, match="before the first step") as told:
        start(tiny_config(pairs), tmp_path)
    assert "trainer.micro_batch_size" not in str(told.value) and "smaller files" in str(told.value)


def test_other_errors_pass_through_the_advice(pairs: Path) -> None:
    with pytest.raises(ZeroDivisionError), _memory_advice(lambda: smaller_step(tiny_config(pairs))):
        raise ZeroDivisionError


def test_data_that_turns_out_to_be_damaged_stops_the_run_before_it_saves(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large files of the cache are hashed in the background; other tokens, or none of the vocabulary, save nothing."""
    monkeypatch.setattr("dtl.data.collect.SMALL_BYTES", 0)
    config = tiny_config(pairs, total_steps=2)
    config = replace(config, data=replace(config.data, cache_dir=str(tmp_path)))
    start(config, tmp_path / "first")
    monkeypatch.setattr("dtl.data.cache.HASHED_ON_OPENING", 0)
    [file] = tmp_path.glob("dtl-cache/tokens-*/train.tokens.npy")
    for number, byte in enumerate((b"\1\0", b"\xff\xff")):
        contents = file.read_bytes()
        file.write_bytes(contents[:-200] + 50 * byte + contents[-100:])
        run_dir = tmp_path / f"damaged-{number}"
        with pytest.raises(DataError, match=r"train.tokens.npy: damaged.*The next start builds this entry again"):
            start(config, run_dir)
        assert steps_kept(run_dir) == [] and result(run_dir)["state"] == "failed"
        start(config, tmp_path / f"again-{number}")
        assert outcome(tmp_path / f"again-{number}") == outcome(tmp_path / "first")
