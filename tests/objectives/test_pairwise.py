"""DPO, SLiC-HF, SimPO and RSO by hand, the signs of their gradients, and what they have in common."""

from __future__ import annotations

import math

import pytest
import torch
from objective_values import batch, metrics, tensor, total

from plad_ray.errors import PladError
from plad_ray.objectives import build

#: log P (−3, −6) against the reference's (−4, −5): h = 1 − (−1) = 2
ROW, REFERENCE = ([-1.0, -2.0], [-6.0]), ([-3.0, -1.0], [-5.0])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_by_hand():
    """β·h = 1: −log σ(1), and its gradient is β·σ(−1), down on chosen tokens and up on rejected ones."""
    values, mask = batch(ROW)
    loss, terms = total(build("dpo", {"beta": 0.5}), values, mask, reference_logp=tensor(REFERENCE)[0])
    loss.backward()
    assert loss.item() == pytest.approx(softplus(-1))
    slope = 0.5 * sigmoid(-1)
    torch.testing.assert_close(values.grad, torch.tensor([[[-slope, -slope], [slope, 0.0]]]))
    found = metrics(terms)
    assert found["rewards/chosen"] == 0.5 and found["rewards/rejected"] == -0.5 and found["rewards/margins"] == 1.0
    assert found["logps/chosen"] == -3.0 and found["lengths/chosen"] == 2.0 and "active" not in found


def test_dpo_starts_at_log_two():
    values, mask = batch(ROW)
    loss, _ = total(build("dpo", {}), values, mask, reference_logp=values.detach())
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)


def test_conservative_dpo_by_hand():
    values, mask = batch(ROW)
    objective = build("dpo", {"beta": 0.5, "label_smoothing": 0.1})
    loss, _ = total(objective, values, mask, reference_logp=tensor(REFERENCE)[0])
    assert loss.item() == pytest.approx(0.9 * softplus(-1) + 0.1 * softplus(1))


def test_reverse_dpo_is_dpo_on_swapped_pairs():
    """β·h = −1: the loss is softplus(1), and it is the rejected text that becomes likelier."""
    objective = build("dpo", {"beta": 0.5, "reverse": True, "sft_weight": 1.0})
    values, mask = batch(ROW)
    loss, terms = total(objective, values, mask, reference_logp=tensor(REFERENCE)[0])
    loss.backward()
    assert loss.item() == pytest.approx(softplus(1) + 6.0), "the SFT term too is of the text that is now preferred"
    assert values.grad[0, 0, 0] > 0 > values.grad[0, 1, 0]
    assert metrics(terms)["rewards/chosen"] == -0.5 and metrics(terms)["lengths/chosen"] == 1.0
    swapped, swapped_mask = batch(ROW[::-1])
    plain = build("dpo", {"beta": 0.5, "sft_weight": 1.0})
    other, other_terms = total(plain, swapped, swapped_mask, reference_logp=tensor(REFERENCE[::-1])[0])
    assert other.item() == loss.item() and metrics(other_terms) == metrics(terms)


def test_simpo_by_hand():
    """Means −1.5 and −3.5, β = 2, γ = 1: −log σ(4 − 1); each token's slope is β·σ(−3)/|y|."""
    values, mask = batch(([-1.0, -2.0], [-3.0, -4.0, -3.5]))
    loss, terms = total(build("simpo", {}), values, mask)
    loss.backward()
    assert loss.item() == pytest.approx(softplus(-3))
    slope = 2 * sigmoid(-3)
    torch.testing.assert_close(values.grad[0, 0, :2], torch.full((2,), -slope / 2))
    torch.testing.assert_close(values.grad[0, 1], torch.full((3,), slope / 3))
    assert metrics(terms)["rewards/chosen"] == -3.0 and metrics(terms)["rewards/margins"] == 4.0


def test_slic_by_hand():
    """Row 1: hinge 1 + 10 − 9 = 2 and NLL 10; row 2: hinge 0 and NLL 8. Mean of hinge 1, λ × mean NLL 0.1 × 9."""
    values, mask = batch(([-4.0, -6.0], [-9.0]), ([-8.0], [-10.0]))
    loss, terms = total(build("slic", {"sft_weight": 0.1}), values, mask)
    loss.backward()
    assert loss.item() == pytest.approx(1.9)
    torch.testing.assert_close(values.grad[:, :, 0], torch.tensor([[-0.55, 0.5], [-0.05, 0.0]]))
    assert metrics(terms)["active"] == 0.5


def test_slic_without_its_regulariser_is_plad_rank():
    rows = ([-4.0, -6.0], [-9.0]), ([-8.0], [-8.5, -1.0])
    losses = []
    for name, params in (("slic", {"sft_weight": 0.0, "margin": 2.0}), ("plad_rank", {"margin": 2.0})):
        values, mask = batch(*rows)
        loss, _ = total(build(name, params), values, mask)
        loss.backward()
        losses.append((loss.item(), values.grad.tolist()))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("kind", "gamma", "expected", "slope"),
    [
        ("hinge", 0.25, 1 - 0.25 * 3, 0.25),
        ("hinge", 0.5, 0.0, 0.0),
        ("hinge_norm", 0.25, 0.5, 0.25),
        ("hinge_norm", 0.6, 0.0, 0.0),
        ("sigmoid_norm", 0.25, softplus(-0.5), 0.25 * sigmoid(-0.5)),
    ],
)
def test_rso_by_hand(kind, gamma, expected, slope):
    """log P (−3, −6), h = 2."""
    values, mask = batch(ROW)
    objective = build("rso", {"kind": kind, "gamma": gamma})
    known = {} if kind == "hinge" else {"reference_logp": tensor(REFERENCE)[0]}
    assert objective.logps_of == tuple(name.removesuffix("_logp") for name in known)
    loss, terms = total(objective, values, mask, **known)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-7)
    torch.testing.assert_close(values.grad, torch.tensor([[[-slope, -slope], [slope, 0.0]]]))
    assert metrics(terms)["rewards/margins"] == pytest.approx(gamma * (3 if kind == "hinge" else 2))


def test_rso_hinge_is_gamma_times_the_margin_loss():
    """γ·max(0, δ − d) = max(0, 1 − γ·d) with δ = 1/γ, in value and gradient."""
    rows = ([-4.0, -6.0], [-9.0]), ([-8.0], [-8.5, -1.0]), ([-1.0], [-40.0])
    values, mask = batch(*rows)
    loss, _ = total(build("rso", {"kind": "hinge", "gamma": 0.05}), values, mask)
    loss.backward()
    other, _ = batch(*rows)
    margin, _ = total(build("plad_rank", {"margin": 20.0}), other, mask)
    margin.backward()
    assert loss.item() == pytest.approx(0.05 * margin.item())
    torch.testing.assert_close(values.grad, 0.05 * other.grad)


@pytest.mark.parametrize("name", ["dpo", "simpo", "slic", "rso"])
def test_padding_rows_change_nothing_and_rows_are_averaged(name):
    objective = build(name, {"sft_weight": 0.5})
    rows, references = (ROW, ([-1.0], [-2.0, -2.0])), (REFERENCE, ([-2.0], [-3.0, -2.0]))
    values, mask = batch(*rows)
    loss, terms = total(objective, values, mask, reference_logp=tensor(*references)[0])
    nothing = torch.zeros(1, *values.shape[1:])
    padded = [torch.cat([t, nothing]) for t in (values, tensor(*references)[0])]
    found, padded_terms = total(objective, padded[0], torch.cat([mask, nothing.bool()]), reference_logp=padded[1])
    assert found.item() == pytest.approx(loss.item()) and metrics(padded_terms) == metrics(terms)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("dpo", {"beta": 0.0}, "beta must be positive"),
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
        ("simpo", {"gamma_beta_ratio": -1.0}, "gamma_beta_ratio must not be negative"),
        ("slic", {"sft_weight": -1.0}, "sft_weight must not be negative"),
        ("rso", {"kind": "sigmoid"}, "kind.*hinge_norm"),
        ("rso", {"gamma": -0.1}, "gamma must be positive"),
        ("rrhf", {"rank_weight": -0.1}, "rank_weight must not be negative"),
        ("lipo", {"labels": "ndcg"}, "labels.*rank"),
    ],
)
def test_bad_settings_are_refused(name, params, message):
    with pytest.raises(PladError, match=message):
        build(name, params)
