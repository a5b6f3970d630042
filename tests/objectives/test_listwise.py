"""RRHF and LiPO by hand over lists of unequal size, and their reductions to pairs."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from objective_values import batch, metrics, tensor, total

from plad_ray.objectives import build

LISTS = ([-1.0, -3.0], [-1.0], [-4.0, -2.0, -3.0]), ([-5.0], [-2.0, -2.0])
SCORES = [[0.5, 0.2, 0.9], [1.0, -1.0, 0.0]]


def test_rrhf_by_hand():
    """Means −2, −1, −3 with scores .5, .2, .9: the third should be first. Hinges: 1 over 2: 1, 3 over 1: 1, 3 over 2: 2.
    Second list: −5 should be above −2: 3. NLL of the best: 3 and 5. (w·(4 + 3) + 8) / 2."""
    values, mask = batch(*LISTS)
    loss, terms = total(build("rrhf", {"rank_weight": 2.0}), values, mask, SCORES)
    loss.backward()
    assert loss.item() == pytest.approx((2 * 7 + 8) / 2)
    # d/dp of list 1: (above 2, below 3) = 0, −(1 + 1) = pushed down, two hinges and the NLL up; halved over two lists
    expected = torch.tensor([[0.0, 2.0, -2.0 - 0.5], [-1.0 - 0.5, 1.0, 0.0]])
    torch.testing.assert_close(values.grad.sum(-1), expected)
    found = metrics(terms)
    assert found["rewards/chosen"] == -4.0 and found["rewards/rejected"] == -1.5 and found["active"] == 1.0
    assert found["rewards/list_accuracies"] == 0.0 and found["candidates"] == 2.5
    assert found["lengths/chosen"] == 2.0 and found["logps/chosen"] == -7.0


def test_rrhf_right_order_leaves_the_nll_alone_and_ties_ask_for_nothing():
    values, mask = batch(([-1.0], [-2.0], [-3.0]))
    loss, terms = total(build("rrhf", {}), values, mask, [[2.0, 0.0, 0.0]])
    assert loss.item() == 1.0 and metrics(terms)["rewards/list_accuracies"] == 1.0


def test_rrhf_of_two_candidates_is_plad_rank_on_means_without_margin_and_nll():
    for row in (([-1.0, -3.0], [-1.0, -1.0]), ([-1.0, -0.5], [-1.0, -1.0])):
        values, mask = batch(row)
        loss, _ = total(build("rrhf", {}), values, mask, [[0.7, 0.1]])
        loss.backward()
        other, _ = batch(row)
        params = {"margin": 0.0, "logp_reduction": "mean", "sft_weight": 1.0}
        plad, _ = total(build("plad_rank", params), other, mask)
        plad.backward()
        assert loss.item() == pytest.approx(plad.item())
        torch.testing.assert_close(values.grad, other.grad)


def lipo_by_hand(ratios: list[float], scores: list[float], beta: float, step: bool) -> float:
    """The paper's formula in Python floats, pair by pair."""
    n = len(ratios)
    s = [beta * ratio for ratio in ratios]

    def wins(i: int, j: int) -> float:
        gap = scores[i] - scores[j]
        return (gap > 0) + 0.5 * (gap == 0) if step else 1 / (1 + math.exp(-gap))

    psi = [sum(wins(i, j) for j in range(n) if j != i) / (n - 1) for i in range(n)]
    rank = [1 + sum(s[j] > s[i] for j in range(n)) for i in range(n)]
    loss = 0.0
    for i, j in permutations(range(n), 2):
        if scores[i] > scores[j]:
            gain = (2 ** psi[i] - 1) - (2 ** psi[j] - 1)
            discount = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
            loss += gain * discount * math.log1p(math.exp(s[j] - s[i]))
    return loss


@pytest.mark.parametrize("labels", ["sigmoid", "rank"])
def test_lipo_by_the_papers_formula(labels):
    """log π: (−4, −1, −9) and (−5, −4); references 1, −0.5, 2 and −2, 0.5 below it."""
    reference = ([-2.0, -3.0], [-0.5], [-6.0, -2.0, -3.0]), ([-3.0], [-2.0, -2.5])
    values, mask = batch(*LISTS)
    objective = build("lipo", {"beta": 0.7, "labels": labels})
    loss, terms = total(objective, values, mask, SCORES, reference_logp=tensor(*reference)[0])
    expected = [
        lipo_by_hand([1.0, -0.5, 2.0], SCORES[0], 0.7, labels == "rank"),
        lipo_by_hand([-2.0, 0.5], SCORES[1][:2], 0.7, labels == "rank"),
    ]
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-6)
    loss.backward()
    by_text = values.grad.sum(-1)
    assert by_text[0, 2] < 0 < by_text[0, 1] and by_text[1, 0] < 0 < by_text[1, 1], "better texts become likelier"
    assert by_text[1, 2] == 0, "there is no third candidate"
    found = metrics(terms)
    assert found["rewards/chosen"] == pytest.approx(0.7 * (2 - 2) / 2)
    assert found["rewards/list_accuracies"] == 0.5


def test_lipo_of_two_candidates_is_dpo_times_its_weight():
    row, reference = ([-1.0, -2.0], [-6.0]), ([-3.0, -1.0], [-5.0])
    psi = [1 / (1 + math.exp(-0.6)), 1 / (1 + math.exp(0.6))]
    weight = (2 ** psi[0] - 2 ** psi[1]) * (1 / math.log(2) - 1 / math.log(3))
    grads = []
    for name, factor in (("lipo", 1.0), ("dpo", weight)):
        values, mask = batch(row)
        objective = build(name, {"beta": 0.3})
        loss, _ = total(objective, values, mask, [[0.9, 0.3]], reference_logp=tensor(reference)[0])
        (factor * loss).backward()
        grads.append((factor * loss.item(), values.grad))
    assert grads[0][0] == pytest.approx(grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])


def test_lipo_teaches_something_at_the_start_where_all_s_are_equal():
    values, mask = batch(*LISTS)
    loss, _ = total(build("lipo", {}), values, mask, SCORES, reference_logp=values.detach())
    loss.backward()
    assert values.grad[0, 2].sum() < 0 < values.grad[0, 1].sum()


def test_lipo_equal_scores_ask_for_nothing():
    values, mask = batch(LISTS[0])
    loss, _ = total(build("lipo", {}), values, mask, [[0.3, 0.3, 0.3]], reference_logp=values.detach() - 1)
    assert loss.item() == 0.0


@pytest.mark.parametrize("name", ["rrhf", "lipo"])
def test_padding_rows_and_candidates_change_nothing(name):
    objective = build(name, {})
    values, mask = batch(*LISTS)
    reference = tensor(*LISTS)[0] - 0.25 * torch.arange(3)[:, None] * mask
    loss, terms = total(objective, values, mask, SCORES, reference_logp=reference)
    wider = [torch.nn.functional.pad(t, (0, 2, 0, 2, 0, 1)) for t in (values, reference, mask)]
    scores = [[*row, 9.0, 9.0] for row in SCORES] + [[9.0, -9.0, 0.0, 9.0, 9.0]]
    found, wider_terms = total(objective, wider[0], wider[2], scores, reference_logp=wider[1])
    assert found.item() == pytest.approx(loss.item())
    assert metrics(wider_terms) == pytest.approx(metrics(terms))
