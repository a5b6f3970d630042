"""The prefix-shared layout: a prompt lies in its sequence once, followed by all its candidates.

Candidates see the prompt and themselves only, and positions restart at the prompt's end, so every log-prob is that of the
plain prompt + candidate. Preference pairs have long prompts and short answers: this halves the work (K candidates: up to
a K-th of it). Several rows share a sequence where that saves padding.
"""

from __future__ import annotations

import bisect

import numpy as np
import torch

from plad_ray.train.layout import Batch, Layout, Place, Row, Segments, Span, assemble

#: Lengths tried for a batch's sequences, as multiples of its longest row, until less than ``PADDING`` of them is padding:
#: the shortest, since attention over dense masks costs S·L².
STRETCH = tuple(1 + step / 8 for step in range(33))
PADDING = 0.04


def share(rows: list[Row], pad: int, chunks: int = 1) -> Batch:
    """Rows packed into sequences; ``pad`` fills their ends and is seen by nobody."""
    sequences = pack([row.shared_tokens for row in rows])
    S, L = len(sequences), max(sum(rows[b].shared_tokens for b in members) for members in sequences)
    ids_SL = np.full((S, L), pad, np.int64)
    position_SL, candidate_SL = np.zeros((S, L), np.int64), np.zeros((S, L), np.int64)
    row_SL = np.tile(-1 - np.arange(L), (S, 1))
    places: list[Place] = []
    spans: list[list[Span]] = []
    for s, members in enumerate(sequences):
        start = 0
        spans.append([])
        for b in members:
            prompt = len(rows[b].prompt)
            end = start + prompt
            spans[s].append(Span(start, end, start + rows[b].shared_tokens))
            row_SL[s, start : start + rows[b].shared_tokens] = b
            ids_SL[s, start:end], position_SL[s, start:end] = rows[b].prompt, np.arange(prompt)
            last, start = s * L + end - 1, end
            for k, candidate in enumerate(rows[b].candidates):
                end = start + len(candidate)
                ids_SL[s, start:end], candidate_SL[s, start:end] = candidate, k + 1
                position_SL[s, start:end] = prompt + np.arange(len(candidate))
                places.append(Place(b, k, last, s * L + start))
                start = end
    of_tokens = [torch.from_numpy(array) for array in (position_SL, row_SL, candidate_SL)]
    segments = Segments(of_tokens[0], of_tokens[1], of_tokens[2], tuple(map(tuple, spans)))
    places.sort(key=lambda place: (place.b, place.k))
    return assemble(rows, ids_SL, (row_SL >= 0).astype(np.int64), places, chunks, segments)


def pack(lengths: list[int]) -> list[list[int]]:
    """Items by sequence: in the shortest sequences that waste little, else in those that waste least."""
    longest = max(lengths)
    order = sorted(range(len(lengths)), key=lambda item: (-lengths[item], item))
    found: list[tuple[float, int, list[list[int]]]] = []
    for stretch in STRETCH:
        sequences = _best_fit(order, lengths, int(longest * stretch))
        padding = 1 - sum(lengths) / (len(sequences) * max(sum(lengths[item] for item in s) for s in sequences))
        if padding < PADDING:
            return sequences
        found.append((padding, len(found), sequences))
    return min(found)[2]


def _best_fit(order: list[int], lengths: list[int], capacity: int) -> list[list[int]]:
    """Each item, the longest first, goes where it leaves the least room."""
    sequences: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, sequence), sorted
    for item in order:
        at = bisect.bisect_left(room, (lengths[item], -1))
        if at == len(room):
            sequences.append([])
            left, sequence = capacity, len(sequences) - 1
        else:
            left, sequence = room.pop(at)
        sequences[sequence].append(item)
        bisect.insort(room, (left - lengths[item], sequence))
    return sequences


SHARED = Layout("shared", share, lambda row: row.shared_tokens)
