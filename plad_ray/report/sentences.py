"""The results in plain words, made from the numbers. HTML, Markdown and terminal show the same sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plad_ray.evaluate.table import INITIAL, TEACHER

TRUNCATED = 0.05
MAIN = "distilled"
Row = dict[str, Any]
Curve = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Sentence:
    kind: Literal["result", "check", "warning"]
    text: str


def how(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"sampled at {temperature:g}"


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def interval(found: Mapping[str, float] | None, signed: bool = False) -> str:
    """``[71.0, 77.3]`` in percent, with signs for differences."""
    if not found:
        return ""
    sign = "+" if signed else ""
    return f"[{100 * found['low']:{sign}.1f}, {100 * found['high']:{sign}.1f}]"


def cell(metrics: Mapping[str, Any], policy: str, temperature: float) -> Row | None:
    return next((r for r in metrics["table"] if (r["policy"], r["temperature"]) == (policy, temperature)), None)


def label(metrics: Mapping[str, Any], policy: str) -> str:
    return next((p["label"] for p in metrics["policies"] if p["name"] == policy), policy)


def arms(metrics: Mapping[str, Any]) -> list[str]:
    return [p["name"] for p in metrics["policies"] if p["name"] not in (TEACHER, INITIAL)]


def from_metrics(metrics: Mapping[str, Any]) -> list[Sentence]:
    """What the evaluation alone says."""
    said = [Sentence("result", text) for arm in arms(metrics) for text in _arm(metrics, arm)]
    said += [Sentence("result", text) for text in _best(metrics)]
    return said + _teacher(metrics) + _cautions(metrics)


#: verdict of table.verdict -> how a sentence about an arm begins
OPENINGS = {
    "sharpening only": "shows sharpening only: its sampled text improves, its greedy text does not",
    "no significant lift": "shows no significant lift over the initial student",
    "not judged: no scores": "was not judged: there are no scores",
}


def _arm(metrics: Mapping[str, Any], arm: str) -> list[str]:
    """``Distilled rises sampled and greedy. It wins against the human reference on 53.3 % …, 12.1 points above …``"""
    name, lifts = label(metrics, arm), []
    for temperature in metrics["temperatures"]:
        row, initial = cell(metrics, arm, temperature), cell(metrics, INITIAL, temperature)
        if row and initial and row["lift"]:
            won, before = row["win_reference"]["mean"], initial["win_reference"]["mean"]
            between = _between(row["lift"], metrics, points=True)
            lifts.append(f"{percent(won)} {how(temperature)} (initial student {percent(before)}; {between})")
        elif row and initial and row["score_lift"]:
            between = _between(row["score_lift"], metrics)
            before = number(initial["score"], 3)
            lifts.append(f"{number(row['score'], 3)} {how(temperature)} (initial student {before}; {between})")
    if not lifts:
        return _rouge_only(metrics, arm)
    verdict = metrics["verdicts"][arm]
    what = "It wins against the human reference on" if metrics["reference_score"] is not None else "Its mean score is"
    return [f"{_upper(name)} {OPENINGS.get(verdict, verdict)}. {what} {' and '.join(lifts)}."]


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _between(lift: Mapping[str, float], metrics: Mapping[str, Any], points: bool = False) -> str:
    """``lift +8.1 points, 95 % interval +5.0 to +11.2``."""
    mean, low, high = (f"{100 * lift[k]:+.1f}" if points else f"{lift[k]:+.3f}" for k in ("mean", "low", "high"))
    return f"lift {mean}{' points' if points else ''}, {percent(metrics['confidence'], 0)} interval {low} to {high}"


def _rouge_only(metrics: Mapping[str, Any], arm: str) -> list[str]:
    texts = []
    for temperature in metrics["temperatures"]:
        row, initial = cell(metrics, arm, temperature), cell(metrics, INITIAL, temperature)
        if row and initial and row["rougeL"] is not None:
            texts.append(f"{number(row['rougeL'])} {how(temperature)} (initial student {number(initial['rougeL'])})")
    name = _upper(label(metrics, arm))
    return [f"{name} has ROUGE-L {'; '.join(texts)}. No scorer was set, so nothing says who wins."] if texts else []


def _best(metrics: Mapping[str, Any]) -> list[str]:
    if len(arms(metrics)) < 2:
        return []
    said = []
    for temperature in metrics["temperatures"]:
        rows = [cell(metrics, arm, temperature) for arm in arms(metrics)]
        ranked = sorted((r for r in rows if r and r["win_reference"]), key=lambda r: -r["win_reference"]["mean"])
        if len(ranked) > 1:
            first, second = ranked[:2]
            overlap = first["win_reference"]["low"] <= second["win_reference"]["mean"]
            said.append(
                f"{_upper(how(temperature))}, {first['label']} is ahead of the other arms "
                f"({percent(first['win_reference']['mean'])}), then comes {second['label']} "
                f"({percent(second['win_reference']['mean'])})"
                + (", within the first one's interval." if overlap else ".")
            )
    return said


def _teacher(metrics: Mapping[str, Any]) -> list[Sentence]:
    """PLaD's assumption: at equal temperature the teacher's text is better more often than not."""
    found = metrics["teacher_student"]
    if not found:
        return []
    rates = " and ".join(
        f"{percent(f['mean'])} {how(f['temperature'])} (ties {percent(f['ties'])}, counted half)" for f in found
    )
    holds = all(f["low"] > 0.5 for f in found)
    end = (
        "PLaD's assumption, that the teacher's text is the better one, holds."
        if holds
        else "PLaD's assumption, that the teacher's text is the better one, is not clearly met: expect little."
    )
    return [
        Sentence("check" if holds else "warning", f"The teacher beats the initial student on {rates} of prompts. {end}")
    ]


def _cautions(metrics: Mapping[str, Any]) -> list[Sentence]:
    said = []
    for row in metrics["table"]:
        if (row["truncated"] or 0) > TRUNCATED:
            said.append(
                f"{percent(row['truncated'])} of the {row['label']}'s texts {how(row['temperature'])} hit the token "
                "limit; raise generate.max_tokens, or its numbers are those of cut text."
            )
        if row["missing"]:
            said.append(f"{row['missing']} prompts have no text of the {row['label']} {how(row['temperature'])}.")
    if metrics.get("without_reference"):
        said.append(f"{metrics['without_reference']} prompts have no reference and count in no ROUGE and no win rate.")
    return [Sentence("warning", text) for text in said]


def from_pairs(pairs: Mapping[str, Mapping[str, Any]]) -> list[Sentence]:
    """Warnings of the pair tables, by arm."""
    return [
        Sentence(
            "warning",
            f"{'Lists' if summary.get('kind') == 'lists' else 'Pairs'} of {arm}: {text[0].lower() + text[1:]}.",
        )
        for arm, summary in pairs.items()
        for text in summary.get("warnings", [])
    ]


def from_curves(curves: Mapping[str, Curve]) -> list[Sentence]:
    """Both log-probabilities falling is the known way in which preference losses go wrong (trl#800, dpo#8)."""
    said = []
    for arm, curve in curves.items():
        change = {side: fall(curve, f"logps/{side}") for side in ("chosen", "rejected")}
        if None not in change.values() and change["chosen"] < 0 and change["rejected"] < 0:  # type: ignore[operator]
            said.append(
                Sentence(
                    "warning",
                    f"In the training of {arm} both log-probabilities fell (chosen {change['chosen']:+.1f}, rejected "
                    f"{change['rejected']:+.1f} nats from the first to the last tenth): the margin grew by making both "
                    "texts less likely. An SFT term (distill.objective.sft_weight, where the objective has it) holds the "
                    "chosen text up.",
                )
            )
    return said


def fall(curve: Curve, name: str) -> float | None:
    """Mean of the last tenth of a metric less the mean of its first tenth; None below 10 values."""
    values = [row[name] for row in curve if row.get(name) is not None]
    tenth = len(values) // 10
    return sum(values[-tenth:]) / tenth - sum(values[:tenth]) / tenth if tenth else None


def from_scorer(scorer: str | None) -> list[Sentence]:
    if scorer != "rouge":
        return []
    text = "The scorer is ROUGE, which compares with the reference: none can be beaten, so a lift is in mean score."
    return [Sentence("warning", text)]
