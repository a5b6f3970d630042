"""The Ray cluster a run works on: one that is there already, one that is named, or a local one of this process."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from plad_ray.config import Runtime
from plad_ray.errors import PladError
from plad_ray.placement import Node

#: bytes of the object store of a local Ray; blocks of rows are small.
LOCAL_OBJECT_STORE = 1_000_000_000
#: starts of a local Ray before giving up: its node allows its own agents 15 s, which a busy machine can exceed
LOCAL_STARTS = 3
_lock = threading.Lock()


def connect(runtime: Runtime, dashboard: bool = False) -> None:
    """Connect to Ray once a process; a Ray that is connected already is used as it is. ``dashboard``: a local Ray has one,
    and with it the State API.

    ``runtime.ray_address``, else RAY_ADDRESS, else a local Ray with ``runtime.local_cpus`` logical CPUs (null: the cores,
    at least 4, since most actors here wait more than they compute). Raises PladError when the named cluster is not there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # zero-GPU tasks keep the device list as it is
    import ray

    with _lock:  # stages run in threads
        _quiet()
        if not ray.is_initialized():
            _start(runtime, dashboard)


def named(runtime: Runtime) -> str | None:
    """The address of the cluster that a run is to use; None for a local Ray of its own."""
    address = runtime.ray_address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


def _start(runtime: Runtime, dashboard: bool) -> None:
    import ray

    address = named(runtime)
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if runtime.logs == "json":
        common["logging_config"] = ray.LoggingConfig(encoding="JSON", log_level="WARNING")
    if address is None:
        # what Ray's C++ side prints over the progress lines, it also raises; set the variable to see it in Ray's logs
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        local = {"num_cpus": runtime.local_cpus or max(4, os.cpu_count() or 1), "include_dashboard": dashboard}
        _start_local(**local, object_store_memory=LOCAL_OBJECT_STORE, **common)
        return
    try:
        ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PladError(
            f"no Ray cluster answers at {address} ({str(error).splitlines()[0]}); start one, or leave "
            "runtime.ray_address and RAY_ADDRESS empty for a local Ray. A cluster with token authentication needs "
            "RAY_AUTH_MODE=token and its token here"
        ) from error


def _start_local(**arguments: Any) -> None:
    import ray

    for attempt in range(1, LOCAL_STARTS + 1):
        try:
            ray.init(address="local", **arguments)
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if attempt == LOCAL_STARTS:
                raise PladError(
                    f"the local Ray did not start in {LOCAL_STARTS} attempts of 30 s: is this machine overloaded, or its "
                    "temporary folder full?"
                ) from error
            time.sleep(2)


def nodes() -> list[Node]:
    """The nodes of the connected cluster."""
    import ray

    return [_node(n["NodeManagerAddress"], n["Resources"]) for n in ray.nodes() if n["Alive"]]


def largest() -> list[Node]:
    """The nodes that the cluster may have: what its autoscaler may add counts as there."""
    from ray._private.state import state  # the autoscaler's configuration has no public reading

    config = state.get_cluster_config()
    groups = [] if config is None else config.node_group_configs
    found = [_node(g.name, dict(g.resources)) for g in groups for _ in range(g.max_count)]
    return found or nodes()


def _node(group: str, resources: dict[str, float]) -> Node:
    kind = next((name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")), None)
    return Node(group, resources.get("CPU", 0.0), resources.get("GPU", 0.0), kind)


def capacity() -> tuple[float, float]:
    """(CPUs, GPUs) for the stage scheduler: of the cluster, and of a local Ray the physical cores, not the logical CPUs."""
    import ray

    resources = ray.cluster_resources()
    nodes = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    local = len(nodes) == 1 and ray.util.get_node_ip_address() in nodes
    cpus = min(float(os.cpu_count() or 1), resources.get("CPU", 0.0)) if local else resources.get("CPU", 0.0)
    return cpus, resources.get("GPU", 0.0)


def _quiet() -> None:
    """No progress bars and no info lines of Ray Data: the run prints its own progress."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    # The V2 Parquet reader starts 16 actors to read footers: on two cores that alone took 50 s.
    context.use_datasource_v2 = False
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    for name in ("ray.train", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it logs as an error, it raises too
