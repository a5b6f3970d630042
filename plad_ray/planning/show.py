"""A forecast as a table in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from plad_ray.planning.plan import Estimate, Forecast


def show(found: Forecast, console: Console) -> None:
    lines = Table(box=None, pad_edge=False, title=f"{found.experiment}: what it will need", title_justify="left")
    for column in ("stage", "on", "memory of one", "of", "fits", "tokens", "time", "cost"):
        lines.add_column(column, justify="left" if column in ("stage", "on", "fits") else "right", no_wrap=True)
    lines.add_column("memory by purpose", overflow="fold")
    for e in found.estimates:
        lines.add_row(e.stage, *_cells(e))
    seconds = sum(e.seconds for e in found.estimates)
    cost = sum(e.cost for e in found.estimates)
    lines.add_row("total, one after another", "", "", "", "", "", _clock(seconds), f"$ {cost:,.2f}", "")
    console.print(lines)
    if found.pools is not None:
        p = found.pools
        console.print(
            f"\nteacher and student are done together on {p['devices']:g} devices with {p['teacher_replicas']} and "
            f"{p['student_replicas']} replicas: {_clock(p['seconds'])} instead of {_clock(p['seconds_now'])}"
        )
    console.print("\nassumed:")
    for line in found.assumptions:
        console.print(f"  {line}", style="dim", soft_wrap=True)


def _cells(e: Estimate) -> tuple[str, ...]:
    each = f" × {e.devices:g}" if e.devices != 1 else ""
    parts = ", ".join(f"{name} {_size(size)}" for name, size in sorted(e.memory.items(), key=lambda i: -i[1]) if size)
    return (
        f"{e.count} × {e.device}{each}",
        _size(e.total),
        _size(e.capacity),
        "[green]yes[/]" if e.fits else "[red]NO[/]",
        f"{e.tokens:,}",
        f"{_clock(e.seconds)} ({e.bound})",
        f"$ {e.cost:,.2f}",
        f"{parts}; {e.note}" if e.note else parts,
    )


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
