"""Divergences between a frozen model's distribution p and the student's q: fp32, exact over the whole vocabulary.

All take log-probs [N, V] and give [N] nats; gradients flow through whatever carries one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_probs(logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """fp32 log-softmax of logits / temperature."""
    return (logits_NV.float() / temperature).log_softmax(-1)


def kl(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    """KL(p‖q) = Σ_v p (log p − log q); of swapped arguments the reverse KL."""
    return (p_NV.exp() * (p_NV - q_NV)).sum(-1)


def mixture(p_NV: Tensor, q_NV: Tensor, weight: float) -> Tensor:
    """log(weight·p + (1 − weight)·q), 0 < weight < 1."""
    return torch.logaddexp(p_NV + math.log(weight), q_NV + math.log1p(-weight))


def jsd(p_NV: Tensor, q_NV: Tensor, beta: float) -> Tensor:
    """Generalised JSD of GKD (arXiv 2306.13649, Eq. 1): β·KL(p‖m) + (1 − β)·KL(q‖m), m = βp + (1 − β)q.

    At β = 0 and β = 1, where that is 0, the forward KL(p‖q) and the reverse KL(q‖p), as in TRL.
    """
    if beta == 0:
        return kl(p_NV, q_NV)
    if beta == 1:
        return kl(q_NV, p_NV)
    m_NV = mixture(p_NV, q_NV, beta)
    return beta * kl(p_NV, m_NV) + (1 - beta) * kl(q_NV, m_NV)


def tvd(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    """Total variation distance ½ Σ_v |p − q|, in [0, 1]."""
    return 0.5 * (p_NV.exp() - q_NV.exp()).abs().sum(-1)
