"""From rows to padded tensors. Today by concatenation: each prompt + candidate is one sequence.

Shape suffixes: S sequences (B·K), L longest sequence, N response tokens of the batch, and B, K, T as in objectives.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One prompt with its candidates. ``real`` is False for a filler row, which contributes nothing."""

    prompt: np.ndarray  # int32, at least one token
    candidates: tuple[np.ndarray, ...]  # int32, EOS included where the text ended
    scores: tuple[float, ...]
    real: bool = True

    @property
    def tokens(self) -> int:
        """Length of the longest sequence this row makes."""
        return len(self.prompt) + max(len(c) for c in self.candidates)

    @property
    def positions(self) -> int:
        """Response tokens, all candidates together: what the LM head computes."""
        return sum(len(c) for c in self.candidates)


def filler(candidates: int) -> Row:
    """A row for a worker that has none left: it keeps collective calls in step and has an empty mask."""
    one = np.zeros(1, np.int32)
    return Row(one, (one,) * candidates, (0.0,) * candidates, real=False)


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs. ``source_N`` holds the flat position (in S·L) that predicts each response token, so
    the first response token is predicted at the prompt's last position; ``place_N`` its flat place in B·K·T."""

    ids_SL: Tensor
    attention_SL: Tensor
    source_N: Tensor
    target_N: Tensor
    place_N: Tensor
    mask_BKT: Tensor
    scores_BK: Tensor
    tokens: int  # real tokens of real rows, prompts counted once a candidate
    chunks: int = 1  # pieces the response positions are computed in; equal on all workers

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: v.to(device, non_blocking=True) for name, v in values.items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)


def concatenate(rows: list[Row], pad: int, chunks: int = 1) -> Batch:
    """Right-padded sequences of equal K; every mask comes from lengths, ``pad`` is never looked at."""
    sequences = [np.concatenate([row.prompt, c]) for row in rows for c in row.candidates]
    prompt_S = np.array([len(row.prompt) for row in rows for _ in row.candidates])
    length_S = np.array([len(s) for s in sequences])
    response_S = length_S - prompt_S
    B, K, L, T = len(rows), len(rows[0].candidates), int(length_S.max()), max(1, int(response_S.max()))
    ids_SL = np.full((B * K, L), pad, np.int64)
    for s, sequence in enumerate(sequences):
        ids_SL[s, : len(sequence)] = sequence
    owner_N = np.repeat(np.arange(B * K), response_S)
    t_N = np.arange(len(owner_N)) - np.repeat(np.cumsum(response_S) - response_S, response_S)
    source_N = owner_N * L + prompt_S[owner_N] - 1 + t_N
    real_S = np.repeat([row.real for row in rows], K)
    mask_ST = (np.arange(T)[None] < response_S[:, None]) & real_S[:, None]
    return Batch(
        ids_SL=torch.from_numpy(ids_SL),
        attention_SL=torch.from_numpy((np.arange(L)[None] < length_S[:, None]).astype(np.int64)),
        source_N=torch.from_numpy(source_N),
        target_N=torch.from_numpy(ids_SL.reshape(-1)[source_N + 1]),
        place_N=torch.from_numpy(owner_N * T + t_N),
        mask_BKT=torch.from_numpy(mask_ST.reshape(B, K, T)),
        scores_BK=torch.tensor([row.scores for row in rows], dtype=torch.float32),
        tokens=int(length_S[real_S].sum()),
        chunks=chunks,
    )
