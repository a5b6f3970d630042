"""From rows to padded tensors. Today by concatenation: each prompt + candidate is one sequence.

Shape suffixes: S sequences (B·K), L longest sequence, N response tokens of the batch, and B, K, T as in objectives.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plad_ray.objectives import Values


@dataclass(frozen=True)
class Row:
    """One prompt with its candidates, as many as it has. ``real`` is False for a filler row, which contributes nothing.

    ``known`` holds, by name, values of the candidates' tokens that need no forward pass of the student.
    """

    prompt: np.ndarray  # int32, at least one token
    candidates: tuple[np.ndarray, ...]  # int32, EOS included where the text ended
    scores: tuple[float, ...]
    real: bool = True
    known: dict[str, tuple[np.ndarray, ...]] = field(default_factory=dict)  # float32, one array a candidate

    @property
    def tokens(self) -> int:
        """Length of the longest sequence this row makes."""
        return len(self.prompt) + max((len(c) for c in self.candidates), default=0)

    @property
    def positions(self) -> int:
        """Response tokens, all candidates together: what the LM head computes."""
        return sum(len(c) for c in self.candidates)


def filler(like: Row) -> Row:
    """A row for a worker that has none left: it keeps collective calls in step and has an empty mask.

    It has the candidates and known values that ``like`` has, one token each.
    """
    candidates = tuple(np.zeros(1, np.int32) for _ in like.candidates)
    known = {name: tuple(np.zeros(1, np.float32) for _ in arrays) for name, arrays in like.known.items()}
    return Row(np.zeros(1, np.int32), candidates, (0.0,) * len(candidates), real=False, known=known)


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
    known: Values = field(default_factory=dict)  # [B, K, T] by name, see Row; 0 where a row has none

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: v.to(device, non_blocking=True) for name, v in values.items() if isinstance(v, Tensor)
        }
        moved["known"] = {name: v.to(device, non_blocking=True) for name, v in self.known.items()}
        return replace(self, **moved)


def concatenate(rows: list[Row], pad: int, chunks: int = 1) -> Batch:
    """Right-padded sequences, one a candidate; every mask comes from lengths, ``pad`` is never looked at."""
    B, K = len(rows), max(len(row.candidates) for row in rows)
    T = max(1, *(len(c) for row in rows for c in row.candidates))
    owners = [(b, k) for b, row in enumerate(rows) for k in range(len(row.candidates))]
    sequences = [np.concatenate([rows[b].prompt, rows[b].candidates[k]]) for b, k in owners]
    cell_S = np.array([b * K + k for b, k in owners])  # place of each sequence in B·K
    prompt_S = np.array([len(rows[b].prompt) for b, _ in owners])
    real_S = np.array([rows[b].real for b, _ in owners])
    length_S = np.array([len(s) for s in sequences])
    response_S = length_S - prompt_S
    S, L = len(owners), int(length_S.max())
    ids_SL = np.full((S, L), pad, np.int64)
    for s, sequence in enumerate(sequences):
        ids_SL[s, : len(sequence)] = sequence
    owner_N = np.repeat(np.arange(S), response_S)
    t_N = np.arange(len(owner_N)) - np.repeat(np.cumsum(response_S) - response_S, response_S)
    source_N = owner_N * L + prompt_S[owner_N] - 1 + t_N
    place_N = cell_S[owner_N] * T + t_N
    mask = np.zeros(B * K * T, bool)
    mask[place_N[real_S[owner_N]]] = True
    return Batch(
        ids_SL=torch.from_numpy(ids_SL),
        attention_SL=torch.from_numpy((np.arange(L)[None] < length_S[:, None]).astype(np.int64)),
        source_N=torch.from_numpy(source_N),
        target_N=torch.from_numpy(ids_SL.reshape(-1)[source_N + 1]),
        place_N=torch.from_numpy(place_N),
        mask_BKT=torch.from_numpy(mask.reshape(B, K, T)),
        scores_BK=torch.tensor([[*row.scores, *[0.0] * (K - len(row.scores))] for row in rows], dtype=torch.float32),
        tokens=int(length_S[real_S].sum()),
        chunks=chunks,
        known=known_values(rows, K, T),
    )


def known_values(rows: list[Row], K: int, T: int) -> Values:
    """The rows' known values as [B, K, T] tensors, 0 where a row has none."""
    values: Values = {}
    for b, row in enumerate(rows):
        for name, arrays in row.known.items():
            target = values.setdefault(name, torch.zeros(len(rows), K, T))
            for k, array in enumerate(arrays):
                target[b, k, : len(array)] = torch.from_numpy(array)
    return values
