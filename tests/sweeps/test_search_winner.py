"""The announcement of a search's winner, and the settings that are rejected before a search begins."""

import statistics
import subprocess
import sys

import pytest

from dtl.errors import ConfigError
from dtl.run_dir.sweep_records import Trial
from dtl.sweeps.config import SearchConfig, asks_for_more, require_optuna
from dtl.sweeps.search_launch import Winner, best_of, with_seeds


def test_the_best_is_chosen_of_those_that_went_through():
    trials = [
        Trial(0, [], "a", state="finished", value=2.0),
        Trial(1, [], "b", state="pruned", value=1.0),
        Trial(2, [], "c", state="failed", value=0.5),
        Trial(3, [], "d", state="finished", value=1.5),
        Trial(4, [], "e", state="finished", value=1.5),
        Trial(5, [], "f", state="finished", value=0.1, role="confirm"),
        Trial(6, [], "g", state="finished", value=None),
    ]
    best = best_of(trials)
    assert best is not None and best.number == 3
    assert best_of(trials[1:3]) is None


def test_fresh_seeds_replace_the_seed_of_the_search():
    assert with_seeds(["a=1", "seed=7", "lr=2"], [8, 9]) == [["a=1", "lr=2", "seed=8"], ["a=1", "lr=2", "seed=9"]]


def test_the_announcement_says_what_was_measured():
    values = [1.31, 1.27, 1.36]
    winner = Winner(4, ["a=1", "lr=0.01"], 1.2, asked=5, values=values)
    text = "\n".join(winner.lines(["lr"], 30))
    assert "trial 4  lr=0.01  validation loss 1.2000" in text and "a=1" not in text
    assert f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" in text
    assert "n=3 of 5" in text and "1.2000 was chosen as the lowest of 30" in text
    assert winner.record()["mean"] == statistics.mean(values)

    added = Winner(4, ["++data.sources.mine.weight=0.5", "++a=1"], 1.2)  # Hydra's mark of a new key
    assert "trial 4  data.sources.mine.weight=0.5  validation" in added.lines(["++data.sources.mine.weight"], 30)[0]

    alone = Winner(4, ["lr=0.01"], 1.2, asked=1, values=[1.3])
    assert "±" not in alone.lines(["lr"], 30)[1] and "n=1;" in alone.lines(["lr"], 30)[1]
    assert "not confirmed" in Winner(4, ["lr=0.01"], 1.2).lines(["lr"], 30)[0]
    failed = "\n".join(Winner(4, ["lr=0.01"], 1.2, asked=5).lines(["lr"], 30))
    assert "not confirmed" in failed and "none of its 5 runs" in failed
    assert "none of its 1 run with" in "\n".join(Winner(4, ["lr=0.01"], 1.2, asked=1).lines(["lr"], 30))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "tp"}, "Did you mean 'tpe'"),
        ({"pruner": "hyperband"}, "median, asha, none"),
        ({"n_trials": 0}, "n_trials=0"),
        ({"hours": 0.0}, "hours"),
        ({"hours": float("nan")}, "hours"),
        ({"reduction_factor": 1}, "reduction_factor=1"),
        ({"min_resource": 0}, "min_resource=0"),
        ({"warmup": -1}, "warmup=-1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    SearchConfig().validate()
    with pytest.raises(ConfigError, match=words):
        SearchConfig(**settings).validate()


def test_a_missing_optuna_is_said_with_its_remedy(monkeypatch):
    require_optuna()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'dtl\[sweep\]'"):
        require_optuna()


def test_what_a_finished_search_can_still_be_asked_for():
    done = {"n_trials": 12, "hours": 2.0, "left": 3, "winner": {"asked": 5}}
    assert not asks_for_more(["hydra.sweeper.n_trials=12", "hydra.sweeper.hours=2"], done)
    assert asks_for_more(["hydra.sweeper.n_trials=14", "hydra.sweeper.hours=2"], done)
    assert asks_for_more(["hydra.sweeper.n_trials=12", "hydra.sweeper.hours=3"], done)
    assert asks_for_more(["hydra.sweeper.n_trials=12"], done)  # no limit
    assert not asks_for_more(["hydra.sweeper.n_trials=12", "hydra.sweeper.hours=3"], done | {"left": 0})
    unconfirmed = done | {"left": 0, "winner": {"asked": 0}}
    assert asks_for_more(["hydra.sweeper.n_trials=12", "sweep.confirm=5"], unconfirmed)
    assert not asks_for_more(["hydra.sweeper.n_trials=12", "sweep.confirm=0"], unconfirmed)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lr=1e-3"], "nothing to search"),
        (["optimizer.lr=1e-3,1e-2", "hydra/launcher=basic"], "hydra/launcher=dtl_process only"),
        (["optimizer.lr=1e-3,1e-2", "hydra.sweeper.pruner=ash"], "Did you mean 'asha'"),
    ],
)
def test_a_search_that_cannot_be_leaves_nothing_behind(tmp_path, arguments, words):
    command = [sys.executable, "-m", "dtl.train", "-m", "hydra/sweeper=dtl_optuna", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and list(tmp_path.iterdir()) == []
