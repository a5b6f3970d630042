"""Resident memory of this process, in MiB."""

from __future__ import annotations

from pathlib import Path

import psutil


def resident() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)


def peak() -> float:
    """The most that was resident since the process started or since ``forget_peak``. Not ``ru_maxrss``: a process begins
    with that of the one that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
