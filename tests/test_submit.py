"""An experiment as a Ray job on a cluster started here, with token authentication as Ray has it by default."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobStatus
from typer.testing import CliRunner

from plad_ray import jobs
from plad_ray.artifacts import Store
from plad_ray.cli import app
from plad_ray.config import load
from plad_ray.errors import PladError
from plad_ray.jobs import submission_id
from plad_ray.pipeline import plan
from plad_ray.submit import EXCLUDES, _environment, _submitted, submit
from tests.conftest import free_port

ROOT = Path(__file__).parents[1]
TINY = [
    "data.sizes={train: 256, distill: 32, dev: 8, test: 16}",
    "teacher.sft.epochs=1",
    "student.sft.epochs=1",
    "compare={}",
    "evaluate.bootstrap=100",
]


def test_the_id_is_of_the_experiment_not_of_its_runtime():
    demo = ROOT / "jobs/demo.yaml"
    assert submission_id(load(demo)) == submission_id(load(demo, ["runtime.train.workers=4"]))
    assert submission_id(load(demo)) != submission_id(load(demo, ["seed=1"]))
    assert submission_id(load(demo)).startswith("plad-demo-")


STUDY = Path("jobs/studies/compare.yaml")


def test_the_id_of_a_study_is_of_its_experiment_and_settings(monkeypatch):
    monkeypatch.chdir(ROOT)

    def of(*overrides: str) -> str:
        return jobs.work(STUDY, overrides, "compare").id

    assert of().startswith("plad-demo-compare-study-compare-")
    assert of() == of("runtime.train.workers=4") == of("study.seeds=[0, 1, 2, 3, 4]")
    others = [of("seed=1"), of("study.seeds=[0]"), of("study.seeds=null", "study.search=null"), of("study.search=null")]
    assert len({of(), *others}) == 5
    length = jobs.work(Path("jobs/demo.yaml"), (), "length").id, jobs.work(Path("jobs/demo.yaml"), (), "compare").id
    assert len({*length, submission_id(load("jobs/demo.yaml"))}) == 3
    assert submission_id(load("jobs/demo.yaml")) == jobs.work(Path("jobs/demo.yaml"), ()).id


class Cluster:
    """A job server that remembers what was submitted to it."""

    def __init__(self):
        self.submitted: list[dict] = []
        self.status = JobStatus.RUNNING

    def submit_job(self, **job):
        self.submitted.append(job)
        return job["submission_id"]

    def list_jobs(self):
        return [
            JobDetails(
                type="SUBMISSION",
                submission_id=j["submission_id"],
                metadata=j["metadata"],
                status=self.status,
                entrypoint="",
            )
            for j in self.submitted
        ]

    def get_job_logs(self, job):
        return "▸ responses · seed 0\n  responses · seed 0: 3/4 rows\n▸ study compare\n"

    def get_job_status(self, job):
        return self.status

    def stop_job(self, job):
        self.status = JobStatus.STOPPED


@pytest.fixture
def server(monkeypatch):
    monkeypatch.chdir(ROOT)
    client = Cluster()
    monkeypatch.setattr("plad_ray.jobs.connect", lambda address: client)
    return client


def test_a_study_is_submitted_attached_to_and_submitted_again(server):
    command = ["submit", "--study", "compare", str(STUDY), "study.seeds=[0, 1]", "--no-wait"]
    for _ in range(2):
        assert CliRunner().invoke(app, command).exit_code == 0
    [job] = server.submitted
    assert shlex.split(job["entrypoint"]) == [
        "python", "-m", "plad_ray", "study", "compare", STUDY.as_posix(), "study.seeds=[0, 1]",
    ]  # fmt: skip
    assert job["metadata"] == {"experiment": "demo-compare", "study": "compare"}
    assert job["submission_id"] == jobs.work(STUDY, ("study.seeds=[0, 1]",), "compare").id
    server.status = JobStatus.FAILED
    assert f"submitted job {job['submission_id']}-2" in CliRunner().invoke(app, command).output


def test_a_submitted_study_is_found_by_its_name_and_file(server):
    plad = CliRunner()
    asked = ["--study", "compare", str(STUDY)]
    plad.invoke(app, ["submit", *asked, "--no-wait"])
    shown = plad.invoke(app, ["status", *asked]).output
    assert "demo-compare · compare" in shown and "▸ responses · seed 0  3/4 rows" in shown
    assert "▸ responses · seed 0" in plad.invoke(app, ["logs", *asked, "--no-wait"]).output
    other = plad.invoke(app, ["status", *asked, "study.seeds=[7]"])
    assert other.exit_code == 2 and "this study compare was not submitted to this cluster" in other.output
    for what in ([], [server.submitted[0]["submission_id"]]):
        refused = plad.invoke(app, ["status", "--study", "compare", *what])
        assert refused.exit_code == 2 and "says which study a file is of" in refused.output
    assert "STOPPED" in plad.invoke(app, ["stop", *asked]).output


def test_what_a_study_reads_must_travel_and_a_study_file_is_no_experiment(server, monkeypatch):
    refused = CliRunner().invoke(app, ["submit", str(STUDY)])
    assert (
        refused.exit_code == 2 and "submit it by `plad submit --study NAME jobs/studies/compare.yaml`" in refused.output
    )
    refused = CliRunner().invoke(app, ["submit", "--study", "compair", str(STUDY)])
    assert refused.exit_code == 2 and "did you mean compare?" in refused.output
    monkeypatch.chdir(ROOT / "jobs/studies")
    refused = CliRunner().invoke(app, ["submit", "--study", "compare", "compare.yaml"])
    assert refused.exit_code == 2 and "../demo.yaml: lies outside" in refused.output and not server.submitted


def test_what_travels_with_a_job(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    file = tmp_path / "env.yaml"
    file.write_text("working_dir: .\nexcludes: [big/]\nenv_vars: {A: b}\n")
    environment = _environment(tmp_path, file)
    assert environment["working_dir"] == str(tmp_path) and environment["excludes"] == [*EXCLUDES, "big/"]
    assert environment["env_vars"]["A"] == "b" and environment["env_vars"]["RAY_AUTH_MODE"] == "token"
    assert "HF_TOKEN" not in environment["env_vars"]
    file.write_text("env_vars: {OPENAI_API_KEY: sk-abc}\n")
    with pytest.raises(PladError, match=r"env_vars\.OPENAI_API_KEY: whoever sees the dashboard") as refused:
        _environment(tmp_path, file)
    assert "sk-abc" not in str(refused.value)
    assert {".git/", ".venv/", "runs/", ".env*"} <= set(_environment(tmp_path, None)["excludes"]) == set(EXCLUDES)


def test_bad_addresses_and_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(PladError, match="no Ray dashboard answers"):
        submit(Path("jobs/demo.yaml"), (), f"http://127.0.0.1:{free_port()}")
    outside = tmp_path / "exp.yaml"
    outside.write_text((ROOT / "jobs/demo.yaml").read_text())
    with pytest.raises(PladError, match="lies outside"):
        submit(outside, (), "http://127.0.0.1:8265")
    with pytest.raises(PladError, match="not a readable YAML"):
        submit(Path("jobs/demo.yaml"), (), "http://127.0.0.1:8265", tmp_path / "absent.yaml")


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.train
def test_a_submitted_demo_runs_and_a_second_submission_reuses_it(cluster, tmp_path):
    address, environment = cluster
    overrides = [*TINY, f"runtime.store={tmp_path / 'runs'}"]
    command = [sys.executable, "-m", "plad_ray", "submit", "jobs/demo.yaml", *overrides, "--address", address]
    first = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "submitted job plad-demo-" in first.stdout and "SUCCEEDED" in first.stdout
    exp = load(ROOT / "jobs/demo.yaml", overrides)
    assert plan(exp).report.artifact(Store(exp.runtime.store)).finished
    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert second.returncode == 0 and "all stages reused" in second.stdout, second.stdout + second.stderr


@pytest.mark.slow
def test_a_submitted_study_runs_and_its_stages_are_in_its_status(cluster, tmp_path):
    address, environment = cluster

    def plad(command: str) -> str:
        words = [
            command,
            "--study",
            "reward",
            "jobs/studies/reward.yaml",
            "study.limit=32",
            f"runtime.store={tmp_path}",
        ]
        words = [sys.executable, "-m", "plad_ray", *words, "--address", address]
        result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    said = plad("submit")
    assert "submitted job plad-demo-reward-study-reward-" in said and "SUCCEEDED" in said
    assert (tmp_path / "demo-reward/study-reward/result.json").is_file()
    shown = plad("status")
    assert "demo-reward · reward" in shown and "✓ study-reward" in shown and "✓ study reward" in shown


@pytest.mark.slow
def test_a_job_that_fails_says_so_by_its_exit_code(cluster, tmp_path):
    address, environment = cluster
    overrides = ["data={source: files, path: absent.jsonl}", f"runtime.store={tmp_path / 'runs'}"]
    command = [sys.executable, "-m", "plad_ray", "submit", "jobs/demo.yaml", *overrides, "--address", address]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "absent.jsonl does not exist" in result.stdout and "FAILED" in result.stdout


class NotReady:
    """A job server whose agent comes up after ``refusals`` submissions."""

    def __init__(
        self, refusals: int, answer: str = "Request failed with status code 500: No available agent to submit job"
    ):
        self.refusals, self.answer, self.asked = refusals, answer, 0

    def submit_job(self, **job: str) -> str:
        self.asked += 1
        if self.asked <= self.refusals:
            raise RuntimeError(self.answer)
        return job["submission_id"]


def test_a_cluster_that_has_just_come_up_is_waited_for(monkeypatch):
    monkeypatch.setattr("plad_ray.submit.time.sleep", lambda seconds: None)
    client, job = NotReady(3), {"submission_id": "a", "entrypoint": "plad run"}
    assert _submitted(client, "http://x", **job) == "a" and client.asked == 4
    with pytest.raises(RuntimeError, match="no such runtime_env"):
        _submitted(NotReady(1, "no such runtime_env"), "http://x", **job)
    monkeypatch.setattr("plad_ray.submit.AGENT_WAIT_S", 0)
    with pytest.raises(PladError, match="no node of the cluster could start a job"):
        _submitted(NotReady(10**6), "http://x", **job)


def test_of_two_who_submit_at_once_the_second_attaches(capsys):
    taken = NotReady(1, "Request failed with status code 400: Job with submission_id a already exists.")
    assert _submitted(taken, "http://x", submission_id="a", entrypoint="plad run") == "a" and taken.asked == 1
    assert "a moment ago; attaching" in capsys.readouterr().out


@pytest.mark.slow
def test_rays_own_command_takes_an_experiment(cluster):
    """As jobs/runtime_env.yaml says; a dry run, which needs the working folder and everything that is installed."""
    address, environment = cluster
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address]
    command += ["--runtime-env", "jobs/runtime_env.yaml", "--"]
    command += [sys.executable, "-m", "plad_ray", "run", "jobs/demo.yaml", "--dry-run"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "sft-teacher" in result.stdout and "succeeded" in result.stdout
