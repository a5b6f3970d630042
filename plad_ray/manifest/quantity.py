"""Kubernetes' way to write an amount of memory."""

from __future__ import annotations

UNITS = {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def in_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]
