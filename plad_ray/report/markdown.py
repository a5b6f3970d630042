"""The report as Markdown: the same sentences and tables without the plots, and a few of the samples."""

from __future__ import annotations

from collections.abc import Sequence

from plad_ray.pairs.stats import render as render_pairs
from plad_ray.report import charts
from plad_ray.report.collect import Page
from plad_ray.report.cost import Cost, by_stage
from plad_ray.report.html import count, duration, hours
from plad_ray.report.lineage import Step
from plad_ray.report.samples import Sample
from plad_ray.report.sentences import how, interval, number, percent
from plad_ray.report.text import visible

SAMPLES = 6


def render(page: Page) -> str:
    parts = [
        [f"# {escape(page.name)}", ""],
        [f"- {'**Warning:** ' if s.kind == 'warning' else ''}{escape(s.text)}" for s in page.sentences],
        ["", "## Results", "", _intro(page), "", *_table(page)],
        ["", "## Which differences are significant", "", *_significance(page)] if page.significance else [],
        ["", "## Arms", "", *(f"- **{escape(arm)}**: {escape(text)}" for arm, text in page.objectives.items())],
        ["", "## Training data", "", *_pairs(page)],
        ["", f"## Samples ({how(page.sample_temperature)})", "", *samples(page.samples)],
        ["## Settings", "", fenced(page.settings, "yaml")],
        ["", "## Cost", "", *costs(by_stage(page.lineage))],
        ["", "## Lineage", "", *lineage(page.lineage)],
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def _intro(page: Page) -> str:
    metrics = page.metrics
    return (
        f"{metrics['prompts']} prompts of the {metrics['split']} split. Win rates and lifts in percent with "
        f"{percent(metrics['confidence'], 0)} intervals (paired bootstrap over prompts, "
        f"{metrics['resamples']} resamples); a tie counts half. ROUGE is F1 × 100 with stemming."
    )


def _table(page: Page) -> list[str]:
    lines = [
        "| | R-1 | R-2 | R-L | words | truncated | score | beats reference | ties | beats initial | lift | p |",
        "|---|" + "---:|" * 11,
    ]
    for name, rows in charts.temperatures(page):
        lines.append(f"| *{name}* |" + " |" * 11)
        for row in rows:
            cells = [escape(row["label"])]
            cells += [number(row[k]) for k in ("rouge1", "rouge2", "rougeL", "words")]
            cells += [percent(row["truncated"]), number(row["score"], 3)]
            for key, ties in (("win_reference", "ties_reference"), ("win_initial", None)):
                found = row[key]
                cells.append(f"{percent(found['mean'])} {interval(found)}" if found else "–")
                if ties:
                    cells.append(percent(row[ties]))
            lift = row["lift"]
            cells += [f"{100 * lift['mean']:+.1f} {interval(lift, True)}", f"{lift['p']:.3f}"] if lift else ["–", "–"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _pairs(page: Page) -> list[str]:
    lines = [] if page.pairs else [charts.ONLY_REFERENCES, ""]
    for arm, summary in page.pairs.items():
        lines += [f"**{escape(arm)}**", "", fenced(render_pairs(summary)), ""]
    return lines


def samples(found: Sequence[Sample]) -> list[str]:
    """A few of them, spread evenly."""
    few = found[:: max(1, len(found) // SAMPLES)][:SAMPLES]
    return [_sample(sample) for sample in few]


def _sample(sample: Sample) -> str:
    lines = [fenced(sample.prompt), "", "| | score | text |", "|---|---:|---|"]
    for shown in sample.texts:
        text = escape(shown.text)
        if shown.marks:
            marks = (
                f"{escape(m.text.strip())}" + ("" if m.verdict == "kept" else f" *({m.verdict})*") for m in shown.marks
            )
            text = " ".join(marks)
        if shown.missing:
            text += " " + "; ".join(f"*(missing: {escape(fact)})*" for fact in shown.missing)
        lines.append(f"| {escape(shown.label)} | {number(shown.score, 2)} | {text} |")
    return "\n".join([*lines, ""])


def _significance(page: Page) -> list[str]:
    labels = {p["name"]: p["label"] for p in page.metrics["policies"]}
    measure = "score" if page.metrics["scorer"] else "ROUGE-L"
    lines = [f"| better | than | how | wins | {measure} difference | p (Holm) |", "|---|---|---|---:|---:|---:|"]
    for found in page.significance:
        rate, d = found.rate, found.difference
        wins = f"{percent(rate.mean)} {interval(rate.to_json())}" if rate else "–"
        cells = [escape(labels[found.better]), escape(labels[found.worse]), how(found.temperature), wins]
        cells += [f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]", f"{found.p:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        f"Paired bootstrap over prompts ({page.resamples:,} resamples); p is two-sided and Holm-corrected for all of these, "
        "intervals are not."
    )
    return [*lines, "", note]


def costs(found: Sequence[Cost]) -> list[str]:
    lines = [
        "| stages | | prompt tokens | tokens generated or trained on | time | worker-hours | GPU-hours |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for cost in found:
        cells = [cost.kind, f"{cost.stages}", count(cost.read or None), count(cost.tokens or None)]
        cells += [duration(cost.seconds), hours(cost.worker_hours), hours(cost.gpu_hours) if cost.gpu_hours else "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def lineage(steps: Sequence[Step]) -> list[str]:
    lines = [
        "| artifact | made from | rows in | rows out | dropped | time | tokens |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    for step in steps:
        dropped = ", ".join(f"{reason} {n}" for reason, n in step.dropped.items())
        made_from = ", ".join(f"`{name}`" for name in dict.fromkeys(step.inputs.values()))
        cells = [f"`{step.artifact}`", made_from, f"{step.rows_in}", f"{step.rows_out}", dropped]
        lines.append("| " + " | ".join([*cells, duration(step.seconds), count(step.tokens)]) + " |")
    return lines


def escape(text: str) -> str:
    """Text of models and data as Markdown text on one line."""
    text = visible(text)
    for mark in "\\`*_[]<>|#&~$":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks in ``text``."""
    text = visible(text)
    runs = [len(run) for run in "".join(c if c == "`" else " " for c in text).split()]
    fence = "`" * max([3, *(n + 1 for n in runs)])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
