"""Runs of another width than their learning rates are for: exact when resumed, and the same model elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import go_on, outcome, start, tiny_config

from dtl.checkpoints.load import load_model
from dtl.config import RunConfig
from dtl.data.collect import open_sources
from dtl.errors import ConfigError
from dtl.model.config import ArchConfig
from dtl.runner.build import build_run, with_init

BLOCKS = ("modern", "classic")


def config_of(pairs: Path, block: str, base_width: int | None = 64) -> RunConfig:
    """A model of width 16, a quarter of what its rates are for, so that the final norm begins at 4."""
    config = tiny_config(pairs, total_steps=4, save_every_steps=None)
    model = replace(config.model, arch=ArchConfig(block))
    return replace(config, model=model, optimizer=replace(config.optimizer, lr=1e-3, base_width=base_width))


@pytest.fixture(scope="module", params=BLOCKS)
def finished(pairs: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    start(config_of(pairs, request.param), folder)
    return folder


def test_the_details_tell_the_rates(finished: Path) -> None:
    details = (finished / "details.txt").read_text()
    assert "rates of width 64, at width 16" in details and details.count("0.001, 0.004") == 1


def test_a_resume_is_exact(finished: Path, pairs: Path, tmp_path: Path) -> None:
    config = config_of(pairs, load_model(finished).config.arch.block)
    start(replace(config, trainer=replace(config.trainer, stop_after_steps=2)), tmp_path)
    go_on(config, tmp_path)
    assert outcome(tmp_path) == outcome(finished)
    weight = load_model(finished).norm.weight
    assert isinstance(weight, torch.Tensor) and 3.9 < weight.mean() < 4.1 and weight.std() > 0


@pytest.mark.slow
def test_transformers_computes_the_same(finished: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, ids_bt = load_model(finished).eval(), torch.randint(250, (2, 31))
    with torch.no_grad():
        theirs_btv = AutoModelForCausalLM.from_pretrained(finished / "checkpoints" / "best").eval()(ids_bt).logits
        torch.testing.assert_close(model(ids_bt), theirs_btv, rtol=1e-4, atol=1e-5)


def test_init_keeps_the_weights_and_scales_the_rates(finished: Path, pairs: Path) -> None:
    """Weights that were trained are no first weights; the wider they are, the smaller is a step all the same."""
    trained = load_model(finished)
    config, best = config_of(pairs, trained.config.arch.block), finished / "checkpoints" / "best"
    data, plans = open_sources(config.data, config.seed)
    parts = build_run(replace(config, data=data, init=str(best)), plans, None, best, lambda message: None)
    for (name, p), q in zip(trained.named_parameters(), parts.model.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), name
    rates = {group["peak_lr"] for group in parts.trainer.optimizers[0].param_groups}
    assert rates == {config.optimizer.lr, 4 * config.optimizer.lr}


def test_init_brings_the_context_where_no_length_is_given(finished: Path, pairs: Path) -> None:
    """Of the data too, and of the step whose tokens beta2 depends on."""
    context, best = load_model(finished).config.max_seq_len, finished / "checkpoints" / "best"
    config = config_of(pairs, load_model(finished).config.arch.block)
    config = replace(
        config,
        data=replace(config.data, seq_len=None),
        model=replace(config.model, max_seq_len=7 * context),
        optimizer=replace(config.optimizer, betas=[0.9, None], beta2_half_life=100 * context),
    )
    data, plans = open_sources(config.data, config.seed)
    parts = build_run(replace(config, data=data, init=str(best)), plans, None, best, lambda message: None)
    assert parts.config.seq_len == parts.data.train.batch([0]).inputs.shape[1] == context
    assert parts.config.optimizer.betas[1] == pytest.approx(0.5 ** (config.global_batch_size / 100), abs=1e-5)
    with pytest.raises(ConfigError, match=f"^data.seq_len={context + 1}: init="):
        with_init(replace(config, data=replace(data, seq_len=context + 1)), best, load_model(finished).config)


def test_with_init_the_length_is_held_against_the_context_that_it_brings(pairs: Path) -> None:
    config = config_of(pairs, "modern")
    longer = replace(config, data=replace(config.data, seq_len=7 * config.model.max_seq_len))
    with pytest.raises(ConfigError, match="longer than the model's context"):
        longer.validate()
    replace(longer, init="a run of a longer context").validate()
