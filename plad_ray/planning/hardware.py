"""Devices to plan for: vendors' data sheets (dense rates, no sparsity), and round prices of on-demand clouds."""

from __future__ import annotations

import os
from dataclasses import dataclass

from plad_ray.errors import PladError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """``bf16`` and ``fp32``: peak FLOP/s of matrix products; ``bandwidth``: bytes/s of its memory; ``price``: $ an hour."""

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    price: float
    shared: bool = False  # its memory, by all workers of the machine

    def flops(self, dtype: str) -> float:
        return self.bf16 if dtype == "bfloat16" else self.fp32


DEVICES = {
    "h100": Device("H100 SXM 80 GB", 80e9, 989e12, 67e12, 3.35e12, 3.0),
    "h200": Device("H200 141 GB", 141e9, 989e12, 67e12, 4.8e12, 3.8),
    "a100-80": Device("A100 SXM 80 GB", 80e9, 312e12, 19.5e12, 2.04e12, 1.8),
    "a100-40": Device("A100 SXM 40 GB", 40e9, 312e12, 19.5e12, 1.56e12, 1.4),
    "l4": Device("L4 24 GB", 24e9, 121e12, 30.3e12, 0.3e12, 0.7),
}
#: of one CPU core: what fp32 matrix products and plain reads reach on a current server core
CORE_FLOPS, CORE_BANDWIDTH, CORE_PRICE = 50e9, 8e9, 0.04


def cpu(cores: float) -> Device:
    """``cores`` of this machine, which all share its memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    flops = cores * CORE_FLOPS
    return Device(f"{cores:g} CPU", float(memory), flops, flops, cores * CORE_BANDWIDTH, cores * CORE_PRICE, True)


def device(name: str) -> Device:
    """Raises PladError for a name that is not in the table."""
    if name not in DEVICES:
        raise PladError(f"--on {name}: no such device; known: {', '.join(DEVICES)} (roles without GPUs use CPU cores)")
    return DEVICES[name]
