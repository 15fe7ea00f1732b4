"""Reference curves: read, matched, interpolated, recorded; in a plan, behind a run in a report, and on their page."""

import json
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import dtl
import dtl.plan
import dtl.report
from dtl.base.json_files import json_line, sealed
from dtl.base.paths import choices, experiments_dir
from dtl.base.units import in_units
from dtl.errors import ConfigError
from dtl.notebook import records
from dtl.notebook.records import record_reference
from dtl.reports.canvas import Drawing, style
from dtl.reports.configurations import group_runs
from dtl.reports.curves import loss_curves
from dtl.reports.findings import beside_references, matched
from dtl.reports.reading import read_run
from dtl.run_dir.references import (
    CURVES,
    MAX_POINTS,
    Point,
    Reference,
    Subject,
    data_kind,
    expected_lines,
    match,
    parse_reference,
    read_references,
)

PAGE = Path(dtl.__file__).parents[1] / "docs" / "plan.md"
PLACE = re.compile(r"(?<=<!-- curves -->\n).*?(?=<!-- end of curves -->)", re.DOTALL)
STEPS = [7, 11, 29, 53, 97]
STEERING = "\x1b]0;mine\x07\u202e"


def curve(**changes) -> Reference:
    points = [Point(1000.0, 6.0, 3.0), Point(4000.0, 4.0, 2.0), Point(16000.0, 3.5, 1.75)]
    made = Reference(
        name="bread", command=["experiment=bread"], text="Loaves", licence="public domain", kind="text",
        tokenizer="bpe", vocabulary=307, n_parameters=150_000, n_without_embeddings=100_000, n_layers=3, dim=12,
        seq_len=13, tokens_per_step=26, device="cpu", date="2031-01-02", seeds=[1, 2], points=points,
    )  # fmt: skip
    return replace(made, **changes)


def subject(**changes) -> Subject:
    return replace(Subject("bread", "small", "text", 100_000, "bpe", 307), **changes)


def loss_lines_of(lines) -> list[str]:
    return [line.strip() for line in lines if line.strip().startswith("a loss of")]


# --- laws ---------------------------------------------------------------------------------------------------------


def test_a_curve_is_exact_at_its_points_and_straight_over_the_logarithm_between_them():
    made = curve()
    assert [made.at(point.tokens) for point in made.points] == made.points
    between = made.at(2000)  # half way from 1,000 to 4,000 by ratio
    assert (between.loss, between.bits) == (pytest.approx(5.0), pytest.approx(2.5))
    losses = [made.at(tokens).loss for tokens in np.geomspace(1000, 16000, 101)]
    assert losses == sorted(losses, reverse=True)


def test_beyond_its_ends_a_curve_has_its_first_and_its_last_point():
    made = curve()
    assert (made.at(3), made.at(1e9)) == (made.points[0], made.points[-1])
    assert loss_lines_of(expected_lines([made], subject(), 160_000))[-1] == (
        "a loss of 3.500, 1.750 bits per byte, after 16.0 k tokens (its last)"
    )
    assert loss_lines_of(expected_lines([made], subject(), 5000))[0].endswith("after 1,000 tokens (its first)")


def test_the_recipe_comes_first_then_the_model_with_the_same_kind_of_data():
    of_recipe, of_model = curve(), curve(name="small", n_without_embeddings=130_000)
    known = [of_model, of_recipe, curve(name="small", kind="questions")]
    assert match(known, subject()) is of_recipe
    assert match(known, subject(recipe=None)) is of_model
    assert match(known, subject(recipe="cake")) is of_model
    assert match(known, subject(recipe="cake", model="large")) is None
    assert match(known, subject(kind="questions and text")) is None


@pytest.mark.parametrize(
    ("n_parameters", "matches"), [(150_000, True), (151_000, False), (67_000, True), (66_000, False), (None, False)]
)
def test_models_of_another_size_have_another_loss(n_parameters, matches):
    assert (match([curve()], subject(n_parameters=n_parameters)) is not None) is matches


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ([], "questions with the loss on answers"),
        (["data.loss_on=all"], "questions"),
        (["data.wiki.path=FOLDER"], "questions and text with the loss on answers"),
        (["data=wiki"], "text"),
        (["data=text", "data.path=FOLDER"], "text"),
        (["data=text", "data.path=FOLDER", "data.qa.weight=0.5"], "questions and text"),
    ],
)
def test_the_kind_of_data_follows_the_sources(words, kind):
    assert data_kind(dtl.config.to_dict(dtl.compose(*words))["data"]) == kind


@pytest.mark.parametrize("section", [None, [], {"sources": 3}, {"sources": {"a": None}, "qa": [1]}])
def test_a_kind_of_damaged_data_is_none_or_a_word(section):
    assert data_kind(section) in ("", "text")


# --- the file -----------------------------------------------------------------------------------------------------


def test_a_curve_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "curves.jsonl"
    file.write_text(json_line(curve().to_json()))
    assert read_references(file) == [curve()]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2 is no reference curve"),
        ("[]", "holds a list"),
        ("{}", "name is missing"),
        (json_line({**curve().to_json(), "dim": 0}), "dim is not a positive number"),
        (json_line({**curve().to_json(), "vocabulary": None}), "vocabulary is missing"),
        (json_line({**curve().to_json(), "points": []}), "its points are none"),
        (json_line({**curve().to_json(), "points": [[3, 2.0, None], [3, 1.0, None]]}), "do not rise"),
        (json_line({**curve().to_json(), "points": [[0, 2.0, None]]}), "a point is not"),
        (json_line({**curve().to_json(), "points": [[3, None, None]]}), "a point is not"),
    ],
)
def test_a_damaged_file_is_one_clear_sentence(line, reason, tmp_path):
    file = tmp_path / "curves.jsonl"
    file.write_text(json_line(curve().to_json()) + line)
    with pytest.raises(ConfigError, match=r"curves\.jsonl: line 2 .*Remove the line, or restore") as raised:
        read_references(file)
    assert reason in str(raised.value)
    with pytest.raises(ConfigError, match="the reference curves cannot be read"):
        read_references(tmp_path / "none.jsonl")


def test_texts_of_a_file_are_safe_to_print(tmp_path):
    file = tmp_path / "curves.jsonl"
    file.write_text(json.dumps(curve(text=STEERING, command=[STEERING]).to_json()) + "\n")
    (made,) = read_references(file)
    assert not {"\x1b", "\x07", "\u202e"} & {*made.text, *made.command[0]}


def test_the_shipped_curves_are_small_and_of_recipes_or_models():
    known = read_references(CURVES)
    names = {file.stem for file in (experiments_dir() / "experiment").glob("*.yaml")} | {*choices("model")}
    assert {each.name for each in known} <= names
    assert all(2 <= len(each.points) <= MAX_POINTS for each in known)
    assert len({each.key for each in known}) == len(known)
    assert not re.search(r"/(home|tmp|work|root|Users)/", CURVES.read_text())


# --- recording ----------------------------------------------------------------------------------------------------


def make_run(folder: Path, seed: int = 1, steps=STEPS, recipe: str | None = "bread", **changes) -> Path:
    """A finished run with a validation loss of 2 + 3 / step + seed / 100 after each of `steps`, 26 tokens a step;
    `changes` are dotted keys of config.yaml."""
    config = {
        "model": {"dim": 12, "n_layers": 3, "max_seq_len": 13},
        "tokenizer": {"kind": "bpe"},
        "data": {"sources": {"text": {"kind": "text"}}, "path": "/home/ann/secret place/loaves.txt", "loss_on": "all"},
        "trainer": {"total_steps": 97},
        "name": "x",
        "seed": seed,
        **changes,
    }
    names = {"experiment": str(recipe), "model": "small"}
    record = {
        "overrides": [*([f"experiment={recipe}"] if recipe else []), f"seed={seed}", "optimizer.lr=0.003"],
        "choices": names,
        "seed": seed,
        "n_parameters": {"all": 150_000, "without_embeddings": 100_000},
        "data_fingerprint": "f" * 64,
        "computed_with": {"device": "cpu", "threads": 3, "precision": "fp32", "torch": "2.13.0"},
        "sessions": [{"started": "2031-01-02T03:04:05+00:00", "device": "cpu", "processor": "Made Up 7"}],
    }
    rows: list[dict[str, float]] = []
    for step in range(1, 98):
        rows.append({"step": step, "tokens": 26 * step, "seconds": 0.5 * step, "train/loss": 3.0})
        rows += [{"step": step, "val/loss": 2 + 3 / step + seed / 100}] if step in steps else []
    loss = 2 + 3 / 97 + seed / 100
    result = {"state": "finished", "value": loss, "step": 97, "config_hash": f"{seed:016x}"}
    result |= {"validation/loss": loss, "validation/bits_per_byte": 0.5 * loss}
    (folder / "checkpoints" / "best").mkdir(parents=True)
    (folder / "checkpoints" / "best" / "config.json").write_text('{"vocab_size": 307}')
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text(json.dumps(sealed(result)))
    return folder


@pytest.fixture
def no_checkpoints_problem(monkeypatch):
    """The made-up runs have no checkpoint that verifies."""
    monkeypatch.setattr(records, "record_problems", lambda *_: [])


def recorded(tmp_path: Path, *runs: Path, name: str = "bread", **words) -> list[Reference]:
    file = tmp_path / "kept" / "curves.jsonl"
    record_reference(runs, name, **{"text": "Loaves", "licence": "public domain", "file": file, **words})
    return read_references(file)


def test_a_curve_is_the_mean_over_the_seeds(no_checkpoints_problem, tmp_path):
    runs = make_run(tmp_path / "1", 1), make_run(tmp_path / "2", 2, steps=[*STEPS[1:], 98])
    (made,) = recorded(tmp_path, *runs)
    assert [point.tokens for point in made.points] == [26 * step for step in STEPS[1:]], "at steps of both"
    expected = [2 + 3 / step + 0.015 for step in STEPS[1:]]
    assert [point.loss for point in made.points] == pytest.approx(expected, rel=1e-5)
    assert [point.bits for point in made.points] == pytest.approx([loss / 2 for loss in expected], rel=1e-5)
    assert (made.seeds, made.vocabulary, made.tokens_per_step, made.n_layers) == ([1, 2], 307, 26, 3)
    assert made.command == ["experiment=bread", "optimizer.lr=0.003"]
    assert "ann" not in (tmp_path / "kept" / "curves.jsonl").read_text()


def test_the_same_curve_again_takes_its_place_and_others_stay(no_checkpoints_problem, tmp_path):
    recorded(tmp_path, make_run(tmp_path / "0", recipe=None), name="small")
    recorded(tmp_path, make_run(tmp_path / "1", 1))
    known = recorded(tmp_path, make_run(tmp_path / "2", 2), text="Other loaves")
    assert [(each.name, each.text) for each in known] == [("bread", "Other loaves"), ("small", "Loaves")]


@pytest.mark.parametrize("given", [{"text": None}, {"licence": None}])
def test_shipped_data_has_its_own_text_and_licence_or_both_of_the_words(no_checkpoints_problem, tmp_path, given):
    """Not one of each: a text of one's own would get DTL's licence."""
    run = make_run(tmp_path / "1", data={"sources": {"qa": {"kind": "qa"}}, "loss_on": "all"})
    with pytest.raises(ConfigError, match="name its text, with source and licence"):
        recorded(tmp_path, run, **given)
    (made,) = recorded(tmp_path, run, text=None, licence=None)
    assert made.licence == "part of DTL, MIT"


def test_many_evaluations_become_few_points_with_both_ends(no_checkpoints_problem, tmp_path):
    (made,) = recorded(tmp_path, make_run(tmp_path / "1", steps=range(1, 98)))
    assert 20 <= len(made.points) <= MAX_POINTS
    assert (made.points[0].tokens, made.points[-1].tokens) == (26, 26 * 97)


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        ({"steps": []}, {}, r"reference=bread: .*1: has no validation loss"),
        ({}, {"name": "small"}, "reference=small: .*1: its curve has the name of its recipe.*: reference=bread"),
        ({"init": "other"}, {}, "1: began with the weights of another model"),
        ({}, {"text": ""}, "name its text, with source and licence"),
        ({}, {"licence": None}, "name its text, with source and licence: text=NAME licence=LICENCE"),
        ({"data": {}}, {}, "reference=bread: .*1 gives no curve: kind is missing"),
    ],
)
def test_what_gives_no_curve_is_refused_by_name(make, words, message, no_checkpoints_problem, tmp_path):
    run = make_run(tmp_path / "1", **make)
    with pytest.raises(ConfigError, match=message):
        recorded(tmp_path, run, **words)
    assert not (tmp_path / "kept" / "curves.jsonl").exists()


def test_runs_that_differ_in_more_than_the_seed_are_no_curve(no_checkpoints_problem, tmp_path):
    other = make_run(tmp_path / "2", 2, trainer={"total_steps": 89})
    with pytest.raises(ConfigError, match="differ in the seed alone"):
        recorded(tmp_path, make_run(tmp_path / "1"), other)
    with pytest.raises(ConfigError, match="differ in the seed alone"):
        recorded(tmp_path, tmp_path / "1", tmp_path / "1")


def test_a_damaged_file_is_kept(no_checkpoints_problem, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "curves.jsonl").write_text("{\n")
    with pytest.raises(ConfigError, match="line 1 is no reference curve"):
        recorded(tmp_path, make_run(tmp_path / "1"))
    assert (tmp_path / "kept" / "curves.jsonl").read_text() == "{\n"


def test_an_installed_package_is_not_recorded_into(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "in_checkout", lambda: False)
    with pytest.raises(ConfigError, match=r"an update of DTL would delete the curve\. Give a file: curves=FILE"):
        record_reference([make_run(tmp_path / "1")], "bread", "Loaves", "public domain")


# --- in a report --------------------------------------------------------------------------------------------------


def validation_lines(monkeypatch, groups, references) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """The lines of each panel of validation losses, by the label of its axis, in the order of drawing."""
    seen = {}

    def keep(figure, name, title, caption, alternative):
        panel = figure.axes[1]
        seen[name] = [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in panel.lines]
        seen[f"{name} labels"] = [text.get_text() for text in figure.legends[0].get_texts()]
        zorders = [line.get_zorder() for line in panel.lines]
        seen[f"{name} behind"] = len(zorders) < 2 or min(zorders) < max(zorders)
        return Drawing(name, title, caption, alternative, b"", "")

    monkeypatch.setattr("dtl.reports.curves.finish", keep)
    with style():
        loss_curves(groups, references)
    return seen


def test_a_run_that_is_the_reference_lies_on_it(no_checkpoints_problem, monkeypatch, tmp_path):
    known = recorded(tmp_path, make_run(tmp_path / "1"))
    groups = group_runs([read_run(tmp_path / "1")])
    references = matched(groups, known)
    seen = validation_lines(monkeypatch, groups, references)
    for name in ("loss_step", "loss_tokens"):
        own, other = seen[name]
        np.testing.assert_allclose(own[0], other[0])
        np.testing.assert_allclose(own[1], other[1], rtol=1e-5)
        assert seen[f"{name} labels"][-1] == "reference bread: Loaves" and seen[f"{name} behind"]
    assert len(seen["loss_seconds"]) == 1, "a curve knows no time"
    (sentence,) = beside_references(groups, references)
    assert "has 2.041 nats per token on its validation data after 2,522 tokens, as much as the reference" in sentence


def test_over_vocabularies_bits_per_byte_are_held_against_each_other(no_checkpoints_problem, monkeypatch, tmp_path):
    known = [replace(each, vocabulary=311) for each in recorded(tmp_path, make_run(tmp_path / "1"))]
    groups = group_runs([read_run(make_run(tmp_path / "2", 2))])
    seen = validation_lines(monkeypatch, groups, matched(groups, known))
    own, other = seen["loss_tokens"]
    np.testing.assert_allclose(own[1] - other[1], 0.01, rtol=1e-2)  # nats that are as many bits per byte
    (sentence,) = beside_references(groups, matched(groups, known))
    assert "1.025 bits per byte" in sentence and "0.005 higher than the reference bread (1.020)" in sentence


def test_a_run_without_an_evaluation_has_its_report(no_checkpoints_problem, monkeypatch, tmp_path):
    known = recorded(tmp_path, make_run(tmp_path / "1"))
    groups = group_runs([read_run(make_run(tmp_path / "2", 2, steps=()))])
    references = matched(groups, known)
    (line,) = validation_lines(monkeypatch, groups, references)["loss_tokens"]
    assert (line[0][0], line[0][-1]) == (pytest.approx(26 * 9.7 / 1000, rel=0.6), pytest.approx(26 * 97 / 1000))
    assert beside_references(groups, references) == []


def test_without_a_reference_nothing_is_drawn_or_said(no_checkpoints_problem, monkeypatch, tmp_path):
    known = [replace(each, n_without_embeddings=151_000) for each in recorded(tmp_path, make_run(tmp_path / "1"))]
    groups = group_runs([read_run(tmp_path / "1")])
    assert matched(groups, known) == {} and beside_references(groups, {}) == []
    assert len(validation_lines(monkeypatch, groups, {})["loss_tokens"]) == 1


def test_a_curve_that_is_longer_ends_with_the_run(no_checkpoints_problem, monkeypatch, tmp_path):
    known = recorded(tmp_path, make_run(tmp_path / "1"))
    (made,) = [replace(each, points=[*each.points, Point(1e9, 1.0, 0.5)]) for each in known]
    groups = group_runs([read_run(tmp_path / "1")])
    own, other = validation_lines(monkeypatch, groups, {groups[0].label: made})["loss_tokens"]
    assert other[0][-1] == pytest.approx(own[0][-1])


def typed(monkeypatch, capsys, command, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", [command.COMMAND.name, *words])
    code = 0
    try:
        command.main()
    except SystemExit as stop:
        code = int(str(stop.code))
    return code, "".join(capsys.readouterr())


def test_the_command_records_and_shows(no_checkpoints_problem, elsewhere, monkeypatch, capsys):
    monkeypatch.setattr("dtl.reports.build._drawings", lambda *_: {})
    make_run(Path("outputs/a"))
    words = ["runs=outputs/a", "reference=bread", "text=Loaves, old", "licence=public domain", "curves=mine.jsonl"]
    code, out = typed(monkeypatch, capsys, dtl.report, *words)
    assert code == 0 and "mine.jsonl: bread, 5 points of 1 run; 1 curve in total." in out
    assert "as much as the reference bread (2.041), on Loaves, old (public domain)" in out
    assert "Is this loss normal?" in Path("outputs/a/report/report.html").read_text()
    code, out = typed(monkeypatch, capsys, dtl.report, "runs=outputs/a", "curves=mine.json")
    assert code == 2 and "curves=mine.json: no such file" in out
    for wrong, rule in {"outputs": "is a folder", "~nobody-here/c": "there is no such home directory"}.items():
        code, out = typed(monkeypatch, capsys, dtl.report, "runs=outputs/a", f"curves={wrong}")
        assert code == 2 and f"curves={wrong}: {rule}" in out
        code, out = typed(monkeypatch, capsys, dtl.report, *words[:-1], f"curves={wrong}")
        assert code in (1, 2) and "Error: " in out and "This is a bug" not in out
    code, out = typed(monkeypatch, capsys, dtl.report, "runs=outputs/a", "text=x")
    assert code == 2 and "text=x: describes the text of a curve. Add reference=NAME" in out
    Path("mine.jsonl").write_text("{\n")
    code, out = typed(monkeypatch, capsys, dtl.report, "runs=outputs/a", "curves=mine.jsonl")
    assert code == 0 and "mine.jsonl: line 1 is no reference curve" in out and "Report:" in out


def test_texts_of_a_run_cannot_steer_a_terminal(no_checkpoints_problem, elsewhere, monkeypatch, capsys):
    monkeypatch.setattr("dtl.reports.build._drawings", lambda *_: {})
    run = make_run(Path("outputs/a"), tokenizer={"kind": STEERING}, name=STEERING)
    record = json.loads((run / "run.json").read_text())
    record["choices"]["experiment"] = STEERING
    (run / "run.json").write_text(json.dumps(record))
    words = ["runs=outputs/a", "text=x", "licence=y", "curves=mine.jsonl"]
    code, out = typed(monkeypatch, capsys, dtl.report, *words, "reference=bread")
    assert code == 2 and "its curve has the name of its recipe" in out
    record["choices"]["experiment"] = "bread"
    record["overrides"].append(f"name={STEERING}")
    record["overrides"].append(f"trainer.x={STEERING}")
    (run / "run.json").write_text(json.dumps(record))
    code, more = typed(monkeypatch, capsys, dtl.report, *words, "reference=bread")
    assert code == 0
    assert not {"\x1b", "\x07", "\u202e"} & {*out, *more, *Path("mine.jsonl").read_text()}


# --- in a plan ----------------------------------------------------------------------------------------------------


def test_a_plan_shows_the_curve_after_its_tokens():
    first, *rest = expected_lines([curve()], subject(vocabulary=311), 10_000)
    assert first == "Is its loss normal? The reference bread had on its validation data:"
    assert rest[0] == "  a loss of 6.000, 3.000 bits per byte, after 1,000 tokens (10 %)"
    assert rest[1].endswith("after 10.0 k tokens (100 %)")
    assert " ".join(map(str.strip, rest[2:])) == (
        "on Loaves (public domain), vocabulary 307, 2 seeds, here 311. Another text has another loss; "
        "over vocabularies compare bits per byte."
    )
    _, *rest = expected_lines([curve()], subject(), None)
    assert rest[1].endswith("after 16.0 k tokens (100 %)") and not any("here" in line for line in rest)


@pytest.mark.parametrize("reference", read_references(CURVES), ids=lambda each: each.name)
def test_the_lines_of_a_plan_fit_a_terminal(reference):
    run = Subject(reference.name, None, reference.kind, reference.n_without_embeddings, "bpe", 99_999)
    shown = list(expected_lines([reference], run, 123_456_789))
    assert len(shown) >= 4 and all(len(line) <= 80 for line in shown)
    *said, command = expected_lines([reference], replace(run, n_parameters=1), None, ["curves=mine.jsonl"])
    assert all(len(line) <= 80 for line in said) and command.endswith("licence=LICENCE curves=mine.jsonl")


def test_without_a_curve_a_plan_has_the_command_that_records_one():
    first, second, command = expected_lines([curve()], subject(recipe="cake"), 10_000)
    assert (first, second) == ("Is its loss normal? cake: no curve yet.", "  Record one:")
    assert command == "  python -m dtl.report runs=RUN reference=cake text=NAME licence=LICENCE"
    first, *_ = expected_lines([curve()], subject(n_parameters=3), 10_000)
    assert first == "Is its loss normal? bread: no curve yet for such data and size."


def planned(*words: str) -> SimpleNamespace:
    """What `loss_lines` reads of a plan whose data has not been read."""
    config = dtl.compose(*words).on("cpu")
    return SimpleNamespace(config=config, data=None, facts=SimpleNamespace(vocab_size=67))


def test_the_plan_of_a_recipe_finds_its_curve():
    words = ["experiment=shakespeare_char", "data.path=FILE"]
    shown = list(dtl.plan.loss_lines(planned(*words), {"experiment": "shakespeare_char", "model": "small"}))
    (made,) = (each for each in read_references(CURVES) if each.name == "shakespeare_char")
    tokens = 2000 * 12 * 64
    assert dtl.plan.run_tokens(planned(*words)) == tokens == pytest.approx(made.points[-1].tokens, rel=1e-3)
    last = loss_lines_of(shown)[-1]
    assert f"{made.points[-1].loss:.3f}, " in last and last.endswith(f"after {in_units(tokens)} tokens (100 %)")
    assert made.origin in " ".join(map(str.strip, shown))
    no_curve = dtl.plan.loss_lines(planned(*words, "model.dim=256"), {"experiment": "shakespeare_char"})
    assert "no curve yet" in next(no_curve)
    started = replace(planned(*words).config, init="other")
    assert list(dtl.plan.loss_lines(SimpleNamespace(**vars(planned(*words)) | {"config": started}), {})) == []


def test_a_plan_does_not_go_on_without_the_file_that_it_was_given(tmp_path):
    (tmp_path / "mine.jsonl").write_text("{\n")
    setting = planned("experiment=shakespeare_char", "data.path=FILE")
    given = {name: getattr(setting.config, name) for name in setting.config.__dataclass_fields__}
    setting.config = dtl.plan.PlanConfig(**given, curves=str(tmp_path / "mine.jsonl"))
    with pytest.raises(ConfigError, match="line 1 is no reference curve"):
        list(dtl.plan.loss_lines(setting, {"model": "small"}))


def test_a_plan_goes_on_without_a_damaged_file(monkeypatch, tmp_path):
    (tmp_path / "curves.jsonl").write_text("{\n")
    monkeypatch.setattr("dtl.run_dir.references.CURVES", tmp_path / "curves.jsonl")
    (line,) = dtl.plan.loss_lines(planned(), {"model": "small"})
    assert "line 1 is no reference curve" in line


def test_a_file_of_curves_that_is_not_there_is_named(monkeypatch, capsys):
    code, out = typed(monkeypatch, capsys, dtl.plan, "curves=nowhere.jsonl")
    assert code == 2 and "curves=nowhere.jsonl: no such file" in out


# --- their page ---------------------------------------------------------------------------------------------------


def table() -> str:
    """The table of docs/plan.md, from the file of curves."""
    known = read_references(CURVES)
    heads = ["curve", "text", "vocabulary", "parameters, without embeddings", "seeds", "tokens", "validation loss",
             "bits per byte", "command"]  # fmt: skip
    rows = [heads, ["---"] * len(heads)]
    for each in known:
        last = each.points[-1]
        size = f"{in_units(each.n_parameters)}, {in_units(each.n_without_embeddings)}"
        bits = "" if last.bits is None else f"{last.bits:.3f}"
        rows.append([
            f"`{each.name}`", f"{each.text} ({each.licence})", f"{each.vocabulary:,}", size,
            ", ".join(map(str, each.seeds)), in_units(last.tokens), f"{last.loss:.3f}", bits,
            f"`{' '.join(each.command)}`",
        ])  # fmt: skip
    recipes = {file.stem for file in (experiments_dir() / "experiment").glob("*.yaml")}
    without = sorted(recipes - {each.name for each in known})
    models = sorted({*choices("model")} - {"auto"} - {each.name for each in known})
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", "No curve yet:", f"models {', '.join(models)}; recipes {', '.join(without)}."]
    return "\n".join(lines) + "\n"


def test_the_page_has_every_curve():
    """`DTL_UPDATE_GOLDEN=1 python -m pytest tests/run_dir/test_references.py` writes the table."""
    page = PAGE.read_text()
    if os.environ.get("DTL_UPDATE_GOLDEN"):
        PAGE.write_text(PLACE.sub(lambda _: table(), page))
    assert PLACE.findall(PAGE.read_text()) == [table()]


def test_a_line_of_the_file_is_a_curve_of_the_type():
    values = curve().to_json()
    assert parse_reference(values) == curve() and math.isclose(values["points"][0][1], 6.0)
