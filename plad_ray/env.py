"""What a bug report needs: versions, devices, settings. Values of variables that may hold secrets are never shown."""

from __future__ import annotations

import os
import platform
import re
import sys
from typing import Any

from plad_ray.stages import git_commit, versions

#: variables that change what Arrow, Ray, vLLM, torch and the Hub libraries do.
MATTER = re.compile(
    r"^(ARROW|RAY|VLLM|HF|TRANSFORMERS|TOKENIZERS|CUDA|NCCL|GLOO|OMP|MKL|TORCH|DS|PLAD|PYTORCH)_|^PYTHONPATH$"
)
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|AUTH|CRED", re.IGNORECASE)
#: names that look secret and are not.
PLAIN = {"RAY_AUTH_MODE", "TOKENIZERS_PARALLELISM"}


def facts() -> dict[str, str]:
    """Name and value of everything shown, in order."""
    found = {
        "python": f"{sys.version.split()[0]} ({platform.platform()})",
        "git commit": git_commit() or "no checkout",
        **versions(),
        "cores": _cores(),
        "memory": _memory(),
        "GPUs": _gpus(),
        "ray cluster": _without_password(os.environ.get("RAY_ADDRESS", "")) or "local, started by each run",
    }
    return found | variables(dict(os.environ))


def variables(environment: dict[str, str]) -> dict[str, str]:
    """Environment variables that matter; what may be a secret is shown as set."""
    return {
        name: "(set)" if SECRET.search(name) and name not in PLAIN else _without_password(value)
        for name, value in sorted(environment.items())
        if MATTER.search(name)
    }


def show() -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in facts().items():
        table.add_row(f"[bold]{escape(name)}[/bold]", escape(value))
    Console(highlight=False).print(table)


def _without_password(value: str) -> str:
    return re.sub(r"(://)[^/@\s]+@", r"\1(hidden)@", value)


def _cores() -> str:
    usable: Any = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "?"
    return f"{os.cpu_count()} ({usable} usable by this process)"


def _memory() -> str:
    names = os.sysconf_names
    if "SC_PHYS_PAGES" not in names:
        return "unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"


def _gpus() -> str:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return f"none (torch {torch.__version__})"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
