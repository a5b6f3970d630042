"""A Ray cluster of machines that share no disk, on this one: each raylet has an address and a mount namespace of its own.

What lies at ``SCRATCH`` is another folder in each of them (its temporary files, its copies of weights, Ray's own files),
and ``hidden``, where all these folders are kept, is empty to all: what one machine writes to its disk is not there on
another.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import free_port, wait_for

SCRATCH = Path("/tmp/plad-machine")
#: a machine's own view of the disk, then the command
ENTER = 'mount --bind "$1" "$2" && mount -t tmpfs none "$3" && shift 3 && exec "$@"'
UNSHARE = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.geteuid() else [])]


@dataclass
class Machine:
    folder: Path
    process: subprocess.Popen[bytes]

    def working_on(self, title: str) -> bool:
        """Whether a Ray worker whose title holds ``title`` runs here."""
        return any(title in _title(p) for p in psutil.Process(self.process.pid).children(recursive=True))

    def kill(self) -> None:
        """All of it at once, as when the power goes."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            for process in (root, *root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@dataclass
class Machines:
    """``head`` runs drivers alone."""

    dashboard: str
    environment: dict[str, str]
    head: Machine
    workers: list[Machine]


def can_separate() -> bool:
    """Whether mount namespaces may be made here."""
    command = [*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"]
    return sys.platform == "linux" and subprocess.run(command, capture_output=True).returncode == 0


@contextmanager
def machines(hidden: Path, count: int, cpus: int) -> Iterator[Machines]:
    """A head and ``count`` workers of ``cpus`` logical CPUs; ``environment`` is for whoever submits to ``dashboard``."""
    SCRATCH.mkdir(exist_ok=True)
    port, dashboard = free_port(), free_port()
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=0", f"--temp-dir={SCRATCH}/ray"]
    head.append(f"--ray-client-server-port={free_port()}")
    started = [_start(hidden, "head", head)]
    try:
        wait_for(dashboard)
        for number in range(count):
            worker = [f"--address=127.0.0.1:{port}", f"--node-ip-address=127.0.1.{number + 1}", f"--num-cpus={cpus}"]
            started.append(_start(hidden, f"worker-{number}", worker))
        yield Machines(f"http://127.0.0.1:{dashboard}", _environment(hidden / "head"), started[0], started[1:])
    finally:
        for machine in reversed(started):
            machine.kill()


def _start(hidden: Path, name: str, arguments: list[str]) -> Machine:
    folder = hidden / name
    (folder / "tmp").mkdir(parents=True)
    (folder / "token").write_text("0" * 32)
    ray = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        "--object-store-memory=300000000",
        *arguments,
    ]
    command = [*UNSHARE, "sh", "-ec", ENTER, "sh", str(folder), str(SCRATCH), str(hidden), *ray]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=_environment(SCRATCH), cwd="/", stdout=log, stderr=subprocess.STDOUT)
    return Machine(folder, process)


def _environment(folder: Path) -> dict[str, str]:
    """Of a machine whose scratch folder is ``folder``."""
    own = {"TMPDIR": "tmp", "PLAD_COPIES": "copies", "HF_HOME": "hub", "RAY_AUTH_TOKEN_PATH": "token"}
    environment = {
        **os.environ,
        **{name: str(folder / place) for name, place in own.items()},
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for name in ("RAY_ADDRESS", "PYTHONPATH"):  # code travels with the job
        environment.pop(name, None)
    return environment


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
