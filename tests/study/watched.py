"""``python -m tests.study.watched study sweep …``: the plad command, and on its last line how many placement groups its
trials had for their workers, and the most seconds for which one outlived its trial (Tune's actor ImplicitFunc)."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
from ray.util.state import list_actors

from plad_ray.cli import main
from plad_ray.study.trials import DRIVER_CPUS

EVERY = 0.5
of_trials: set[str] = set()
longest = 0.0


def watch() -> None:
    global longest
    left_since: float | None = None
    while True:
        time.sleep(EVERY)
        if not ray.is_initialized():
            continue
        address = ray.get_runtime_context().gcs_address
        running = list_actors(address, filters=[("class_name", "=", "ImplicitFunc"), ("state", "=", "ALIVE")])
        table = ray.util.placement_group_table()
        groups = {key for key, group in table.items() if group["state"] != "REMOVED" and has_workers(group)}
        of_trials.update(groups if running else ())
        if len(of_trials & groups) <= len(running):
            left_since = None
            continue
        left_since = left_since or time.monotonic()
        longest = max(longest, time.monotonic() - left_since)


def has_workers(group: dict[str, Any]) -> bool:
    """Tune gives a trial's own actor a group, too."""
    return any(bundle.get("CPU", 0) > DRIVER_CPUS for bundle in group["bundles"].values())


if __name__ == "__main__":
    threading.Thread(target=watch, daemon=True).start()
    try:
        main()
    finally:
        print(f"\n{len(of_trials)} {longest:.1f}", flush=True)
