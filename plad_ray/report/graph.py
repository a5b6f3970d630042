"""The lineage as a drawing: a box an artifact or alike ones together, inputs above what is made from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from markupsafe import Markup

from plad_ray.report.cost import kind_of
from plad_ray.report.lineage import Step
from plad_ray.report.svg import escape

BOX, TALL, GAP_X, GAP_Y = 168, 34, 18, 26
#: boxes beside each other that can still be read
WIDE = 8
#: a drawing is not made smaller than this part of its width; a narrower page scrolls it
LEAST = 0.7


@dataclass(frozen=True)
class Node:
    """One box: an artifact under its name, or several that stages of one kind made from the same kinds of inputs.
    ``inputs``: names of other nodes."""

    name: str
    title: str
    steps: tuple[Step, ...]
    inputs: tuple[str, ...]

    @property
    def rows(self) -> int:
        return sum(step.rows_out for step in self.steps)


def fold(steps: Sequence[Step]) -> list[Node]:
    """``steps`` (inputs first) as nodes, in the order of their first steps: those of one stage at one depth are one node,
    and where more than ``WIDE`` are left at a depth, those of one kind."""
    depth = _depths(steps)
    stages = {(depth[step.artifact], step.stage) for step in steps}
    crowded = {d for d, count in Counter(d for d, _ in stages).items() if count > WIDE}
    groups: dict[tuple[int, str], list[Step]] = {}
    for step in steps:
        at = depth[step.artifact]
        groups.setdefault((at, kind_of(step) if at in crowded else step.stage), []).append(step)
    names = {
        step.artifact: step.artifact if len(group) == 1 else f"{_common(group)}:{at}"
        for (at, _), group in groups.items()
        for step in group
    }
    return [
        Node(
            names[group[0].artifact],
            _common(group),
            tuple(sorted(group, key=lambda step: (step.stage, step.seed or 0))),
            tuple(dict.fromkeys(names[parent] for step in group for parent in step.inputs.values())),
        )
        for group in groups.values()
    ]


def _common(steps: Sequence[Step]) -> str:
    """The name of their stage, or the words that all their stages' names begin with; what they do where there are none."""
    words = zip(*(step.stage.split("-") for step in steps), strict=False)
    return "-".join(w[0] for w in takewhile(lambda w: len(set(w)) == 1, words)) or kind_of(steps[0])


def _depths(steps: Sequence[Step]) -> dict[str, int]:
    """By artifact, how many lie one behind the other before it."""
    depth: dict[str, int] = {}
    for step in steps:
        depth[step.artifact] = 1 + max((depth[parent] for parent in step.inputs.values()), default=-1)
    return depth


def draw(nodes: Sequence[Node]) -> Markup:
    """Inline SVG; each box leads to its rows of the table (``#`` and the node's name)."""
    rows = layers(nodes)
    width = max(len(row) for row in rows) * (BOX + GAP_X) + GAP_X
    height = len(rows) * (TALL + GAP_Y) + 8
    place: dict[str, tuple[float, float]] = {}
    for level, row in enumerate(rows):
        left = (width - len(row) * (BOX + GAP_X) + GAP_X) / 2
        place |= {name: (left + i * (BOX + GAP_X), 4 + level * (TALL + GAP_Y)) for i, name in enumerate(row)}
    boxes = "".join(_box(node, *place[node.name]) for node in nodes)
    edges = "".join(_edge(place[a], place[b], a, b) for a, b in direct(nodes))
    return Markup(
        f'<div class="scroll"><svg class="graph" viewBox="0 0 {width} {height}" style="max-width:{width}px;'
        f'min-width:{LEAST * width:.0f}px" role="img" aria-label="Lineage of every artifact">{edges}{boxes}</svg></div>'
    )


def direct(nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """(input, node) edges without those that another path implies, so that the drawing can be read."""
    inputs = {node.name: node.inputs for node in nodes}
    ancestors: dict[str, set[str]] = {}
    edges = []
    for name in (name for row in layers(nodes) for name in row):
        behind = set().union(*(ancestors[parent] for parent in inputs[name]))
        ancestors[name] = behind | set(inputs[name])
        edges += [(parent, name) for parent in inputs[name] if parent not in behind]
    return edges


def layers(nodes: Sequence[Node]) -> list[list[str]]:
    """Names by depth: below all of its inputs. Within a layer, near the mean place of the inputs (barycentre)."""
    inputs = {node.name: node.inputs for node in nodes}
    depth: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((of(parent) for parent in inputs[name]), default=-1)
        return depth[name]

    rows: list[list[str]] = [[] for _ in range(1 + max(of(node.name) for node in nodes))]
    for node in nodes:
        rows[depth[node.name]].append(node.name)
    across: dict[str, float] = {}
    for row in rows:
        row.sort(key=lambda name: _mean(across, inputs[name]))
        across |= {name: (i + 0.5) / len(row) for i, name in enumerate(row)}
    return rows


def _mean(across: Mapping[str, float], parents: Sequence[str]) -> float:
    return sum(across[parent] for parent in parents) / len(parents) if parents else 0.5


def _box(node: Node, x: float, y: float) -> str:
    title = node.title if len(node.title) <= 24 else node.title[:23] + "…"
    runs = f"{len(node.steps)} runs, " if len(node.steps) > 1 else ""
    place, middle = f'width="{BOX}" height="{TALL}" rx="5"', f'x="{x + BOX / 2:.1f}" text-anchor="middle"'
    behind = f'<rect class="box" x="{x + 4:.1f}" y="{y - 4:.1f}" {place}/>' if runs else ""
    return (
        f'<a href="#{escape(node.name)}" data-node="{escape(node.name)}">{behind}<rect class="box" x="{x:.1f}" y="{y:.1f}" '
        f'{place}/><text class="name" {middle} y="{y + 15:.1f}">{escape(title)}</text>'
        f'<text class="axis" {middle} y="{y + 28:.1f}">{runs}{node.rows:,} rows</text></a>'
    )


def _edge(start: tuple[float, float], end: tuple[float, float], parent: str, child: str) -> str:
    x, y, u, v = start[0] + BOX / 2, start[1] + TALL, end[0] + BOX / 2, end[1]
    bend = (v - y) / 2
    return (
        f'<path class="edge" data-from="{escape(parent)}" data-to="{escape(child)}" '
        f'd="M{x:.1f} {y:.1f}C{x:.1f} {y + bend:.1f} {u:.1f} {v - bend:.1f} {u:.1f} {v:.1f}"/>'
    )
