"""Which tensor of a Hugging Face twin is which of ours: names and layout of Qwen3 and GPT-2.

Letters: o output width, i input width of a matrix, n matrices stacked into one.
"""

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from dtl.model.config import ModelConfig
from dtl.model.transformer import TransformerLM


@dataclass(frozen=True)
class Pair:
    """One tensor of the twin and ours: `own` stacked along the output, transposed where GPT-2 stores (in, out)."""

    twin: str
    own: tuple[str, ...]
    transposed: bool = False

    def join(self, tensors: list[Tensor]) -> Tensor:
        joined = rearrange(tensors, "n o ... -> (n o) ...") if len(tensors) > 1 else tensors[0]
        return rearrange(joined, "o i -> i o").contiguous() if self.transposed else joined

    def split(self, tensor: Tensor) -> Tensor:
        tensor = rearrange(tensor, "i o -> o i") if self.transposed else tensor
        return rearrange(tensor, "(n o) ... -> n o ...", n=len(self.own))


def _qwen3_pairs(config: ModelConfig) -> list[Pair]:
    in_block = {
        "input_layernorm": "attention_norm",
        "self_attn.q_proj": "attention.to_q",
        "self_attn.k_proj": "attention.to_k",
        "self_attn.v_proj": "attention.to_v",
        "self_attn.o_proj": "attention.to_out",
        "self_attn.q_norm": "attention.q_norm",
        "self_attn.k_norm": "attention.k_norm",
        "post_attention_layernorm": "mlp_norm",
        "mlp.gate_proj": "mlp.gate",
        "mlp.up_proj": "mlp.up",
        "mlp.down_proj": "mlp.down",
    }
    around = {"model.embed_tokens": "embedding", "model.norm": "norm"}
    names = around | {
        f"model.layers.{i}.{twin}": f"blocks.{i}.{own}"
        for i in range(config.n_layers)
        for twin, own in in_block.items()
    }
    return [Pair(f"{twin}.weight", (f"{own}.weight",)) for twin, own in names.items()]


def _gpt2_pairs(config: ModelConfig) -> list[Pair]:
    pairs = [Pair("transformer.wte.weight", ("embedding.weight",))]
    pairs += [Pair("transformer.wpe.weight", ("positions.table.weight",))]
    pairs += [Pair(f"transformer.ln_f.{kind}", (f"norm.{kind}",)) for kind in ("weight", "bias")]
    in_block = {
        "ln_1": ("attention_norm",),
        "attn.c_attn": ("attention.to_q", "attention.to_k", "attention.to_v"),
        "attn.c_proj": ("attention.to_out",),
        "ln_2": ("mlp_norm",),
        "mlp.c_fc": ("mlp.up",),
        "mlp.c_proj": ("mlp.down",),
    }
    for i in range(config.n_layers):
        for twin, own in in_block.items():
            for kind in ("weight", "bias"):
                names = tuple(f"blocks.{i}.{name}.{kind}" for name in own)
                transposed = kind == "weight" and not twin.startswith("ln_")
                pairs.append(Pair(f"transformer.h.{i}.{twin}.{kind}", names, transposed))
    return pairs


def name_pairs(model: TransformerLM) -> list[Pair]:
    """Every tensor of the model's file: the twin's where there is one, else our own under our own names.

    A tied head has no tensor: the twin ties it again.
    """
    config = model.config
    if config.arch.block == "modern":
        pairs = _qwen3_pairs(config)
    elif config.arch.block == "classic":
        pairs = _gpt2_pairs(config)
    else:
        tied = {"head.weight"} if config.tie_embeddings else set()
        return [Pair(name, (name,)) for name in model.state_dict() if name not in tied]
    return pairs if config.tie_embeddings else [*pairs, Pair("lm_head.weight", ("head.weight",))]
