"""Learning rates that transfer over width: tuned at a width of `optimizer.base_width`, they hold at any `model.dim`.

With r = base_width / dim, and m the power of two nearest to r:

    part                                       first weights      learning rate        weight decay
    matrices inside the blocks, with AdamW     x sqrt(r)          x r                  / r
    matrices inside the blocks, with Muon      x sqrt(r)          as at base_width     as at base_width
    final norm                                 x m                x m                  none
    embeddings, head, other norms, biases      as at base_width   as at base_width     as at base_width

This is the maximal update parametrisation of Adam (Yang et al. 2022, arXiv:2203.03466, table 8): the activations of
every layer, and what a step changes of them, are of one size at all widths. A step of Adam changes each entry of a
matrix by about its rate, and dim entries add up; one of Muon has a spectral norm that is right at every width (Yang et
al. 2023, arXiv:2310.17813). Rates of single layers under several parametrisations: Everett et al. 2024,
arXiv:2407.05872. Decay keeps the product with the rate: the steps over which weights are averaged (Wang and Aitchison
2024, arXiv:2405.13698).

The logits need a multiplier of m. It is in the final norm's weights w = m u: a step of Adam does not depend on the
scale of its gradient, so that w with a rate of m x lr moves as u with lr does. The model computes what it computed
before, and nothing has to be folded when it is saved. Depth, batch and length are not covered.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from dtl.model.transformer import RMSNorm, TransformerLM
from dtl.registry import BLOCKS


def scale_initial_weights(model: TransformerLM, base_width: int | None) -> None:
    """Scale the first weights of a new model as the table says; None leaves them as they are."""
    if base_width is None:
        return
    config, block = model.config, BLOCKS.get(model.config.arch.block)
    widths = (replace(config, dim=base_width), config)
    at_base, here = (block.embedding_std(width, model.vocab_size) for width in widths)
    with torch.no_grad():
        for matrix in block_matrices(model):
            matrix.mul_(math.sqrt(base_width / config.dim))
        for vector in final_norm(model):
            vector.mul_(output_multiplier(model, base_width))
        if final_norm(model):  # without the multiplier the logits of a tied head would grow with the width
            model.embedding.weight.mul_(at_base / here)


def adam_rate_factors(model: nn.Module, base_width: int | None) -> dict[nn.Parameter, float]:
    """Return the factor of each parameter's learning rate where it is not 1, for optimizers of Adam's kind."""
    if base_width is None:
        return {}
    assert isinstance(model, TransformerLM)
    factors = dict.fromkeys(block_matrices(model), base_width / model.config.dim)
    factors |= dict.fromkeys(final_norm(model), output_multiplier(model, base_width))
    return {parameter: factor for parameter, factor in factors.items() if factor != 1}


def output_multiplier(model: TransformerLM, base_width: int) -> float:
    """Return the multiplier of the logits, a power of two: no weight loses a bit to it, in any dtype."""
    return 2.0 ** round(math.log2(base_width / model.config.dim))


def block_matrices(model: TransformerLM) -> list[nn.Parameter]:
    """Return the matrices inside the blocks, without tables that are looked up."""
    tables = lookup_tables(model)
    return [p for p in model.blocks.parameters() if p.ndim >= 2 and p not in tables]


def lookup_tables(model: nn.Module) -> set[Tensor]:
    """Return the matrices whose rows are looked up: embeddings of tokens, values and positions, and a plugin's."""
    return {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}


def final_norm(model: TransformerLM) -> list[nn.Parameter]:
    """Return the parameters of the final norm that scale its output; none of a norm of your own of another kind."""
    return list(model.norm.parameters()) if isinstance(model.norm, RMSNorm | nn.RMSNorm | nn.LayerNorm) else []
