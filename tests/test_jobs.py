"""A submitted experiment looked at, left, stopped and resumed on a real cluster; and its key, which is nowhere."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from rich.console import Console

from plad_ray import jobs
from plad_ray.config import load
from plad_ray.errors import PladError
from plad_ray.progress import Board, read_log
from tests.conftest import API_KEY, free_port
from tests.generate.api_server import serving
from tests.test_families import experiment_of


def test_what_a_log_says_of_each_stage():
    console = Console(force_terminal=False, width=200, file=io.StringIO())
    board = Board(console)
    with board:
        board.reporter("prompts")
        report = board.reporter("responses")
        board.ended("prompts", True)
        board.reporter("scores")
        board.ended("scores", False)
        report(10, 100, "rows", tokens_per_s=50.0)
        line = board.lines["responses"]
        line.first, line.started = (time.time() - 20, 10), line.started - 30
        report(50, 100, "rows")
        board._print_plain()
    log = console.file.getvalue() + "  elsewhere: 3/4 rows\n"
    seen = read_log(log)
    assert list(seen) == ["prompts", "responses", "scores"]
    assert seen["prompts"][0] == "✓" and seen["scores"][0] == "✗"
    mark, said = seen["responses"]
    assert mark == "▸" and said.startswith("50/100 rows  rows/s ") and "tokens/s 50" in said and said.endswith("left")
    assert float(said.split("rows/s ")[1].split()[0]) == pytest.approx(2.0, rel=0.05)


def test_no_cluster_and_no_such_job(tmp_path):
    address = f"http://127.0.0.1:{free_port()}"
    for function in (jobs.show_status, jobs.stop):
        with pytest.raises(PladError, match="no Ray dashboard answers"):
            function("plad-x", (), address)


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.timeout(900)
def test_submit_leave_look_stop_resume_and_no_key_anywhere(cluster, tmp_path):
    address, environment = cluster
    out = []

    def plad(*arguments: object, code: int = 0) -> str:
        command = [sys.executable, "-m", "plad_ray", *map(str, arguments), "--address", address]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
        out.append(result.stdout + result.stderr)
        assert result.returncode == code, out[-1]
        return out[-1]

    with serving(seconds=1.0) as server:
        teacher = {"model": {"api": {"base_url": server.url, "name": "made-up"}}, "engine": "openai"}
        api = {"api_key_env": "PLAD_TEST_API_KEY", "concurrency": 1}
        exp = experiment_of(tmp_path, teacher, {"cpus": 0.5, "api": api})
        (tmp_path / "exp.yaml").write_text(yaml.safe_dump(exp.model_dump(mode="json")))
        job = jobs.submission_id(load(tmp_path / "exp.yaml"))

        code, said = _leave(address, environment, tmp_path, b"n")
        out.append(said)
        assert code == jobs.DETACHED and f"job {job} goes on" in said, said
        assert f"job {job} runs already; attaching" in plad("submit", "exp.yaml", "--no-wait")
        shown = plad("status", "exp.yaml")
        assert "RUNNING" in shown and "✓ prompts" in shown
        assert "rows/s" in next(line for line in shown.splitlines() if line.startswith("▸ responses"))
        assert [p for p in psutil.process_iter(["cmdline"]) if API_KEY in " ".join(p.info["cmdline"] or [])] == []
        assert "STOPPED" in plad("stop", job)
        before = len(server.answered)
        assert 0 < before < 24

        code, said = _leave(address, environment, tmp_path, b"y")
        out.append(said)
        assert code == 1 and f"submitted job {job}-2" in said and f"job {job}-2: STOPPED" in said, said

        server.seconds = 0
        assert f"submitted job {job}-3" in plad("submit", "exp.yaml")
        assert len(server.answered) <= 24 + 2, (
            "what was paid for is not asked for again, but the requests that were in flight"
        )
        listed = plad("status")
        assert "STOPPED" in listed and "SUCCEEDED" in listed
        assert "✓ report" in plad("status", "exp.yaml")
        assert "▸ responses" in plad("logs", job, "--no-wait")
        assert "no job plad-none" in plad("stop", "plad-none", code=2)

    environ = dict(os.environ)
    try:
        os.environ.update({k: environment[k] for k in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")})
        known = json.dumps([d.model_dump(mode="json") for d in jobs.connect(address).list_jobs()])
    finally:
        os.environ.clear()
        os.environ.update(environ)
    assert job in known
    folders = [tmp_path, Path(f"/tmp/ray-submit-{os.getpid()}")]
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    assert any("job-driver" in p.name for p in files) and any(p.name == "manifest.json" for p in files)
    assert not any(API_KEY in text for text in (*out, known))
    assert [p for p in files if API_KEY.encode() in p.read_bytes()] == []


def _leave(address: str, environment: dict[str, str], folder: Path, answer: bytes) -> tuple[int, str]:
    """Submit at a terminal, press Ctrl-C once rows come in, and answer whether to stop: (exit code, what was shown)."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "plad_ray", "submit", "exp.yaml", "--address", address]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=its, stdout=its, stderr=its)
    os.close(its)
    said, asked = "", False
    while True:
        try:
            read = os.read(ours, 4096).decode(errors="replace")
        except OSError:  # the other end is closed
            break
        said += read
        if "responses: " in said and " rows/s" in said and not asked:
            process.send_signal(signal.SIGINT)
            asked = True
        if asked and "[y/N]" in read:
            os.write(ours, answer + b"\n")
    os.close(ours)
    return process.wait(90), said
