"""A Ray cluster of several raylets on this machine, whose processes are found by what they do, and killed."""

from __future__ import annotations

import logging
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

#: Ray's own processes, which outlive what used them and hold no CPU
SYSTEM = (
    "IDLE",
    "DashboardAgent",
    "RuntimeEnvAgent",
    "ActorLocationTracker",
    "JobSupervisor",
    "_AutoscalingCoordinatorActor",
    "_StatsActor",
    "_TelemetryAgent",
)
#: seconds that Ray has to give back what a finished run held
SETTLE = 60.0


class Machines:
    """A head that runs no work, where drivers connect, and ``count`` raylets of ``cpus`` each."""

    def __init__(self, count: int = 2, cpus: int = 3):
        from ray.cluster_utils import Cluster

        self.cpus, self.count = cpus, count
        self.cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.mend()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def mend(self) -> None:
        """As many raylets as there were in the beginning."""
        for _ in range(self.count - len(self.cluster.worker_nodes)):
            self.cluster.add_node(wait=False, num_cpus=self.cpus)
        self.cluster.wait_for_nodes(timeout=120)

    def processes(self, pattern: str) -> list[psutil.Process]:
        """Ray workers on all nodes in whose title (``ray::…``) ``pattern`` is found, by process id."""
        found = []
        for raylet in self._raylets():
            with suppress(psutil.NoSuchProcess):
                found += [p for p in raylet.children(recursive=True) if re.search(pattern, work_of(p))]
        return sorted(found, key=lambda process: process.pid)

    def kill_machine_of(self, process: psutil.Process) -> None:
        """The raylet that ``process`` is a worker of, and everything of it, at once."""
        for node in list(self.cluster.worker_nodes):
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            family = [raylet, *raylet.children(recursive=True)]
            if process in family:
                for member in family:
                    with suppress(psutil.NoSuchProcess):
                        member.send_signal(signal.SIGKILL)
                self.cluster.remove_node(node, allow_graceful=False)
                return
        raise LookupError(f"process {process.pid} belongs to no raylet")

    def held(self) -> list[str]:
        """What a run that is over still holds, once Ray has had its time: processes, CPUs, placement groups."""
        deadline = time.time() + SETTLE
        while (held := self._held()) and time.time() < deadline:
            time.sleep(0.5)
        return held

    def _held(self) -> list[str]:
        import ray
        from ray.util import placement_group_table

        busy = [w for p in self.processes("ray::") if not (w := work_of(p)).removeprefix("ray::").startswith(SYSTEM)]
        free, there = (r.get("CPU", 0.0) for r in (ray.available_resources(), ray.cluster_resources()))
        groups = [g["placement_group_id"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
        return [*busy, *([f"{there - free:g} CPUs"] if free < there else []), *(f"placement group {g}" for g in groups)]

    def _raylets(self) -> list[psutil.Process]:
        found = []
        for node in self.cluster.worker_nodes:
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(node.all_processes["raylet"][0].process.pid))
        return found


@contextmanager
def machines() -> Iterator[Machines]:
    """The cluster, with this process as a driver on its head."""
    import ray

    from plad_ray.cluster import connect
    from plad_ray.config import Runtime

    logging.getLogger("ray").setLevel(logging.ERROR)
    running = Machines()
    try:
        connect(Runtime(ray_address=running.address))
        yield running
    finally:
        ray.shutdown()
        running.cluster.shutdown()


def work_of(process: psutil.Process) -> str:
    """A worker's title, which says what it is doing; empty for a process that is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
