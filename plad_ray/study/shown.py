"""Cells as text, the same in the terminal and in Markdown."""

from __future__ import annotations

from plad_ray.study.result import Cell, Column, Interval


def cell(value: Cell, column: Column) -> str:
    """``61.3 % [58.0, 64.4]``, ``+1.3 [-0.2, +2.8]``, ``0.012``, ``<0.001``; empty for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Interval):
        ends = ", ".join(number(end, column, bare=True) for end in (value.low, value.high))
        return f"{number(value.mean, column)} [{ends}]"
    return number(value, column)


def number(value: float, column: Column, bare: bool = False) -> str:
    if column.unit == "p":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    if column.unit == "count":
        return f"{value:,.0f}"
    if column.unit == "percent":
        return f"{100 * value:.{column.digits}f}" + ("" if bare else " %")
    if column.unit == "points":
        return f"{100 * value:+.{column.digits}f}"
    return f"{value:.{column.digits}f}"
