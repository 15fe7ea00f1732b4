"""A config.yaml in somebody's folder is text: whoever reads it, nothing in it is interpolated."""

import json
from pathlib import Path

import pytest
import yaml
from checkpoint_examples import moments, tiny_model, tiny_tokenizer

from dtl.base.json_files import sealed
from dtl.checkpoints.load import load_model, load_tokenizer
from dtl.checkpoints.save import save_checkpoint
from dtl.config import RunConfig, register, to_dict, typed
from dtl.data.tokenizers.prompt import read_prompt
from dtl.errors import ConfigError
from dtl.notebook.records import record_of
from dtl.reports.reading import read_run
from dtl.run_dir.own_config import with_data_found
from dtl.run_dir.state import read_config, read_run_state
from dtl.terminal.loading import read_facts


@pytest.mark.fault("hostile-config", "secrets")
@pytest.mark.parametrize("stolen", ["${oc.env:SECRET}", "${oc.env:SECRET,x}", "${dtl.checked_name:${oc.env:SECRET}}"])
def test_no_reader_resolves_an_interpolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stolen: str) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    register()  # the resolvers of DTL's own YAML are there, as in a command
    config = to_dict(RunConfig()) | {"name": stolen}
    config["data"] |= {"path": f"{stolen}.jsonl", "wiki_subset": stolen}
    config["tokenizer"]["path"] = stolen
    model = tiny_model()
    text = yaml.safe_dump(config)
    checkpoint = save_checkpoint(tmp_path, model, tiny_tokenizer(), text, {"step": 7, "epoch": 1}, moments(model))
    (tmp_path / "config.yaml").write_text(text)
    run = {"choices": {"experiment": "demo"}, "data_fingerprint": "f" * 64, "sessions": [{"started": "2031-01-02"}]}
    (tmp_path / "run.json").write_text(json.dumps(run | {"overrides": [f"data.path={stolen}"]}))
    (tmp_path / "result.json").write_text(json.dumps(sealed({"state": "finished", "value": 2.5, "step": 1})))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.5}\n')
    read = [
        read_facts(checkpoint),
        read_run_state(tmp_path),
        read_run(tmp_path),
        record_of(tmp_path),
        with_data_found(read_config(tmp_path), tmp_path),
        read_prompt(checkpoint),
        load_tokenizer(checkpoint).prompt,
        load_model(checkpoint).config,
    ]
    assert stolen in repr(read) and "hunter2" not in repr(read)
    with pytest.raises(ConfigError) as refused:  # as resume= does
        typed(read_config(tmp_path))
    assert "hunter2" not in str(refused.value)
    assert typed(read_config(tmp_path) | {"name": "mine"}).data.wiki_subset == stolen
