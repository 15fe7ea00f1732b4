"""Model folders of others: each is used or refused in a sentence, within bounds of memory and time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_examples import save, tiny_model

from dtl.data.tokenizers.files import read_backend
from dtl.errors import CheckpointError
from dtl.model.hf import from_hf, to_hf

if sys.platform != "linux":
    pytest.skip("the bounds of a process are those of Linux", allow_module_level=True)

LOADED, REFUSED = 0, 3  # exit codes in hostile_models.py; a signal is negative
ALWAYS = (
    *("config vocab_size=true", "config layer_types=5", "config hidden_size=digits", "config rms_norm_eps=digits"),
    *("padding 0", "normalizer 2", "pre_tokenizer 0", "decoder 1", "model 1", "model 3", "added beyond the model"),
    *("header doubling dimensions", "weights nan", "settings surrogate", "post_processor 0"),
)


@pytest.mark.fault("hostile-model")
@pytest.mark.parametrize(
    "stride", [pytest.param(40, marks=pytest.mark.slow), pytest.param(1, marks=[pytest.mark.slow, pytest.mark.torture])]
)
def test_each_is_used_or_refused(tmp_path, figure, stride):
    script = Path(__file__).with_name("hostile_models.py")
    command = [sys.executable, str(script), str(tmp_path), str(stride), *ALWAYS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert rows["nothing"]["code"] == LOADED and set(ALWAYS) <= set(rows) and (stride > 1 or len(rows) >= 400)
    figure("hostile model folders, used or refused in a sentence", len(rows))
    for row in rows.values():
        assert row["code"] in (LOADED, REFUSED), row
        assert row["code"] == LOADED or (row["said"].strip() and "panicked" not in row["said"]), row
        assert len(row["said"]) < 1000, row


@pytest.mark.fault("hostile-model", "nan")
def test_weights_that_are_not_finite_change_nothing():
    model, given = tiny_model(), to_hf(tiny_model(seed=1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for value in (float("nan"), float("inf"), -float("inf")):
        for kind in (torch.float32, torch.bfloat16, torch.float16):
            spoilt = {name: tensor.to(kind).clone() for name, tensor in given.items()}
            spoilt["model.norm.weight"][-1] = value
            with pytest.raises(CheckpointError, match=r"model\.norm\.weight has values that are nan or infinite"):
                from_hf(model, spoilt)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    from_hf(model, {name: torch.full_like(tensor, 3e38) for name, tensor in given.items()})  # finite, their sum is not


def test_a_name_in_escapes_hides_nothing(tmp_path):
    folder = save(tmp_path, 1)
    text = (folder / "tokenizer.json").read_text()
    charsmap = '"normalizer":{"type":"Precompiled","\\u0070recompiled_charsmap":"/////w=="}'
    assert '"normalizer":null' in text
    (folder / "tokenizer.json").write_text(text.replace('"normalizer":null', charsmap))
    with pytest.raises(CheckpointError, match="escaped letters"):
        read_backend(folder)
