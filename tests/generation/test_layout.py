"""Laws of the layout for decoding: nothing changes but where the numbers lie."""

from collections.abc import Callable

import pytest
import torch
from naive_loop import NEVER, random_prompts, written_naively

from dtl.generation.config import SamplingConfig
from dtl.generation.decoder import transpose_for_decoding
from dtl.generation.engine import generate
from dtl.model.transformer import TransformerLM

KINDS = ("modern", "grouped", "value_embeddings", "classic")
GREEDY = SamplingConfig(temperature=0, top_k=None, max_new_tokens=13)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_weights_logits_and_texts_stay(random_model: Callable[..., TransformerLM], kind: str, tied: bool) -> None:
    model = random_model(kind, vocab_size=211, tie_embeddings=tied)
    prompts = random_prompts(5, 1, 11)
    ids_bt = torch.randint(0, 211, (3, 19))
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    logits_btv, texts = model(ids_bt), [written_naively(model, prompt, 13) for prompt in prompts]
    transpose_for_decoding(model)
    assert not model.head.weight.is_contiguous()
    assert (model.head.weight is model.embedding.weight) == tied
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])
    torch.testing.assert_close(model(ids_bt), logits_btv, rtol=1e-4, atol=1e-4)
    assert generate(model, prompts, GREEDY, NEVER) == texts


def test_a_second_time_moves_nothing(random_model: Callable[..., TransformerLM]) -> None:
    model = random_model(vocab_size=211)
    transpose_for_decoding(model)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    transpose_for_decoding(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_every_matrix_is_column_major(random_model: Callable[..., TransformerLM]) -> None:
    """Wide and narrow ones; tables and norms stay."""
    model = random_model("classic", ffn_dim=67, tie_embeddings=False)
    transpose_for_decoding(model)
    for name, weight in model.named_parameters():
        is_table = name in ("embedding.weight", "positions.table.weight")
        assert weight.is_contiguous() == (weight.ndim == 1 or is_table), name
