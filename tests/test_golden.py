"""The losses of 20 seeded steps per reference config, as committed in tests/golden/: a change of code that should
not change a number does not.

After a change that should, look at the difference, then write the new numbers with
`DTL_UPDATE_GOLDEN=1 python -m pytest tests/test_golden.py` and say in the commit why they moved.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtl.data.batches import PackedSequences, TrainingData
from dtl.data.pack import pack_documents, pad_documents, with_targets
from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.transformer import TransformerLM
from dtl.training.config import OptimizerConfig, ScheduleConfig, TrainerConfig
from dtl.training.optimizer import build_optimizers
from dtl.training.trainer import Trainer

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "DTL_UPDATE_GOLDEN"
N_STEPS, VOCAB_SIZE, SEQ_LEN, SEED = 20, 101, 31, 1337
CONFIGS: dict[str, dict[str, Any]] = {
    "modern": {
        "model": {"arch": "modern", "dim": 48, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "max_seq_len": 37},
        "layout": "packed",
        "schedule": "cosine",
        "rows": [4, 2],
    },
    "classic": {
        "model": {"arch": "classic", "dim": 48, "n_layers": 3, "n_heads": 3, "max_seq_len": 37},
        "layout": "padded",
        "schedule": "wsd",
        "rows": [3, 3],
    },
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def training_data(layout: str) -> TrainingData:
    """Documents of uneven lengths in which each token follows from the one before, most of the time; the second
    half of each is its answer."""
    raw = np.random.Philox(np.random.SeedSequence(SEED)).random_raw  # the same numbers in every version of numpy
    lengths = 5 + (raw(41) % 23).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    n_tokens = int(offsets[-1])
    tokens = (raw(n_tokens) % VOCAB_SIZE).astype(np.uint16)
    follows = raw(n_tokens) % 10 < 8
    for i in range(1, n_tokens):
        if follows[i]:
            tokens[i] = (int(tokens[i - 1]) * 7 + 3) % VOCAB_SIZE
    loss_mask = np.concatenate([np.arange(n) >= n // 2 for n in lengths])
    packed = layout == "packed"
    packing = pack_documents(offsets, SEQ_LEN, loss_mask) if packed else pad_documents(offsets, SEQ_LEN)
    rows = PackedSequences(
        tokens, with_targets(packing, loss_mask), pad_id=0, loss_mask=loss_mask, document_mask=packed
    )
    return TrainingData({"golden": rows}, {"golden": 1.0})


def losses(config: dict[str, Any]) -> list[float]:
    """Twenty steps in fp32 on one thread, without dropout, whose masks differ from processor to processor."""
    torch.manual_seed(SEED)
    size = {key: value for key, value in config["model"].items() if key != "arch"}
    model = TransformerLM(ModelConfig(arch=ArchConfig(config["model"]["arch"]), dropout=0.0, **size), VOCAB_SIZE)
    micro_batch_size, grad_accum_steps = config["rows"]
    trainer = Trainer(
        model,
        build_optimizers(model, OptimizerConfig(lr=3e-3)),
        training_data(config["layout"]),
        TrainerConfig(),
        ScheduleConfig(name=config["schedule"], warmup_steps=3),
        seed=SEED,
        micro_batch_size=micro_batch_size,
        grad_accum_steps=grad_accum_steps,
        horizon=N_STEPS,
        last_step=N_STEPS,
        precision="fp32",
    )
    return [report.loss.item() for report in trainer.steps()]


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_are_the_committed_ones(name: str) -> None:
    path, found = GOLDEN / f"{name}.json", losses(CONFIGS[name])
    if os.environ.get(UPDATE):
        path.write_text(json.dumps({"config": CONFIGS[name], "losses": found}, indent=2) + "\n", encoding="utf-8")
    golden = json.loads(path.read_text(encoding="utf-8"))
    assert golden["config"] == CONFIGS[name]
    assert len(found) == N_STEPS
    assert found == pytest.approx(golden["losses"], rel=1e-4), f"see the head of this file; {UPDATE}=1 rewrites {path}"
