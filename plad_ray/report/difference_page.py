"""Two runs on one page, as HTML and as its Markdown twin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from plad_ray.config import Evaluate
from plad_ray.evaluate.frame import prompts_of, responses_of
from plad_ray.evaluate.table import INITIAL, TEACHER
from plad_ray.report import charts, svg
from plad_ray.report.collect import curve
from plad_ray.report.cost import by_stage
from plad_ray.report.difference import Difference, Row, Run
from plad_ray.report.html import document
from plad_ray.report.lineage import lineage
from plad_ray.report.markdown import costs, escape, fenced
from plad_ray.report.samples import SAMPLES, Sample, Shown, scores_of, thinned
from plad_ray.report.sentences import how, interval, number, percent

#: measure -> heading, number of decimals, factor
COLUMNS = {
    "win_reference": ("Beats reference, %", 1, 100),
    "score": ("Score", 3, 1),
    "rougeL": ("ROUGE-L", 1, 1),
    "words": ("Words", 1, 1),
}


@dataclass(frozen=True)
class Shot:
    """One cell of the table: both values and their difference with its interval, as text. ``sign`` of a difference whose
    interval leaves 0 out, else 0."""

    first: str
    second: str
    difference: str
    between: str
    sign: int


def html(found: Difference) -> str:
    temperature = min(row.temperature for row in found.rows)
    runs = (found.first, found.second)
    return document(
        "difference.html.j2",
        found=found,
        columns=columns(found),
        groups=[(how(t), [r for r in found.rows if r.temperature == t]) for t in _temperatures(found)],
        shots=lambda row: [shot(row, name) for name in columns(found)],
        charts=_charts(found),
        curves=_curves(found),
        samples=_samples(found, temperature),
        temperature=temperature,
        labels={row.policy: row.label for row in found.rows},
        costs=[by_stage(lineage(run.inputs.values())) for run in runs],
    )


def markdown(found: Difference) -> str:
    first, second = escape(found.first.label), escape(found.second.label)
    lines = [f"# {first} against {second}", ""]
    lines += [f"- {'**Warning:** ' if s.kind == 'warning' else ''}{escape(s.text)}" for s in found.sentences]
    lines += ["", "## Differences", "", _note(found), "", *_table(found)]
    lines += ["", "## What the settings differ in", "", f"| | {first} | {second} |", "|---|---|---|"]
    lines += [f"| `{key}` | {escape(a)} | {escape(b)} |" for key, a, b in found.settings]
    lines += ["", "## Artifacts", "", f"| stage | {first} | {second} | differs in |", "|---|---|---|---|"]
    lines += [f"| {escape(stage)} | `{a}` | `{b}` | {escape(why)} |" for stage, a, b, why in found.stages]
    for run in (found.first, found.second):
        lines += ["", f"## Cost of {escape(run.label)}", "", *costs(by_stage(lineage(run.inputs.values())))]
    lines += ["", "## Made from", "", fenced("\n".join(run.artifact.path for run in (found.first, found.second)))]
    return "\n".join(lines) + "\n"


def columns(found: Difference) -> dict[str, str]:
    return {name: heading for name, (heading, *_) in COLUMNS.items() if name in found.rows[0].differences}


def shot(row: Row, name: str) -> Shot:
    _, digits, factor = COLUMNS[name]
    first, second = (number(None if v is None else factor * v, digits) for v in (row.first[name], row.second[name]))
    d = row.differences[name]
    if d is None:
        return Shot(first, second, "–", "", 0)
    mean, low, high = (f"{factor * v:+.{digits}f}" for v in (d.mean, d.low, d.high))
    return Shot(first, second, mean, f"[{low}, {high}]", 1 if d.low > 0 else -1 if d.high < 0 else 0)


def _note(found: Difference) -> str:
    return (
        f"{len(found.prompts):,} common prompts. Differences are the second run less the first on the same prompts, with "
        f"{percent(found.first.metrics['confidence'], 0)} intervals of a paired bootstrap over prompts "
        f"({found.resamples:,} resamples); p is two-sided, of the difference in "
        f"{'score' if found.scored else 'ROUGE-L'}, and Holm-corrected over the rows."
    )


def _table(found: Difference) -> list[str]:
    heads = [f"{h} {side}" for h in columns(found).values() for side in ("first", "second", "difference")]
    wins = ["second wins"] if found.scored else []
    lines = [
        "| | how | " + " | ".join([*heads, *wins, "p"]) + " |",
        "|---|---|" + "---:|" * (len(heads) + len(wins) + 1),
    ]
    for row in found.rows:
        cells = [escape(row.label), how(row.temperature)]
        for name in columns(found):
            s = shot(row, name)
            cells += [s.first, s.second, f"{s.difference} {s.between}".strip()]
        cells += (
            [f"{percent(row.wins.mean)} {interval(row.wins.to_json())}" if row.wins else "–"] if found.scored else []
        )
        lines.append("| " + " | ".join([*cells, number(row.p, 3)]) + " |")
    return lines


def _temperatures(found: Difference) -> list[float]:
    return list(dict.fromkeys(row.temperature for row in found.rows))


def _charts(found: Difference) -> list[charts.Chart]:
    colour = charts.colours(found.first.metrics)
    drawn = []
    for name, (heading, _, factor) in COLUMNS.items():
        rows: dict[str, list[svg.Dot]] = {}
        for row in found.rows:
            d = row.differences.get(name)
            if d is not None:
                s = shot(row, name)
                tip = f"{how(row.temperature)}: {s.first} → {s.second}\n{s.difference} {s.between}"
                place = (factor * d.mean, factor * d.low, factor * d.high, colour[row.policy])
                rows.setdefault(row.label, []).append(svg.Dot(*place, row.temperature == 0, s.difference, tip))
        if rows:
            title = f"{heading.removesuffix(', %')}: {found.second.label} less {found.first.label}"
            drawing = svg.dots(title, list(rows.items()), 0, "")
            drawn.append(charts.Chart(title, Markup(drawing), [], "Filled: sampled; hollow: greedy."))
    return drawn


def _curves(found: Difference) -> list[charts.Chart]:
    """Both runs' arms in one plot; a colour a run and arm."""
    curves = {
        f"{run.label}: {key.removeprefix('train/')}": curve(artifact)
        for run in (found.first, found.second)
        for key, artifact in run.inputs.items()
        if key.startswith("train/")
    }
    colour = {name: 2 + i % (charts.COLOURS - 2) for i, name in enumerate(curves)}
    return charts.curves(curves, colour, charts.TRAINING)


def _samples(found: Difference, temperature: float) -> list[Sample]:
    """Common prompts spread evenly, each policy's text of both runs beside each other."""
    every = -(-len(found.prompts) // SAMPLES)
    wanted = found.prompts[::every]
    policies = [row.policy for row in found.rows if row.temperature == temperature]
    labels = {row.policy: row.label for row in found.rows}
    texts = [_texts(run, policies, temperature, set(wanted)) for run in (found.first, found.second)]
    scores = [scores_of(run.inputs["evaluation"], temperature) for run in (found.first, found.second)]
    prompts, references = _prompts(found.first)
    samples = []
    for key in wanted:
        shown = []
        if (reference := references[key]) is not None:
            shown.append(Shown("human reference", reference, scores[0].get(("reference", key))))
        changes = {}
        for policy in policies:
            values = [score.get((policy, key)) for score in scores]
            sides = [text.get((policy, key)) for text in texts]
            same = policy in (TEACHER, INITIAL) and sides[0] == sides[1]
            for run, text, value in zip((found.first, found.second), sides, values, strict=True):
                if text is not None and not (same and run is found.second):
                    where = "both" if same else run.label
                    shown.append(Shown(f"{labels[policy]}, {where}", text, value if found.scored else None))
            if found.scored and None not in values:
                changes[policy] = values[1] - values[0]  # type: ignore[operator]
        samples.append(Sample(prompts[key], shown, changes))
    return thinned(samples)


def _texts(run: Run, policies: list[str], temperature: float, keys: set[str]) -> dict[tuple[str, str], str]:
    settings, prompts = _settings(run, temperature), _evaluated(run)
    found: dict[tuple[str, str], str] = {}
    for source in ("responses", "eval_responses"):
        for row in responses_of(run.inputs[source], settings, policies, prompts).to_pylist():
            if row["prompt_id"] in keys:
                found[row["policy"], row["prompt_id"]] = row["text"]
    return found


def _prompts(run: Run) -> tuple[dict[str, str], dict[str, str | None]]:
    rows = _evaluated(run).to_pylist()
    return {r["prompt_id"]: r["prompt"] for r in rows}, {r["prompt_id"]: r["reference"] for r in rows}


def _evaluated(run: Run) -> Any:
    return prompts_of(run.inputs["prompts"], _settings(run, 0.0))


def _settings(run: Run, temperature: float) -> Evaluate:
    settings = Evaluate.model_validate(run.inputs["evaluation"].manifest["config"]["evaluate"])
    return settings.model_copy(update={"temperatures": (temperature,)})
