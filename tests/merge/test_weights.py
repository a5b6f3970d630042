"""Base weights: a fixed mean, none above 1, the paper's formula where it holds, layers in runs."""

from __future__ import annotations

import math

import pytest
import torch

from plad_ray.errors import PladError
from plad_ray.merge.weights import base_weights, layers_of, middle_first, split, third


@pytest.mark.parametrize("epsilon", [1e-3, 0.2, 1.0])
@pytest.mark.parametrize("parts", [1, 3, 9, 32])
@pytest.mark.parametrize("mean", [0.0, 0.2, 0.5, 0.9, 0.999, 1.0])
def test_the_mean_is_kept_for_any_s_and_no_weight_leaves_0_to_1(mean, parts, epsilon):
    generator = torch.Generator().manual_seed(parts)
    for spread in (0.1, 3, 30):
        weights = base_weights(torch.randn(parts, generator=generator) * spread, mean, epsilon)
        assert weights.mean().item() == pytest.approx(mean, abs=1e-6)
        assert weights.min() >= 0 and weights.max() <= 1


def test_known_values():
    """σ(0) = 1/2 and σ(ln 3) = 3/4: with ε = 1/4 the parts stand as 3 to 4."""
    s_K = torch.tensor([0.0, math.log(3)])
    torch.testing.assert_close(base_weights(s_K, 0.35, 0.25), torch.tensor([0.3, 0.4]))
    # 3 : 4 with mean 0.9 would be 0.771 and 1.029: the second stays at 1, the first takes the rest
    torch.testing.assert_close(base_weights(s_K, 0.9, 0.25), torch.tensor([0.8, 1.0]))


def test_the_range_of_the_paper():
    """K = 3, ε = 0.2: a part's share of the mean lies between 0.23 (others at 1 + ε) and 2.25 (others at ε)."""
    far = 40.0
    low = base_weights(torch.tensor([-far, far, far]), 0.2, 0.2)
    high = base_weights(torch.tensor([far, -far, -far]), 0.2, 0.2)
    assert low[0].item() / 0.2 == pytest.approx(3 * 0.2 / (0.2 + 1.2 + 1.2))
    assert high[0].item() / 0.2 == pytest.approx(3 * 1.2 / (1.2 + 0.2 + 0.2))


def test_gradient_moves_weights_against_each_other():
    s_K = torch.zeros(3, requires_grad=True)
    base_weights(s_K, 0.2, 0.2)[0].backward()
    assert s_K.grad is not None and s_K.grad[0] > 0 and s_K.grad[1] == s_K.grad[2] < 0
    assert s_K.grad.sum().abs() < 1e-7


def test_runs_of_layers():
    assert split(26, 3) == [range(0, 8), range(8, 17), range(17, 26)], "the paper's 1–8, 9–17, 18–26"
    assert [third(26, which) for which in ("low", "middle", "high")] == split(26, 3)
    with pytest.raises(PladError, match=r"3 parts of 2 adapted layers: merge\.parts can be at most 2"):
        split(2, 3)
    with pytest.raises(PladError, match="2 adapted layers have no thirds"):
        third(2, "low")


def test_layers_in_their_order():
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(12) for p in "qv"]
    layers = layers_of([*names, "lm_head"])
    assert layers == [[f"model.layers.{i}.self_attn.{p}_proj" for p in "qv"] for i in range(12)]
    both = layers_of([f"{stack}.block.{i}.layer.0.q" for stack in ("decoder", "encoder") for i in range(2)])
    assert [names[0][:15] for names in both] == [f"{s}.block.{i}" for s in ("encoder", "decoder") for i in range(2)]


def test_the_l1_term_holds_the_middle_harder():
    """L = 4: 3 / (|l − 2| + 1) is 1, 1.5, 3, 1.5."""
    torch.testing.assert_close(middle_first(split(4, 2)), torch.tensor([1.25, 2.25]))
