"""One writer an artifact: a lease of 60 s renewed every 10 s, so a killed driver blocks nobody."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any

from plad_ray.artifacts import Artifact
from plad_ray.errors import PladError
from plad_ray.slot import open_slot

SECONDS = 60.0
RENEW_EVERY = 10.0


class Lease:
    """Context manager; waits (and says for whom) while another live writer holds the artifact."""

    def __init__(self, artifact: Artifact, say: Callable[[str], None] = print, seconds: float = SECONDS):
        self.artifact, self.say, self.seconds = artifact, say, seconds
        self.owner = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self.name = artifact.file("lease.json")
        self.slot = open_slot(artifact.store, self.name)
        self.lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name=f"lease-{artifact.name}")

    def __enter__(self) -> Lease:
        told = False
        while not self._acquire():
            holder = self._holder() or {}
            if not told:
                self.say(
                    f"{self.artifact.name}: waiting for {holder.get('host', 'another host')} pid {holder.get('pid', '?')}, "
                    f"which is writing it (a dead writer's lease ends {self.seconds:.0f} s after its last sign of life)"
                )
                told = True
            time.sleep(min(1.0, self.seconds / 10))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if not self.lost and self._mine():
            self.artifact.store.delete(self.name)

    def check(self) -> None:
        """Raise when the lease was lost: whoever took it over is the writer now."""
        if self.lost or not self._mine():
            holder = self._holder() or {}
            raise PladError(
                f"{self.artifact.name}: the lease was lost to {holder.get('host', 'another host')} pid "
                f"{holder.get('pid', '?')}; this run stops before it commits anything"
            )

    def _acquire(self) -> bool:
        found = self.slot.read()
        if found is not None and not self._dead(found[0]):
            return False
        return self.slot.swap(self._content(), None if found is None else found[1])

    def _dead(self, holder: dict[str, Any]) -> bool:
        if time.time() > holder["expires"]:
            return True
        return holder["host"] == socket.gethostname() and not _alive(holder["pid"])

    def _renew(self) -> None:
        while not self._stop.wait(min(RENEW_EVERY, self.seconds / 6)):
            try:
                found = self.slot.read()
                if found is None or found[0]["id"] != self.owner["id"]:
                    self.lost = True
                    return
                self.slot.swap(self._content(), found[1])  # refused: taken over since, which the next turn sees
            except OSError as error:
                logging.getLogger("plad_ray").warning("%s: the lease was not renewed: %s", self.artifact.name, error)

    def _content(self) -> dict[str, Any]:
        return {**self.owner, "expires": time.time() + self.seconds}

    def _holder(self) -> dict[str, Any] | None:
        found = self.slot.read()
        return None if found is None else found[0]

    def _mine(self) -> bool:
        holder = self._holder()
        return holder is not None and holder["id"] == self.owner["id"]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
