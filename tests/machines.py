"""A Ray cluster of several machines on this one: a head, where drivers run and no work, and raylets that can be killed.

``apart``, they share no disk: each has a mount namespace of its own, in which another folder lies at ``SCRATCH`` (its
temporary files, its copies of weights, Ray's own files) and nothing where all these folders are kept. What one machine
writes is not there on another.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import free_port

ROOT = Path(__file__).parents[1]
SCRATCH = Path("/tmp/plad-machine")
#: variables of this process that a machine's do not have
NOT_OURS = ("RAY_ADDRESS", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
#: times that a machine may try to come up
STARTS = 4
#: seconds of such a try
START_LIMIT = 120.0
#: a machine's own view of the disk, then the command
ENTER = 'mount --bind "$1" "$2" && mount -t tmpfs none "$3" && shift 3 && exec "$@"'
UNSHARE = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.geteuid() else [])]
#: of everybody on the cluster; a lost machine is noticed in seconds
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0" * 32,
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "false",
    "RAY_worker_niceness": "0",  # by default, whatever else runs here goes first
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_gcs_rpc_server_connect_timeout_s": "60",  # a busy machine takes longer than 5 s
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a checkpoint waits for Ray Train to ask, by default every 2 s
}


@dataclass
class Machine:
    """``folder`` is its disk, and has its log."""

    folder: Path
    process: subprocess.Popen[bytes]

    def family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def workers(self, title: str) -> list[psutil.Process]:
        """Ray workers here in whose title (``ray::…``, what they are doing) the pattern ``title`` is found."""
        return [process for process in self.family() if re.search(title, title_of(process))]

    def came_up(self) -> bool:
        """Wait until it is part of the cluster, or has given up: Ray allows 30 s, which a busy machine may exceed."""
        until = time.monotonic() + START_LIMIT
        while "Ray runtime started" not in self.said():
            if self.process.poll() is not None or time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def kill(self) -> None:
        """All of it at once, as when the power goes."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait(10)


class Machines:
    """``workers`` of ``cpus`` logical CPUs each."""

    head: Machine
    address: str
    dashboard: str

    def __init__(self, folder: Path, cpus: int, apart: bool):
        self.folder, self.cpus, self.apart = folder, cpus, apart
        self.started: list[Machine] = []
        self.workers: list[Machine] = []

    def start(self, count: int) -> None:
        """The head and ``count`` workers."""
        self.head = self._up(self._start_head)
        self.add(count)

    def add(self, count: int) -> None:
        """One after another: side by side they might take too long."""
        for _ in range(count):
            assert self.head.process.poll() is None, f"the head is gone: {self.head.said()[-2000:]}"
            self.workers.append(self._up(self._start_worker))

    def kill(self, machine: Machine) -> None:
        self.workers.remove(machine)
        machine.kill()

    def give_notice(self, machine: Machine, seconds: int) -> None:
        """That it will be taken away in so many seconds, as clouds tell of spot nodes."""
        named = [re.search(r"--node_id=(\w+)", title_of(process)) for process in machine.family()]
        node = next(found[1] for found in named if found)
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.address]
        command += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command += ["--deadline-remaining-seconds", f"{seconds}"]
        subprocess.run(command, env=environment(self.head.folder), check=True, stdout=subprocess.DEVNULL)

    def _up(self, start: Callable[[str], Machine]) -> Machine:
        for _ in range(STARTS):
            machine = start(f"machine-{len(self.started)}")
            self.started.append(machine)
            if machine.came_up():
                return machine
            machine.kill()
        raise AssertionError(f"no machine came up in {STARTS} tries: {machine.said()[-2000:]}")

    def _start_head(self, name: str) -> Machine:
        port, dashboard = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        arguments = ["--head", "--num-cpus=0", f"--temp-dir={self._scratch(name)}/ray", f"--port={port}"]
        return self._start(name, *arguments, f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}")

    def _start_worker(self, name: str) -> Machine:
        place = f"--node-ip-address=127.0.1.{len(self.started)}"
        return self._start(name, f"--address={self.address}", place, f"--num-cpus={self.cpus}")

    def _scratch(self, name: str) -> Path:
        return SCRATCH if self.apart else self.folder / name

    def _start(self, name: str, *arguments: str) -> Machine:
        folder = self.folder / name
        (folder / "tmp").mkdir(parents=True)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--object-store-memory=200000000"]
        command += ["--include-log-monitor=false"]  # nobody reads the workers' output, and reading it costs CPU
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"]
        command += arguments
        variables = {**environment(self._scratch(name)), "RAY_ADDRESS": self.address}  # there may be other Rays here
        if self.apart:  # and the code travels with the job
            SCRATCH.mkdir(exist_ok=True)
            command = [*UNSHARE, "sh", "-ec", ENTER, "sh", str(folder), str(SCRATCH), str(self.folder), *command]
        else:
            variables["PYTHONPATH"] = str(ROOT)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=variables, cwd="/", stdout=log, stderr=subprocess.STDOUT)
        return Machine(folder, process)


@contextmanager
def machines(folder: Path, count: int, cpus: int, apart: bool = False) -> Iterator[Machines]:
    running = Machines(folder, cpus, apart)
    try:
        running.start(count)
        yield running
    finally:
        for machine in reversed(running.started):
            machine.kill()


def can_be_apart() -> bool:
    """Whether mount namespaces may be made here."""
    command = [*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"]
    return sys.platform == "linux" and subprocess.run(command, capture_output=True).returncode == 0


def title_of(process: psutil.Process) -> str:
    """A worker's title, which says what it is doing; empty for a process that is gone."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def environment(scratch: Path) -> dict[str, str]:
    """Of a process on the machine whose disk is ``scratch``."""
    places = {"TMPDIR": "tmp", "PLAD_COPIES": "copies", "HF_HOME": "hub"}
    return {
        **{name: value for name, value in os.environ.items() if name not in NOT_OURS},
        **ENVIRONMENT,
        **{name: str(scratch / place) for name, place in places.items()},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
