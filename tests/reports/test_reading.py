"""Selecting run folders, reading them, and grouping runs into configurations."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run, make_sweep, make_trial

from dtl.errors import ConfigError, DataError
from dtl.reports.config import ReportConfig
from dtl.reports.configurations import group_runs, short_labels, side_by_side, sort_by_mean
from dtl.reports.reading import MAX_POINTS, read_run
from dtl.reports.selection import select

OUTPUTS = Path("outputs")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(elsewhere):
    """outputs/ of the test, not of the checkout."""


# --- which runs ---------------------------------------------------------------------------------------------------


def chosen(words: str) -> list[str]:
    return [str(folder) for folder in select(ReportConfig(runs=words).wanted(), OUTPUTS).folders]


def test_runs_globs_lists_and_sweeps():
    for name in ("2031-01-02/03-04-05-7_a", "2031-01-02/03-04-06-7_b", "2031-01-03/03-04-05-7_a"):
        make_run(OUTPUTS / name)
    sweep = OUTPUTS / "multirun/2031-01-02/03-04-05-11"
    for number in (0, 2, 10):
        make_run(sweep / str(number))
        make_trial(sweep / str(number), number, "finished")
    make_trial(sweep / "3", 3, "refused", "cannot be")
    (sweep / "sweep.json").write_text("{}")
    assert chosen("outputs/2031-01-02/03-04-05-7_a") == ["outputs/2031-01-02/03-04-05-7_a"]
    assert chosen("outputs/2031-*/*_a") == ["outputs/2031-01-02/03-04-05-7_a", "outputs/2031-01-03/03-04-05-7_a"]
    assert chosen("[outputs/2031-01-03/03-04-05-7_a,outputs/2031-01-02]") == [
        "outputs/2031-01-03/03-04-05-7_a",
        "outputs/2031-01-02/03-04-05-7_a",
        "outputs/2031-01-02/03-04-06-7_b",
    ]
    assert chosen(str(sweep)) == [f"{sweep}/{number}" for number in (0, 2, 3, 10)]
    assert chosen(f"{sweep},{sweep}/0") == chosen(str(sweep)), "named twice, taken once"
    assert chosen(f"{sweep}/[02]") == [f"{sweep}/0", f"{sweep}/2"]


def test_latest_is_the_newest_run_or_its_whole_sweep():
    make_run(OUTPUTS / "2031-01-02/03-04-05-7_a")
    assert chosen("latest") == ["outputs/2031-01-02/03-04-05-7_a"]
    sweep = OUTPUTS / "multirun/2031-01-05/03-04-05-11"
    for number in (0, 1):
        record = json.loads((make_run(sweep / str(number)) / "run.json").read_text())
        record["sessions"][0]["started"] = "2031-01-05T03:04:05+00:00"
        (sweep / str(number) / "run.json").write_text(json.dumps(record))
    (sweep / "multirun.yaml").write_text("")
    assert chosen("latest") == [f"{sweep}/0", f"{sweep}/1"]


def test_where_the_report_goes():
    sweep = make_sweep(OUTPUTS / "multirun/2031-01-02/03-04-05-11", steps=20)
    assert select([str(sweep)], OUTPUTS).report_folder(OUTPUTS) == sweep / "report"
    assert select([str(sweep / "0")], OUTPUTS).report_folder(OUTPUTS) == sweep / "0" / "report"
    assert select([f"{sweep}/[01]"], OUTPUTS).report_folder(OUTPUTS).parent == OUTPUTS / "reports"


def test_what_is_not_there_is_said():
    with pytest.raises(DataError, match="runs=latest: there is no run under outputs/ yet"):
        chosen("latest")
    make_run(OUTPUTS / "2031-01-02/03-04-05-7_a")
    with pytest.raises(ConfigError, match=r"runs=nowhere: no such folder(.|\n)*03-04-05-7_a"):
        chosen("nowhere")
    Path("empty").mkdir()
    with pytest.raises(DataError, match="empty: no run in it"):
        chosen("empty")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runs": " "}, "runs= : names nothing"),
        ({"runs": "[]"}, "names nothing"),
        ({"metric": "abstention/threshold"}, "metric=abstention/threshold: its name does not show"),
        ({"out": "file"}, "out=file: is a file"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    Path("file").touch()
    with pytest.raises(ConfigError, match=message):
        ReportConfig(**settings).validate()


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        (None, False),
        ("exact_match/test", True),
        ("lookup/f1/test", True),
        ("test/loss", False),
        ("auc/test", True),
        ("calibration_error/natural", False),
        ("abstention/refused/natural", True),
    ],
)
def test_a_metrics_name_tells_which_way_is_better(metric, higher):
    assert ReportConfig(metric=metric).prefers_higher() is higher
    assert ReportConfig(metric=metric, higher_is_better=not higher).prefers_higher() is not higher


# --- one run ------------------------------------------------------------------------------------------------------


def test_a_run_is_read_whole():
    text = [("Q", "first"), ("R", "\x1b[31mred")]
    run = read_run(make_run(Path("run"), steps=40, value=1.5, seed=3, figures={"f1/test": 0.5}, samples=text))
    assert (run.state, run.seed, run.metrics) == ("finished", 3, {"value": 1.5, "f1/test": 0.5})
    assert (run.config["optimizer.lr"], run.config["model.dim"]) == ("0.001", "256")
    assert len(run.training.loss) == 40 and run.validation.step.tolist() == [4 * k for k in range(1, 11)]
    assert run.validation.tokens.tolist() == [4 * 1024 * k for k in range(1, 11)]
    assert run.tokens_per_second == pytest.approx(10_240 / 1.06) and run.peak_bytes == 256 * 2**21
    assert run.samples == {"Q": "first", "R": "\u241b[31mred"}


def test_a_long_run_becomes_small_and_keeps_its_mean():
    run = read_run(make_run(Path("run"), steps=7 * MAX_POINTS + 13))
    losses = [json.loads(line).get("train/loss") for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert len(run.training.loss) == len(run.training.step) == MAX_POINTS
    assert (np.diff(run.training.step) > 0).all()
    assert run.training.loss.mean() == pytest.approx(np.mean(losses), rel=1e-2)


@pytest.mark.parametrize("file", ["config.yaml", "run.json", "metrics.jsonl", "result.json", "trial.json"])
@pytest.mark.parametrize("contents", [b"", b"\xff\x00{[", b'[1, "a"]', b'{"choices": 3, "model": [1], "step": "x"}\n'])
def test_damage_is_never_an_error(file, contents):
    folder = make_run(Path("run"), samples=[("Q", "A")])
    (folder / file).write_bytes(contents)
    (folder / "samples" / "step-00000099.jsonl").write_bytes(contents)
    run = read_run(folder)
    assert group_runs([run]) or file == "config.yaml"


def test_rows_that_are_torn_or_no_numbers_are_left_out():
    folder = make_run(Path("run"), steps=11)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "tokens": 12288, "seconds": 2, "train/loss": null}\n{"step": 13, "tok')
    assert read_run(folder).training.step.tolist() == list(range(1, 12))


def test_the_sweep_knows_better_why_a_trial_ended():
    folder = make_run(Path("sweep/3"), state=None)
    make_trial(folder, 3, "timed out", "took longer than 7 minutes")
    (folder / "traceback.txt").write_text("Traceback ...")
    run = read_run(folder)
    assert (run.state, run.reason) == ("timed out", "took longer than 7 minutes")
    assert run.traceback == (folder / "traceback.txt", "Traceback ...")
    make_trial(folder, 3, "failed", traceback="../../secret.txt")
    Path("secret.txt").write_text("secret")
    assert read_run(folder).traceback is None, "nothing outside the trial's folder is read"


# --- which belong together ----------------------------------------------------------------------------------------


def configurations(*folders: Path):
    return group_runs([read_run(folder) for folder in folders])


def test_runs_that_differ_only_in_the_seed_are_one_configuration():
    found = configurations(
        make_run(Path("a"), seed=1, name="x", value=1.0),
        make_run(Path("b"), seed=2, name="y", value=3.0, settings={"tracker": {"kind": "wandb"}}),
        make_run(Path("c"), seed=1, lr=1.0000001e-3),
        make_run(Path("d"), seed=3, state="failed"),
    )
    assert [len(one.runs) for one in found] == [3, 1]
    assert found[0].values("value") == {1: 1.0, 2: 3.0}, "what failed is not compared"
    assert [one.label for one in found] == ["lr=0.001", "lr=0.0010000001"]


def test_a_group_stands_for_the_keys_that_it_decides():
    found = configurations(
        make_run(Path("a"), model="small"), make_run(Path("b"), model="medium"), make_run(Path("c"), lr=0.1)
    )
    assert [one.settings for one in found] == [
        {"model": "small", "optimizer.lr": "0.001"},
        {"model": "medium", "optimizer.lr": "0.001"},
        {"model": "small", "optimizer.lr": "0.1"},
    ]
    assert found[1].label == "model=medium lr=0.001"


@pytest.mark.parametrize(("state", "shown"), [("failed", True), ("pruned", False), ("interrupted", False)])
def test_where_a_run_was_stopped_on_purpose_is_no_traceback_to_look_at(tmp_path, state, shown):
    make_run(tmp_path / "0", state="failed" if state == "failed" else "interrupted")
    make_trial(tmp_path / "0", 0, state)
    (tmp_path / "0" / "traceback.txt").write_text("Traceback")
    run = read_run(tmp_path / "0")
    assert run.state == state and (run.traceback is not None) == shown


def test_labels_name_the_config_group_before_the_settings_that_would_do():
    keys = ("optimizer", "schedule", "optimizer.lr", "optimizer.matrix_lr")
    rows = [("adamw", "a", "1", "7"), ("adamw", "a", "2", "7"), ("muon", "b", "3", "5"), ("muon", "b", "3", "6")]
    labels = short_labels([dict(zip(keys, row, strict=True)) for row in rows], ["run"] * 4)
    assert labels == [f"optimizer={one} lr={lr} matrix_lr={matrix}" for one, _, lr, matrix in rows]


def test_a_label_does_not_name_the_file_of_a_source_that_is_not_read():
    own = {"data.path": "null", "data.qa.path": "mine.jsonl"}, {"data.path": "a.txt", "data.qa.path": "null"}
    shipped = {"data.path": "null", "data.qa.path": "null"}
    assert short_labels([*own, shipped], ["a", "b", "c"]) == ["data.qa.path=mine.jsonl", "data.path=a.txt", "c"]
    assert short_labels([{"x.patience": "null"}, {"x.patience": "5"}], ["a", "b"]) == ["patience=null", "patience=5"]


def test_labels_use_no_more_keys_than_needed():
    few = [
        {"a.x": "1", "b.x": "1", "c.y": "1"},
        {"a.x": "1", "b.x": "2", "c.y": "2"},
        {"a.x": "2", "b.x": "3", "c.y": "3"},
    ]
    assert short_labels(few, ["run"] * 3) == ["x=1", "x=2", "x=3"]
    two = [{"a.x": "1", "b.x": "1"}, {"a.x": "1", "b.x": "2"}, {"a.x": "2", "b.x": "1"}]
    assert short_labels(two, ["run"] * 3) == ["a.x=1 b.x=1", "a.x=1 b.x=2", "a.x=2 b.x=1"]
    long = [{"path": f"{'x' * 30}{number}"} for number in range(3)]
    assert len(set(short_labels(long, ["run"] * 3))) == 3


def test_a_run_without_a_recipe_is_not_called_none():
    """run.json has `experiment: None` for it."""
    folders = [make_run(Path(str(number)), lr=lr) for number, lr in enumerate((0.1, 0.2, 0.3))]
    for folder, recipe in zip(folders, ("None", "night-of-the-long-learning-rates", "None"), strict=True):
        record = json.loads((folder / "run.json").read_text())
        record["choices"]["experiment"] = recipe
        (folder / "run.json").write_text(json.dumps(record))
    found = configurations(*folders)
    assert [one.label for one in found] == ["lr=0.1", "night-of-the-long-learning-rates", "lr=0.3"]
    assert [one.settings["experiment"] for one in found] == ["-", "night-of-the-long-learning-rates", "-"]
    assert [one.label for one in configurations(*folders[:2])] == ["made", "night-of-the-long-learning-rates"]


def mixed() -> list[dict[str, str]]:
    """Runs of many kinds: a usual one, and others that differ from it in one or two settings each."""
    usual = {key: "a" for key in ("data", "tokenizer", "schedule", "model/arch", "optimizer")}
    usual |= {"optimizer.lr": "1", "model.dim": "16", "model.n_layers": "4"}
    changes: list[dict[str, str]] = [{}, *({key: "b"} for key in list(usual)[:5])]
    changes += [{"data": "b", "optimizer.lr": "2"}, {"model.dim": "32"}, {"model.dim": "32", "model.n_layers": "8"}]
    return [usual | change for change in changes]


def test_labels_of_mixed_runs_name_what_is_unusual():
    labels = short_labels(mixed(), ["run"] * 9)
    assert labels[1:6] == ["data=b lr=1", "tokenizer=b", "schedule=b", "model/arch=b", "optimizer=b"]
    assert labels[6:] == ["data=b lr=2", "dim=32 n_layers=4", "dim=32 n_layers=8"]
    assert labels[0] == "dim=16 n_layers=4"


@pytest.mark.parametrize("count", range(2, 10))
def test_labels_are_unique_by_what_they_say(count):
    """No number in brackets, however many keys it takes; no value that a run does not have."""
    rows = [row | ({"plugin.x": "-"} if number % 2 else {"plugin.x": "7"}) for number, row in enumerate(mixed())]
    labels = short_labels(rows[:count], ["run"] * count)
    assert len(set(labels)) == count and not any("(" in label or "=-" in label for label in labels)


def test_a_seed_that_ran_twice_counts_once():
    found = configurations(make_run(Path("a"), value=1.0), make_run(Path("b"), value=2.0))
    assert found[0].values("value") == {1: 2.0}


def test_the_run_that_chose_the_winner_does_not_confirm_it():
    folders = [make_run(Path(str(seed)), seed=seed, value=float(seed)) for seed in (1, 2, 3)]
    make_trial(folders[0], 1, "finished")
    make_trial(folders[1], 2, "finished", role="confirm")
    make_trial(folders[2], 3, "finished", role="confirm")
    assert configurations(*folders)[0].values("value") == {2: 2.0, 3: 3.0}


@pytest.mark.parametrize(
    ("higher", "order"), [(False, ["lr=0.1", "lr=0.2", "lr=0.3"]), (True, ["lr=0.2", "lr=0.1", "lr=0.3"])]
)
def test_order_is_by_the_mean_and_what_has_none_comes_last(higher, order):
    found = configurations(
        make_run(Path("a"), lr=0.3, state="failed"),
        make_run(Path("b"), lr=0.2, value=2.0),
        make_run(Path("c"), lr=0.1, value=1.0),
    )
    assert [one.label for one in sort_by_mean(found, "value", higher)] == order


def test_samples_stand_beside_those_after_the_same_prompt():
    found = configurations(
        make_run(Path("a"), lr=0.1, seed=1, samples=[("P", "a1"), ("Q", "a2")]),
        make_run(Path("b"), lr=0.2, seed=2, samples=[("S", "other seed")]),
        make_run(Path("c"), lr=0.2, seed=1, samples=[("Q", "b2")]),
    )
    samples = side_by_side(found)
    assert samples and samples.seed == 1 and samples.columns == ["lr=0.1", "lr=0.2"]
    assert samples.rows == [("Q", ["a2", "b2"]), ("P", ["a1", None])]
