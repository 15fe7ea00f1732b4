"""From the command line to the record: what a run leaves in its folder suffices."""

import json
import subprocess
import sys

import pytest

from dtl.notebook.records import record_of
from dtl.run_dir.state import find_runs

TINY = ["model.dim=16", "model.n_layers=1", "trainer.total_steps=3", "trainer.sample_every_evals=0", "tracker=local"]


@pytest.mark.slow
def test_a_run_of_a_recipe_can_be_recorded(elsewhere):
    (elsewhere / "secret").mkdir()
    (elsewhere / "secret" / "lines.txt").write_text("To be, or not to be, that is the question.\n" * 200)
    words = ["experiment=shakespeare_char", f"data.path={elsewhere}/secret/lines.txt", "seed=7", *TINY]
    subprocess.run([sys.executable, "-m", "dtl.train", *words], check=True, capture_output=True, timeout=300)
    (run,) = find_runs(elsewhere / "outputs")
    (run / "evaluation.json").rename(run / "another.json")  # a run without an evaluation knows its data as well
    evaluated, record = json.loads((run / "another.json").read_text()), record_of(run)
    assert record["data_fingerprint"] == evaluated["data_fingerprint"] and len(record["data_fingerprint"]) == 64
    assert record["overrides"] == sorted(TINY[:3])
    assert (record["recipe"], record["seed"], record["data"]) == ("shakespeare_char", 7, {"text": "lines.txt"})
    assert (record["threads"], record["precision"], record["steps"]) == (1, "fp32", 3)
    assert record["device"] not in (None, "", "cpu") and record["tokens"] == 3 * 12 * 64 and record["seconds"] > 0
    assert record["val_loss"] == pytest.approx(evaluated["text"][0]["loss"], rel=1e-5)
    assert "secret" not in json.dumps(record) and str(elsewhere) not in json.dumps(record)
