"""The recipes: variants differ in the subject of their question and in nothing else."""

import re
import shlex
from itertools import pairwise

import pytest
from composing import composed

from dtl.base.json_files import dotted
from dtl.base.paths import experiments_dir
from dtl.config import RunConfig, to_dict


def differences(first: RunConfig, second: RunConfig) -> set[str]:
    """Dotted keys in which two runs differ."""
    one, other = (dict(dotted(to_dict(run))) for run in (first, second))
    return {key for key in one | other if one.get(key) != other.get(key)}


def test_shakespeare_char_is_nanogpts_configuration():
    """config/train_shakespeare_char.py with the overrides that its README gives for a processor."""
    run = composed("experiment=shakespeare_char")
    model, optimizer, schedule = run.model, run.optimizer, run.schedule
    assert (model.arch.block, model.n_layers, model.n_heads, model.dim) == ("classic", 4, 4, 128)
    assert (model.dropout, model.tie_embeddings, run.tokenizer.kind) == (0, True, "char")
    assert (run.seq_len, run.global_batch_size, run.trainer.total_steps, run.trainer.hours) == (64, 12, 2000, None)
    assert (optimizer.name, optimizer.lr, optimizer.embedding_lr) == ("adamw", 1e-3, None)
    assert (optimizer.betas, optimizer.weight_decay, run.trainer.max_grad_norm) == ([0.9, 0.99], 0.1, 1.0)
    assert (schedule.name, schedule.warmup_steps, schedule.min_lr_fraction) == ("cosine", 100, 0.1)
    assert (run.data.validation_fraction, run.data.test_fraction) == (0.1, 0)
    assert (run.trainer.eval_max_batches, run.trainer.precision) == (None, "fp32")


@pytest.mark.parametrize("variant", ["muon", "values"])
def test_the_modern_ones_see_the_same_data_in_the_same_batches(variant):
    changed = differences(composed("experiment=shakespeare_char"), composed(f"experiment=shakespeare_char-{variant}"))
    assert {key.partition(".")[0] for key in changed} == {"model", "optimizer", "schedule", "trainer"}
    assert changed & {"model.dim", "model.n_layers", "model.max_seq_len", "trainer.micro_batch_size"} == set()


def test_vocabularies_differ_in_tokenizer_and_steps_alone():
    base, *variants = (composed(f"experiment=vocabulary-{name}") for name in ("4k", "8k", "gpt2"))
    for variant in variants:
        assert differences(base, variant) <= {"tokenizer.kind", "tokenizer.vocab_size", "trainer.total_steps"}


def test_both_optimizers_of_muon_vs_adamw_differ_in_the_optimizer_alone():
    for recipe in ("muon_vs_adamw", "muon_vs_adamw-tuning"):
        adamw, muon = (composed(f"experiment={recipe}", f"optimizer={name}") for name in ("adamw", "muon"))
        assert differences(adamw, muon) == {"optimizer.name", "optimizer.lr", "optimizer.embedding_lr"}
        assert adamw.optimizer.embedding_lr == muon.optimizer.lr
    assert differences(composed("experiment=muon_vs_adamw"), composed("experiment=muon_vs_adamw-tuning")) == set()


def test_both_grids_are_equally_long_and_wide():
    text = (experiments_dir() / "experiment" / "muon_vs_adamw.md").read_text(encoding="utf-8")
    grids = [[float(rate) for rate in rates.split(",")] for rates in re.findall(r"lr=([\d.e,-]+,[\d.e,-]+)", text)]
    one, other = grids
    assert len(one) == len(other)
    for rates in grids:
        assert [b / a for a, b in pairwise(rates)] == pytest.approx([2] * (len(rates) - 1))


@pytest.mark.slow
def test_every_command_of_the_texts_composes():
    """With the first and with the last choice of each sweep; a rate that only a sweep can tell is left out."""
    for file in sorted((experiments_dir() / "experiment").glob("*.md")):
        text = re.sub(r"\\\n\s*", "", file.read_text(encoding="utf-8"))
        for line in re.findall(r"python -m dtl\.train ([^`\n]+)", text):
            line = re.sub(r"\S+=<[^>]*>|\S+=\.\.\.|-m |hydra\.\S+", "", line)
            settings = [word.partition("=") for word in shlex.split(line, comments=True)]
            choices = [(key, re.split(r",(?![^\[]*\])", values)) for key, _, values in settings]  # no comma of a list
            for overrides in {tuple(f"{key}={values[choice]}" for key, values in choices) for choice in (0, -1)}:
                composed(*overrides)
