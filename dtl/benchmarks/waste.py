"""The share of positions that hold no token: packed, and padded beside it."""

from collections.abc import Iterator
from dataclasses import replace

import yaml
from omegaconf import OmegaConf

from dtl.base.paths import conf_dir
from dtl.benchmarks.inputs import MEGABYTE, documents, text_named
from dtl.benchmarks.measuring import PERCENT, Row, at_most, skipped
from dtl.benchmarks.suite import Workplace
from dtl.data.config import DataConfig, TokenizerConfig
from dtl.errors import DataError

N_CHARACTERS = 2 * MEGABYTE
SEQ_LEN = 256


def waste(place: Workplace) -> Iterator[Row]:
    """Two rows: articles, and the questions that ship with DTL."""
    row = Row("waste_wiki", f"padding, packed {text_named(place)}", PERCENT, peer_name="padded, a document a row")
    row = replace(row, goal=at_most(0.001, PERCENT))
    questions = replace(row, name="waste_qa", what="padding, packed questions of DTL", goal=at_most(0.03, PERCENT))
    for each, measure in ((row, _articles), (questions, _questions)):
        try:
            yield measure(each, place)
        except DataError as error:  # GPT-2's vocabulary is not there
            yield skipped(each, str(error))


def _articles(row: Row, place: Workplace) -> Row:
    from dtl.data.encoding import encode_documents
    from dtl.data.packing import pack_documents, pack_stream, pad_documents
    from dtl.data.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(TokenizerConfig(kind="gpt2"), lambda: [])
    encoded = encode_documents(documents(place, 200_000 if place.settings.tiny else N_CHARACTERS), tokenizer)
    packed = pack_stream(len(encoded.tokens), SEQ_LEN)
    masked = pack_documents(encoded.offsets, SEQ_LEN)
    padded = pad_documents(encoded.offsets, SEQ_LEN)
    cut = 1 - padded.n_tokens / packed.n_tokens
    note = f"{packed.n_rows:,} rows of {SEQ_LEN}; document mask: {masked.wasted:.2%}; padded cuts {cut:.0%} of the text"
    return replace(row, ours=packed.wasted, peer=padded.wasted, note=note, rounds=1)


def _questions(row: Row, place: Workplace) -> Row:
    from dtl.data.prepare import prepare_data

    settings = yaml.safe_load((conf_dir() / "data" / "qa.yaml").read_text(encoding="utf-8"))
    shares = []
    n_rows = 0
    for layout in ("packed", "padded"):
        changed = settings | {"layout": layout, "cache_dir": str(place.folder / "cache")}
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), changed))
        assert isinstance(config, DataConfig)
        report = prepare_data(config, TokenizerConfig(kind="gpt2"), SEQ_LEN, place.settings.seed).report["qa"]["train"]
        shares.append(report.wasted)
        n_rows = n_rows or report.rows
    return replace(row, ours=shares[0], peer=shares[1], note=f"{n_rows:,} rows of {SEQ_LEN}", rounds=1)
