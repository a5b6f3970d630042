"""What frozen models say of the rows' own tokens, computed once before the first step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch.distributed as dist

from plad_ray.train.layout import Layout, Row
from plad_ray.train.logprobs import ResponseValues, chunk_count
from plad_ray.train.world import World


def with_frozen_logps(
    module: ResponseValues,
    rows: list[Row],
    names: tuple[str, ...],
    layout: Layout,
    pad: int,
    vocabulary: int,
    micro_batch: int,
    world: World,
) -> list[Row]:
    """``rows`` with ``<name>_logp`` of each frozen model among their known values; each worker computes its share."""
    if not names:
        return rows
    mine = sorted(range(world.rank, len(rows), world.workers), key=lambda i: -layout.length(rows[i]))
    found: dict[int, dict[str, tuple[np.ndarray, ...]]] = {}
    for start in range(0, len(mine), micro_batch):
        picked = mine[start : start + micro_batch]
        batch = [rows[i] for i in picked]
        chunks = chunk_count(sum(row.positions for row in batch), vocabulary, world.device)
        tensors = layout.collate(batch, pad, chunks).to(world.device)
        for name in names:
            logps_BKT = module.frozen_logps(name, tensors).float().cpu().numpy()
            for index, row, logps_KT in zip(picked, batch, logps_BKT, strict=True):
                values = tuple(logps_KT[k, : len(c)].copy() for k, c in enumerate(row.candidates))
                found.setdefault(index, {})[f"{name}_logp"] = values
    if world.workers > 1:
        shares: list[dict[int, dict[str, tuple[np.ndarray, ...]]]] = [{} for _ in range(world.workers)]
        dist.all_gather_object(shares, found)
        found = {index: known for share in shares for index, known in share.items()}
    return [replace(row, known=row.known | found[i]) for i, row in enumerate(rows)]
