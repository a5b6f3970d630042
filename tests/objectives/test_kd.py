"""Word-level KD by hand and in float64, and the sign of its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from logit_rows import np_kl, probs, random_logits, total, values

from plad_ray.errors import PladError
from plad_ray.objectives import build


def test_one_token_by_hand():
    """p = (¾, ¼), q = (½, ½), token 1: CE = ln 2, KL = ¾ ln 3⁄2 + ¼ ln ½; κ = ¼ weighs them ¾ and ¼."""
    objective = build("kd", {"kd_ratio": 0.25})
    student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([0.75, 0.25]).log().view(1, 1, 1, 2)
    ids, mask = torch.ones(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, dtype=torch.bool)
    loss, metrics = total(objective, values(objective, student, {"teacher": teacher}, ids), mask)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss.item() == pytest.approx(0.75 * math.log(2) + 0.25 * divergence)
    assert metrics == pytest.approx({"nll": math.log(2), "kl": divergence})


def test_the_text_is_the_reference_or_the_pairs_chosen_one():
    assert build("kd", {}).trains_on == build("kd", {}).table == "references"
    chosen = build("kd", {"text": "chosen"})
    assert chosen.trains_on == "chosen" and chosen.table == "pairs"


def test_temperature_is_squared_and_tokens_are_averaged():
    """Two rows of 3 and 2 tokens, T = 2: ½ CE + ½·4·KL(p_T‖q_T), both over the five tokens."""
    objective = build("kd", {"temperature": 2.0})
    student, teacher = random_logits(2, 1, 3, 7, seed=3), random_logits(2, 1, 3, 7, seed=4)
    ids = torch.arange(6).view(2, 1, 3)
    mask = torch.tensor([[[True, True, True]], [[True, True, False]]])
    loss, _ = total(objective, values(objective, student, {"teacher": teacher}, ids), mask)
    keep = mask.numpy()
    divergence = np_kl(probs(teacher, 2.0), probs(student, 2.0))[keep].mean()
    nll = -sum(math.log(probs(student)[b, 0, t, int(ids[b, 0, t])]) for b, _, t in mask.nonzero().tolist()) / 5
    assert loss.item() == pytest.approx(0.5 * nll + 0.5 * 4 * divergence, rel=1e-5)


def test_the_gradient_pulls_towards_the_teacher_and_the_token():
    objective = build("kd", {"kd_ratio": 1.0})
    student = torch.zeros(1, 1, 1, 3, requires_grad=True)
    teacher = torch.tensor([0.8, 0.1, 0.1]).log().view(1, 1, 1, 3)
    ids, mask = torch.ones(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, dtype=torch.bool)
    loss, _ = total(objective, values(objective, student, {"teacher": teacher}, ids), mask)
    loss.backward()
    assert student.grad[0, 0, 0, 0] < 0 < student.grad[0, 0, 0, 1]
    torch.testing.assert_close(student.grad.flatten(), torch.tensor([1 / 3 - 0.8, 1 / 3 - 0.1, 1 / 3 - 0.1]))


def test_temperature_keeps_the_gradients_scale():
    """For small logits KL at T has 1/T² of the gradient, so that T² gives the same whatever T (Hinton et al., Eq. 4)."""
    teacher, grads = random_logits(1, 1, 1, 5, seed=1, scale=0.01), []
    for temperature in (1.0, 20.0):
        objective = build("kd", {"kd_ratio": 1.0, "temperature": temperature})
        student = torch.zeros(1, 1, 1, 5, requires_grad=True)
        ids, mask = torch.ones(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, dtype=torch.bool)
        total(objective, values(objective, student, {"teacher": teacher}, ids), mask)[0].backward()
        grads.append(student.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=0.02, atol=2e-5)


@pytest.mark.parametrize(
    ("params", "message"),
    [({"kd_ratio": 0}, "objective sft"), ({"temperature": 0}, "positive"), ({"text": "rejected"}, "text")],
)
def test_refused(params, message):
    with pytest.raises(PladError, match=message):
        build("kd", params)
