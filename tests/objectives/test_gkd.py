"""GKD's loss against TRL's on the same batch, its ends, and what it draws."""

from __future__ import annotations

import pytest
import torch
from logit_rows import np_kl, probs, random_logits, total, values

from plad_ray.errors import PladError
from plad_ray.objectives import build

MASK = torch.tensor([[[True, True, True]], [[True, False, False]]])
STUDENT, TEACHER = random_logits(2, 1, 3, 6, seed=7), random_logits(2, 1, 3, 6, seed=8)
IDS = torch.zeros(2, 1, 3, dtype=torch.long)


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])
def test_loss_and_gradient_agree_with_trl(beta, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    objective = build("gkd", {"beta": beta})
    ours, theirs = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    loss, _ = total(objective, values(objective, ours, {"teacher": TEACHER}, IDS), MASK)
    labels = torch.where(MASK[:, 0], 0, -100)
    trls = trainer.generalized_jsd_loss(theirs[:, 0], TEACHER[:, 0], labels=labels, beta=beta)
    loss.backward()
    trls.backward()
    assert loss.item() == pytest.approx(trls.item(), abs=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [0, 1])
def test_the_ends_are_forward_and_reverse_kl(beta):
    objective = build("gkd", {"beta": beta})
    loss, _ = total(objective, values(objective, STUDENT, {"teacher": TEACHER}, IDS), MASK)
    p, q = probs(TEACHER), probs(STUDENT)
    per_position = np_kl(q, p) if beta else np_kl(p, q)
    assert loss.item() == pytest.approx(float(per_position[MASK.numpy()].mean()), rel=1e-5)


def test_what_is_drawn():
    assert build("gkd", {"lmbda": 0}).rollout is None
    rollout = build("gkd", {}).rollout
    assert (rollout.share, rollout.temperature, rollout.replaces) == (0.5, 0.9, True)
    assert build("gkd", {}).reads_texts and not build("gkd", {"lmbda": 1}).reads_texts


@pytest.mark.parametrize("params", [{"lmbda": 1.5}, {"beta": -0.1}])
def test_refused(params):
    with pytest.raises(PladError, match=r"must lie in \[0, 1\]"):
        build("gkd", params)
