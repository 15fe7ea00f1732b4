"""The page of the notebook: what it shows of records and texts, and that the committed one is up to date."""

import json

import pytest
from recorded_runs import make_notebook, make_run

from dtl.base.paths import experiments_dir
from dtl.errors import DataError
from dtl.notebook.page import MAX_ROWS, notebook_page, read_records, results_file
from dtl.notebook.records import record


def test_the_committed_page_is_up_to_date():
    written = (experiments_dir() / "README.md").read_text(encoding="utf-8")
    assert written == notebook_page(experiments_dir()), "experiments/README.md is stale: run `make notebook`"


def test_the_committed_records_name_no_place_and_a_recipe_that_is_there():
    folder = experiments_dir() / "experiment"
    for file in folder.glob("*.results.jsonl"):
        page = file.name.partition(".")[0]
        assert (folder / f"{page}.md").is_file(), file
        for one in read_records(file):
            assert "/home/" not in json.dumps(one) and "/work/" not in json.dumps(one)
            assert (folder / f"{one['recipe']}.yaml").is_file(), one["recipe"]


def test_pictures_are_small():
    assert [file for file in experiments_dir().rglob("*.png") if file.stat().st_size > 150_000] == []


def rows(page: str) -> list[list[str]]:
    """The cells of the page's tables, without headers."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "validation loss" not in line]


def test_seeds_become_one_row_with_their_spread(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "bread", "bread-rye")
    runs = [make_run(tmp_path / f"{seed}", seed=seed, loss=loss) for seed, loss in ((1, 2.0), (2, 2.5), (3, 3.0))]
    rye = make_run(tmp_path / "rye", recipe="bread-rye", overrides=("oven.heat=5",), settings={"oven": {"heat": 5}})
    record([*runs, rye], notebook)
    page = notebook_page(notebook)
    on = "2031-01-02, Made Up 7, 3 threads, `0123456`"
    assert rows(page) == [
        ["`bread-rye oven.heat=5`", "1", "2.5000", "7", "4", on],
        ["the recipe", "3", "2.5000 ± 0.5000", "7", "4", on],
    ]
    assert "## [`bread`](experiment/bread.md): Does bread rise?" in page
    assert "**Asked.** Whether\nit rises." in page and "**Verdict.** It does." in page and "A loaf" not in page


def test_a_run_without_validation_data_shows_its_training_questions(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "bread")
    taught = {"exact_match/train": 0.75, "lookup/exact_match/train": 1.0}
    record([make_run(tmp_path / "few", loss=None, figures=taught)], notebook)
    page = notebook_page(notebook)
    assert "| n | validation loss | training questions | steps |" in page
    assert rows(page) == [["the recipe", "1", "", "75.0 %", "7", "4", "2031-01-02, Made Up 7, 3 threads, `0123456`"]]
    held_out = taught | {"exact_match/validation": 0.5}
    record(
        [make_run(tmp_path / "many", loss=2.0, figures=held_out)], other := make_notebook(tmp_path / "other", "bread")
    )
    assert "training questions" not in notebook_page(other) and rows(notebook_page(other))[0][2:4] == [
        "2.0000",
        "50.0 %",
    ]


def test_a_seed_that_ran_twice_counts_once_the_last_of_them(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "bread")
    later = make_run(tmp_path / "later", loss=1.25, started="2031-03-04T00:00:00+00:00")
    record([later, make_run(tmp_path / "earlier", loss=2.0)], notebook)
    assert [(row[1], row[2]) for row in rows(notebook_page(notebook))] == [("1", "1.2500")]


def test_other_changes_of_the_recipe_are_another_row(tmp_path):
    """The command line may be the same while the recipe has changed, or the machine."""
    notebook = make_notebook(tmp_path / "notebook", "bread")
    card = {"device": "Card", "threads": 3, "precision": "bf16", "torch": "2"}
    runs = [
        make_run(tmp_path / "a", seed=1),
        make_run(tmp_path / "b", seed=2, settings={"oven": {"heat": 7}}),
        make_run(tmp_path / "c", seed=3, computed_with=card),
    ]
    record(runs, notebook)
    assert [row[1] for row in rows(notebook_page(notebook))] == ["1", "1", "1"]


def test_by_hand_newest_first_and_not_too_many(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "bread")
    hand = {"recipe": "bread", "by_hand": True, "seed": 5, "figures": {"exact_match/test": 0.875}, "note": "a | b"}
    lines = [{**hand, "date": f"2030-01-{day:02}", "label": f"try {day}"} for day in range(1, MAX_ROWS + 3)]
    results_file(notebook, "bread").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = notebook_page(notebook)
    first = next(line for line in page.splitlines() if "try" in line)
    assert first == f"| try {MAX_ROWS + 2}; a \\| b | 1 |  | 87.5 % |  |  | 2030-01-14, unknown device (by hand) |"
    assert "try 3;" in page and "try 2;" not in page and "2 older configurations are in" in page


def test_pages_with_the_newest_records_come_first_and_a_picture_is_shown(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "apple", "bread")
    assert notebook_page(notebook).index("`apple`") < notebook_page(notebook).index("`bread`")
    record([make_run(tmp_path / "run")], notebook)
    (notebook / "experiment" / "bread.png").write_bytes(b"")
    page = notebook_page(notebook)
    assert page.index("`bread`") < page.index("`apple`")
    assert "![not written up yet](experiment/bread.png)" in page and "No run is recorded yet." in page


@pytest.mark.parametrize("line", ["{", "[]", '{"date": "2030-01-02"}', '{"date": 3, "recipe": "bread"}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    notebook = make_notebook(tmp_path / "notebook", "bread")
    results_file(notebook, "bread").write_text('{"date": "2030-01-02", "recipe": "bread"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"bread\.results\.jsonl:2: no"):
        notebook_page(notebook)
