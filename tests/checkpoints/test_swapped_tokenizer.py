"""Row 23: a checkpoint is used with the tokenizer that it was trained with, known by its hash and not by its size."""

from pathlib import Path

import pytest
from checkpoint_examples import moments, tiny_model, tiny_tokenizer

from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.load import load_tokenizer
from dtl.checkpoints.save import save_checkpoint
from dtl.errors import CheckpointError


@pytest.mark.fault("swapped-tokenizer")
def test_another_tokenizer_of_the_same_size_is_refused(tmp_path: Path) -> None:
    """With a tokenizer that numbers its entries differently, every answer would be gibberish without any error."""
    model, tokenizer = tiny_model(vocab_size=258, max_seq_len=31), tiny_tokenizer()
    folder = save_checkpoint(tmp_path / "run", model, tokenizer, "seed: 7\n", {"step": 7, "epoch": 1}, moments(model))
    assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint
    file = folder / "tokenizer.json"
    before = file.read_text(encoding="utf-8")
    swapped = before.replace('"A":', '"\\u0000":').replace('"B":', '"A":').replace('"\\u0000":', '"B":')
    assert swapped != before and len(swapped) == len(before)
    file.write_text(swapped, encoding="utf-8")
    for use in (load_tokenizer, lambda path: find_checkpoint(str(path), tmp_path)):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            use(folder)
