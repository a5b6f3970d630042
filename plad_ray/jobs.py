"""``plad status``, ``logs`` and ``stop``: what became of experiments and studies that were submitted as Ray jobs."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from plad_ray.artifacts import fingerprint
from plad_ray.config import Experiment, StudySettings, load, load_study
from plad_ray.config.study import study_files
from plad_ray.errors import PladError

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient
    from rich.table import Table

PREFIX = "plad-"
DETACHED = 130
#: a stopped job has so long to end
STOP_SECONDS = 60.0
#: they say on every try which files were packed
TALKATIVE = ("ray._private.runtime_env.packaging", "ray.dashboard.modules.dashboard_sdk")


def connect(address: str) -> JobSubmissionClient:
    """Raises PladError when no cluster answers."""
    from ray.job_submission import JobSubmissionClient

    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PladError(
            f"--address {address}: no Ray dashboard answers ({str(error).splitlines()[0]}). Give the address that `ray "
            "start --head` printed, e.g. http://127.0.0.1:8265; a cluster with token authentication needs "
            "RAY_AUTH_MODE=token and its token here"
        ) from None


@dataclass(frozen=True)
class Work:
    """What a job does: an experiment, or one of its studies. ``id``: the job's first attempt; equal work has equal ids.
    ``command``: plad's, before the file. ``files``: those that it reads its work from. ``metadata``: the job's."""

    id: str
    command: tuple[str, ...]
    files: tuple[Path, ...]
    metadata: dict[str, str]


def work(file: Path, overrides: tuple[str, ...], study: str | None = None) -> Work:
    """The experiment in ``file``, or the study of that name. Raises PladError as loading them does."""
    if study is None:
        exp = load(file, overrides)
        return Work(submission_id(exp), ("run",), (file,), {"experiment": exp.name})
    from plad_ray.study import find

    exp, settings = load_study(study, find(study).settings, file, overrides)
    metadata = {"experiment": exp.name, "study": study}
    return Work(study_id(exp, study, settings), ("study", study), study_files(file), metadata)


def submission_id(exp: Experiment) -> str:
    """``plad-<name>-<digest of everything but runtime>``: equal experiments have equal ids."""
    return f"{PREFIX}{exp.name}-{fingerprint(_identity(exp))[:12]}"


def study_id(exp: Experiment, study: str, settings: StudySettings) -> str:
    """``plad-<name>-study-<study>-<digest>``, of the experiment and the study's settings."""
    identity = {"study": study, "settings": settings.model_dump(mode="json"), "experiment": _identity(exp)}
    return f"{PREFIX}{exp.name}-study-{study}-{fingerprint(identity)[:12]}"


def _identity(exp: Experiment) -> dict[str, Any]:
    return exp.model_dump(mode="json", exclude={"runtime"})


def attempts(client: JobSubmissionClient, name: str) -> list[JobDetails]:
    """The jobs ``name``, ``name-2``, ``name-3`` …, oldest first."""
    known = {d.submission_id: d for d in client.list_jobs()}
    found: list[JobDetails] = []
    while (job := known.get(attempt(name, len(found) + 1))) is not None:
        found.append(job)
    return found


def attempt(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def show_status(what: str | None, overrides: tuple[str, ...], address: str, study: str | None = None) -> None:
    """All jobs of the cluster that ``plad submit`` started, or one of them with its stages."""
    from plad_ray.progress import read_log
    from plad_ray.running import make_console

    _check_study(what, study)
    client, console = connect(address), make_console()
    if what is None:
        jobs = [d for d in client.list_jobs() if (d.submission_id or "").startswith(PREFIX)]
        console.print(_table(sorted(jobs, key=lambda d: d.start_time or 0)) if jobs else "no jobs")
        return
    job = _find(client, what, overrides, study)
    console.print(_table([job]))
    for stage, (mark, said) in read_log(client.get_job_logs(_id(job))).items():
        console.print(f"{mark} {stage}  {said}", markup=False)
    if job.status.value == "FAILED" and job.message:
        console.print(job.message.strip().splitlines()[-1], markup=False, style="red")


def show_logs(what: str, overrides: tuple[str, ...], address: str, wait: bool, study: str | None = None) -> int:
    """Print a job's log, and with ``wait`` follow it to its end. Returns the exit code as ``follow``."""
    client = connect(address)
    job = _id(_find(client, what, overrides, study))
    if wait:
        return follow(client, job)
    sys.stdout.write(client.get_job_logs(job))
    return 0


def stop(what: str, overrides: tuple[str, ...], address: str, study: str | None = None) -> None:
    """End a job. Raises PladError when it does not end."""
    client = connect(address)
    end(client, _id(_find(client, what, overrides, study)))


def end(client: JobSubmissionClient, job: str) -> None:
    client.stop_job(job)
    deadline = time.time() + STOP_SECONDS
    while not (status := client.get_job_status(job)).is_terminal():
        if time.time() > deadline:
            raise PladError(
                f"job {job} has not ended {STOP_SECONDS:.0f} s after it was asked to; see `plad logs {job}`"
            )
        time.sleep(0.5)
    typer.echo(f"job {job}: {status.value}; what is finished is kept, and submitting it again goes on from here")


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print the job's log until it ends: 0 success, 1 failed or stopped. Ctrl-C asks; 130 when the job goes on alone."""
    try:
        asyncio.run(_tail(client, job))
        while not (status := client.get_job_status(job)).is_terminal():  # the log may end a moment before the job does
            time.sleep(0.5)
    except KeyboardInterrupt:
        return _interrupted(client, job)
    typer.echo(f"job {job}: {status.value}")
    return 0 if status.value == "SUCCEEDED" else 1


async def _tail(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        sys.stdout.write(lines)
        sys.stdout.flush()


def _interrupted(client: JobSubmissionClient, job: str) -> int:
    """Who follows may want the job to end, or only to stop looking; without a terminal to ask at, the latter."""
    if sys.stdin.isatty():
        try:
            if typer.confirm(f"\nstop job {job}? (no: it goes on without you)", default=False):
                end(client, job)
                return 1
        except (typer.Abort, KeyboardInterrupt):
            typer.echo()
    typer.echo(f"job {job} goes on; `plad logs {job}` follows it again, `plad stop {job}` ends it")
    return DETACHED


def _find(client: JobSubmissionClient, what: str, overrides: tuple[str, ...], study: str | None) -> JobDetails:
    """A job by its id, or the newest of an experiment file or, with ``study``, of a study file."""
    _check_study(what, study)
    if _is_file(what):
        found = attempts(client, work(Path(what), overrides, study).id)
        if not found:
            kind = "experiment" if study is None else f"study {study}"
            raise PladError(
                f"{what}: this {kind} was not submitted to this cluster (overrides count, runtime does not)"
            )
        return found[-1]
    jobs = {d.submission_id: d for d in client.list_jobs()}
    if what not in jobs:
        known = ", ".join(sorted(j for j in jobs if j and j.startswith(PREFIX))) or "none"
        raise PladError(f"no job {what}; give an experiment file or a job's id (here: {known})")
    return jobs[what]


def _is_file(what: str) -> bool:
    return Path(what).suffix in (".yaml", ".yml")


def _check_study(what: str | None, study: str | None) -> None:
    if study is not None and (what is None or not _is_file(what)):
        raise PladError(f"--study {study}: says which study a file is of; give the file that was submitted with it")


def _table(jobs: list[JobDetails]) -> Table:
    from rich.table import Table

    table = Table("job", "experiment", "state", "started", "took", box=None, pad_edge=False)
    styles = {"SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow", "RUNNING": "bold"}
    for job in jobs:
        state, started = job.status.value, (job.start_time or 0) / 1000
        took = ((job.end_time / 1000) if job.end_time else time.time()) - started
        table.add_row(
            _id(job),
            " · ".join(told for key in ("experiment", "study") if (told := (job.metadata or {}).get(key))),
            f"[{styles.get(state, 'dim')}]{state}[/]",
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)) if started else "",
            f"{took:,.0f} s" if started else "",
        )
    return table


def _id(job: JobDetails) -> str:
    assert job.submission_id is not None
    return job.submission_id
