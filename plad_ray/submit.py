"""``plad submit``: an experiment as a Ray job, named by what it is, so that submitting it twice is attaching to it."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml

from plad_ray.artifacts import fingerprint
from plad_ray.config import Experiment, load
from plad_ray.errors import PladError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

#: what no job needs and what makes an upload fail (size limit) or slow.
EXCLUDES = [".git/", ".venv/", "runs/", ".*_cache/", "__pycache__/", "*.egg-info/", "dist/", "build/"]


def submit(
    file: Path, overrides: tuple[str, ...], address: str, runtime_env: Path | None = None, wait: bool = True
) -> int:
    """Submit or attach; follow the logs if ``wait``. Returns the exit code: 0 success, 1 failed or stopped.

    A job of the same experiment that runs is attached to; one that ended is submitted again as a new attempt, which
    resumes from the store. Raises PladError when no cluster answers.
    """
    exp = load(file, overrides)
    folder = Path.cwd()
    if not file.resolve().is_relative_to(folder):
        raise PladError(
            f"{file}: lies outside {folder}, and that is all a job gets to see; submit from a folder above it"
        )
    environment = _environment(folder, runtime_env)
    client = _client(address)
    running, attempt = _attempts(client, submission_id(exp))
    if running:
        typer.echo(f"job {running} runs already; attaching")
        return _follow(client, running) if wait else 0
    entrypoint = shlex.join(
        ["python", "-m", "plad_ray", "run", file.resolve().relative_to(folder).as_posix(), *overrides]
    )
    job = client.submit_job(
        entrypoint=entrypoint,
        submission_id=attempt,
        runtime_env=environment,
        metadata={"experiment": exp.name},
        entrypoint_num_cpus=0,
    )
    typer.echo(f"submitted job {job}: {entrypoint}")
    return _follow(client, job) if wait else 0


def submission_id(exp: Experiment) -> str:
    """``plad-<name>-<digest of everything but runtime>``: equal experiments have equal ids."""
    return f"plad-{exp.name}-{fingerprint(exp.model_dump(mode='json', exclude={'runtime'}))[:12]}"


def _environment(folder: Path, file: Path | None) -> dict[str, Any]:
    """The working folder without what no job needs, and over that the YAML ``file``."""
    environment: dict[str, Any] = {
        "working_dir": str(folder),
        "excludes": EXCLUDES,
        "env_vars": {k: os.environ[k] for k in ("HF_HUB_OFFLINE", "RAY_AUTH_MODE") if k in os.environ},
    }
    if file is not None:
        try:
            given = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise PladError(f"--runtime-env {file}: not a readable YAML file ({error})") from None
        environment |= given | {"env_vars": {**environment["env_vars"], **given.get("env_vars", {})}}
        if environment["working_dir"] == ".":
            environment["working_dir"] = str(folder)
    return environment


def _client(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PladError(
            f"--address {address}: no Ray dashboard answers ({str(error).splitlines()[0]}). Give the address that `ray "
            "start --head` printed, e.g. http://127.0.0.1:8265; a cluster with token authentication needs "
            "RAY_AUTH_MODE=token and its token here"
        ) from None


def _attempts(client: JobSubmissionClient, name: str) -> tuple[str | None, str]:
    """The attempt at ``name`` that has not ended, if any, and the id of the next one."""
    known = {d.submission_id: d.status for d in client.list_jobs() if d.submission_id}
    attempt, number = name, 1
    while attempt in known:
        if not known[attempt].is_terminal():
            return attempt, attempt
        number += 1
        attempt = f"{name}-{number}"
    return None, attempt


def _follow(client: JobSubmissionClient, job: str) -> int:
    """Print the job's log until it ends."""

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            sys.stdout.write(lines)
            sys.stdout.flush()

    asyncio.run(tail())
    status = client.get_job_status(job)
    while not status.is_terminal():  # the log may end a moment before the job does
        time.sleep(0.5)
        status = client.get_job_status(job)
    typer.echo(f"job {job}: {status.value}")
    return 0 if status.value == "SUCCEEDED" else 1
