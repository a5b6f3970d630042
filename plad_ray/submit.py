"""``plad submit``: an experiment or study as a Ray job, named by what it is, so submitting it twice is attaching to it."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml

from plad_ray import jobs
from plad_ray.env import PLAIN, SECRET
from plad_ray.errors import PladError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

#: what Ray answers while no node is ready to start a job, and how long that may last
NO_AGENT = "No available agent"
AGENT_WAIT_S = 60
#: what it answers where somebody else was first
TAKEN = "already exists"
#: what no job needs and what makes an upload fail (size limit) or slow; and where people keep keys.
EXCLUDES = [".git/", ".venv/", "runs/", ".*_cache/", "__pycache__/", "*.egg-info/", "dist/", "build/", ".env*", "*.pem"]


def submit(
    file: Path,
    overrides: tuple[str, ...],
    address: str,
    runtime_env: Path | None = None,
    wait: bool = True,
    study: str | None = None,
) -> int:
    """Submit or attach; follow the logs if ``wait``. Returns the exit code, as ``jobs.follow`` does.

    ``study``: which the file is of, if any. A job of the same experiment or study that runs is attached to; one that ended
    is submitted again as a new attempt, which resumes from the store. Raises PladError when no cluster answers.
    """
    work = jobs.work(file, overrides, study)
    folder = Path.cwd()
    for read in work.files:
        if not read.resolve().is_relative_to(folder):
            raise PladError(
                f"{read}: lies outside {folder}, and that is all a job gets to see; submit from a folder above it"
            )
    environment = _environment(folder, runtime_env)
    client = jobs.connect(address)
    before = jobs.attempts(client, work.id)
    if before and not before[-1].status.is_terminal():
        job = jobs.attempt(work.id, len(before))
        typer.echo(f"job {job} runs already; attaching")
        return jobs.follow(client, job) if wait else 0
    entrypoint = shlex.join(
        ["python", "-m", "plad_ray", *work.command, file.resolve().relative_to(folder).as_posix(), *overrides]
    )
    job = _submitted(
        client,
        address,
        entrypoint=entrypoint,
        submission_id=jobs.attempt(work.id, len(before) + 1),
        runtime_env=environment,
        metadata=work.metadata,
        entrypoint_num_cpus=0,
    )
    return jobs.follow(client, job) if wait else 0


def _submitted(client: JobSubmissionClient, address: str, **job: Any) -> str:
    """The id of the submitted ``job``. A cluster that has only just come up has no agent yet that would start it."""
    patience, name = time.monotonic() + AGENT_WAIT_S, str(job["submission_id"])
    while True:
        try:
            client.submit_job(**job)
            typer.echo(f"submitted job {name}: {job['entrypoint']}")
            return name
        except RuntimeError as error:
            if TAKEN in str(error):
                typer.echo(f"job {name} was submitted a moment ago; attaching")
                return name
            if NO_AGENT not in str(error):
                raise
            if time.monotonic() > patience:
                raise PladError(
                    f"--address {address}: for {AGENT_WAIT_S} s no node of the cluster could start a job; look at `ray "
                    "status` and at the dashboard agent's log there"
                ) from error
        time.sleep(1)


def _environment(folder: Path, file: Path | None) -> dict[str, Any]:
    """The working folder without what no job needs, and over that the YAML ``file``, which may leave out more."""
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
        variables = given.get("env_vars", {})
        if secret := [name for name in variables if SECRET.search(name) and name not in PLAIN]:
            raise PladError(
                f"--runtime-env {file}: env_vars.{secret[0]}: whoever sees the dashboard sees a job's variables; set it in "
                "the environment of the cluster's nodes instead"
            )
        environment |= given | {
            "env_vars": {**environment["env_vars"], **variables},
            "excludes": [*EXCLUDES, *given.get("excludes", [])],
        }
        if environment["working_dir"] == ".":
            environment["working_dir"] = str(folder)
    return environment
