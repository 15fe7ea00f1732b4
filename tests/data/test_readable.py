"""Sequences as text: the text of the documents, the loss where training has it, and the borders of attention."""

import numpy as np
import pytest
import torch

from dtl.data.batches import IGNORE
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.prepare import PreparedData, prepare_data

FACTS = "".join(f'{{"question": "How much is {n} times {n}?", "answer": "Ünd {n * n}"}}\n' for n in range(60))
LAYOUTS = {
    "masked": {"document_mask": True, "loss_on": "answer"},
    "stream": {"loss_on": "answer"},
    "padded": {"layout": "padded", "loss_on": "answer"},
    "everything": {"document_mask": True},
    "plain": {},
}
KINDS = ("byte", "char", "bpe")


@pytest.fixture(params=LAYOUTS)
def layout(request) -> str:
    return request.param


@pytest.fixture(params=KINDS)
def data(request, layout, tmp_path) -> PreparedData:
    (tmp_path / "pairs.jsonl").write_text(FACTS, encoding="utf-8")
    config = DataConfig(
        sources={"qa": SourceConfig("qa", path=str(tmp_path / "pairs.jsonl"))},
        validation_fraction=0.3,
        **LAYOUTS[layout],
    )
    return prepare_data(config, TokenizerConfig(request.param, vocab_size=300), 150, 3)


def test_the_marks_are_the_targets(data, layout):
    """Taken out again, the marked text has the tokens of the targets and no others."""
    for split in (data.train, data.validation):
        for sequence in split:
            shown = data.decode(sequence)
            marked = "".join(part.partition("»")[0] for part in shown.split("«")[1:])
            with_loss = sequence.targets[sequence.targets != IGNORE].tolist()
            assert marked == data.tokenizer.backend.decode(with_loss, skip_special_tokens=False)


def test_the_rest_is_what_the_model_sees(data, layout):
    for sequence in data.validation:
        text = data.decode(sequence).replace("«", "").replace("»", "")
        documents, _, padding = text.rpartition("\n---\n") if "<|pad|> x" in text else (text, "", "<|pad|> x 0")
        n_padding = int((sequence.targets[0] == IGNORE)[sequence.inputs[0] == data.tokenizer.pad_id].sum())
        assert padding == f"<|pad|> x {n_padding}"
        end = len(sequence.inputs[0]) - n_padding
        borders = 0 if sequence.documents is None else len(sequence.documents[0, :end].unique()) - 1
        assert documents.count("\n---\n") == borders
        seen = sequence.inputs[0][:end].tolist()
        assert documents.replace("\n---\n", "").startswith(
            data.tokenizer.backend.decode(seen[:9], skip_special_tokens=False).rstrip("\ufffd")
        )


def test_how_it_looks(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(FACTS, encoding="utf-8")
    config = DataConfig(
        sources={"qa": SourceConfig("qa", path=str(tmp_path / "pairs.jsonl"))},
        validation_fraction=0.3,
        **LAYOUTS["masked"],
    )
    data = prepare_data(config, TokenizerConfig("byte"), 111, 3)
    shown = data.decode(data.validation[0])
    first, second, padding = shown.split("\n---\n")
    assert first.startswith("Question: How much is") and first.endswith("<|endoftext|>»") and "?\nAnswer:« Ünd" in first
    assert second.count("«") == 1 and padding.startswith("<|pad|> x ")
    batch = data.validation.batch([0, len(data.validation) - 1])
    assert data.decode(batch) == shown and data.decode(batch, 1) == data.decode(data.validation[-1])


def test_sequences_by_number(data):
    for split in (data.train, data.validation):
        assert split[-1].rows == (len(split) - 1,) and split[0].inputs.shape == (1, 150)
        torch.testing.assert_close(split[1].inputs, split.batch([1]).inputs)
        with pytest.raises(IndexError):
            split[len(split)]
    assert len(list(data.train)) == len(data.train) == len(np.unique(data.train.epoch_sequences(3, 0)))


def test_samples_are_texts_as_the_model_sees_them(data, layout):
    """In the order of the sequences, without padding; the mark of a shortened one is closed."""
    whole = [text for sequence in data.train for text in data.decode(sequence).split("\n---\n") if "«" in text]
    assert (len(whole) > len(data.train)) == (layout in ("masked", "everything"))
    assert data.samples("qa", 3, 10_000) == whole[:3] and data.samples("qa", 0) == []
    assert data.samples("qa", 10_000, 10_000) == whole
    for text, short in zip(whole, data.samples("qa", 3, 50), strict=False):
        assert short.count("«") == short.count("»") and len(short) <= 55
        assert short == text or text.startswith(short.removesuffix("»").removesuffix(" ..."))
