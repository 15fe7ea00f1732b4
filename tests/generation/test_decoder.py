"""Laws of the layout for decoding: it computes what the model computes, in fp32 to rounding, else within a bound."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from naive_loop import NEVER, VOCAB_SIZE, random_prompts, written_naively
from torch import Tensor, nn

from dtl.errors import ConfigError
from dtl.generation import decoder as decoder_module
from dtl.generation.config import SamplingConfig
from dtl.generation.decoder import (
    FP32,
    MATRICES,
    Decoder,
    Weights,
    choose_weights,
    transpose_for_decoding,
    unsupported_reason,
)
from dtl.generation.engine import StaticKeyValueCache, generate, lay_out, nats_when_decoding, stream
from dtl.model.transformer import MultiHeadAttention, SwiGLU, TransformerBlock, TransformerLM
from dtl.registry import BLOCKS

KINDS = ("modern", "grouped", "value_embeddings", "classic")
LENGTHS = ((5, 1, 11, 2), (7, 7, 7), (7,), (1,))
GREEDY = SamplingConfig(temperature=0, top_k=None, max_new_tokens=13)
N_NEW = 13
CPU = torch.device("cpu")

Make = Callable[..., TransformerLM]


def supported(kind: str) -> str:
    """Skip where torch has no kernel for this processor."""
    try:
        MATRICES[kind](torch.ones(16, 16), None)(torch.ones(1, 16))
    except RuntimeError as error:
        pytest.skip(f"no {kind} kernel: {error}")
    return kind


@torch.inference_mode()
def both_logits(model: TransformerLM, decoder: Decoder, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logits (b, new, v) before each of the same new tokens: by the decoder with a cache, by the model without."""
    prompts = random_prompts(*lengths)
    new_bt = torch.randint(0, VOCAB_SIZE, (len(lengths), N_NEW))
    ids_bt = torch.tensor([[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in prompts])
    cache = StaticKeyValueCache(model.config, lengths, max(lengths) + N_NEW, torch.float32, CPU)
    model.hidden(ids_bt, cache=cache)
    found = [decoder.logits(new_bt[:, step], cache) for step in range(N_NEW)]
    expected = [
        model(torch.tensor([[*prompt, *new]]))[0, len(prompt) :]
        for prompt, new in zip(prompts, new_bt.tolist(), strict=True)
    ]
    return torch.stack(found, dim=1), torch.stack(expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_fp32_logits_are_the_models(random_model: Make, kind: str, lengths: tuple[int, ...], transposed: bool) -> None:
    """With the cache, of prompts of any lengths, up to rounding; biases, norms and tables have random values."""
    model = random_model(kind, tie_embeddings=False)
    if transposed:
        transpose_for_decoding(model)
    found, expected = both_logits(model, Decoder(model), lengths)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-5


# Bounds of the error, in parts of the largest logit: about three times the error of these sizes and seeds.
@pytest.mark.parametrize(("weights", "bound"), [("fp16", 2e-3), ("bf16", 4e-2), ("int8", 7e-2)])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_rounded_weights_are_near(
    random_model: Make, kind: str, lengths: tuple[int, ...], weights: str, bound: float
) -> None:
    model = random_model(kind, tie_embeddings=False)
    decoder = Decoder(model, Weights(supported(weights)))
    found, expected = both_logits(model, decoder, lengths)
    error = (found - expected).abs().max() / expected.abs().max()
    assert 0 < error <= bound


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_surprise_of_a_decoded_text_is_the_models(random_model: Make, kind: str) -> None:
    """In int8 another one, a little."""
    model = random_model(kind, tie_embeddings=False)
    ids_bt = torch.randint(0, VOCAB_SIZE, (5, 17))
    expected = -model(ids_bt).log_softmax(-1)[:, :-1].gather(2, ids_bt[:, 1:, None])[..., 0]
    found = nats_when_decoding(model, Decoder(model), ids_bt)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    rounded = nats_when_decoding(model, Decoder(model, Weights(supported("int8"))), ids_bt)
    assert 1e-4 < (rounded - expected).abs().mean() < 0.5


@pytest.mark.parametrize("weights", ["fp32", "fp16"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_the_texts_of_its_prompts_alone(random_model: Make, kind: str, tied: bool, weights: str) -> None:
    model = random_model(kind, tie_embeddings=tied)
    decoder = Decoder(model, Weights(supported(weights)))
    prompts = random_prompts(5, 1, 11, 5)
    together = generate(model, prompts, GREEDY, NEVER, decoder=decoder)
    assert together == [generate(model, [prompt], GREEDY, NEVER, decoder=decoder)[0] for prompt in prompts]
    if weights == "fp32":
        assert together == [written_naively(model, prompt, 13) for prompt in prompts]


def test_every_kind_of_weights_continues_a_text(random_model: Make) -> None:
    """Past the context too; int8 and bf16 may choose other tokens, but they choose some."""
    model = random_model("grouped", tie_embeddings=False)
    (prompt,) = random_prompts(5)
    for kind in MATRICES:
        decoder = Decoder(model, Weights(supported(kind)))
        steps = list(stream(model, [prompt], SamplingConfig(temperature=0, max_new_tokens=60), NEVER, decoder=decoder))
        assert len(steps) == 60
        assert steps[-1].context_shifted == [True]
        assert all(-30 < step.logprobs[0] <= 0 for step in steps)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sharing_stores_no_matrix_twice_and_changes_no_weight(random_model: Make, kind: str, transposed: bool) -> None:
    model = random_model(kind)
    if transposed:
        transpose_for_decoding(model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    decoder = Decoder(model, FP32, share=True)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    parts = [model.get_parameter(f"blocks.1.attention.to_{part}.weight") for part in "qkv"]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    prompts = random_prompts(5, 3)
    assert generate(model, prompts, GREEDY, NEVER, decoder=decoder) == [
        written_naively(model, prompt, 13) for prompt in prompts
    ]


def test_without_sharing_the_model_is_not_touched(random_model: Make) -> None:
    model = random_model()
    places = [parameter.data_ptr() for parameter in model.parameters()]
    Decoder(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


# --- models with parts of their own -----------------------------------------------------------------------------


class OwnMLP(nn.Module):
    """Counts on (b, t, d), as the model calls it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(dim, dim)

    def forward(self, x_btd: Tensor) -> Tensor:
        assert x_btd.ndim == 3
        return self.matrix(x_btd).tanh()


class BlockWithOwnMLP(TransformerBlock):
    @classmethod
    def make_mlp(cls, config: Any) -> nn.Module:
        return OwnMLP(config.dim)


class GatedSwiGLU(SwiGLU):
    """A subclass computes something else: its layout must not be that of its parent."""

    def forward(self, x_btd: Tensor) -> Tensor:
        return 0.5 * super().forward(x_btd)


class BlockWithSubclass(TransformerBlock):
    @classmethod
    def make_mlp(cls, config: Any) -> nn.Module:
        return GatedSwiGLU(config.dim, config.resolved_ffn_dim)


class ParallelBlock(TransformerBlock):
    def forward(self, x_btd: Tensor, context: Any) -> Tensor:
        return x_btd + self.attention(self.attention_norm(x_btd), context) + self.mlp(self.mlp_norm(x_btd))


class OwnAttention(MultiHeadAttention):
    def forward(self, x_btd: Tensor, context: Any) -> Tensor:
        return 0.5 * super().forward(x_btd, context)


class BlockWithOwnAttention(TransformerBlock):
    @classmethod
    def make_attention(cls, config: Any, layer: int) -> nn.Module:
        return OwnAttention(config, layer)


class AlwaysHalved(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return 0.5 * input


class BlockWithOwnDropout(TransformerBlock):
    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        self.dropout = AlwaysHalved()


@pytest.mark.parametrize(
    ("block", "laid_out"),
    [
        (BlockWithOwnMLP, True),
        (BlockWithSubclass, True),
        (ParallelBlock, False),
        (BlockWithOwnAttention, False),
        (BlockWithOwnDropout, False),
    ],
)
def test_blocks_of_ones_own_write_what_they_compute(
    random_model: Make, monkeypatch: pytest.MonkeyPatch, block: type, laid_out: bool
) -> None:
    """An own mlp or norm is called as it is; an own attention, dropout or forward pass leaves the model as it is."""
    monkeypatch.setitem(BLOCKS._parts, "own", block)
    arch = decoder_arch("own")
    model = random_model("modern", arch=arch, tie_embeddings=False)
    assert (unsupported_reason(model) is None) == laid_out
    assert (lay_out(model) is not None) == laid_out
    prompts = random_prompts(5, 3)
    assert generate(model, prompts, GREEDY, NEVER) == [written_naively(model, prompt, 13) for prompt in prompts]


def decoder_arch(block: str) -> Any:
    from dtl.model.config import ArchConfig

    return ArchConfig(block, rope_theta=777.0)


def test_what_has_to_be_seen_is_computed_as_it_is(random_model: Make) -> None:
    """The reference attention, hooks, other dtypes and autocast."""
    assert lay_out(random_model(attention="reference")) is None
    assert lay_out(random_model().bfloat16()) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lay_out(random_model()) is None
    model, seen = random_model(), []
    assert lay_out(model) is not None
    handle = model.get_submodule("blocks.1.mlp").register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
    generate(model, random_prompts(5), GREEDY, NEVER)
    assert seen == [5] + [1] * 12
    handle.remove()
    assert lay_out(model) is not None


# --- choice of the weights ----------------------------------------------------------------------------------------


def big(random_model: Make, **changes: Any) -> TransformerLM:
    return random_model("modern", vocab_size=decoder_module.MIN_ELEMENTS // 13 + 1, tie_embeddings=False, **changes)


def test_auto_takes_the_faster(random_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    supported("fp16")
    model = big(random_model)
    for seconds, expected in (({"fp16": 1.0, "fp32": 2.0}, "fp16"), ({"fp16": 2.0, "fp32": 1.0}, "fp32")):
        measured = [seconds["fp16"], seconds["fp32"]]
        monkeypatch.setattr(decoder_module, "_seconds", lambda kinds, _head, measured=measured: measured)
        weights = choose_weights(model, "auto")
        assert weights.form == expected
        assert ("2000.0 ms with them, and 1000.0 ms in fp32" in weights.reason) == (expected == "fp32")
    assert choose_weights(model, "fp32") == FP32


def test_auto_of_a_small_model_is_fp32_without_a_measurement(
    random_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_module, "_seconds", lambda *_: pytest.fail("measured"))
    assert choose_weights(random_model(), "auto") == FP32


def test_a_kernel_that_is_missing_is_named(random_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("not supported by QNNPACK\nsecond line")

    monkeypatch.setitem(MATRICES, "fp16", missing)
    weights = choose_weights(big(random_model), "auto")
    assert weights.form == "fp32"
    assert weights.reason.endswith("no fp16 kernel for this processor (not supported by QNNPACK)")
    with pytest.raises(ConfigError, match=r"generation\.weights=fp16: .*QNNPACK\)\. Use generation\.weights=fp32"):
        choose_weights(random_model(), "fp16")


def test_a_weight_beyond_fp16_keeps_fp32(random_model: Make) -> None:
    """The kernel would clip it in silence."""
    supported("fp16")
    model = big(random_model)
    with torch.no_grad():
        model.head.weight[3, 2] = -70_000
    weights = choose_weights(model, "auto")
    assert weights.form == "fp32"
    assert "beyond the range of fp16, 65,504" in weights.reason


def test_weights_for_a_model_without_a_layout(random_model: Make) -> None:
    model = random_model(attention="reference")
    assert choose_weights(model, "auto") == FP32
    with pytest.raises(ConfigError, match=r"generation\.weights=int8: model\.attention=reference"):
        choose_weights(model, "int8")
