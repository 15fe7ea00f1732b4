"""The end of a run: its best checkpoint is evaluated, told, and kept; what fails there costs no finished run."""

import importlib
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import go_on, result, start, tiny_config, untimed, write_pairs

from dtl.base.display import shown
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import QuestionAnswer
from dtl.errors import InterruptedRun
from dtl.foresight.process import has_mallinfo
from dtl.registry import TASKS
from dtl.run_dir.sweep_records import SweepFolder, SweepRecord, Trial
from dtl.runner.session import Session
from dtl.terminal.loading import read_facts
from dtl.tracking.metrics import read_metrics

FIGURES = ("exact_match", "f1", "lookup/exact_match", "lookup/f1", "majority/exact_match", "gold_bits_per_byte")


def test_the_figures_are_in_the_result_in_the_rows_and_on_the_screen(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = start(tiny_config(pairs), tmp_path)
    found = result(tmp_path)
    assert found == found | {"state": "finished", "value": loss, "step": 12}
    assert found["validation/loss"] == pytest.approx(loss, rel=1e-5)
    assert {f"{name}/{split}" for name in FIGURES for split in ("train", "validation")} <= found.keys()
    assert found["validation/perplexity"] > 1 and found["validation/bits_per_byte"] > 0
    (row,) = [row for row in read_metrics(tmp_path) if "exact_match/validation" in row]
    assert row["step"] == 12 and row.keys() - {"step"} <= found.keys()
    assert {key: found[key] for key in row if key != "step"} == {key: row[key] for key in row if key != "step"}
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["checkpoint"].endswith("checkpoints/best") and written["worst"] == []
    assert written["text"][0]["loss"] == found["validation/loss"] and written["questions"] >= 16
    told = capsys.readouterr().out
    assert told.index("bits/byte") < told.index("BM25") < told.index("Finished")


def test_the_tracker_is_told_at_its_end(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(
        "dtl.tracking.tracker.Tracker.finish", lambda self, state, summary=None: told.append((state, summary))
    )
    start(tiny_config(pairs, total_steps=2), tmp_path)
    state, summary = told[0]
    assert state == "finished" and summary["best/step"] > 0 and "exact_match/validation" in summary


def test_the_chat_knows_the_run_right_after_training(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [f"Who is number {n}?" for n in range(7)]
    monkeypatch.setattr("dtl.evaluation.evaluator.unanswerable_questions", lambda path, data: questions)
    start(tiny_config(pairs, total_steps=2), tmp_path)
    facts = read_facts(tmp_path / "checkpoints" / "best")
    assert facts.calibration is not None and 0 <= facts.calibration.probability(-0.1) <= 1
    assert 0 <= result(tmp_path)["auc/validation"] <= 1 and 0 <= result(tmp_path)["calibration_error/validation"] <= 1
    assert facts.learned_questions_alone and not facts.learned_plain_text
    first, *examples = facts.taught
    assert first.startswith("It was taught 39 questions") and len(examples) == 3
    assert all(f'"{example.strip()}"' in pairs.read_text() for example in examples)


def test_a_pause_is_not_evaluated(paused: Path) -> None:
    assert result(paused)["state"] == "stopped" and "exact_match/train" not in result(paused)
    assert not (paused / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "(out of memory)"),
        (ZeroDivisionError("division by zero"), "(ZeroDivisionError: division by zero)"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_a_failing_evaluation_is_a_warning_of_a_finished_run(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    said: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("dtl.runner.session.evaluate_best", fail)
    loss = start(tiny_config(pairs, total_steps=2), tmp_path)
    assert result(tmp_path) == result(tmp_path) | {"state": "finished", "value": loss, "step": 2}
    told = capsys.readouterr().out
    assert (
        said in told and f"To repeat it: python -m dtl.evaluate ckpt={shown(tmp_path)}" in told and "Finished" in told
    )


def test_ctrl_c_while_evaluating_leaves_a_finished_run(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Session) -> None:
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "final_report", interrupt)
        with pytest.raises(InterruptedRun, match=r"finished and saved.*dtl\.evaluate") as stopped:
            start(tiny_config(pairs, total_steps=2), tmp_path)
    assert stopped.value.exit_code == 128 + signal.SIGINT
    assert result(tmp_path) == result(tmp_path) | {"state": "finished", "step": 2}
    go_on(tiny_config(pairs, total_steps=2), tmp_path)
    assert "exact_match/validation" in result(tmp_path)


def test_a_stopped_run_reports_the_same(pairs: Path, finished: Path, paused: Path, tmp_path: Path) -> None:
    shutil.copytree(paused, tmp_path, dirs_exist_ok=True)
    go_on(tiny_config(pairs), tmp_path)
    assert untimed(result(tmp_path)) == untimed(result(finished))


# --- without validation data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [False], indirect=True)
def test_without_validation_data_there_is_no_loss_and_the_samples_are_of_training_questions(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("dtl.tracking.tracker.Tracker.finish", lambda self, state, summary=None: told.append(summary))
    assert math.isnan(start(tiny_config(pairs), tmp_path))
    found, shown = result(tmp_path), capsys.readouterr().out
    assert found == found | {"state": "finished", "value": None, "step": 12}
    measured = {key for key in found if "/" in key}
    assert {"exact_match/train", "lookup/exact_match/train"} <= measured and all(
        key.endswith("/train") for key in measured
    )
    assert told[0].keys() == {"best/step", *measured} and told[0]["best/step"] == 12
    samples = [json.loads(line) for file in (tmp_path / "samples").iterdir() for line in file.read_text().splitlines()]
    asked = {question for fact in map(json.loads, pairs.read_text().splitlines()) for question in fact["train"]}
    assert samples and all(sample["prompt"].split("\n")[0].removeprefix("Question: ") in asked for sample in samples)
    assert re.search(r"\nbest +the last step, as nothing is held out\n", shown)
    assert "held-out text" not in shown.lower() and not re.search(r"\b(None|nan)\b", shown)
    facts = read_facts(tmp_path / "checkpoints" / "best")
    assert (facts.step, facts.best_loss) == (12, None) and facts.taught[0].startswith("It was taught 39 questions")


@pytest.fixture(scope="module")
def mixed_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a sweep of two trials: the second alone has validation data."""
    here = tmp_path_factory.mktemp("sweep")
    sweep = SweepFolder(here / "outputs" / "multirun" / "2026-01-02" / "03-04-05-6")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dtl.run_dir.provenance._packages", lambda: "")
        for number in (0, 1):
            data = write_pairs(here / f"{number}.jsonl", validation=bool(number))
            start(replace(tiny_config(data, total_steps=2), name="mixed"), sweep.trial_folder(number))
            value = result(sweep.trial_folder(number))["value"]
            sweep.keep(Trial(number, [f"data.path={number}.jsonl"], str(number), "finished", value=value))
    sweep.write(SweepRecord(["data.path=0.jsonl,1.jsonl"], state="finished", planned=2))
    return here


TRIAL_0 = "ckpt=outputs/multirun/2026-01-02/03-04-05-6/0"


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("runs", ["sort=loss"], r"5-6/1 .* 2/2 +\d\.\d{4} .*\n.*5-6/0 .* 2/2 +\d+ kB"),
        (
            "sweep",
            [],
            r"0 +data.path=0.jsonl +finished +2/2 +(\d,\d{3}|[\d.]+( k)?) *\n +1 +data.path=1.jsonl .* 2/2 +\d\.\d{4}",
        ),
        ("report", [], r"1 finished run without best validation loss \(nothing is held out"),
        ("evaluate", [TRIAL_0, "device=cpu"], r"train +39 "),
    ],
)
def test_every_command_takes_runs_without_validation_data(
    mixed_sweep: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    words: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(mixed_sweep)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "argv", [f"dtl-{command}", *words])
    with suppress(SystemExit):
        importlib.import_module(f"dtl.{command}").main()
    shown = capsys.readouterr()
    assert re.search(expected, shown.out), shown.out + shown.err
    assert not re.search(r"\b(None|nan|Traceback|Error)\b", shown.out + shown.err), shown.out


# --- tasks of one's own ---------------------------------------------------------------------------------------------


def test_tasks_get_the_questions_that_are_asked_anyway_with_their_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, list[tuple[QuestionAnswer, str]]] = {}

    def length(answer: Any, pairs: Any) -> dict[str, float]:
        seen.update({split: list(zip(found, answer(found), strict=True)) for split, found in pairs.items()})
        return {"length/train": 0.25}

    monkeypatch.setitem(TASKS._parts, "length", length)
    rows = [{"question": "Who?", "context": f"It is {n}.", "answer": f"{n}"} for n in range(29)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked: list[str] = []
    from dtl.evaluation import measure as report

    greedy = report.answer_greedily

    def remember(model: Any, tokenizer: Any, prompts: list[str], *rest: Any) -> Any:
        asked.extend(prompts)
        return greedy(model, tokenizer, prompts, *rest)

    monkeypatch.setattr(report, "answer_greedily", remember)
    config = tiny_config(tmp_path / "pairs.jsonl", total_steps=2)
    config = replace(config, data=replace(config.data, tasks=["exact_match", "length"], validation_fraction=0.3))
    start(config, tmp_path / "run")
    assert result(tmp_path / "run")["length/train"] == 0.25 and "length/train" in capsys.readouterr().out
    told = [pair.context for pairs in seen.values() for pair, _ in pairs]
    assert len(told) == len(set(told)) == len(asked) > 16
    assert all(any(context in prompt for prompt in asked) for context in told)


# --- what was seen of each source -----------------------------------------------------------------------------------


def test_what_was_seen_of_each_source_is_told_also_after_a_resume(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted from the rows themselves, in the middle of an epoch."""
    (tmp_path / "poem.txt").write_text("".join(f"Roses are {n} and violets {n + 1}.\n" for n in range(301)))
    sources = {"qa": SourceConfig("qa", str(pairs)), "poem": SourceConfig("text", str(tmp_path / "poem.txt"), 0.5)}
    config = tiny_config(pairs, total_steps=11)
    config = replace(config, data=DataConfig(sources=sources, seq_len=73, document_mask=True))
    start(replace(config, trainer=replace(config.trainer, stop_after_steps=4)), tmp_path / "run")
    first = result(tmp_path / "run")["seen"]
    go_on(config, tmp_path / "run")
    seen = result(tmp_path / "run")["seen"]
    assert seen.keys() == {"qa", "poem"} and all(0 < first[name]["tokens"] < seen[name]["tokens"] for name in seen)
    assert seen["poem"]["tokens"] == pytest.approx(0.5 * seen["qa"]["tokens"], rel=0.35)
    assert seen["qa"]["passes"] > 1 > seen["poem"]["passes"]
    assert "qa: " in capsys.readouterr().out
    start(config, tmp_path / "whole")
    assert result(tmp_path / "whole")["seen"] == seen


@pytest.mark.slow
@pytest.mark.skipif(not has_mallinfo(), reason="no glibc")
def test_the_evaluation_at_the_end_takes_the_memory_that_the_steps_needed(tmp_path):
    """In a process of its own: the best checkpoint, its file and its model, are of 13 MiB each."""
    script = """
import sys
from dtl.base.system import peak_process_memory
from dtl.commandline.compose import compose
from dtl.runner.run import train
from dtl.runner.session import Session
from pathlib import Path
final_report = Session.final_report
def measured(session):
    weights = sum(weight.nbytes for weight in session.parts.model.parameters())
    before, report = peak_process_memory(), final_report(session)
    print(f"\\n{peak_process_memory() - before} {weights}")
    return report
Session.final_report = measured
train(compose(*sys.argv[2:]), Path(sys.argv[1]))
"""
    text = tmp_path / "numbers.txt"
    text.write_text("\n\n".join(f"{number} and {number * number} are numbers" for number in range(3_011)))
    words = "data=text tokenizer=byte model.dim=256 model.n_layers=4 model.n_heads=4 trainer.total_steps=3 device=cpu "
    words += "tracker=local trainer.micro_batch_size=8 trainer.eval_max_batches=1 data.seq_len=256"
    words = [*words.split(), f"data.path={text}", f"data.cache_dir={tmp_path / 'cache'}"]
    command = [sys.executable, "-c", script, tmp_path / "run", *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    more, weights = map(int, re.findall(r"^(-?\d+) (\d+)$", ran.stdout, re.MULTILINE)[0])
    assert weights > 12 * 2**20
    assert more < weights / 2
