"""f-distill's four divergences against float64 numpy, the text each term is computed on, and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from logit_rows import np_kl, probs, random_logits, total, values

from plad_ray.errors import PladError
from plad_ray.objectives import build

# two rows of teacher text (3 and 2 tokens) and student text (1 and 3 tokens)
MASK = torch.tensor([[[True, True, True], [True, False, False]], [[True, True, False], [True, True, True]]])
STUDENT, TEACHER = random_logits(2, 2, 3, 6, seed=5), random_logits(2, 2, 3, 6, seed=6)
IDS = torch.zeros(2, 2, 3, dtype=torch.long)
ON_TEACHER, ON_STUDENT = MASK.clone(), MASK.clone()
ON_TEACHER[:, 1], ON_STUDENT[:, 0] = False, False


def mean(per_position: np.ndarray, where: torch.Tensor) -> float:
    return float(per_position[where.numpy()].mean())


def expected(divergence: str, beta: float = 0.5) -> float:
    p, q = probs(TEACHER), probs(STUDENT)
    m = (1 - beta) * p + beta * q
    if divergence == "js":
        return (1 - beta) * mean(np_kl(p, m), ON_TEACHER) + beta * mean(np_kl(q, m), ON_STUDENT)
    distance = 0.5 * abs(p - q).sum(-1)
    return 0.5 * mean(distance, ON_TEACHER) + 0.5 * mean(distance, ON_STUDENT)


@pytest.mark.parametrize("params", [{"divergence": "js"}, {"divergence": "js", "beta": 0.85}, {}])
def test_symmetric_losses_on_both_texts(params):
    objective = build("fdistill", params)
    loss, metrics = total(objective, values(objective, STUDENT, {"teacher": TEACHER}, IDS), MASK)
    divergence = params.get("divergence", "tvd")
    assert loss.item() == pytest.approx(expected(divergence, params.get("beta", 0.5)), rel=1e-5)
    assert metrics["lengths/sampled"] == 2.0
    assert metrics[f"{divergence}/teacher_text"] + metrics[f"{divergence}/student_text"] == pytest.approx(loss.item())


@pytest.mark.parametrize("divergence", ["kl", "rkl"])
def test_one_sided_losses_need_one_text(divergence):
    """kl draws no samples and reads the teacher's text; rkl's sample takes the text's place."""
    objective = build("fdistill", {"divergence": divergence})
    one = {"student": STUDENT[:, :1], "teacher": TEACHER[:, :1]}
    loss, _ = total(objective, values(objective, one["student"], {"teacher": one["teacher"]}, IDS[:, :1]), MASK[:, :1])
    p, q = probs(one["teacher"]), probs(one["student"])
    per_position = np_kl(p, q) if divergence == "kl" else np_kl(q, p)
    assert loss.item() == pytest.approx(mean(per_position, MASK[:, :1]), rel=1e-5)
    if divergence == "kl":
        assert objective.rollout is None and objective.reads_texts
    else:
        assert objective.rollout.replaces and not objective.reads_texts


def test_js_at_a_half_is_the_mean_of_both_terms_of_scipys():
    """On the same text both terms add up to the Jensen–Shannon divergence itself."""
    from scipy.spatial.distance import jensenshannon

    objective = build("fdistill", {"divergence": "js"})
    found = values(objective, STUDENT, {"teacher": TEACHER}, IDS)
    both = found["teacher_text"] + found["student_text"]
    js = jensenshannon(probs(TEACHER), probs(STUDENT), axis=-1) ** 2
    torch.testing.assert_close(both.double(), torch.from_numpy(js), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("divergence", ["kl", "rkl", "js", "tvd"])
def test_the_sft_term_is_on_the_teachers_text(divergence):
    """Student and teacher alike (uniform over 4 tokens): the divergence is 0, and 3 × the NLL of y a token is 3 ln 4."""
    objective = build("fdistill", {"divergence": divergence, "sft_weight": 3.0})
    assert objective.reads_texts and (divergence == "kl" or not objective.rollout.replaces)
    shape = (2, 1 if divergence == "kl" else 2, 3, 4)
    student = torch.zeros(shape, requires_grad=True)
    ids = torch.ones(shape[:-1], dtype=torch.long)
    mask = MASK[:, : shape[1]]
    loss, metrics = total(objective, values(objective, student, {"teacher": torch.zeros(shape)}, ids), mask)
    assert loss.item() == pytest.approx(3 * math.log(4)) and metrics["nll"] == pytest.approx(math.log(4))
    loss.backward()
    on_text = student.grad[:, 0][mask[:, 0]]
    assert (on_text[:, 1] < 0).all() and (on_text[:, [0, 2, 3]] > 0).all()
    torch.testing.assert_close(student.grad[:, 1:], torch.zeros_like(student[:, 1:]))
    torch.testing.assert_close(on_text[:, 1], torch.full((5,), 3 / 5 * (0.25 - 1)))


def test_rkl_beside_the_sft_term_stays_on_the_sample():
    objective = build("fdistill", {"divergence": "rkl", "sft_weight": 0.5})
    loss, metrics = total(objective, values(objective, STUDENT, {"teacher": TEACHER}, IDS), MASK)
    p, q = probs(TEACHER), probs(STUDENT)
    nll = mean(-np.log(q[..., 0]), ON_TEACHER)
    assert loss.item() == pytest.approx(mean(np_kl(q, p), ON_STUDENT) + 0.5 * nll, rel=1e-5)
    assert metrics["nll"] == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize("divergence", ["kl", "rkl", "js", "tvd"])
def test_gradient_flows_through_q_alone_and_lowers_the_loss(divergence):
    objective = build("fdistill", {"divergence": divergence})
    student = STUDENT.clone().requires_grad_()
    loss, _ = total(objective, values(objective, student, {"teacher": TEACHER}, IDS), MASK)
    loss.backward()
    with torch.no_grad():
        stepped = student - 0.1 * student.grad
    lower, _ = total(objective, values(objective, stepped, {"teacher": TEACHER}, IDS), MASK)
    assert lower.item() < loss.item()
    assert student.grad[~MASK].abs().sum() == 0


def test_gradient_of_js_goes_through_the_mixture():
    """∂/∂z of ½KL(p‖m) + ½KL(q‖m) with m moving is ½ Σ ∂q log(q/m); holding m fixed would give another one."""
    objective = build("fdistill", {"divergence": "js"})
    student = STUDENT[:1, :1, :1].clone().requires_grad_()
    found = values(objective, student, {"teacher": TEACHER[:1, :1, :1]}, IDS[:1, :1, :1])
    (found["teacher_text"] + found["student_text"]).sum().backward()
    p, q = probs(TEACHER[0, 0, 0]), probs(STUDENT[0, 0, 0])
    slope = 0.5 * np.log(q / (0.5 * (p + q)))
    by_hand = q * (slope - (q * slope).sum())
    torch.testing.assert_close(student.grad.flatten().double(), torch.from_numpy(by_hand), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"beta": 0.3}, "belongs to divergence js"),
        ({"divergence": "js", "beta": 1.0}, "between 0 and 1"),
        ({"divergence": "kl", "rollout_every": 2}, "draws no samples"),
        ({"divergence": "chi"}, "chi"),
        ({"rollout_every": 0}, "every 1 or more steps"),
        ({"sft_weight": -1.0}, "sft_weight must not be negative"),
    ],
)
def test_refused(params, message):
    with pytest.raises(PladError, match=message):
        build("fdistill", params).rollout  # noqa: B018
