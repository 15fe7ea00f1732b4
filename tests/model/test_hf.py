"""Parity with the Hugging Face twins in both directions, and refusal by name of what DTL does not compute."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from dtl.errors import CheckpointError
from dtl.model.config import ArchConfig
from dtl.model.hf import from_hf, hf_config, model_config, to_hf
from dtl.model.transformer import TransformerBlock, TransformerLM
from dtl.registry import BLOCKS

VOCAB_SIZE = 23  # of the tiny models in conftest.py
IDS = {"eos_id": 3, "bos_id": 5, "pad_id": 7}
both_blocks = pytest.mark.parametrize("block", ["modern", "classic"])
tied_or_not = pytest.mark.parametrize("tied", [True, False])


def write_checkpoint(folder: Path, model: TransformerLM) -> Path:
    config = hf_config(model.config, model.vocab_size, **IDS)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(to_hf(model), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def read_checkpoint(folder: Path) -> TransformerLM:
    model = TransformerLM(*model_config(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    from_hf(model, load_file(folder / "model.safetensors"))
    return model.eval()


def relative_difference(ours: torch.Tensor, twins: torch.Tensor) -> float:
    assert twins.abs().max() > 1, "logits too small to compare"
    return ((ours - twins).abs().max() / twins.abs().max()).item()


@both_blocks
@tied_or_not
@pytest.mark.parametrize("kernel", ["sdpa", "reference"])
def test_the_twin_computes_what_our_model_computes(tiny_model, tmp_path, caplog, block, tied, kernel):
    model = tiny_model(block, tie_embeddings=tied, attention=kernel)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        twin = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path, model)).eval()
    assert not caplog.records
    assert type(twin) is {"modern": Qwen3ForCausalLM, "classic": GPT2LMHeadModel}[block]
    assert twin.dtype == torch.float32
    ids = torch.randint(VOCAB_SIZE, (2, 29))
    assert relative_difference(model(ids), twin(ids, attention_mask=torch.ones_like(ids)).logits) < 1e-5


@tied_or_not
@pytest.mark.parametrize("published", ["qwen3", "gpt2"])
def test_our_model_computes_what_the_twin_computes(randomise, tmp_path, published, tied):
    if published == "qwen3":
        config = Qwen3Config(
            vocab_size=VOCAB_SIZE, hidden_size=13, intermediate_size=17, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, head_dim=10, max_position_embeddings=29, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 777.0}, tie_word_embeddings=tied,
        )  # fmt: skip
        twin = randomise(Qwen3ForCausalLM(config)).eval()
    else:
        config = GPT2Config(
            vocab_size=VOCAB_SIZE, n_positions=29, n_embd=33, n_layer=3, n_head=3, n_inner=17, layer_norm_epsilon=1e-4,
            bos_token_id=3, eos_token_id=3, tie_word_embeddings=tied,
        )  # fmt: skip
        twin = randomise(GPT2LMHeadModel(config)).eval()
    twin.save_pretrained(tmp_path)
    ids = torch.randint(VOCAB_SIZE, (2, 29))
    twins = twin(ids, attention_mask=torch.ones_like(ids)).logits
    assert relative_difference(read_checkpoint(tmp_path)(ids), twins) < 1e-5


@both_blocks
@tied_or_not
def test_weights_survive_the_way_there_and_back(tiny_model, tmp_path, block, tied):
    model = tiny_model(block, tie_embeddings=tied)
    again = read_checkpoint(write_checkpoint(tmp_path, model))
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert (again.head.weight is again.embedding.weight) == tied


@both_blocks
def test_configs_survive_the_way_there_and_back_and_through_the_twin(tiny_config, tmp_path, block):
    for changes in (
        {},
        {"ffn_dim": None, "dropout": 0.25, "token_dropout": 0.5, "attention": "reference", "tie_embeddings": False},
        {"dropout": 0.25, "attention_dropout": 0.5},
        {"dropout": 0.25, "attention_dropout": 0.25},
        {"dropout": 0.0, "attention_dropout": 0.0},
        {"ffn_dim": None, "ffn_multiple_of": 2},
    ):
        config = tiny_config(block, **changes)
        written = hf_config(config, VOCAB_SIZE, **IDS)
        assert model_config(written) == (config, VOCAB_SIZE)
        (tmp_path / "config.json").write_text(json.dumps(written), encoding="utf-8")
        AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
        rewritten = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
        assert model_config(rewritten) == (config, VOCAB_SIZE)
        assert (rewritten["eos_token_id"], rewritten["bos_token_id"], rewritten["pad_token_id"]) == (3, 5, 7)


def test_the_twin_gets_every_setting_that_it_knows(tiny_config):
    modern = hf_config(tiny_config("modern", dropout=0.2), VOCAB_SIZE, **IDS)
    expected = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 10, "attention_dropout": 0.2,
                "rope_theta": 777.0, "rope_parameters": {"rope_type": "default", "rope_theta": 777.0},
                "rms_norm_eps": 1e-5, "attention_bias": False, "use_sliding_window": False,
                "dtype": "float32"}  # fmt: skip
    assert expected.items() <= modern.items()
    classic = hf_config(tiny_config("classic", dropout=0.2), VOCAB_SIZE, **IDS)
    expected = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_inner": 17, "resid_pdrop": 0.2,
                "embd_pdrop": 0.2, "attn_pdrop": 0.2, "activation_function": "gelu_new", "n_positions": 29}  # fmt: skip
    assert expected.items() <= classic.items()


@pytest.mark.parametrize(("block", "key"), [("modern", "attention_dropout"), ("classic", "attn_pdrop")])
def test_a_config_without_its_own_attention_dropout_keeps_its_law(tiny_config, block, key):
    """As DTL wrote it before model.attention_dropout, and as it comes from elsewhere."""
    old = hf_config(tiny_config(block, dropout=0.2), VOCAB_SIZE, **IDS)
    del old["dtl"]["attention_dropout"]
    config, _ = model_config(old)
    assert (config.dropout, config.resolved_attention_dropout) == (0.2, 0.2)
    foreign = hf_config(tiny_config(block, dropout=0.2, attention_dropout=0.4), VOCAB_SIZE, **IDS)
    assert foreign[key] == 0.4
    del foreign["dtl"]
    config, _ = model_config(foreign)
    assert (config.dropout, config.resolved_attention_dropout) == (0.0 if block == "modern" else 0.2, 0.4)


@pytest.mark.parametrize("kept", [{}, {"ffn_multiple_of": 64}])
def test_the_width_of_a_config_json_goes_before_any_default(tiny_config, kept):
    """As DTL wrote it before model.ffn_multiple_of, with another default, and as it comes from elsewhere."""
    old = hf_config(tiny_config(dim=320, ffn_dim=None), VOCAB_SIZE, **IDS)
    old["dtl"].pop("ffn_multiple_of")
    for width in (848, 832, 853):
        for own in ({"dtl": old["dtl"] | kept}, {"dtl": {}}):
            config, _ = model_config(old | {"intermediate_size": width} | own)
            assert config.resolved_ffn_dim == width
            written = hf_config(config, VOCAB_SIZE, **IDS)
            assert written["intermediate_size"] == width and model_config(written) == (config, VOCAB_SIZE)


def test_rope_settings_of_transformers_4_are_read(tiny_config):
    old = hf_config(tiny_config(), VOCAB_SIZE, **IDS)
    del old["rope_parameters"], old["dtl"]
    config, _ = model_config(old | {"rope_theta": 31.0, "rope_scaling": None})
    assert config.arch.rope_theta == 31.0


REFUSED = [
    ("modern", {"model_type": "llama"}, "model_type=llama"),
    ("modern", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_parameters.type=linear"),
    ("modern", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters.rope_type=yarn"),
    ("modern", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor=0.5"),
    ("modern", {"rope_parameters": "yarn"}, "rope_parameters=yarn"),
    ("modern", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window=True"),
    ("modern", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types=sliding_attention"),
    ("modern", {"attention_bias": True}, "attention_bias=True"),
    ("modern", {"hidden_act": "gelu"}, "hidden_act=gelu"),
    ("modern", {"quantization_config": {"bits": 4}}, "quantization_config="),
    ("modern", {"hidden_size": "wide"}, "model.dim: .*'wide'"),
    ("modern", {"num_key_value_heads": 4}, "must divide model.n_heads"),
    ("modern", {"vocab_size": None}, "vocab_size=None"),
    ("modern", {"dtl": {"attention": "${oc.env:HOME}"}}, "contains '"),
    ("modern", {"dtl": {"colour": "red"}}, "model.colour"),
    ("classic", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("classic", {"scale_attn_weights": False}, "scale_attn_weights=False"),
    ("classic", {"activation_function": "relu"}, "activation_function=relu"),
    ("classic", {"add_cross_attention": True}, "add_cross_attention=True"),
    ("classic", {"model_type": "dtl-mine", "dtl": {"arch": {"block": "mine"}}}, "model.arch.block=mine.*plugins="),
]


@pytest.mark.parametrize(("block", "change", "named"), REFUSED, ids=[named for _, _, named in REFUSED])
def test_what_cannot_be_computed_is_refused_by_name(tiny_config, block, change, named):
    with pytest.raises(CheckpointError, match=named):
        model_config(hf_config(tiny_config(block), VOCAB_SIZE, **IDS) | change)


def test_a_missing_size_is_named(tiny_config):
    config = hf_config(tiny_config(), VOCAB_SIZE, **IDS)
    del config["num_hidden_layers"]
    with pytest.raises(CheckpointError, match="num_hidden_layers is missing"):
        model_config(config)


@both_blocks
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_names_without_prefix_are_taken(tiny_model, block, dtype):
    source, target = tiny_model(block), tiny_model(block)
    tensors = to_hf(source)
    given = {name.removeprefix("model.").removeprefix("transformer."): t.to(dtype) for name, t in tensors.items()}
    given["lm_head.weight"] = source.head.weight.detach().to(dtype)
    if block == "classic":
        given |= {"h.0.attn.bias": torch.ones(1, 1, 29, 29).tril().bool(), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    from_hf(target, given)
    for name, tensor in to_hf(target).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensors[name].to(dtype).float())


def damaged(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    name = next(name for name in tensors if "c_attn.weight" in name)
    if kind == "missing":
        del tensors[name]
    elif kind == "not expected":
        tensors["transformer.h.7.extra"] = torch.zeros(2)
    elif kind == "has shape":
        tensors[name] = tensors[name].T.contiguous()
    elif kind == "not floating-point":
        tensors[name] = tensors[name].to(torch.int8)
    elif kind == "occur twice":
        tensors[name.removeprefix("transformer.")] = tensors[name]
    elif kind == "differs from the token embedding":
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    return tensors


DAMAGE = [
    "missing",
    "not expected",
    "has shape",
    "not floating-point",
    "occur twice",
    "differs from the token embedding",
]


@pytest.mark.parametrize("kind", DAMAGE)
def test_tensors_that_do_not_fit_are_named_and_change_nothing(tiny_model, kind):
    model = tiny_model("classic")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: torch.zeros_like(tensor) for name, tensor in to_hf(model).items()}
    with pytest.raises(CheckpointError, match=kind):
        from_hf(model, damaged(tensors, kind))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_untied_model_needs_its_head(tiny_model):
    model = tiny_model("modern", tie_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        from_hf(model, to_hf(tiny_model("modern")))


@tied_or_not
def test_a_block_of_your_own_survives_under_its_own_names(tiny_config, randomise, tmp_path, monkeypatch, tied):
    monkeypatch.setattr(BLOCKS, "_parts", dict(BLOCKS._parts))
    BLOCKS.register("mine")(type("MyBlock", (TransformerBlock,), {}))
    config = tiny_config(tie_embeddings=tied, dropout=0.3)
    config.arch = ArchConfig("mine", options={"depth": 2})
    model = randomise(TransformerLM(config, VOCAB_SIZE)).eval()
    again = read_checkpoint(write_checkpoint(tmp_path, model))
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_type"] == "dtl-mine"
    assert again.config == config
    ids = torch.randint(VOCAB_SIZE, (2, 7))
    assert torch.equal(again(ids), model(ids))
