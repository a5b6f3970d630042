"""Fingerprints, the store, manifests."""

from __future__ import annotations

import pickle
import time

import pyarrow as pa
import pytest

from plad_ray.artifacts import Artifact, Store, fingerprint, hash_path
from plad_ray.errors import PladError


@pytest.fixture(params=["local", "uri", "s3"])
def store(request, tmp_path) -> Store:
    """A local folder, by path and as the URI that goes through pyarrow's filesystem registry; and a bucket."""
    if request.param == "s3":
        return Store(request.getfixturevalue("s3_root"))
    return Store(str(tmp_path / "runs") if request.param == "local" else f"file://{tmp_path}/runs")


def publish(store: Store, name: str = "a-1", rows: int = 3) -> Artifact:
    artifact = Artifact(store, name)
    artifact.write_rows(pa.table({"x": list(range(rows))}))
    artifact.finish({"name": "a"})
    return artifact


def test_fingerprint_knows_content_not_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.0})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    # printf '{"a":"é"}' | sha256sum
    assert fingerprint({"a": "é"}) == "b3a092a6af48807fa9482b2ee140105575daa26d5b24b3c0e60a7e2dee6683b1"


def test_fingerprint_refuses_what_json_cannot_hold():
    with pytest.raises(TypeError):
        fingerprint({"a": object()})
    with pytest.raises(ValueError, match="JSON"):
        fingerprint({"a": float("nan")})


def test_an_artifact_is_finished_by_its_manifest_alone(store):
    artifact = Artifact(store, "a-1")
    artifact.write_rows(pa.table({"x": [1, 2]}))
    assert not artifact.finished
    with pytest.raises(PladError, match=r"manifest\.json is missing"):
        _ = artifact.manifest
    artifact.finish({"name": "a"})
    assert artifact.finished and artifact.manifest["name"] == "a"
    assert [row["x"] for row in artifact.rows()] == [1, 2]
    artifact.check(hashes=True)


def test_transient_files_are_no_part_of_it(store):
    artifact = Artifact(store, "a-1")
    artifact.write_rows(pa.table({"x": [1]}))
    store.write_json(artifact.file("lease.json"), {})
    store.write_bytes(artifact.file("work/checkpoint/state.bin"), b"12")
    store.write_bytes(artifact.file("rows/.writing-abc"), b"half")
    artifact.finish({})
    assert list(artifact.manifest["files"]) == ["rows/part-00000.parquet"]


@pytest.mark.parametrize("damage", ["removed", "shorter", "same size"])
def test_damage_is_found(store, damage):
    artifact = publish(store)
    name = artifact.file("rows/part-00000.parquet")
    content = store.read_bytes(name)
    if damage == "removed":
        store.delete(name)
    else:
        store.write_bytes(name, content[:-1] if damage == "shorter" else bytes([content[0] ^ 1]) + content[1:])
    if damage == "same size":
        artifact.check()  # sizes alone cannot tell
    with pytest.raises(PladError, match="is corrupted: rows/part-00000"):
        artifact.check(hashes=damage == "same size")


def test_an_unreadable_manifest_is_named(store):
    artifact = publish(store)
    store.write_bytes(artifact.file("manifest.json"), b"{half")
    with pytest.raises(PladError, match="missing or unreadable"):
        artifact.check()


def test_write_bytes_leaves_no_half_file_behind(tmp_path, monkeypatch):
    """A writer that dies before the last step leaves the old content in place."""
    store = Store(str(tmp_path))
    store.write_bytes("f", b"old")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr("plad_ray.artifacts.os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        store.write_bytes("f", b"new")
    assert store.read_bytes("f") == b"old" and store.files("") == {"f": 3}


def test_artifacts_travel_by_name(store):
    artifact = publish(store)
    again = pickle.loads(pickle.dumps(artifact))
    assert again.name == artifact.name and again.path == artifact.path
    assert again.table().num_rows == 3


def test_upload_and_download_keep_the_tree(store, tmp_path):
    source = tmp_path / "model"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "w.bin").write_bytes(b"\x00\x01")
    (source / "config.json").write_text("{}")
    store.upload(source, "m-1/files")
    assert store.files("m-1/files") == {"deep/w.bin": 2, "config.json": 2}
    target = store.download("m-1/files", tmp_path / "back")
    assert hash_path(target) == hash_path(source)


def test_hash_path_is_of_content_not_of_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "two" / ".hidden").write_text("x")
    assert hash_path(tmp_path / "one") == hash_path(tmp_path / "two")
    (tmp_path / "two" / "config.json").write_text("{ }")
    assert hash_path(tmp_path / "one") != hash_path(tmp_path / "two")
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    assert hash_path(tmp_path / "a.txt") == hash_path(tmp_path / "b.txt")


def test_a_renamed_file_in_a_folder_is_other_content(tmp_path):
    for name, file in (("one", "x"), ("two", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("same")
    assert hash_path(tmp_path / "one") != hash_path(tmp_path / "two")


def test_a_slow_reader_of_a_large_table_holds_little_of_it(tmp_path):
    artifact = Artifact(Store(str(tmp_path)), "large-1")
    for part in range(20):
        artifact.write_rows(pa.table({"x": [f"{part}-{i}".ljust(1000, "x") for i in range(2000)]}), f"part-{part:05d}")
    before = pa.total_allocated_bytes()
    batches = artifact.batches(["x"])
    first = next(batches)["x"]
    time.sleep(0.5)  # whatever reads ahead has the time to
    assert pa.total_allocated_bytes() - before < 10 * 2**20  # of 40
    assert [*first.to_pylist(), *(x for b in batches for x in b["x"].to_pylist())] == artifact.table()["x"].to_pylist()
