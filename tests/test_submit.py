"""An experiment as a Ray job on a cluster started here, with token authentication as Ray has it by default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plad_ray.artifacts import Store
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
