"""Rotary positions turn by distance alone; learned ones are looked up."""

import torch

from dtl.model.attention import Rotation
from dtl.model.transformer import LearnedPositions, RotaryEmbedding


def rotation_at(*positions: int, head_dim: int = 10, theta: float = 777.0) -> Rotation:
    _, rotation = RotaryEmbedding(head_dim, theta)(torch.zeros(1, len(positions), 3), torch.tensor([positions]))
    assert rotation is not None
    return rotation


def test_rotary_scores_depend_on_the_distance_only():
    q, k = torch.randn(1, 1, 1, 10), torch.randn(1, 1, 1, 10)

    def score(query_at: int, key_at: int) -> torch.Tensor:
        return (rotation_at(query_at).apply(q) * rotation_at(key_at).apply(k)).sum()

    for start in (0, 1, 11, 401):
        torch.testing.assert_close(score(start + 5, start), score(5, 0), atol=1e-4, rtol=1e-4)
    assert (score(5, 0) - score(4, 0)).abs() > 1e-2


def test_rotary_keeps_lengths_and_leaves_position_0_alone():
    x_bhtk = torch.randn(2, 3, 2, 10)
    turned = rotation_at(0, 13).apply(x_bhtk)
    torch.testing.assert_close(turned[:, :, 0], x_bhtk[:, :, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x_bhtk.norm(dim=-1))
    assert not torch.allclose(turned[:, :, 1], x_bhtk[:, :, 1])


def test_rotary_pairs_are_half_a_head_apart():
    """Pair i turns by position / theta^(2i/k): with a width of 4, dimension 1 pairs with dimension 3."""
    x = torch.tensor([0.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    angle = torch.tensor(3 / 100.0**0.5)
    expected = torch.stack([torch.tensor(0.0), angle.cos(), torch.tensor(0.0), angle.sin()])
    torch.testing.assert_close(rotation_at(3, head_dim=4, theta=100.0).apply(x).flatten(), expected)


def test_rotary_angles_are_computed_in_fp32_whatever_the_models_dtype():
    rotary = RotaryEmbedding(10, 777.0).to(torch.bfloat16)
    assert not rotary.state_dict()
    _, rotation = rotary(torch.zeros(1, 1, 3, dtype=torch.bfloat16), torch.tensor([[401]]))
    exact = rotation_at(401)
    assert rotation.cos_btk.dtype == torch.bfloat16
    torch.testing.assert_close(rotation.cos_btk, exact.cos_btk.bfloat16())


def test_learned_positions_are_given_per_row():
    learned = LearnedPositions(7, 5)
    x_btd = torch.randn(2, 3, 5)
    placed, rotation = learned(x_btd, torch.tensor([[0, 1, 2], [6, 0, 1]]))
    assert rotation is None
    torch.testing.assert_close(placed[1, 0] - x_btd[1, 0], learned.table.weight[6])
    torch.testing.assert_close(placed[0, 1] - x_btd[0, 1], learned.table.weight[1])
