"""Checkpoints for chats: random weights, one token per byte, answers that never end by themselves."""

from pathlib import Path

import torch
from checkpoint_examples import moments, tiny_model, tiny_tokenizer

from dtl.checkpoints.save import save_checkpoint

CONTEXT = 1511  # a question of 1,000 characters fits


def make_checkpoint(run_dir: Path, kind: str = "qa", tokenizer_kind: str = "byte", more: str = "") -> Path:
    """The run's folder, with one checkpoint in it. `more` are lines of its config's data section."""
    model, tokenizer = tiny_model(vocab_size=300, max_seq_len=CONTEXT), tiny_tokenizer(tokenizer_kind)
    with torch.no_grad():
        # Their logits are 0 then, far from the likeliest: no answer ends, or has a second line.
        model.head.weight[[tokenizer.eos_id, *tokenizer.encode("\n")]] = 0
    state = {"step": 7, "epoch": 1, "train": {"best_loss": 1.25}}
    config_yaml = (
        f"name: tiny\ndata:\n  sources: {{mine: {{kind: {kind}, path: null}}}}\n  qa: {{path: null, weight: null}}\n"
        f"{more}"
    )
    save_checkpoint(run_dir, model, tokenizer, config_yaml, state, moments(model))
    return run_dir
