"""Artifacts in object storage: over a real S3 protocol, with what goes wrong there."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from plad_ray import artifacts, preflight
from plad_ray.artifacts import Artifact, Store, hash_path
from plad_ray.config import Model, Runtime, load
from plad_ray.config.models import Scratch
from plad_ray.errors import PladError
from plad_ray.generate import parts
from plad_ray.generate.pools import build_pools
from plad_ray.generate.responses import PART
from plad_ray.generate.run import dataset
from plad_ray.generate.run import plan as plan_generation
from plad_ray.pipeline import plan
from plad_ray.running import run
from plad_ray.stages import Outcome, Stage, execute
from tests.conftest import save_tiny_model
from tests.generate.generate_jobs import draw, make_job, prompt_rows, prompts_artifact
from tests.test_families import check_run, experiment_of


def table(rows: int) -> pa.Table:
    return pa.table({"x": list(range(rows)), "s": [f"row {i}" for i in range(rows)]})


@pytest.mark.parametrize("kind", ["503", "cut", "half"])
def test_every_operation_outlasts_faults(s3_server, s3_root, tmp_path, kind, copies):
    faults = s3_server[1]
    source = tmp_path / "model"
    source.mkdir()
    (source / "weights.bin").write_bytes(bytes(range(256)) * 30_000)  # 7.7 MB: a multipart upload
    (source / "config.json").write_text("{}")
    faults.share, faults.kinds = 0.25, (kind,)
    artifact = Artifact(Store(s3_root), "a-1")
    artifact.write_rows(table(1000))
    artifact.store.upload(source, artifact.file("files"))
    artifact.store.write_json(artifact.file("work/state.json"), {})
    artifact.store.delete(artifact.file("work"))
    artifact.finish({"name": "a"})
    assert artifact.finished and artifact.table().equals(table(1000))
    assert set(artifact.manifest["files"]) == {"rows/part-00000.parquet", "files/weights.bin", "files/config.json"}
    artifact.check(hashes=True)
    assert hash_path(artifact.local_folder()) == hash_path(source)
    assert faults.count > 3, "there were faults"


@pytest.mark.parametrize("size", [2, 100])
def test_a_refusal_longer_than_the_file_is_outlasted(s3_server, s3_root, tmp_path, size):
    """The SDK has no room for its text, and tries no more."""
    faults, out = s3_server[1], Artifact(Store(s3_root), "a-1")
    out.store.write_bytes(out.file("files/small"), bytes(size))
    out.finish({"name": "a"})
    before = faults.count
    for number, read in enumerate(
        (
            lambda: out.store.read_bytes(out.file("files/small")),
            lambda: out.check(hashes=True),
            lambda: out.store.download(out.file("files"), tmp_path / "copy"),
        )
    ):
        faults.first = ("GET", "files/small", 2)
        read()
        assert faults.first is None and faults.count == before + 2 * (number + 1)
    assert (tmp_path / "copy/small").stat().st_size == size


def test_a_server_that_says_nothing_is_given_up_and_asked_again(s3_server, s3_root, monkeypatch):
    monkeypatch.setattr(artifacts, "S3_TIMEOUT_S", 0.5)
    faults, store, before = s3_server[1], Store(s3_root), s3_server[1].count
    faults.always, faults.kinds, faults.stall_seconds = ("PUT", "stalled"), ("stall",), 120.0

    def recover() -> None:
        while faults.count == before:
            time.sleep(0.01)
        faults.always = None

    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(recover)
        store.write_bytes("stalled", b"all of it")
    assert time.monotonic() - began < 100, "the first answer was never waited for"
    assert store.read_bytes("stalled") == b"all of it"


def test_what_cannot_be_published_is_not_there_and_a_rerun_finishes(s3_server, s3_root, monkeypatch):
    """A stage whose last PUT fails for good leaves an unfinished artifact; the next run goes on from it."""
    monkeypatch.setattr(artifacts, "S3_TRIES", 2)
    faults, ran = s3_server[1], []

    def work(job) -> Outcome:
        ran.append(job.out.store.exists(job.out.file("work/parts/part-0.parquet")))
        job.out.write_rows(table(5), "part-0", "work/parts")
        job.out.write_rows(table(5))
        return Outcome(5, 5)

    stage = Stage("made", work, {"a": 1}, ray=False)
    faults.always, faults.kinds = ("PUT", "manifest.json"), ("503",)
    with pytest.raises(OSError, match="SLOW_DOWN"):
        execute([stage], Store(s3_root), Runtime())
    faults.always = None
    artifact = stage.artifact(Store(s3_root))
    assert not artifact.finished
    execute([stage], Store(s3_root), Runtime())
    assert artifact.finished and artifact.table().equals(table(5))
    assert ran == [False, True], "what the first run had written is still there"
    assert not [name for name in artifact.store.files("") if "work/" in name or "lease" in name]
    execute([stage], Store(s3_root), Runtime())
    assert len(ran) == 2


def test_an_error_of_reading_deletes_no_finished_part(s3_server, s3_root, monkeypatch):
    monkeypatch.setattr(artifacts, "S3_TRIES", 2)
    faults, out = s3_server[1], Artifact(Store(s3_root), "r-1")
    row = {name: None for name in PART.names} | {"number": 3, "rid": "r1", "policy": "p"}
    parts.write_part(out, [row])
    faults.always, faults.kinds = ("GET", ".parquet"), ("503",)
    with pytest.raises(OSError):
        parts.answered(out)
    faults.always = None
    assert 3 in parts.answered(out)


def test_copies_are_whole_whoever_makes_them(s3_root, tmp_path, copies):
    source = tmp_path / "model"
    source.mkdir()
    (source / "weights.bin").write_bytes(bytes(3_000_000))
    artifact = Artifact(Store(s3_root), "m-1")
    artifact.store.upload(source, artifact.file("files"))
    artifact.finish({"name": "m"})

    def sizes(_: int) -> int:
        return (artifact.local_folder() / "weights.bin").stat().st_size

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(sizes, range(16))) == {3_000_000}
    assert [p.name for p in artifact.local_folder().parent.iterdir()] == ["files"], "nothing half is left"
    first = artifact.local_folder()
    artifact.store.write_bytes(artifact.file("files/weights.bin"), b"other")
    artifact.finish({"name": "m"})
    assert artifact.local_folder() != first, "other content has another copy"


@pytest.mark.parametrize(
    "root, message",
    [
        ("s3://no-such-bucket/x?{query}", "not writable"),
        ("s3://bucket/x?{query}&endpoint=y", "unknown option endpoint"),
        ("ftp://bucket/x", "no file system for it"),
    ],
)
def test_a_store_that_is_not_there_is_said_at_once(s3_server, tmp_path, root, message):
    file = Path(__file__).parents[2] / "jobs/demo.yaml"
    store = root.format(query=f"endpoint_override={s3_server[0]}&scheme=http")
    with pytest.raises(PladError, match=message) as refused:
        preflight.open_store(load(file, [f"runtime.store={store}"]))
    assert "canary" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_an_engine_on_a_machine_without_copies_makes_its_own(engine, s3_root, copies, tmp_path, ray_session):
    store = Store(s3_root)
    model = Artifact(store, "sft-1")
    store.upload(save_tiny_model(tmp_path / "model"), model.file("files"))
    model.finish({"name": "sft"})
    inputs = {"prompts": prompts_artifact(store, prompt_rows(6)), "student/0": model}
    section = Model(scratch=Scratch(config={"hidden_size": 64}), max_length=48)
    student = {"model": section.model_dump(mode="json"), "engine": engine, "role": "student", "draws": [draw()]}
    job = make_job(store, {"student": student}, inputs, {"store": s3_root})
    pools = build_pools(job)
    assert pools[0].base.base.startswith(str(copies))
    work = plan_generation(job, pools, parts.Numbers())
    rows = dataset(job, pools, work)
    shutil.rmtree(copies)  # another machine has none
    answers = rows.take_all()
    assert len(answers) == 6 and not any(a["error"] for a in answers)
    assert copies.is_dir()


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.timeout(900)
def test_an_experiment_leaves_all_it_makes_in_the_bucket(s3_server, s3_root, tmp_path, ray_session):
    """From prompts to report with one request in thirty failing."""
    faults = s3_server[1]
    neo = save_tiny_model(tmp_path / "teacher", "gpt_neo", seed=1)
    teacher = {"model": {"path": str(neo), "max_length": 32}, "engine": "transformers"}
    exp = experiment_of(tmp_path, teacher, {})
    exp = exp.model_copy(update={"runtime": exp.runtime.model_copy(update={"store": s3_root})})
    before = {p for p in tmp_path.rglob("*")}
    faults.share, faults.kinds = 1 / 30, ("503", "cut")
    run(exp, None, False, False)
    check_run(exp)
    assert faults.count > 20
    store = Store(s3_root)
    assert all(s.artifact(store).finished for s in plan(exp).stages.values())
    assert not [n for n in store.files("") if "work" in n.split("/")[1:-1] or n.endswith("lease.json")]
    assert {p for p in tmp_path.rglob("*")} == before
