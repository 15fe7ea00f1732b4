"""Checkpoints for chats: random weights, one token per byte, answers that never end by themselves."""

from pathlib import Path

import torch
from checkpoint_examples import moments, tiny_model, tiny_tokenizer

from dtl.checkpoints.save import save_checkpoint
from dtl.data.tokenizers.prompt import Prompt

ASKED = Prompt()
CONTEXT = 1511  # a question of 1,000 characters fits


def make_checkpoint(run_dir: Path, prompt: Prompt | None = ASKED, tokenizer_kind: str = "byte") -> Path:
    """The run's folder, with one checkpoint in it, of a model that has learnt questions in the form of `prompt`."""
    model = tiny_model(vocab_size=300, max_seq_len=CONTEXT)
    tokenizer = tiny_tokenizer(tokenizer_kind).with_prompt(prompt)
    with torch.no_grad():
        # Their logits are 0 then, far from the likeliest: no answer ends, or has a second line.
        model.head.weight[[tokenizer.eos_id, *tokenizer.encode("\n")]] = 0
    state = {"step": 7, "epoch": 1, "train": {"best_loss": 1.25}}
    save_checkpoint(run_dir, model, tokenizer, "name: tiny\n", state, moments(model))
    return run_dir
