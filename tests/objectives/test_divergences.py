"""Divergences: by hand, their bounds, when they vanish, against TRL's GKD, and their gradients in float64."""

from __future__ import annotations

import math

import pytest
import torch
from logit_rows import np_kl, probs, random_logits
from scipy.spatial.distance import jensenshannon

from plad_ray.objectives.divergences import jsd, kl, log_probs, mixture, tvd

P, Q = random_logits(50, 30, seed=1), random_logits(50, 30, seed=2)
BETAS = [0.0, 0.1, 0.5, 0.85, 1.0]


def both(p=P, q=Q):
    return log_probs(p), log_probs(q)


def test_two_tokens_by_hand():
    """p = (½, ½), q = (¼, ¾): KL(p‖q) = ½ ln 2 + ½ ln ⅔, KL(q‖p) = ¼ ln ½ + ¾ ln 3⁄2, TVD = ¼, m = (⅜, ⅝)."""
    p, q = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.25, 0.75]]))
    assert kl(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl(q, p).item() == pytest.approx(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2))
    assert tvd(p, q).item() == pytest.approx(0.25)
    to_m = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5), 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    assert jsd(p, q, 0.5).item() == pytest.approx(sum(to_m) / 2)
    torch.testing.assert_close(mixture(p, q, 0.2).exp(), torch.tensor([[0.3, 0.7]]))


@pytest.mark.parametrize("beta", BETAS)
def test_jsd_agrees_with_trl(beta, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    gkd = pytest.importorskip("trl.experimental.gkd")
    theirs = gkd.GKDTrainer.generalized_jsd_loss(Q[None], P[None], beta=beta, reduction="none")[0].sum(-1)
    torch.testing.assert_close(jsd(*both(), beta), theirs, rtol=1e-5, atol=1e-5)


def test_against_numpy_and_scipy_in_float64():
    p, q = probs(P), probs(Q)
    for ours, expected in (
        (kl(*both()), np_kl(p, q)),
        (kl(*reversed(both())), np_kl(q, p)),
        (jsd(*both(), 0.5), jensenshannon(p, q, axis=-1) ** 2),
        (tvd(*both()), 0.5 * abs(p - q).sum(-1)),
    ):
        torch.testing.assert_close(ours.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_bounds():
    """JS ≤ ln 2 and TVD ≤ 1, reached by distributions that share nothing."""
    far = torch.tensor([[80.0, 0.0]]), torch.tensor([[0.0, 80.0]])
    for p, q in (both(), both(*far)):
        assert ((jsd(p, q, 0.5) > 0) & (jsd(p, q, 0.5) <= math.log(2) + 1e-6)).all()
        assert ((tvd(p, q) > 0) & (tvd(p, q) <= 1 + 1e-6)).all()
    assert jsd(*both(*far), 0.5).item() == pytest.approx(math.log(2))
    assert tvd(*both(*far)).item() == pytest.approx(1)


@pytest.mark.parametrize("beta", BETAS)
def test_zero_exactly_when_logits_differ_by_a_constant(beta):
    shifted = log_probs(P), log_probs(P + 7.5)
    for divergence in (jsd(*shifted, beta), kl(*shifted), tvd(*shifted)):
        torch.testing.assert_close(divergence, torch.zeros(50), atol=2e-6, rtol=0)
    moved = P.clone()
    moved[:, 3] += 0.1
    changed = log_probs(P), log_probs(moved)
    assert (jsd(*changed, beta) > 0).all() and (tvd(*changed) > 0).all()


def test_symmetry():
    p, q = both()
    torch.testing.assert_close(jsd(p, q, 0.5), jsd(q, p, 0.5))
    torch.testing.assert_close(jsd(p, q, 0.3), jsd(q, p, 0.7), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tvd(p, q), tvd(q, p))
    assert not torch.allclose(jsd(p, q, 0.3), jsd(q, p, 0.3))
    assert not torch.allclose(kl(p, q), kl(q, p))


def test_half_precision_logits_are_raised_to_fp32():
    assert log_probs(P.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("beta", BETAS)
def test_gradient_is_the_derivative_of_the_value(beta):
    def function(q):
        return jsd(P[:2, :5].double().log_softmax(-1), q.log_softmax(-1), beta)

    assert torch.autograd.gradcheck(function, Q[:2, :5].double().requires_grad_())


@pytest.mark.parametrize("divergence", [kl, lambda p, q: kl(q, p), lambda p, q: jsd(p, q, 0.5), tvd])
def test_a_gradient_step_raises_what_the_teacher_prefers(divergence):
    """p = (0.9, 0.1), q uniform: the loss falls as the first logit rises."""
    q = torch.zeros(1, 2, requires_grad=True)
    divergence(log_probs(torch.tensor([[9.0, 1.0]]).log()), log_probs(q)).sum().backward()
    assert q.grad[0, 0] < 0 < q.grad[0, 1]
