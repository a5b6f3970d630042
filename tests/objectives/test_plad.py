"""PLaD's losses by hand (METHODS.md §8.3) and the signs of their gradients."""

from __future__ import annotations

import pytest
import torch
from objective_values import batch, total

from plad_ray.errors import PladError
from plad_ray.objectives import OBJECTIVES, build


def test_rank_inside_the_margin():
    """log P = (−10, −9), β = 1: the loss is 2, and its gradient −1 on chosen tokens, +1 on rejected."""
    values, mask = batch(([-4.0, -6.0], [-9.0]))
    loss, _ = total(build("plad_rank", {"margin": 1.0}), values, mask)
    loss.backward()
    assert loss.item() == 2.0
    assert values.grad.tolist() == [[[-1.0, -1.0], [1.0, 0.0]]]


def test_rank_outside_the_margin_has_no_gradient():
    values, mask = batch(([-8.0], [-10.0]))
    loss, terms = total(build("plad_rank", {"margin": 1.0}), values, mask)
    loss.backward()
    assert loss.item() == 0.0
    assert values.grad.abs().sum() == 0
    assert float(terms.metrics["active"][0]) == 0.0


def test_rank_on_means_divides_by_length_with_eos():
    """Means −2 and −3: 0.5 − (−2) + (−3) < 0; with margin 1.5 the loss is 0.5 and each token weighs 1/|y|."""
    values, mask = batch(([-1.0, -3.0], [-2.0, -3.0, -4.0]))
    loss, _ = total(build("plad_rank", {"margin": 1.5, "logp_reduction": "mean"}), values, mask)
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    torch.testing.assert_close(values.grad[0, 0, :2], torch.tensor([-0.5, -0.5]))
    torch.testing.assert_close(values.grad[0, 1], torch.full((3,), 1 / 3))


def test_margin_by_hand():
    """c = 2, scores (0.9, 0.4): target gap 1. log P = (−3, −3.5) → max(0, 1 + 3 − 3.5) = 0.5."""
    values, mask = batch(([-3.0], [-3.5]))
    loss, _ = total(build("plad_margin", {"margin_scale": 2.0}), values, mask, [[0.9, 0.4]])
    assert loss.item() == pytest.approx(0.5)


def test_margin_with_a_negative_gap_is_signed_unless_clamped():
    """scores (0, 1): the gap −1 allows log P to differ by as much; clamped it asks for none."""
    values, mask = batch(([-3.0], [-2.5]))
    assert total(build("plad_margin", {}), values, mask, [[0.0, 1.0]])[0].item() == 0.0
    assert total(build("plad_margin", {"clamp_gap": True}), values, mask, [[0.0, 1.0]])[0].item() == 0.5


def test_sft_term_is_weighted_per_token_of_the_chosen_text():
    """Hinge (0 here) plus 10 × mean over three chosen tokens of the two rows: 10 × (1 + 2 + 3) / 3."""
    values, mask = batch(([-1.0, -2.0], [-50.0]), ([-3.0], [-50.0]))
    loss, _ = total(build("plad_rank", {"sft_weight": 10.0}), values, mask)
    assert loss.item() == pytest.approx(20.0)


def test_padding_rows_change_nothing():
    objective = build("plad_rank", {})
    values, mask = batch(([-4.0, -6.0], [-9.0]))
    padded = torch.cat([values.detach(), torch.zeros(1, 2, 2)]).requires_grad_()
    empty = torch.cat([mask, torch.zeros(1, 2, 2, dtype=torch.bool)])
    loss, terms = total(objective, padded, empty)
    assert loss.item() == 2.0
    assert {name: float(s / n) for name, (s, n) in terms.metrics.items()} == {
        name: float(s / n) for name, (s, n) in total(objective, values, mask)[1].metrics.items()
    }


def test_metrics_by_hand():
    values, mask = batch(([-4.0, -6.0], [-9.0]), ([-1.0], [-2.0, -2.0, -2.0]))
    metrics = {k: float(s / n) for k, (s, n) in total(build("plad_rank", {}), values, mask)[1].metrics.items()}
    assert metrics["rewards/chosen"] == -5.5 and metrics["rewards/rejected"] == -7.5
    assert metrics["rewards/margins"] == 2.0 and metrics["rewards/accuracies"] == 0.5
    assert metrics["lengths/chosen"] == 1.5 and metrics["lengths/rejected"] == 2.0
    assert metrics["active"] == 0.5


def test_sft_reads_the_first_candidate_alone():
    values, mask = batch(([-1.0, -3.0], [-9.0]))
    for name in ("sft", "seqkd"):
        loss, _ = total(build(name, {}), values, mask)
        assert loss.item() == 2.0


def test_default_value_of_a_position_is_the_fp32_log_prob():
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]], dtype=torch.bfloat16)
    got = build("sft", {}).per_token(logits, {}, torch.tensor([2, 0]))["logp"]
    torch.testing.assert_close(got, logits.float().log_softmax(-1)[[0, 1], [2, 0]])
    assert got.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("plad", {}, "unknown objective 'plad'; known: sft"),
        ("plad_rank", {"beta": 1.0}, "no field 'beta'"),
        ("plad_rank", {"logp_reduction": "mean"}, "margin must be given"),
        ("plad_rank", {"margin": -1.0}, "must not be negative"),
        ("plad_rank", {"logp_reduction": "max"}, "sum.* or .mean"),
        ("no_such_module:Loss", {}, "cannot be imported"),
        ("plad_ray.config:Model", {}, "not a subclass"),
    ],
)
def test_bad_objectives_are_refused(name, params, message):
    with pytest.raises(PladError, match=message):
        build(name, params)


def test_an_objective_may_live_outside_the_package():
    assert type(build("plad_ray.objectives.plad:PladRank", {"margin": 2.0})) is OBJECTIVES["plad_rank"]
