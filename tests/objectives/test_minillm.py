"""MiniLLM: its terms by hand, its importance weight, and that its policy gradient is the gradient of the sequence KL."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from logit_rows import np_kl, probs, random_logits, total, values

from plad_ray.errors import PladError
from plad_ray.objectives import build

EXACT = {"teacher_mix": 0.0, "length_normalization": False, "clip": None, "reward_clip": None}
EOS, HORIZON, VOCABULARY = 2, 3, 3


def sampled(objective, student, teacher, ids, mask, sampled_logp=None):
    """Loss, metrics and values of a batch of samples."""
    found = values(objective, student, {"teacher": teacher}, ids)
    found["sampled_logp"] = found["logp"].detach() if sampled_logp is None else sampled_logp
    return *total(objective, found, mask), found


def by_hand(student, teacher, ids, mask, normalized: bool) -> float:
    """Token means of KL(q‖p) and of −R_{t+1}·log q(y_t)'s stand-in w·R (w = 1), in float64."""
    p, q = probs(teacher), probs(student)
    single, long = 0.0, 0.0
    for b in range(len(ids)):
        n = int(mask[b, 0].sum())
        single += float(np_kl(q[b, 0, :n], p[b, 0, :n]).sum())
        rewards = [math.log(p[b, 0, t, ids[b, 0, t]] / q[b, 0, t, ids[b, 0, t]]) for t in range(n)]
        for t in range(n - 1):
            rest = rewards[t + 1 :]
            long -= sum(rest) / len(rest) if normalized else sum(rest)
    return (single + long) / int(mask.sum())


@pytest.mark.parametrize("normalized", [True, False])
def test_value_against_float64(normalized):
    objective = build("minillm", {"teacher_mix": 0.0, "length_normalization": normalized})
    student, teacher = random_logits(2, 1, 4, 6, seed=1), random_logits(2, 1, 4, 6, seed=2)
    ids = torch.tensor([[[1, 0, 5, 2]], [[3, 2, 0, 0]]])
    mask = torch.tensor([[[True] * 4], [[True, True, False, False]]])
    loss, metrics, _ = sampled(objective, student, teacher, ids, mask)
    assert loss.item() == pytest.approx(by_hand(student, teacher, ids, mask, normalized), rel=1e-5)
    assert metrics["importance"] == 1.0 and metrics["lengths/sampled"] == 3.0


def test_single_step_is_the_exact_reverse_kl_of_each_position():
    objective = build("minillm", {})
    student, teacher = random_logits(3, 1, 4, 9, seed=3), random_logits(3, 1, 4, 9, seed=4)
    found = values(objective, student, {"teacher": teacher}, torch.zeros(3, 1, 4, dtype=torch.long))
    exact = torch.from_numpy(np_kl(probs(student), probs(teacher)))
    torch.testing.assert_close(found["reverse_kl"].double(), exact, rtol=1e-5, atol=1e-6)


def test_one_response_token_has_no_long_term():
    objective = build("minillm", {})
    student, teacher = random_logits(1, 1, 1, 5, seed=5), random_logits(1, 1, 1, 5, seed=6)
    ids, mask = torch.ones(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, dtype=torch.bool)
    found = values(objective, student, {"teacher": teacher}, ids) | {"sampled_logp": torch.full((1, 1, 1), -3.0)}
    terms = objective.loss(found, mask, torch.zeros(1, 1))
    assert terms.sums["long_horizon"].item() == 0.0
    assert terms.sums["single_step"].item() == pytest.approx(
        float(np_kl(probs(student), probs(teacher)).sum()), rel=1e-5
    )


def test_returns_by_hand():
    """Rewards (1, 2, 4) of three tokens, then padding: R_{t+1} = (6, 4, 0); a remaining token: (3, 4, 0)."""
    reward, mask = torch.tensor([[1.0, 2.0, 4.0, 0.0]]), torch.tensor([[True, True, True, False]])
    plain = build("minillm", {"length_normalization": False}).returns(reward, mask)
    assert plain.tolist() == [[6.0, 4.0, 0.0, 0.0]]
    assert build("minillm", {}).returns(reward, mask).tolist() == [[3.0, 4.0, 0.0, 0.0]]


def test_importance_weight():
    """q = ½, p = ¼, α = 0.2: p̃ = 0.45 and w = 10/9. Without mixing w is 1 by definition, not up to rounding."""
    logp, drawn = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.45)]])
    assert build("minillm", {}).importance(logp, drawn).item() == pytest.approx(10 / 9)
    assert build("minillm", {"teacher_mix": 0.0}).importance(logp, drawn).item() == 1.0
    stale = build("minillm", {"teacher_mix": 0.0, "rollout_every": 2})
    assert stale.importance(logp, drawn).item() == pytest.approx(10 / 9), "samples of an older student"


def sequences():
    """Every response over two tokens and EOS, at most HORIZON long."""
    for length in range(1, HORIZON + 1):
        for body in itertools.product(range(EOS), repeat=length - 1):
            ends = (EOS,) if length < HORIZON else range(VOCABULARY)
            yield from ((*body, end) for end in ends)


def prefix_index(prefix: tuple[int, ...]) -> int:
    """Place of a prefix (without EOS) among all of 0 to HORIZON − 1 tokens: a node of a binary tree."""
    return sum((2**i) * (1 + token) for i, token in enumerate(reversed(prefix)))


def rows_of(table, responses):
    """Logits [Y, 1, T, V] of every response from one row of ``table`` a prefix; ids and mask."""
    ids = torch.zeros(len(responses), 1, HORIZON, dtype=torch.long)
    mask = torch.zeros(len(responses), 1, HORIZON, dtype=torch.bool)
    where = torch.zeros(len(responses), HORIZON, dtype=torch.long)
    for y, response in enumerate(responses):
        for t, token in enumerate(response):
            ids[y, 0, t], mask[y, 0, t], where[y, t] = token, True, prefix_index(response[:t])
    return table[where][:, None], ids, mask


def sequence_probability(table, responses):
    """Of every response, [Y], in float64."""
    logps = table.double().log_softmax(-1)
    return torch.stack(
        [sum(logps[prefix_index(r[:t]), token] for t, token in enumerate(r)) for r in responses]  # type: ignore[misc]
    ).exp()


@pytest.mark.parametrize("clip", [None, 0.2])
def test_policy_gradient_is_unbiased(clip):
    """Expected over every response, the gradient of both terms is that of KL(q‖p) over whole sequences."""
    objective = build("minillm", {**EXACT, "clip": clip})
    responses = list(sequences())
    student = random_logits(7, VOCABULARY, seed=7, scale=1.0).requires_grad_()
    teacher = random_logits(7, VOCABULARY, seed=8, scale=1.0)
    q_Y, p_Y = sequence_probability(student, responses), sequence_probability(teacher, responses)
    assert q_Y.sum().item() == pytest.approx(1.0) and p_Y.sum().item() == pytest.approx(1.0)
    (exact,) = torch.autograd.grad((q_Y * (q_Y / p_Y).log()).sum(), student)

    estimate = torch.zeros_like(student)
    for y, response in enumerate(responses):
        logits, ids, mask = rows_of(student, [response])
        found = values(objective, logits, {"teacher": rows_of(teacher, [response])[0]}, ids)
        found["sampled_logp"] = found["logp"].detach()
        terms = objective.loss(found, mask, torch.zeros(1, 1))
        (gradient,) = torch.autograd.grad(terms.sums["single_step"] + terms.sums["long_horizon"], student)
        estimate += q_Y[y].item() * gradient
    torch.testing.assert_close(estimate, exact.float(), rtol=1e-4, atol=1e-5)
    assert exact.abs().max() > 0.05


def test_gradient_raises_a_token_that_leads_to_better_ones():
    """After token 0 the teacher likes what follows, after token 1 it does not; the first step is equally likely."""
    objective = build("minillm", {"teacher_mix": 0.0})
    slopes = []
    for follow in (0.9, 0.1):
        student = torch.zeros(1, 1, 2, 2, requires_grad=True)
        teacher = torch.tensor([[0.5, 0.5], [follow, 1 - follow]]).log().view(1, 1, 2, 2)
        ids, mask = torch.zeros(1, 1, 2, dtype=torch.long), torch.ones(1, 1, 2, dtype=torch.bool)
        loss, _, _ = sampled(objective, student, teacher, ids, mask)
        loss.backward()
        slopes.append(student.grad[0, 0, 0, 0].item())
    assert slopes[0] < 0 < slopes[1]


def test_clipping_stops_the_gradient_outside_the_range():
    """w = 2 with a positive return is held at 1.2, with a negative one it is not (PPO's pessimistic bound)."""
    objective = build("minillm", {"clip": 0.2})
    weight = torch.tensor([[2.0, 2.0, 0.5, 0.5]], requires_grad=True)
    returns = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    surrogate = objective._surrogate(weight, returns)
    surrogate.sum().backward()
    assert surrogate.tolist() == [[pytest.approx(1.2), -2.0, 0.5, pytest.approx(-0.8)]]
    assert weight.grad.tolist() == [[0.0, -1.0, 1.0, 0.0]]


def test_reward_clip_bounds_what_a_token_may_say():
    objective = build("minillm", {"teacher_mix": 0.0, "reward_clip": 5.0, "length_normalization": False})
    student = torch.zeros(1, 1, 2, 2)
    teacher = torch.tensor([[0.0, 0.0], [-60.0, 0.0]]).view(1, 1, 2, 2)
    ids, mask = torch.zeros(1, 1, 2, dtype=torch.long), torch.ones(1, 1, 2, dtype=torch.bool)
    found = values(objective, student, {"teacher": teacher}, ids)
    found["sampled_logp"] = found["logp"]
    assert objective.loss(found, mask, torch.zeros(1, 1)).sums["long_horizon"].item() == pytest.approx(5.0)


@pytest.mark.parametrize(("weight", "table"), [("lm_weight", "references"), ("sft_weight", "chosen")])
def test_nll_term_on_the_text_of_the_table(weight, table):
    """The text comes first, the sample last: 2 × mean NLL of its three tokens under uniform q is 2 ln 4."""
    objective = build("minillm", {weight: 2.0, "teacher_mix": 0.0})
    assert objective.trains_on == table
    assert not objective.rollout.replaces and objective.reads_texts
    logits = torch.zeros(1, 2, 3, 4, requires_grad=True)
    ids = torch.zeros(1, 2, 3, dtype=torch.long)
    mask = torch.tensor([[[True, True, True], [True, True, False]]])
    loss, metrics, _ = sampled(objective, logits, logits.detach(), ids, mask)
    assert loss.item() == pytest.approx(2 * math.log(4)) and metrics["nll"] == pytest.approx(math.log(4))
    loss.backward()
    torch.testing.assert_close(logits.grad[0, 0, 0], torch.tensor([-0.75, 0.25, 0.25, 0.25]) * 2 / 3)
    alone = build("minillm", {})
    assert alone.trains_on == "references"
    assert alone.rollout.replaces and not alone.reads_texts and alone.rollout.teacher_mix == 0.2


def test_padding_rows_change_nothing():
    objective = build("minillm", {})
    student, teacher = random_logits(2, 1, 3, 5, seed=9), random_logits(2, 1, 3, 5, seed=10)
    ids, mask = torch.ones(2, 1, 3, dtype=torch.long), torch.tensor([[[True] * 3], [[False] * 3]])
    drawn = torch.from_numpy(np.log(probs(student))[..., 1]).float()
    both, _, _ = sampled(objective, student, teacher, ids, mask, drawn)
    one, _, _ = sampled(objective, student[:1], teacher[:1], ids[:1], mask[:1], drawn[:1])
    assert both.item() == pytest.approx(one.item())


@pytest.mark.parametrize(
    "params", [{"teacher_mix": 1.0}, {"lm_weight": -1}, {"sft_weight": -1}, {"clip": 0}, {"reward_clip": -1}]
)
def test_refused(params):
    with pytest.raises(PladError, match=next(iter(params))):
        build("minillm", params)


def test_a_row_holds_one_text():
    with pytest.raises(PladError, match=r"lm_weight is on the reference and sft_weight on the teacher's text.*set one"):
        build("minillm", {"lm_weight": 1.0, "sft_weight": 0.5})
