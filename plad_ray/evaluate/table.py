"""From per-prompt rows of one run, or of several seeds, to the table: means, intervals, lifts, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from plad_ray.evaluate.bootstrap import Estimate, estimate
from plad_ray.evaluate.frame import METRICS, Frame
from plad_ray.evaluate.winrate import tie_rate, wins

INITIAL = "student"
TEACHER = "teacher"
Cell = Mapping[str, np.ndarray]


def _win_reference(cell: Cell, initial: Cell) -> np.ndarray:
    return wins(cell["score"], cell["reference_score"])


def _win_initial(cell: Cell, initial: Cell) -> np.ndarray:
    return wins(cell["score"], initial["score"])


def _lift(cell: Cell, initial: Cell) -> np.ndarray:
    return _win_reference(cell, initial) - _win_reference(initial, initial)


def _score_lift(cell: Cell, initial: Cell) -> np.ndarray:
    return cell["score"] - initial["score"]


#: name -> (per-prompt value, its value under "no difference")
COMPARISONS: dict[str, tuple[Callable[[Cell, Cell], np.ndarray], float]] = {
    "win_reference": (_win_reference, 0.5),
    "win_initial": (_win_initial, 0.5),
    "lift": (_lift, 0.0),
    "score_lift": (_score_lift, 0.0),
}


def summarise(
    frames: Sequence[Frame],
    policies: Mapping[str, str],
    temperatures: Sequence[float],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The metrics of one run (or of several, pooled over their prompts), as JSON.

    ``policies``: label by name, in table order, the initial student among them. Policies without rows are left out.
    Win rates and lifts (in share of prompts, ties half) carry percentile intervals of a paired bootstrap over prompts.
    """
    keys = [(p, t) for t in temperatures for p in policies if all((p, t) in frame.cells for frame in frames)]
    estimates = _estimates(frames, keys, resamples, confidence, seed)
    rows = [_row(frames, key, policies[key[0]], estimates) for key in keys]
    references = np.concatenate([_reference_scores(frame) for frame in frames])
    return {
        "prompts": sum(len(frame.ids) for frame in frames),
        "runs": len(frames),
        "temperatures": list(temperatures),
        "policies": [{"name": p, "label": policies[p]} for p in policies if any(key[0] == p for key in keys)],
        "confidence": confidence,
        "resamples": resamples,
        "reference_score": mean(references),
        "table": rows,
        "teacher_student": [
            {"temperature": row["temperature"], "ties": row["ties_initial"], **row["win_initial"]}
            for row in rows
            if row["policy"] == TEACHER and row["win_initial"]
        ],
        "verdicts": {
            p: verdict([r for r in rows if r["policy"] == p]) for p in policies if p not in (INITIAL, TEACHER)
        },
    }


def _estimates(
    frames: Sequence[Frame], keys: list[tuple[str, float]], resamples: int, confidence: float, seed: int
) -> dict[tuple[str, float, str], Estimate | None]:
    """Every comparison of every cell with the initial student at the same temperature, on the same resamples."""
    names = [
        (policy, temperature, name)
        for policy, temperature in keys
        for name in COMPARISONS
        if (INITIAL, temperature) in keys and (policy != INITIAL or name == "win_reference")
    ]
    if not names:
        return {}
    strata = [
        np.stack([COMPARISONS[name][0](frame.cells[p, t], frame.cells[INITIAL, t]) for p, t, name in names])
        for frame in frames
    ]
    nulls = [COMPARISONS[name][1] for _, _, name in names]
    ids = [frame.ids for frame in frames]
    return dict(zip(names, estimate(strata, resamples, seed, confidence, nulls, ids), strict=True))


def _row(
    frames: Sequence[Frame],
    key: tuple[str, float],
    label: str,
    estimates: dict[tuple[str, float, str], Estimate | None],
) -> dict[str, Any]:
    cell = _pooled(frames, key)
    initial = _pooled(frames, (INITIAL, key[1]))
    row: dict[str, Any] = {
        "policy": key[0],
        "label": label,
        "temperature": key[1],
        "n": int((~np.isnan(cell["words"])).sum()),
        "missing": int(np.isnan(cell["words"]).sum()),
        "scored_against_reference": int((~np.isnan(wins(cell["score"], cell["reference_score"]))).sum()),
        **{name: mean(cell[name]) for name in (*METRICS, "words", "truncated", "score")},
        "ties_reference": tie_rate(cell["score"], cell["reference_score"]),
        "ties_initial": tie_rate(cell["score"], initial["score"]) if initial and key[0] != INITIAL else None,
    }
    for name in COMPARISONS:
        found = estimates.get((*key, name))
        row[name] = found.to_json() if found else None
    return row


def _pooled(frames: Sequence[Frame], key: tuple[str, float]) -> dict[str, np.ndarray]:
    cells = [frame.cells[key] for frame in frames if key in frame.cells]
    return {name: np.concatenate([cell[name] for cell in cells]) for name in cells[0]} if cells else {}


def _reference_scores(frame: Frame) -> np.ndarray:
    """The references' own score of each prompt, from whichever cell has it."""
    known = np.full(len(frame.ids), np.nan)
    for cell in frame.cells.values():
        known = np.where(np.isnan(known), cell["reference_score"], known)
    return known


def mean(values: np.ndarray) -> float | None:
    """Mean of what is there; None without anything."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else None


def best_lift(row: dict[str, Any]) -> dict[str, Any] | None:
    """The lift a verdict reads: in win rate against the references, else (no references) in mean score."""
    return row["lift"] or row["score_lift"]


def verdict(rows: list[dict[str, Any]]) -> str:
    """What an arm's lifts over the initial student say, in a few words.

    A lift counts when its interval lies on one side of 0. ``sharpening only``: sampled text improves but greedy text
    does not, so the distribution became narrower without its best answer becoming better.
    """
    signs: dict[str, list[int]] = {}
    for row in rows:
        lift = best_lift(row)
        if lift is None:
            continue
        sign = 1 if lift["low"] > 0 else -1 if lift["high"] < 0 else 0
        signs.setdefault("greedy" if row["temperature"] == 0 else "sampled", []).append(sign)
    if not signs:
        return "not judged: no scores"
    falls = [how for how in ("sampled", "greedy") if -1 in signs.get(how, [])]
    if falls:
        return "falls " + " and ".join(falls)
    rises = [how for how in ("sampled", "greedy") if how in signs and all(s == 1 for s in signs[how])]
    if rises == ["sampled"] and "greedy" in signs:
        return "sharpening only"
    if rises == ["greedy"] and "sampled" in signs:
        return "rises greedy only"
    return "rises " + " and ".join(rises) if rises else "no significant lift"
