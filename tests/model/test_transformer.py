"""Laws of the language model: causality, caching, packing, weight tying, first weights and counts."""

import math
import re
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dtl.base.paths import conf_dir
from dtl.errors import ConfigError
from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.transformer import TransformerBlock, TransformerLM, create_model
from dtl.registry import BLOCKS

VOCAB_SIZE = 23  # of the tiny models in conftest.py
each_block = pytest.mark.parametrize("block", ["modern", "value_embeddings", "classic"])
both_kernels = pytest.mark.parametrize("kernel", ["sdpa", "reference"])


def some_ids(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, shape)


@each_block
@both_kernels
def test_no_output_depends_on_a_later_input(tiny_model, block, kernel):
    model = tiny_model(block, attention=kernel)
    embedded = []

    def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    tables = [table for table in (model.embedding, model.value_embedding) if table is not None]
    for table in tables:
        table.register_forward_hook(keep)
    for t in range(7):
        model(some_ids(2, 7))[:, t].square().sum().backward()
        for _ in tables:
            gradient = embedded.pop().grad
            assert (gradient[:, t + 1 :] == 0).all()
            assert (gradient[:, : t + 1].abs().sum(dim=-1) > 0).all()


@each_block
def test_both_kernels_give_the_same_logits(tiny_model, block):
    fused, written_out = tiny_model(block, attention="sdpa"), tiny_model(block, attention="reference")
    written_out.load_state_dict(fused.state_dict())
    ids = some_ids(2, 7)
    torch.testing.assert_close(fused(ids), written_out(ids), atol=1e-4, rtol=1e-4)


def test_modern_depends_on_relative_positions_only(tiny_model):
    ids, positions = some_ids(2, 7), torch.arange(7).expand(2, 7)
    model = tiny_model("modern")
    torch.testing.assert_close(model(ids, positions + 11), model(ids), atol=1e-4, rtol=1e-4)
    assert (model(ids, 2 * positions) - model(ids)).abs().max() > 1e-2


def test_classic_adds_the_vector_of_each_position(tiny_model):
    ids, positions = some_ids(2, 7), torch.arange(7).expand(2, 7)
    model = tiny_model("classic")
    assert (model(ids, positions + 11) - model(ids)).abs().max() > 1e-2


@each_block
@both_kernels
def test_packed_documents_equal_separate_ones(tiny_model, block, kernel):
    model = tiny_model(block, attention=kernel)
    documents = [some_ids(2, length) for length in (5, 3, 11)]
    numbers = torch.cat([torch.full((2, ids.shape[1]), i) for i, ids in enumerate(documents)], dim=1)
    positions = torch.cat([torch.arange(ids.shape[1]).expand(2, -1) for ids in documents], dim=1)
    packed = model(torch.cat(documents, dim=1), positions, numbers)
    separate = torch.cat([model(ids) for ids in documents], dim=1)
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=1e-5)
    assert (model(torch.cat(documents, dim=1)) - separate).abs().max() > 1e-2


class LeftPaddedCache:
    """Grows by concatenation; row b begins with `padding_b[b]` tokens that nobody may look at."""

    def __init__(self, padding_b: torch.Tensor) -> None:
        self.padding_b1 = rearrange(padding_b, "b -> b 1")
        self.n_seen = 0
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extend(self, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        places_t = torch.arange(self.n_seen, self.n_seen + n_tokens)
        self.n_seen += n_tokens
        places_s = torch.arange(self.n_seen)
        causal_ts = rearrange(places_s, "s -> 1 s") <= rearrange(places_t, "t -> t 1")
        real_bs = places_s >= self.padding_b1
        mask_bts = causal_ts & rearrange(real_bs, "b s -> b 1 s")
        return (places_t - self.padding_b1).clamp(min=0), mask_bts

    def update(self, layer: int, k_bgtk: torch.Tensor, v_bgtk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer in self.kept:
            old_k, old_v = self.kept[layer]
            k_bgtk, v_bgtk = torch.cat([old_k, k_bgtk], dim=2), torch.cat([old_v, v_bgtk], dim=2)
        self.kept[layer] = (k_bgtk, v_bgtk)
        return k_bgtk, v_bgtk


class RightPaddedCache:
    """A fixed table; the first pass is plain causal, after it each row goes on behind its own prompt."""

    def __init__(self, length_b: torch.Tensor, room: int) -> None:
        self.length_b, self.room = length_b, room
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.next_bt: torch.Tensor | None = None

    def extend(self, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.next_bt is None:
            self.next_bt = rearrange(self.length_b, "b -> b 1")
            return rearrange(torch.arange(n_tokens), "t -> 1 t"), None
        positions_bt, self.next_bt = self.next_bt, self.next_bt + 1
        return positions_bt, torch.arange(self.room) <= rearrange(positions_bt, "b t -> b t 1")

    def update(self, layer: int, k_bgtk: torch.Tensor, v_bgtk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self.kept:
            table = k_bgtk.new_zeros(*k_bgtk.shape[:2], self.room, k_bgtk.shape[3])
            self.kept[layer] = (table.clone(), table.clone())
            for kept, new in zip(self.kept[layer], (k_bgtk, v_bgtk), strict=True):
                kept[:, :, : new.shape[2]] = new
            return k_bgtk, v_bgtk
        assert self.next_bt is not None
        rows = torch.arange(k_bgtk.shape[0])
        for kept, new in zip(self.kept[layer], (k_bgtk, v_bgtk), strict=True):
            kept[rows, :, rearrange(self.next_bt, "b 1 -> b") - 1] = new[:, :, 0]
        return self.kept[layer]


@each_block
@both_kernels
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_cached_logits_equal_uncached_ones(tiny_model, block, kernel, padding_side):
    model = tiny_model(block, attention=kernel)
    lengths, longest, n_new = [7, 3, 5], 7, 4
    rows = [some_ids(length + n_new) for length in lengths]
    cache = LeftPaddedCache(longest - torch.tensor(lengths))
    prompts = some_ids(3, longest)
    if padding_side == "right":
        cache = RightPaddedCache(torch.tensor(lengths), room=13)
    for prompt, row, length in zip(prompts, rows, lengths, strict=True):
        prompt[slice(longest - length, None) if padding_side == "left" else slice(length)] = row[:length]

    prefilled = model(prompts, cache=cache)
    steps = [model(torch.stack([row[n + i : n + i + 1] for row, n in zip(rows, lengths, strict=True)]), cache=cache)
             for i in range(n_new)]  # fmt: skip
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        uncached = model(rearrange(row, "t -> 1 t"))[0]
        last = longest - 1 if padding_side == "left" else length - 1
        cached = torch.stack([prefilled[i, last], *(step[i, 0] for step in steps)])
        torch.testing.assert_close(cached, uncached[length - 1 :], atol=1e-5, rtol=1e-5)


# Documents of 11, 8 and 4 tokens, and of 13 and 10: the padded kernel pads them.
DOCUMENTS = torch.tensor([[0] * 11 + [1] * 8 + [2] * 4, [0] * 13 + [1] * 10])
STARTS = torch.tensor([[0] * 11 + [11] * 8 + [19] * 4, [0] * 13 + [13] * 10])
PLACES = torch.tensor([0, 7, 18, 19, 22, 23, 41, 45])  # of 2 x 23 tokens


@each_block
@pytest.mark.parametrize("kernel", ["sdpa", "reference", "padded", "causal"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_some_positions_have_the_values_and_gradients_of_all(tiny_model, block, kernel, checkpointing):
    model = tiny_model(block).train()
    for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
        dropout.p = 0.0
    model.activation_checkpointing = checkpointing
    ids, inputs = some_ids(2, 23), {}
    if kernel != "causal":
        model.document_kernel = kernel
        inputs = {"positions_bt": torch.arange(23) - STARTS, "documents_bt": DOCUMENTS}
    weight = torch.randn(len(PLACES), model.config.dim)

    def found(x_nd: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x_nd, *torch.autograd.grad((x_nd * weight).sum(), [p for p in model.parameters() if p is not head])

    head = model.head.weight if model.head.weight is not model.embedding.weight else None
    some = found(model.hidden(ids, **inputs, at_n=PLACES))
    every = found(rearrange(model.hidden(ids, **inputs), "b t d -> (b t) d")[PLACES])
    torch.testing.assert_close(some, every, atol=1e-5, rtol=1e-4)


@each_block
def test_the_last_block_alone_leaves_positions_out(tiny_model, block):
    model, ids = tiny_model(block), some_ids(2, 23)
    seen: list[torch.Size] = []
    for layer in model.blocks:
        layer.mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1]))
    model.hidden(ids, at_n=PLACES)
    assert seen == [(2, 23), (2, 23), (8,)]
    for nowhere in (PLACES[:0], None):
        n_found = model.hidden(ids, at_n=nowhere).shape[:-1]
        assert n_found == ((2, 23) if nowhere is None else (0,))


class MixingMLP(nn.Module):
    """Adds to each token the sum of the ones before: defined for whole sequences alone."""

    def forward(self, x_btd: torch.Tensor) -> torch.Tensor:
        return x_btd.cumsum(dim=1)


@pytest.mark.parametrize("part", ["mlp", "norm", "last norm", "attention", "dropout", "forward"])
def test_a_part_of_ones_own_sees_whole_sequences(tiny_model, part):
    model, ids = tiny_model("modern"), some_ids(2, 23)
    last = model.blocks[-1]
    if part == "mlp":
        last.mlp = MixingMLP()
    elif part == "norm":
        last.mlp_norm = MixingMLP()
    elif part == "last norm":
        model.norm = MixingMLP()
    elif part == "dropout":
        last.dropout = MixingMLP()
    elif part == "attention":
        attention = last.attention
        last.attention = type(
            "Own", (nn.Module,), {"forward": lambda self, x_btd, context: attention(x_btd, context)}
        )()
    else:
        own = lambda self, x_btd, context: x_btd.cumsum(dim=1) + TransformerBlock.forward(self, x_btd, context)  # noqa: E731
        last.__class__ = type("Own", (TransformerBlock,), {"forward": own})
    every = rearrange(model.hidden(ids), "b t d -> (b t) d")[PLACES]
    torch.testing.assert_close(model.hidden(ids, at_n=PLACES), every)


def test_arguments_that_do_not_go_together_are_refused(tiny_model):
    model, ids = tiny_model(), some_ids(2, 7)
    with pytest.raises(ValueError, match="30 tokens are more than the model's context of 29"):
        model(some_ids(1, 30))
    with pytest.raises(ValueError, match="restart with each document"):
        model(ids, documents_bt=torch.zeros_like(ids))
    with pytest.raises(ValueError, match="cache gives the positions"):
        model(ids, torch.arange(7).expand(2, 7), cache=LeftPaddedCache(torch.zeros(2, dtype=torch.int64)))


@each_block
def test_a_tied_head_is_the_embedding(tiny_model, block):
    model = tiny_model(block)
    assert model.head.weight is model.embedding.weight
    torch.testing.assert_close(model(some_ids(2, 7)[:, :1]).shape, torch.Size((2, 1, VOCAB_SIZE)))
    untied = tiny_model(block, tie_embeddings=False)
    assert untied.head.weight is not untied.embedding.weight
    assert untied.n_parameters() - model.n_parameters() == model.embedding.weight.numel()
    assert untied.n_parameters(embeddings=False) - model.n_parameters(embeddings=False) == untied.head.weight.numel()


@pytest.mark.quick_cases(4)
@each_block
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dim", "vocab_size"), [(768, 67), (768, 4096), (48, 67)])
def test_the_first_loss_is_that_of_guessing(block, tied, dim, vocab_size):
    model = create_model("small", vocab_size, arch=block, dim=dim, n_layers=3, tie_embeddings=tied).eval()
    ids = torch.randint(vocab_size, (8, 65))
    loss = F.cross_entropy(rearrange(model(ids[:, :-1]), "b t v -> (b t) v"), rearrange(ids[:, 1:], "b t -> (b t)"))
    assert abs(loss.item() - math.log(vocab_size)) < 0.25


def test_a_head_of_its_own_starts_without_logits(tiny_config):
    assert (TransformerLM(tiny_config(tie_embeddings=False), VOCAB_SIZE)(some_ids(2, 7)) == 0).all()


@each_block
def test_every_parameter_gets_a_gradient_within_two_steps(tiny_config, block):
    """Zero output projections stop the gradient of what lies before them, for the first step only."""
    model = TransformerLM(tiny_config(block, tie_embeddings=False), VOCAB_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        ids = some_ids(5, 12)
        logits_bvt = rearrange(model(ids[:, :-1]), "b t v -> b v t")
        F.cross_entropy(logits_bvt, ids[:, 1:]).backward()
        optimizer.step()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad.abs().max() == 0]
    assert not untouched


@each_block
@both_kernels
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("attention_dropout", [0.3, 0.0])
def test_recomputed_activations_give_the_same_gradients_with_dropout(
    tiny_model, block, kernel, checkpointing, attention_dropout
):
    model = tiny_model(block, attention=kernel, dropout=0.3, attention_dropout=attention_dropout).train()
    ids = some_ids(2, 7)

    def gradients(checkpointing: str) -> list[torch.Tensor]:
        model.activation_checkpointing = checkpointing
        model.zero_grad()
        torch.manual_seed(5)
        model(ids).square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    n_calls = []
    model.blocks[0].register_forward_pre_hook(lambda *_: n_calls.append(1))
    plain = gradients("none")
    assert len(n_calls) == 1
    recomputed = gradients(checkpointing)
    assert len(n_calls) == 3
    for one, other in zip(plain, recomputed, strict=True):
        assert torch.equal(one, other)


class Products(TorchDispatchMode):
    """Counts products with weights and attention kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.n_products = self.n_attentions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.n_products += name in ("mm", "addmm")
        self.n_attentions += "scaled_dot_product" in name and "backward" not in name
        return func(*args, **(kwargs or {}))


@each_block
@pytest.mark.parametrize("attention_dropout", [0.0, 0.3])
def test_selective_checkpointing_computes_no_product_twice(tiny_model, block, attention_dropout):
    """Without dropout of attention weights no attention either."""
    model, ids = tiny_model(block, dropout=0.3, attention_dropout=attention_dropout).train(), some_ids(2, 7)

    def counted(checkpointing: str) -> Products:
        model.activation_checkpointing = checkpointing
        with Products() as products:
            model.hidden(ids).sum().backward()
        return products

    none, selective, full = (counted(checkpointing) for checkpointing in ("none", "selective", "full"))
    assert selective.n_products == none.n_products < full.n_products
    if not attention_dropout:
        assert (none.n_attentions, selective.n_attentions, full.n_attentions) == (3, 3, 6)


@each_block
def test_checkpointing_stores_less_and_less(tiny_model, block):
    model, ids = tiny_model(block, dropout=0.3, attention_dropout=0.0).train(), some_ids(2, 29)

    def live_bytes(checkpointing: str) -> int:
        model.activation_checkpointing = checkpointing
        with LiveStorages() as live:
            y = model.hidden(ids).sum()
            stored = live.n_bytes
        y.backward()
        return stored

    live_bytes("none")
    none, selective, full = (live_bytes(checkpointing) for checkpointing in ("none", "selective", "full"))
    assert selective < 0.75 * none and full < 0.5 * selective


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages that operators have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            storage = leaf.untyped_storage() if isinstance(leaf, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.n_bytes += storage.nbytes()
                weakref.finalize(storage, self.forget, storage._cdata)
        return result

    def forget(self, storage: int) -> None:
        self.n_bytes -= self.sizes.pop(storage)


@each_block
@both_kernels
def test_dropout_acts_in_training_only_and_everywhere_it_should(tiny_model, block, kernel):
    model, ids = tiny_model(block, attention=kernel, dropout=0.3), some_ids(2, 7)
    assert torch.equal(model(ids), model(ids))
    n_calls = Counter()
    layers = {name: module for name, module in model.train().named_modules() if isinstance(module, nn.Dropout)}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda *_, name=name: n_calls.update([name]))
    assert not torch.equal(model(ids), model(ids))
    assert n_calls == {"dropout": 2, **{f"blocks.{i}.dropout": 4 for i in range(3)}}
    for layer in layers.values():
        layer.p = 0.0
    assert not torch.equal(model(ids), model(ids)), "attention weights are not dropped"


@each_block
@both_kernels
@pytest.mark.parametrize("documents", [None, torch.zeros(2, 7, dtype=torch.int64)])
def test_attention_weights_have_a_dropout_of_their_own(tiny_model, block, kernel, documents):
    """Null is model.dropout: with it, and with the same value written out, training draws the same numbers."""
    ids, positions = some_ids(2, 7), repeat(torch.arange(7), "t -> b t", b=2)

    def trained(**dropouts: float | None) -> torch.Tensor:
        torch.manual_seed(11)
        model = tiny_model(block, attention=kernel, **dropouts).train()
        torch.manual_seed(5)
        return model(ids, positions, documents)

    assert torch.equal(trained(dropout=0.3), trained(dropout=0.3, attention_dropout=0.3))
    assert not torch.equal(trained(dropout=0.3), trained(dropout=0.3, attention_dropout=0.0))
    assert not torch.equal(trained(dropout=0.0), trained(dropout=0.0, attention_dropout=0.3))
    model = tiny_model(block, attention=kernel, dropout=0.3, attention_dropout=0.0).train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    assert torch.equal(model(ids, positions, documents), model(ids, positions, documents))


@each_block
def test_token_dropout_hides_whole_tokens_in_training_alone(tiny_model, block):
    model, ids = tiny_model(block, dropout=0.0, token_dropout=0.5), some_ids(13, 29)
    assert torch.equal(model(ids), model(ids))
    seen: list[torch.Tensor] = []
    model.positions.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].values_btd))
    model.train()(ids)
    hidden_bt = (seen[0] == 0).all(dim=-1)
    assert 0.4 < hidden_bt.float().mean() < 0.6
    for table, x_btd in zip((model.embedding, model.value_embedding), seen, strict=True):
        if table is not None:
            assert (x_btd[hidden_bt] == 0).all()
            torch.testing.assert_close(x_btd[~hidden_bt], 2 * table(ids)[~hidden_bt])  # the mean stays


@each_block
@both_kernels
def test_autocast_gives_logits_near_those_of_fp32_and_caches_one_dtype(tiny_model, block, kernel):
    model, ids = tiny_model(block, attention=kernel), some_ids(2, 7)
    cache = LeftPaddedCache(torch.zeros(2, dtype=torch.int64))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(ids, cache=cache)
    exact = model(ids)
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
    assert {tensor.dtype for kept in cache.kept.values() for tensor in kept} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
@pytest.mark.slow
@each_block
def test_the_model_compiles_without_a_graph_break(tiny_model, block):
    model, ids = tiny_model(block), some_ids(2, 7)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), model(ids))


@pytest.mark.parametrize("preset", ["small", "medium", "large", "qa"])
def test_the_presets_headers_state_their_parameters(preset):
    header = (conf_dir() / "model" / f"{preset}.yaml").read_text(encoding="utf-8").split("defaults:")[0]
    for block in ("modern", "classic"):
        stated = re.search(rf"{block} +([\d,]+) +([\d,]+)", header)
        assert stated is not None, f"{preset}.yaml does not state the parameters of {block}"
        with torch.device("meta"):
            model = create_model(preset, arch=block)
        counts = [int(number.replace(",", "")) for number in stated.groups()]
        assert counts == [model.n_parameters(), model.n_parameters(embeddings=False)]


def test_parameters_are_counted_by_hand():
    """Classic: 2 layers of 12 d^2 + 13 d, a final norm of 2 d, tables of (23 + 29) d."""
    model = TransformerLM(ModelConfig(ArchConfig("classic"), dim=33, n_heads=3, n_layers=2, max_seq_len=29), VOCAB_SIZE)
    assert model.n_parameters(embeddings=False) == 2 * (12 * 33**2 + 13 * 33) + 2 * 33
    assert model.n_parameters() == model.n_parameters(embeddings=False) + (23 + 29) * 33


def test_create_model_takes_presets_configs_and_overrides(tiny_config):
    with torch.device("meta"):
        small = create_model("small")
        assert (small.vocab_size, small.config.dim, small.config.n_layers) == (50257, 256, 6)
        assert small.config.arch.block == "modern"
        changed = create_model("small", vocab_size=11, n_layers=2, arch="classic", dropout=0.0)
        assert (len(changed.blocks), changed.config.arch.norm_eps, changed.config.dropout) == (2, 1e-5, 0.0)
        config = tiny_config()
        assert create_model(config, 11, n_layers=1).config.n_layers == 1
        assert config.n_layers == 3


def test_create_model_names_what_is_wrong():
    with pytest.raises(ConfigError, match=r"model=smal: .* large, medium, qa, small\. Did you mean 'small'"):
        create_model("smal")
    with pytest.raises(ConfigError, match=r"model/arch=clasic: .* classic, modern"):
        create_model("small", arch="clasic")
    with pytest.raises(ConfigError, match=r"model\.n_layer: .*Did you mean 'n_layers'"):
        create_model("small", n_layer=3)
    with pytest.raises(ConfigError, match=r"create_model\(7\): give the name of a preset"):
        create_model(7)
    with pytest.raises(ConfigError, match=r"model\.dim: .*'wide'"):
        create_model("small", dim="wide")
    with pytest.raises(ConfigError, match=r"must divide model\.dim"):
        create_model("small", n_heads=7)


def test_a_block_of_your_own_replaces_what_differs(tiny_config, randomise, monkeypatch):
    monkeypatch.setattr(BLOCKS, "_parts", dict(BLOCKS._parts))

    class SquaredReLU(nn.Module):
        def __init__(self, dim: int, ffn_dim: int) -> None:
            super().__init__()
            self.inward, self.outward = nn.Linear(dim, ffn_dim), nn.Linear(ffn_dim, dim)

        def forward(self, x_btd: torch.Tensor) -> torch.Tensor:
            return self.outward(F.relu(self.inward(x_btd)).square())

    @BLOCKS.register("squared")
    class SquaredBlock(TransformerBlock):
        @classmethod
        def make_mlp(cls, config: ModelConfig) -> nn.Module:
            return SquaredReLU(config.dim, config.arch.options["ffn_dim"])

    config = tiny_config()
    config.arch = ArchConfig("squared", options={"ffn_dim": 19})
    model = randomise(TransformerLM(config, VOCAB_SIZE)).eval()
    assert model.blocks[1].mlp.inward.weight.shape == (19, 13)
    ids = repeat(some_ids(7), "t -> b t", b=2)
    assert torch.equal(*model(ids))
