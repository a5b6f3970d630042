"""AlignDistil's teachers and weights in float64, the log Z identity, its ablations, gradients and upstream stages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from logit_rows import np_kl, probs, random_logits, total, values

from plad_ray.errors import PladError
from plad_ray.objectives import build

# two pairs: chosen of 3 and 1 tokens, rejected of 2 and 3
MASK = torch.tensor([[[True] * 3, [True, True, False]], [[True, False, False], [True] * 3]])
IDS = torch.arange(12).view(2, 2, 3) % 6
STUDENT, DPO, OTHER = (random_logits(2, 2, 3, 6, seed=s, scale=1.5) for s in (11, 12, 13))
FIXED = [("contrastive", 1.5), ("dpo_reward", 2.5)]


def frozen(variant: str) -> dict[str, torch.Tensor]:
    return {"dpo": DPO, "reference" if variant == "dpo_reward" else "reverse_dpo": OTHER}


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def expected(variant: str, extrapolation: float | None = None, ratio: float = 20.0) -> tuple[float, np.ndarray]:
    """Loss and α of every position, from the raw logits in float64."""
    z_dpo, z_other = (z.numpy().astype(np.float64) for z in (DPO, OTHER))
    distance = 0.5 * abs(probs(DPO) - probs(OTHER)).sum(-1)
    alpha = ratio * distance + 1e-3 if extrapolation is None else np.full(distance.shape, extrapolation)
    a = alpha[..., None]
    z_star = a * z_dpo + (1 - a) * z_other if variant == "dpo_reward" else z_dpo + a * (z_dpo - z_other)
    weighted = 0.1 / alpha * np_kl(probs(STUDENT), softmax(z_star))
    chosen = MASK[:, 0].numpy()
    return float(np.mean([weighted[b, 0][chosen[b]].mean() for b in range(2)])), alpha


@pytest.mark.parametrize(("variant", "extrapolation"), [("adaptive", None), *FIXED])
def test_loss_on_chosen_text(variant, extrapolation):
    objective = build("aligndistil", {"variant": variant, "extrapolation": extrapolation})
    found = values(objective, STUDENT, frozen(variant), IDS)
    loss, metrics = total(objective, found, MASK)
    by_hand, alpha = expected(variant, extrapolation)
    assert loss.item() == pytest.approx(by_hand, rel=1e-4)
    assert metrics["alpha"] == pytest.approx(alpha[:, 0][MASK[:, 0].numpy()].mean(), rel=1e-5)


def test_alpha_is_epsilon_where_both_dpo_models_agree():
    """Then the teacher is π_dpo itself and the weight is β0/ε = 100."""
    objective = build("aligndistil", {})
    found = values(objective, STUDENT, {"dpo": DPO, "reverse_dpo": DPO + 3.0}, IDS)
    torch.testing.assert_close(found["alpha"], torch.full((2, 2, 3), 1e-3), rtol=0.02, atol=0)
    exact = np_kl(probs(STUDENT), probs(DPO))
    torch.testing.assert_close(found["reverse_kl"].double(), torch.from_numpy(exact), rtol=1e-4, atol=1e-5)
    found = values(objective, STUDENT, {"dpo": DPO, "reverse_dpo": DPO}, IDS)
    assert (found["alpha"] == 1e-3).all()
    torch.testing.assert_close(found["weighted"], 100 * found["reverse_kl"])


def test_total_variation_has_its_half():
    """π_dpo = (0.9, 0.1), π⁻ = (0.1, 0.9): TVD = 0.8, not the official code's 1.6."""
    dpo, reverse = (torch.tensor([[p, 1 - p]]).log() for p in (0.9, 0.1))
    found = build("aligndistil", {"ratio": 10.0}).per_token(
        torch.zeros(1, 2), {"dpo": dpo, "reverse_dpo": reverse}, torch.zeros(1, dtype=torch.long)
    )
    assert found["alpha"].item() == pytest.approx(10 * 0.8 + 1e-3)


@pytest.mark.parametrize("beta", [0.04, 0.1, 0.25])
def test_theorem_1_with_its_log_z(beta):
    """E_π[β0 log(π_dpo/π_ref) − β log(π/π_ref)] = −β KL(π‖π*) + β log Z, Z = Σ_v π_dpo^a π_ref^(1−a), a = β0/β."""
    a = 0.1 / beta
    objective = build("aligndistil", {"variant": "dpo_reward", "extrapolation": a})
    found = values(objective, STUDENT, frozen("dpo_reward"), IDS)
    pi, dpo, ref = probs(STUDENT), probs(DPO), probs(OTHER)
    reward = (pi * (0.1 * np.log(dpo / ref) - beta * np.log(pi / ref))).sum(-1)
    log_z = np.log((dpo**a * ref ** (1 - a)).sum(-1))
    torch.testing.assert_close(
        (beta * torch.from_numpy(log_z) - found["weighted"].double()), torch.from_numpy(reward), rtol=1e-4, atol=1e-5
    )
    assert (abs(log_z) < 1e-9).all() == (a == 1), "it vanishes at β = β0 alone"


def test_every_token_counts_by_its_own_length():
    """1/|y| a text, 1/B over texts: a constant β_t·KL of 1 gives 1, whatever the lengths; the first token included."""
    objective = build("aligndistil", {})
    found = {name: torch.ones(2, 2, 3) for name in ("weighted", "reverse_kl", "alpha", "reward")}
    found["weighted"][0, 0, 0] = 4.0  # the first response token of three
    loss, _ = total(objective, found, MASK)
    assert loss.item() == pytest.approx(((4 + 1 + 1) / 3 + 1) / 2)


def test_dpo_reward_metrics():
    """β0 Σ log(π_dpo/π⁻) of the tokens of each side."""
    objective = build("aligndistil", {})
    _, metrics = total(objective, values(objective, STUDENT, frozen("adaptive"), IDS), MASK)
    ratio = 0.1 * np.log(probs(DPO) / probs(OTHER))
    sums = [[sum(ratio[b, k, t, IDS[b, k, t]] for t in range(3) if MASK[b, k, t]) for k in range(2)] for b in range(2)]
    assert metrics["rewards/chosen"] == pytest.approx(np.mean([s[0] for s in sums]), rel=1e-4)
    assert metrics["rewards/margins"] == pytest.approx(np.mean([s[0] - s[1] for s in sums]), rel=1e-4)
    assert metrics["rewards/accuracies"] == np.mean([s[0] > s[1] for s in sums])


@pytest.mark.parametrize(("variant", "extrapolation"), [("adaptive", None), *FIXED])
def test_gradient_is_of_chosen_text_and_lowers_the_loss(variant, extrapolation):
    objective = build("aligndistil", {"variant": variant, "extrapolation": extrapolation})
    student = STUDENT.clone().requires_grad_()
    loss, _ = total(objective, values(objective, student, frozen(variant), IDS), MASK)
    loss.backward()
    assert student.grad[:, 1].abs().sum() == 0, "rejected text serves the metrics alone"
    with torch.no_grad():
        stepped = student - 0.1 * student.grad
    lower, _ = total(objective, values(objective, stepped, frozen(variant), IDS), MASK)
    assert lower.item() < loss.item()


def test_upstream_stages():
    objective = build("aligndistil", {"dpo_beta": 0.2})
    assert objective.logits_of == ("dpo", "reverse_dpo")
    assert objective.upstream() == {
        "dpo": {"objective": {"name": "dpo", "beta": 0.2}},
        "reverse_dpo": {"objective": {"name": "dpo", "beta": 0.2, "reverse": True}},
    }
    plain = build("aligndistil", {"variant": "dpo_reward", "extrapolation": 2.0})
    assert plain.logits_of == ("dpo", "reference") and list(plain.upstream()) == ["dpo"]


def test_on_policy_samples_take_the_pairs_place():
    objective = build("aligndistil", {"on_policy": True, "rollout_every": 4})
    assert objective.rollout.replaces and objective.rollout.every == 4 and objective.ratio == 30
    assert build("aligndistil", {}).rollout is None and build("aligndistil", {}).ratio == 20
    found = values(objective, STUDENT[:, :1], {n: z[:, :1] for n, z in frozen("adaptive").items()}, IDS[:, :1])
    loss, metrics = total(objective, found, MASK[:, :1])
    assert loss.item() == pytest.approx(expected("adaptive", ratio=30.0)[0], rel=1e-4)
    assert metrics["lengths/sampled"] == 2.0 and "rewards/margins" not in metrics


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"extrapolation": 2.0}, "no part in variant adaptive"),
        ({"variant": "contrastive"}, "must be given with variant contrastive"),
        ({"variant": "contrastive", "extrapolation": 1.0, "ratio": 3.0}, "ratio has no part"),
        ({"dpo_beta": 0}, "dpo_beta must be positive"),
        ({"rollout_every": 2}, "only on_policy"),
    ],
)
def test_refused(params, message):
    with pytest.raises(PladError, match=message):
        build("aligndistil", params)
