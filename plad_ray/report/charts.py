"""Which plots a page has, from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from markupsafe import Markup

from plad_ray.evaluate.table import INITIAL, TEACHER
from plad_ray.report import svg
from plad_ray.report.collect import Page
from plad_ray.report.sentences import how, percent

#: title -> metrics drawn together; the second of two is dashed
TRAINING = {
    "Loss": ("loss",),
    "Reward margin": ("rewards/margins",),
    "Rewards": ("rewards/chosen", "rewards/rejected"),
    "Log-probs of texts": ("logps/chosen", "logps/rejected"),
    "Reward accuracy": ("rewards/accuracies",),
    "Gradient norm": ("grad_norm",),
}
COLOURS = 10
ONLY_REFERENCES = "Every arm trains on the references of the prompts: there are no pairs."


@dataclass(frozen=True)
class Chart:
    """``legend``: (colour, name, dashed) of each line, empty where the drawing names its parts itself."""

    title: str
    drawing: Markup
    legend: list[tuple[int, str, bool]]
    note: str = ""


def colours(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Colour of each policy: 0 initial student, 1 teacher, the arms after them."""
    arms = [p["name"] for p in metrics["policies"] if p["name"] not in (TEACHER, INITIAL)]
    return {INITIAL: 0, TEACHER: 1, **{arm: 2 + i % (COLOURS - 2) for i, arm in enumerate(arms)}}


def results(page: Page) -> list[Chart]:
    """Win rates, lifts and lengths of every policy."""
    hollow = "Filled: sampled; hollow: greedy." if len(page.metrics["temperatures"]) > 1 else ""
    level = f"Whiskers: {percent(page.metrics['confidence'], 0)} intervals over prompts. "
    charts = []
    rows = _estimates(page.metrics, "win_reference", 100, ".1f")
    if rows:
        charts.append(_dots("Win rate against the human reference", rows, 50, level + hollow))
    rows = _estimates(page.metrics, "lift", 100, "+.1f")
    if rows:
        charts.append(_dots("Lift over the initial student, points of win rate", rows, 0, level + hollow, unit=""))
    rows = _estimates(page.metrics, "win_initial", 100, ".1f")
    if rows:
        charts.append(_dots("Win rate against the initial student", rows, 50, level + hollow))
    words = _words(page.metrics)
    if words:
        reference = page.metrics["reference_words"]
        note = "" if reference is None else f"Dashed: the references' mean, {reference:.1f} words. "
        charts.append(_dots("Mean length, words", words, reference, note + hollow, unit=""))
    return charts


def _estimates(metrics: Mapping[str, Any], name: str, scale: float, form: str) -> list[tuple[str, list[svg.Dot]]]:
    colour, rows = colours(metrics), []
    for policy in metrics["policies"]:
        found = [(r, r[name]) for r in metrics["table"] if r["policy"] == policy["name"] and r[name]]
        dots = [
            svg.Dot(
                scale * e["mean"],
                scale * e["low"],
                scale * e["high"],
                colour[policy["name"]],
                hollow=row["temperature"] == 0,
                text=f"{scale * e['mean']:{form}}",
                tip=f"{how(row['temperature'])}: {scale * e['mean']:{form}} "
                f"[{scale * e['low']:{form}}, {scale * e['high']:{form}}]\n{e['n']:,} prompts",
            )
            for row, e in found
        ]
        if dots:
            rows.append((policy["label"], dots))
    return rows


def _words(metrics: Mapping[str, Any]) -> list[tuple[str, list[svg.Dot]]]:
    colour, rows = colours(metrics), []
    for policy in metrics["policies"]:
        values = [(r["words"], r["temperature"]) for r in metrics["table"] if r["policy"] == policy["name"]]
        dots = [
            svg.Dot(v, v, v, colour[policy["name"]], t == 0, f"{v:.1f}", f"{how(t)}: {v:.1f} words")
            for v, t in values
            if v is not None
        ]
        rows.append((policy["label"], dots))
    return [row for row in rows if row[1]]


def _dots(
    title: str, rows: Sequence[tuple[str, Sequence[svg.Dot]]], middle: float | None, note: str, unit: str = "%"
) -> Chart:
    return Chart(title, Markup(svg.dots(title, rows, middle, unit)), [], note.strip())


def training(page: Page) -> list[Chart]:
    """Curves of the distillation runs, one line an arm (two where chosen and rejected are drawn together)."""
    return curves(page.curves, colours(page.metrics), TRAINING)


def sft(page: Page) -> list[Chart]:
    found = {{"student": "initial student"}.get(role, role): curve for role, curve in page.sft.items()}
    return curves(found, {"initial student": 0, "teacher": 1}, {"Loss of supervised fine-tuning": ("loss",)})


def curves(
    found: Mapping[str, Sequence[Mapping[str, float]]], colour: Mapping[str, int], wanted: Mapping[str, Sequence[str]]
) -> list[Chart]:
    """Long curves are drawn as a running mean; hovering says what was logged."""
    charts = []
    for title, names in wanted.items():
        lines = []
        for arm, curve in found.items():
            for i, name in enumerate(names):
                points = [(row["step"], row[name]) for row in curve if row.get(name) is not None]
                if points:
                    steps, values = zip(*points, strict=True)
                    notes = [svg.short(v) for v in values]
                    label = f"{arm} {name.partition('/')[2]}" if len(names) > 1 else arm
                    lines.append(
                        svg.Series(label, steps, smooth(values), colour.get(arm, 2), notes=notes, dashed=i == 1)
                    )
        if lines:
            legend = [(line.colour, line.name, line.dashed) for line in lines]
            charts.append(Chart(title, Markup(svg.xy(title, lines, svg.Axis("step"), svg.Axis())), legend))
    return charts


def smooth(values: Sequence[float]) -> list[float]:
    """Running mean over a fiftieth of the values on each side; short curves stay as they are."""
    reach = len(values) // 50
    if reach == 0:
        return list(values)
    sums = [0.0, *accumulate(values)]
    bounds = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in bounds]


def pairs(page: Page, arm: str) -> list[Chart]:
    """Histograms of what separates the two texts of a pair, or the texts of a list."""
    summary, charts = page.pairs[arm], []
    colour = colours(page.metrics).get(arm.partition(",")[0], 2)
    for key, title, unit in (
        ("length_gap", "Length gap (chosen − rejected)", "words"),
        ("score_gap", "Score gap (chosen − rejected)", "score"),
        ("candidates", "Texts of a list", "texts"),
        ("score_spread", "Score spread of a list (best − worst)", "score"),
    ):
        found = (summary.get(key) or {}).get("histogram")
        if found:
            drawing = Markup(svg.bars(title, found["edges"], found["counts"], colour, unit))
            charts.append(Chart(title, drawing, [], f"Mean {summary[key]['mean']:+.3g}."))
    return charts


def temperatures(page: Page) -> list[tuple[str, list[dict[str, Any]]]]:
    """The table's rows, grouped: (``sampled at 0.7``, rows)."""
    return [
        (how(t), [row for row in page.metrics["table"] if row["temperature"] == t])
        for t in page.metrics["temperatures"]
    ]
