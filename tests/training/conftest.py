"""Tiny models and rows of prime sizes for the tests of training: 11 rows of 7 tokens, 23 tokens in the vocabulary."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dtl.data.batches import PackedSequences, TrainingData
from dtl.data.pack import pad_documents, with_targets
from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.transformer import TransformerLM
from dtl.training.config import OptimizerConfig, ScheduleConfig, TrainerConfig
from dtl.training.optimizer import build_optimizers
from dtl.training.trainer import Trainer

VOCAB_SIZE, SEQ_LEN, N_ROWS = 23, 7, 11


@pytest.fixture(autouse=True)
def in_every_test(one_thread_one_seed: None) -> None:
    """One thread, one seed."""


@pytest.fixture
def tiny_model() -> Callable[..., TransformerLM]:
    """Models of all architectures; `randomised` draws every parameter anew, norms and biases too."""

    def make(block: str = "modern", randomised: bool = False, **changes: Any) -> TransformerLM:
        sizes: dict[str, Any] = {"n_layers": 2, "ffn_dim": 17, "max_seq_len": 13, "dropout": 0.0}
        sizes |= {"dim": 13, "n_heads": 3, "head_dim": 10} if block != "classic" else {"dim": 15, "n_heads": 3}
        model = TransformerLM(ModelConfig(arch=ArchConfig(block), **(sizes | changes)), VOCAB_SIZE)
        if randomised:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_(mean=0.1, std=0.4)
        return model

    return make


@pytest.fixture
def random_rows() -> Callable[..., PackedSequences]:
    """Rows of random tokens with uneven numbers of targets: documents of any length, padded; with `answers` only
    the end of each document counts."""

    def make(n_rows: int = N_ROWS, seed: int = 5, answers: bool = True) -> PackedSequences:
        generator = np.random.default_rng(seed)
        lengths = generator.integers(2, SEQ_LEN + 2, n_rows)
        lengths[0], lengths[-1] = 2, SEQ_LEN + 1  # one target against a full row
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = generator.integers(0, VOCAB_SIZE, offsets[-1]).astype(np.uint16)
        loss_mask = None
        if answers:
            loss_mask = np.concatenate([np.arange(n) >= generator.integers(0, n) for n in lengths])
        packing = with_targets(pad_documents(offsets, SEQ_LEN), loss_mask)
        assert packing.n_sequences == n_rows
        return PackedSequences(tokens, packing, pad_id=0, loss_mask=loss_mask)

    return make


@pytest.fixture
def training_data(random_rows: Callable[..., PackedSequences]) -> TrainingData:
    return TrainingData({"random": random_rows()}, {"random": 1.0})


@pytest.fixture
def make_trainer(tiny_model: Callable[..., TransformerLM], training_data: TrainingData) -> Callable[..., Trainer]:
    """A trainer of a tiny model. The weights depend on `model_seed`; data order and dropout on `seed`."""

    def make(
        *,
        optimizer: OptimizerConfig | None = None,
        config: TrainerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        data: TrainingData = training_data,
        micro_batch_size: int = 2,
        grad_accum_steps: int = 1,
        last_step: int = 7,
        precision: str = "fp32",
        seed: int = 3,
        model_seed: int = 7,
        **model_changes: Any,
    ) -> Trainer:
        torch.manual_seed(model_seed)
        model = tiny_model(**model_changes)
        torch.manual_seed(seed)
        return Trainer(
            model,
            build_optimizers(model, optimizer or OptimizerConfig()),
            data,
            config or TrainerConfig(),
            schedule or ScheduleConfig(),
            seed=seed,
            micro_batch_size=micro_batch_size,
            grad_accum_steps=grad_accum_steps,
            horizon=last_step,
            last_step=last_step,
            precision=precision,
        )

    return make
