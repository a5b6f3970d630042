"""Drivers, each a process that can be killed, forked from one that has imported what they need and not used it yet."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from plad_ray.stages import Job, Stage, run_stage

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["plad_ray.cli", "plad_ray.running", "plad_ray.generate.run", "plad_ray.train.launch"]
CONTEXT.set_forkserver_preload([*PRELOADED, "ray.data", "ray.train.torch"])


class Driver:
    """``function`` is called with ``arguments``, in the environment that the first driver was started in."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def start(self, log: Path) -> BaseProcess:
        process = CONTEXT.Process(target=_into, args=(log, self.function, self.arguments), daemon=True)
        process.start()
        return process


def stage(function: Any, job: Job) -> None:
    """One stage by itself."""
    from plad_ray.cluster import connect
    from plad_ray.config import Runtime

    connect(Runtime())
    run_stage(Stage(job.stage, function, job.config), job)


def plad(*words: str) -> None:
    """A command of ``plad``."""
    from plad_ray.cli import main

    sys.argv = ["plad", *words]
    main()


def _into(log: Path, function: Any, arguments: tuple[Any, ...]) -> None:
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    faulthandler.register(signal.SIGUSR1)  # who waits too long for it asks where it is
    function(*arguments)
