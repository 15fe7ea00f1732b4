"""RMSNorm and the mlps compute what their formulas say."""

import math

import pytest
import torch
from torch.nn import functional as F

from dtl.model.transformer import GeluMLP, RMSNorm, SwiGLU


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rms_norm_upcasts_and_multiplies_the_normalised_value(dtype):
    norm = RMSNorm(13, eps=0.3).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = (torch.randn(2, 7, 13) * 50).to(dtype)
    wide = x.float()
    normalised = wide / torch.sqrt(wide.square().mean(dim=-1, keepdim=True) + 0.3)
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), norm.weight * normalised.to(dtype))


def test_rms_norm_survives_values_whose_square_leaves_half_precision():
    norm = RMSNorm(13, eps=1e-6).half()
    assert norm(torch.full((1, 13), 3000.0).half()).isfinite().all()


def test_swiglu_gates_with_silu():
    mlp, x = SwiGLU(13, 17), torch.randn(2, 7, 13)
    gate = mlp.gate(x)
    torch.testing.assert_close(mlp(x), (gate * torch.sigmoid(gate) * mlp.up(x)) @ mlp.down.weight.T)
    assert not [name for name, _ in mlp.named_parameters() if "bias" in name]


def test_the_classic_mlp_uses_the_tanh_form_of_gelu():
    mlp, x = GeluMLP(13, 17), torch.randn(2, 7, 13) * 3
    y = mlp.up(x)
    gelu = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    torch.testing.assert_close(mlp(x), mlp.down(gelu))
    assert (mlp(x) - mlp.down(F.gelu(y))).abs().max() > 1e-6
