"""Artifacts and leases in a bucket of Google's: pyarrow and obstore, which each speak an API of their own, side by side.
(Leases of every store: test_stages.py.)
"""

from __future__ import annotations

from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from plad_ray.artifacts import Artifact, Store, hash_path
from plad_ray.config import Runtime
from plad_ray.errors import PladError
from plad_ray.lease import Lease
from plad_ray.slot import open_slot
from plad_ray.stages import Job, Outcome, Stage, execute


def test_a_stage_leaves_its_artifact_and_nothing_else(gs_root, tmp_path, copies):
    source = tmp_path / "model"
    source.mkdir()
    (source / "weights.bin").write_bytes(bytes(range(256)) * 40_000)  # 10 MB: an upload in parts
    (source / "config.json").write_text("{}")
    rows = pa.table({"x": list(range(1000))})

    def work(job: Job) -> Outcome:
        job.out.write_rows(rows)
        job.out.store.upload(source, job.out.file("files"))
        job.out.store.write_json(job.out.file("work/state.json"), {})
        assert job.out.store.read_json(job.out.file("lease.json"))["id"]
        return Outcome(1000, 1000)

    stage, store = Stage("made", work, ray=False), Store(gs_root)
    made = execute([stage], store, Runtime(), say=lambda _: None)["made"]
    assert made.finished and made.table().equals(rows)
    made.check(hashes=True)
    assert hash_path(made.local_folder()) == hash_path(source)
    assert set(store.files(made.name)) == {
        "manifest.json",
        "rows/part-00000.parquet",
        "files/weights.bin",
        "files/config.json",
    }


@pytest.mark.parametrize("scheme", ["gs", "gcs"])
def test_both_ask_the_emulator_that_the_environment_names(gs_root, monkeypatch, scheme):
    parts = urlsplit(gs_root)
    address = parts.query.partition("endpoint_override=")[2].partition("&")[0]
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://{address}")
    store = Store(f"{scheme}://{parts.netloc}{parts.path}?endpoint_override=127.0.0.1:1&scheme=http")
    with Lease(Artifact(store, "a-1")) as lease:
        assert store.read_json("a-1/lease.json")["id"] == lease.owner["id"]
    assert not store.exists("a-1/lease.json")


def test_credentials_that_cannot_be_used_are_said_with_where_they_come_from(gs_root, monkeypatch, tmp_path):
    keys = tmp_path / "keys.json"
    keys.write_text('{"type": "of-another-cloud"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(keys))
    with pytest.raises(PladError, match=r"runtime\.store gs://.*GOOGLE_APPLICATION_CREDENTIALS, gcloud's"):
        open_slot(Store(gs_root.replace("anonymous@", "")), "a-1/lease.json")
