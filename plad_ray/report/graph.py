"""The lineage as a drawing: one box an artifact, inputs above what is made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from plad_ray.report.lineage import Step
from plad_ray.report.svg import escape

BOX, TALL, GAP_X, GAP_Y = 168, 34, 18, 26


def draw(steps: Sequence[Step]) -> Markup:
    """Inline SVG; each box leads to its row of the table (``#`` and the artifact's name)."""
    rows = layers(steps)
    width = max(len(row) for row in rows) * (BOX + GAP_X) + GAP_X
    height = len(rows) * (TALL + GAP_Y) + 8
    place: dict[str, tuple[float, float]] = {}
    for depth, row in enumerate(rows):
        left = (width - len(row) * (BOX + GAP_X) + GAP_X) / 2
        place |= {name: (left + i * (BOX + GAP_X), 4 + depth * (TALL + GAP_Y)) for i, name in enumerate(row)}
    boxes = "".join(_box(step, *place[step.artifact]) for step in steps)
    edges = "".join(_edge(place[a], place[b], a, b) for a, b in direct(steps))
    return Markup(
        f'<svg class="graph" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="Lineage of every artifact">{edges}{boxes}</svg>'
    )


def direct(steps: Sequence[Step]) -> list[tuple[str, str]]:
    """(input, artifact) edges without those that another path implies, so that the drawing can be read."""
    ancestors: dict[str, set[str]] = {}
    edges = []
    for step in steps:
        parents = list(dict.fromkeys(step.inputs.values()))
        behind = set().union(*(ancestors[parent] for parent in parents))
        ancestors[step.artifact] = behind | set(parents)
        edges += [(parent, step.artifact) for parent in parents if parent not in behind]
    return edges


def layers(steps: Sequence[Step]) -> list[list[str]]:
    """Names by depth: below all of its inputs. Within a layer, near the mean place of the inputs (barycentre)."""
    depth: dict[str, int] = {}
    for step in steps:  # inputs come first
        depth[step.artifact] = 1 + max((depth[parent] for parent in step.inputs.values()), default=-1)
    rows: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for step in steps:
        rows[depth[step.artifact]].append(step.artifact)
    inputs = {step.artifact: list(step.inputs.values()) for step in steps}
    across: dict[str, float] = {}
    for row in rows:
        row.sort(key=lambda name: _mean(across, inputs[name]))
        across |= {name: (i + 0.5) / len(row) for i, name in enumerate(row)}
    return rows


def _mean(across: Mapping[str, float], parents: Sequence[str]) -> float:
    return sum(across[parent] for parent in parents) / len(parents) if parents else 0.5


def _box(step: Step, x: float, y: float) -> str:
    name = step.stage if len(step.stage) <= 24 else step.stage[:23] + "…"
    middle = f'x="{x + BOX / 2:.1f}" text-anchor="middle"'
    return (
        f'<a href="#{escape(step.artifact)}" data-node="{escape(step.artifact)}"><rect class="box" x="{x:.1f}" y="{y:.1f}" '
        f'width="{BOX}" height="{TALL}" rx="5"/><text class="name" {middle} y="{y + 15:.1f}">{escape(name)}</text>'
        f'<text class="axis" {middle} y="{y + 28:.1f}">{step.rows_out:,} rows</text></a>'
    )


def _edge(start: tuple[float, float], end: tuple[float, float], parent: str, child: str) -> str:
    x, y, u, v = start[0] + BOX / 2, start[1] + TALL, end[0] + BOX / 2, end[1]
    bend = (v - y) / 2
    return (
        f'<path class="edge" data-from="{escape(parent)}" data-to="{escape(child)}" '
        f'd="M{x:.1f} {y:.1f}C{x:.1f} {y + bend:.1f} {u:.1f} {v - bend:.1f} {u:.1f} {v:.1f}"/>'
    )
