"""From rows to padded tensors, and the layout that is always right: each prompt + candidate is one sequence.

Shape suffixes: S sequences, L the longest of them, N response tokens of the batch, M distinct positions that predict them,
and B, K, T as in objectives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plad_ray.objectives import Values

#: Model types whose log-probs and gradients on shared prompts equal the plain forward's, with attention in one piece and in
#: blocks (tests/train/test_shared.py).
PROVEN = ("llama", "qwen2", "qwen3", "phi3", "gpt2", "opt", "gpt_neox", "mistral", "gemma2", "gemma3_text")


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
    def shared_tokens(self) -> int:
        """Length of the row with its prompt laid down once."""
        return len(self.prompt) + self.positions

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
class Span:
    """Where a row lies in its sequence: the prompt from ``start``, the candidates from ``prompt_end`` to before ``end``."""

    start: int
    prompt_end: int
    end: int


@dataclass(frozen=True)
class Segments:
    """What each token of a prefix-shared sequence is, [S, L] each; masks are made of it (train/masks.py)."""

    position_SL: Tensor  # restarts at the prompt's end for every candidate
    row_SL: Tensor  # which of the rows that share the sequence; padding tokens are rows of their own
    candidate_SL: Tensor  # 0 in the prompt, 1 + k in candidate k
    spans: tuple[tuple[Span, ...], ...]  # the rows of each sequence, which follow each other without a gap


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs. ``source_N`` holds the flat position (in S·L) that predicts each response token, so
    the first response token is predicted at the prompt's last position; ``place_N`` its flat place in B·K·T. ``read_M`` are
    the distinct ones of ``source_N``: siblings that share a prompt begin at the same position."""

    ids_SL: Tensor
    attention_SL: Tensor
    source_N: Tensor
    read_M: Tensor
    target_N: Tensor
    place_N: Tensor
    mask_BKT: Tensor
    scores_BK: Tensor
    tokens: int  # real tokens of real rows, prompts counted once a candidate
    chunks: int = 1  # pieces the response positions are computed in; equal on all workers
    known: Values = field(default_factory=dict)  # [B, K, T] by name, see Row; 0 where a row has none
    segments: Segments | None = None  # None: a sequence holds one candidate, and a causal mask is enough

    def to(self, device: torch.device) -> Batch:
        return self if device.type == "cpu" else _moved(self, device)


@dataclass(frozen=True)
class Layout:
    """How rows become a batch; chosen once a run. Objectives never see it."""

    name: str
    collate: Callable[[list[Row], int, int], Batch]  # (rows, pad, chunks)
    length: Callable[[Row], int]  # tokens a row takes: rows of like length meet in a micro-batch


def _moved(holder: Any, device: torch.device) -> Any:
    """``holder`` with every tensor in it on ``device``."""
    if isinstance(holder, Tensor):
        return holder.to(device, non_blocking=True)
    if isinstance(holder, dict):
        return {name: _moved(value, device) for name, value in holder.items()}
    if is_dataclass(holder) and not isinstance(holder, type):
        return replace(holder, **{f.name: _moved(getattr(holder, f.name), device) for f in fields(holder)})
    return holder


def concatenate(rows: list[Row], pad: int, chunks: int = 1) -> Batch:
    """Right-padded sequences, one a candidate; every mask comes from lengths, ``pad`` is never looked at."""
    owners = [(b, k) for b, row in enumerate(rows) for k in range(len(row.candidates))]
    sequences = [np.concatenate([rows[b].prompt, rows[b].candidates[k]]) for b, k in owners]
    length_S = np.array([len(s) for s in sequences])
    S, L = len(owners), int(length_S.max())
    ids_SL = np.full((S, L), pad, np.int64)
    for s, sequence in enumerate(sequences):
        ids_SL[s, : len(sequence)] = sequence
    places = [
        Place(b, k, s * L + len(rows[b].prompt) - 1, s * L + len(rows[b].prompt)) for s, (b, k) in enumerate(owners)
    ]
    attention_SL = (np.arange(L)[None] < length_S[:, None]).astype(np.int64)
    return assemble(rows, ids_SL, attention_SL, places, chunks)


@dataclass(frozen=True)
class Place:
    """Where a candidate lies in a batch, in flat positions of S·L."""

    b: int
    k: int
    prompt_end: int  # the prompt's last token, which predicts the candidate's first
    start: int  # the candidate's first token


def assemble(
    rows: list[Row],
    ids_SL: np.ndarray,
    attention_SL: np.ndarray,
    places: list[Place],
    chunks: int,
    segments: Segments | None = None,
) -> Batch:
    """The batch whose sequences are ``ids_SL``, with every candidate at its place."""
    B, K = len(rows), max(len(row.candidates) for row in rows)
    T = max(1, *(len(c) for row in rows for c in row.candidates))
    lengths = np.array([len(rows[p.b].candidates[p.k]) for p in places])
    owner_N = np.repeat(np.arange(len(places)), lengths)
    t_N = np.arange(len(owner_N)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    target_N = np.array([p.start for p in places])[owner_N] + t_N
    source_N = np.where(t_N == 0, np.array([p.prompt_end for p in places])[owner_N], target_N - 1)
    place_N = np.array([p.b * K + p.k for p in places])[owner_N] * T + t_N
    real_N = np.array([rows[p.b].real for p in places])[owner_N]
    mask = np.zeros(B * K * T, bool)
    mask[place_N[real_N]] = True
    return Batch(
        ids_SL=torch.from_numpy(ids_SL),
        attention_SL=torch.from_numpy(attention_SL),
        source_N=torch.from_numpy(source_N),
        read_M=torch.from_numpy(np.unique(source_N)),
        target_N=torch.from_numpy(ids_SL.reshape(-1)[target_N]),
        place_N=torch.from_numpy(place_N),
        mask_BKT=torch.from_numpy(mask.reshape(B, K, T)),
        scores_BK=torch.tensor([[*row.scores, *[0.0] * (K - len(row.scores))] for row in rows], dtype=torch.float32),
        tokens=sum(len(row.prompt) + len(c) for row in rows if row.real for c in row.candidates),
        chunks=chunks,
        known=known_values(rows, K, T),
        segments=segments,
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


CONCATENATED = Layout("concatenated", concatenate, lambda row: row.tokens)
