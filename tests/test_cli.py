"""The command line: light, clear errors, the plan, what is reused, what can be looked at."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import yaml
from rich.console import Console
from test_config import EXPERIMENT
from typer.testing import CliRunner

from plad_ray import env, preview
from plad_ray.artifacts import Store
from plad_ray.cli import app
from plad_ray.config import Runtime, load
from plad_ray.logs import Source, within
from plad_ray.pipeline import plan
from plad_ray.progress import Board, RemoteReporter, read_log
from plad_ray.stages import Job, Outcome, Stage, execute

ROOT = Path(__file__).parents[1]


@pytest.fixture
def experiment(tmp_path) -> Path:
    file = tmp_path / "exp.yaml"
    file.write_text(yaml.safe_dump({**EXPERIMENT, "runtime": {"store": str(tmp_path / "runs")}}))
    return file


def plad(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, plad_ray.cli\n"
        "heavy = {'torch', 'ray', 'transformers', 'pyarrow', 'pydantic', 'vllm', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    seconds = []
    for _ in range(3):
        before = os.times()
        result = subprocess.run([sys.executable, "-m", "plad_ray", "--help"], cwd=ROOT, capture_output=True, text=True)
        after = os.times()  # CPU time of the child: other processes of a busy machine do not count
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert result.returncode == 0 and "inspect" in result.stdout
    assert min(seconds) < 0.5, seconds


@pytest.mark.slow
def test_a_plan_imports_nothing_that_only_stages_need(experiment):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from plad_ray.study import running\n"
        "running.run('compare', Path(sys.argv[1]), ('scorer.name=rouge',), True, False)\n"
        "heavy = {'nltk', 'matplotlib', 'scipy.stats', 'ray', 'vllm', 'peft', 'deepspeed'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(experiment)], check=True, cwd=ROOT)


def test_a_users_error_is_one_message_and_code_2(experiment):
    result = plad("run", experiment, "distil.epochs=2")
    assert result.exit_code == 2
    assert "did you mean distill?" in result.stderr and "Traceback" not in result.output
    assert plad("run", experiment.parent / "absent.yaml").exit_code == 2


def test_dry_run_prints_the_plan_and_writes_nothing(experiment, tmp_path):
    result = plad("run", experiment, "--dry-run", "runtime.train.workers=2", "runtime.teacher.replicas=3")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines()[2:] if line.strip()}
    assert lines["prompts"][1:3] == ["run", "24"]
    assert " ".join(lines["sft-teacher"][1:8]) == "run ≤ 8 2 × ZeRO-2 2"
    assert "teacher 3 × vllm, student 1 × vllm" in result.stdout
    assert list((tmp_path / "runs").glob("*-*")) == []


def test_rows_of_the_plan_follow_from_the_configuration(experiment, tmp_path):
    exp = load(experiment, ["scorer.name=demo", "teacher.draw.samples=2", "data.limit=6", "pairs.limit=5"])
    stages = list(plan(exp).stages.values())
    counts = {name: row.count for name, row in preview.rows(exp, stages, Store(str(tmp_path))).items()}
    # splits: train 6, distill 6, dev 4, test 4; evaluation at two temperatures
    assert counts["prompts"] == 20
    assert counts["responses"] == (6 * 2 + 4 * 2) + (6 * 1 + 4 * 2)
    assert counts["scores"] == counts["responses"] + 6 + 4
    assert counts["pairs"] == counts["distill"] == 5
    assert counts["eval-responses"] == 4 * 2
    assert counts["evaluate"] == 4 * 2 * 3


def test_states_of_the_plan(tmp_path):
    store = Store(str(tmp_path))
    first = Stage("first", lambda job: Outcome(), {})
    second = Stage("second", lambda job: Outcome(), {}, {"a": first})
    third = Stage("third", lambda job: Outcome(), {}, {"a": second})
    execute([second], store, Runtime(), say=lambda _: None)
    store.delete(first.artifact_name)
    store.write_bytes(third.artifact(store).file("work/half"), b"1")
    todo = {third.artifact_name}
    assert [preview.state(s, store, todo) for s in (first, second, third)] == ["not needed", "reused", "resume"]
    store.delete(third.artifact(store).file("work"))
    assert preview.state(third, store, todo) == "run"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """An experiment whose prompts are made."""
    folder = tmp_path_factory.mktemp("prepared")
    file = folder / "exp.yaml"
    file.write_text(yaml.safe_dump({**EXPERIMENT, "runtime": {"store": str(folder / "runs")}}))
    exp = load(file)
    execute([plan(exp).stages["prompts"]], Store(exp.runtime.store), exp.runtime, say=lambda _: None)
    return file


def test_a_finished_stage_is_reused_without_ray(prepared):
    start = time.time()
    result = plad("stage", "prompts", prepared)
    assert result.exit_code == 0 and "24 rows" in result.stdout and "starting Ray" not in result.stdout
    assert time.time() - start < 20
    assert "reused" in plad("run", prepared, "--dry-run").stdout
    assert "did you mean prompts?" in plad("stage", "prompt", prepared).stderr


def test_inspect_shows_rows_artifacts_and_lineage(prepared):
    rows = plad("inspect", "prompts", prepared, "-n", "2").stdout
    assert "24 rows" in rows and rows.count("post :") == 2
    assert "prompts-" in plad("inspect", "artifacts", prepared).stdout
    one = plad("inspect", "prompts-" + plan(load(prepared)).stages["prompts"].digest, prepared).stdout
    assert "files verified" in one and "dropped none" in one
    tree = plad("inspect", "lineage", prepared).stdout
    assert "verified, 24 rows" in tree and "see above" in tree
    assert "is not finished" in plad("inspect", "pairs", prepared).stderr
    assert "neither one of" in plad("inspect", "promts", prepared).stderr


def test_inspect_tokens_shows_ids_mask_and_eos(prepared):
    """A pair table and an SFT model put in place by hand, read back through the trainer's own encoding."""
    from plad_ray.data.demo import vocabulary
    from plad_ray.models.scratch import word_tokenizer
    from plad_ray.records import pair_schema

    exp = load(prepared)
    whole, store = plan(exp), Store(exp.runtime.store)
    tuned, pairs = whole.stages["sft-student"].artifact(store), whole.stages["pairs"].artifact(store)
    tokenizer = word_tokenizer(vocabulary())
    tokenizer.save_pretrained(tuned.local_folder())
    store.write_bytes(tuned.file("files/config.json"), b"{}")
    row = dict.fromkeys(pair_schema(False).names) | {
        "prompt": "post : anna", "chosen": " anna bought .", "rejected": " anna", "prompt_id": "p\x1b[31m",
        "chosen_finish_reason": "stop", "rejected_finish_reason": "length"}  # fmt: skip
    pairs.write_rows(pa.Table.from_pylist([row], pair_schema(False)))
    empty = {"rows": {"in": 1, "out": 1, "dropped": {}}, "seconds": 0, "started": "2026-01-01T00:00:00Z"}
    for artifact in (tuned, pairs):
        artifact.finish(empty)
    result = plad("inspect", "tokens", prepared, "-n", "1")
    assert result.exit_code == 0, result.output
    cells = [line.split() for line in result.stdout.splitlines()]
    chosen, rejected = ([c[2] for c in cells if len(c) == 5 and c[4] == m] for m in "01")
    assert chosen == ["post", ":", "anna"] * 2, "prompt tokens, once for each side, are not learned"
    assert rejected == ["anna", "bought", ".", "<eos>", "anna"], "EOS is learned where the text ended, and only there"
    shown = plad("inspect", "pairs", prepared).stdout
    assert "p␛[31m" in shown and "\x1b" not in shown, "what a terminal would obey is shown"
    for artifact in (tuned, pairs):
        store.delete(artifact.name)


def test_env_shows_versions_and_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("RAY_ADDRESS", "http://user:pass1234@host:1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    shown = env.facts()
    assert shown["HF_TOKEN"] == "(set)" and shown["VLLM_CPU_KVCACHE_SPACE"] == "1" and "torch" in shown
    output = plad("env").stdout
    assert "hf_very_secret" not in output and "pass1234" not in output


@pytest.mark.parametrize("wanted", [None, "mimalloc"])
def test_arrow_allocates_as_the_c_library_does_unless_told_otherwise(wanted):
    environment = {key: value for key, value in os.environ.items() if key != "ARROW_DEFAULT_MEMORY_POOL"}
    environment |= {"ARROW_DEFAULT_MEMORY_POOL": wanted} if wanted else {}
    asked = "import plad_ray.stages, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (wanted or "system")


def test_version():
    assert plad("version").stdout.startswith("plad_ray")


# --- progress --------------------------------------------------------------------------------------------------------


def quiet_board() -> tuple[Board, Console]:
    console = Console(record=True, force_terminal=False, width=200, file=io.StringIO())
    return Board(console), console


def test_progress_of_the_driver_and_its_log_lines():
    board, console = quiet_board()
    with board:
        report = board.reporter("distill")
        report(2, 10, "steps", loss=0.5)
        board.lines["distill"].started -= 60
        board._print_plain()
        board._print_plain()
        logging.getLogger("plad_ray").warning("teacher wins only 40 %")
    text = console.export_text()
    assert text.count("distill: 2/10 steps  loss 0.5") == 1, "at most a line every 10 s"
    assert "warning: teacher wins only 40 %" in text
    logging.getLogger("plad_ray").warning("after the end")
    assert "after the end" not in console.export_text()


def test_a_structured_log_says_run_stage_and_request_and_is_read_as_the_plain_one_is():
    console = Console(force_terminal=False, width=200, file=io.StringIO())
    with Board(console, run="mine", gpus={"responses": 4}, as_json=True) as board:
        board.reporter("prompts")
        board.ended("prompts", True)
        board.reporter("responses")(10, 100, "rows", tokens_per_s=50.0)
        board.lines["responses"].started -= 1800
        board._print_plain()
        with within("responses"):
            logging.getLogger("plad_ray").warning("a [bad] \n prompt", extra={"rid": "p1:teacher:0:0"})
        board.say("[dim]waiting for a lease[/dim]")
    lines = [json.loads(line) for line in console.file.getvalue().splitlines()]
    assert {line["run"] for line in lines} == {"mine"} and all(line["time"].endswith("Z") for line in lines)
    [warning] = [line for line in lines if line["level"] == "warning"]
    assert (warning["stage"], warning["rid"], warning["message"]) == (
        "responses",
        "p1:teacher:0:0",
        "a [bad] \n prompt",
    )
    [progress] = [line for line in lines if line.get("event") == "progress"]
    assert (progress["plad_stage_done"], progress["plad_stage_tokens_per_second"]) == (10, 50)
    assert progress["plad_stage_gpu_hours"] == pytest.approx(2, rel=0.01)
    assert lines[-1]["message"] == "waiting for a lease"
    seen = read_log(console.file.getvalue())
    assert seen["prompts"] == ("✓", "0:00") and seen["responses"][0] == "▸" and "GPU hours 2" in seen["responses"][1]


def test_a_worker_that_ray_uses_again_speaks_for_its_new_stage_alone(capsys):
    logger = logging.getLogger("plad_ray")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        Source("first", "responses").begin()
        Source("second", "scores").begin()
        try:
            raise ValueError("why")
        except ValueError:
            logger.exception("it failed")
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    [line] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (line["run"], line["stage"], line["level"], line["message"]) == ("second", "scores", "error", "it failed")
    assert line["traceback"].endswith("ValueError: why")


def test_progress_travels_from_ray_tasks(ray_session):
    board, _ = quiet_board()
    with board:
        job = Job("generate", {}, {}, None, Runtime(), board.reporter("generate"))  # type: ignore[arg-type]

        @ray_session.remote(num_cpus=0)
        def work(job: Job) -> str:
            assert isinstance(job.progress, RemoteReporter)
            job.progress(5, 5, "rows", tokens_per_s=12.0)
            return type(job.progress).__name__

        assert ray_session.get(work.remote(job)) == "RemoteReporter"
        deadline = time.time() + 20
        while board.lines["generate"].done != 5 and time.time() < deadline:
            time.sleep(0.1)
    line = board.lines["generate"]
    assert (line.done, line.unit, line.notes) == (5, "rows", {"tokens_per_s": 12.0})


def test_progress_without_a_listener_is_silent():
    board, _ = quiet_board()
    reporter = RemoteReporter(None, "x")
    reporter(1, 2, "rows")
    assert board.lines == {}


def test_time_left_counts_from_the_first_report():
    board, _ = quiet_board()
    report = board.reporter("s")
    report(50, 100, "rows")  # resumed at the half
    line = board.lines["s"]
    assert line.eta is None
    line.first = (time.time() - 10, 50)
    report(60, 100, "rows")
    assert line.eta == pytest.approx(40, rel=0.05)


@pytest.mark.slow
def test_sigterm_ends_a_run_as_ctrl_c_does(tmp_path):
    """A node that is taken away: one line, no stack of Ray's, no Ray left behind, and the same command goes on."""
    command = [sys.executable, "-m", "plad_ray", "run", "jobs/demo.yaml", f"runtime.store={tmp_path}/runs"]
    with open(tmp_path / "log", "w+") as log:  # noqa: PTH123 - a pipe nobody reads would fill up
        run = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        deadline = time.monotonic() + 200
        while "▸ sft-teacher" not in (tmp_path / "log").read_text():
            assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        of_ray = {child.pid for child in psutil.Process(run.pid).children(recursive=True)}
        run.terminate()
        assert run.wait(60) == 130
    said = (tmp_path / "log").read_text()
    assert said.rstrip().endswith("interrupted; what is finished is kept, and the same command again goes on from here")
    assert "***" not in said
    psutil.wait_procs([psutil.Process(pid) for pid in of_ray if psutil.pid_exists(pid)], timeout=20)
    assert not [pid for pid in of_ray if psutil.pid_exists(pid)]
