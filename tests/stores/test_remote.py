"""Models, adapters and data that somebody put into a bucket."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch

from plad_ray import preflight, remote
from plad_ray.artifacts import Store, hash_path
from plad_ray.config import Data, Model
from plad_ray.data import pools
from plad_ray.data.identity import identity as data_identity
from plad_ray.errors import PladError
from plad_ray.export.cards import base_is_local, named
from plad_ray.models.load import load_model, load_tokenizer
from plad_ray.models.policy import identity, resolve
from plad_ray.pipeline import plan
from plad_ray.stages import execute
from tests.conftest import save_tiny_model
from tests.models.test_policy import make_adapter
from tests.stores.gcs import gcs
from tests.test_families import experiment_of


@pytest.fixture(autouse=True)
def new_process():
    """Of what was listed nothing is known."""
    remote.folder.cache_clear()


@pytest.fixture
def put(s3_root):
    """Put a local file or folder into the bucket; returns its URI."""
    head, _, query = s3_root.partition("?")

    def upload(path: Path) -> str:
        if path.is_dir():
            Store(s3_root).upload(path, path.name)
        else:
            Store(s3_root).write_bytes(path.name, path.read_bytes())
        return f"{head}/{path.name}?{query}"

    return upload


def test_a_model_in_a_bucket_is_the_same_model(put, tmp_path, copies):
    base = save_tiny_model(tmp_path / "tiny")
    adapter = make_adapter(base, tmp_path / "adapter")
    here = Model(path=str(base), adapter=str(adapter))
    there = Model(path=put(base), adapter=put(adapter))
    assert identity(there) == identity(here)
    policy = resolve(there)
    assert policy.base_hash == resolve(here).base_hash
    assert policy.base.startswith(str(copies)) and Path(policy.base).name == "tiny"
    assert load_tokenizer(policy).get_vocab() == load_tokenizer(resolve(here)).get_vocab()
    weights = load_model(resolve(here)).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_model(policy).state_dict().items())


def test_weights_are_copied_once_a_machine(put, s3_server, tmp_path, copies):
    faults, model = s3_server[1], Model(path=put(save_tiny_model(tmp_path / "tiny")))
    policy = resolve(model)
    remote.folder.cache_clear()
    faults.always, before = ("GET", "model.safetensors"), faults.count
    assert resolve(model) == policy and faults.count == before
    faults.always = None
    shutil.rmtree(copies)  # another machine has none
    policy.fetch()
    assert hash_path(Path(policy.base)) == hash_path(tmp_path / "tiny")
    assert [p.name for p in Path(policy.base).parent.iterdir()] == ["tiny"], "nothing half is left"


def test_other_weights_at_the_same_uri_are_another_model(put, tmp_path, copies):
    model = Model(path=put(save_tiny_model(tmp_path / "tiny")))
    before, policy = identity(model), resolve(model)
    put(save_tiny_model(tmp_path / "tiny", seed=1))
    assert identity(model) == before, "a run stays with what it has begun with"
    remote.folder.cache_clear()
    assert identity(model) != before
    shutil.rmtree(copies)
    with pytest.raises(PladError, match=r"model\.path s3://.*tiny.* were changed while it was used"):
        policy.fetch()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "config.json is not there"),
        (["tokenizer.json", "model.safetensors"], "config.json is not there"),
        (["config.json", "tokenizer.json", "pytorch_model.bin"], "weights are pickled .*save_pretrained"),
        (["config.json", "tokenizer.json"], "no weights"),
        (["config.json", "model.safetensors"], "a tokenizer"),
    ],
)
def test_what_is_no_model_is_said_before_anything_is_copied(put, tmp_path, copies, files, message):
    folder = tmp_path / "m"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(PladError, match=rf"model\.path s3://bucket/.*/m\?.*: .*{message}"):
        identity(Model(path=put(folder)))
    with pytest.raises(PladError, match=r"model\.adapter s3://bucket/.*/m\?.*: .*adapter_config.json is not there"):
        identity(Model(path=str(save_tiny_model(tmp_path / "base")), adapter=put(folder)))
    assert not copies.exists()


@pytest.mark.parametrize(
    ("uri", "reason"),
    [("s3://bucket/m?endpoint=x", "unknown option endpoint"), ("ftp://host/m", "ftp"), ("s3://no-bucket/m?{}", "")],
)
def test_what_cannot_be_read_is_named(s3_root, uri, reason):
    uri = uri.format(s3_root.partition("?")[2])
    for read in (lambda: identity(Model(path=uri)), lambda: pools.given_files(Data(source="files", path=uri))):
        with pytest.raises(PladError, match=rf"(model|data)\.path:? {uri.partition('?')[0]}.*{reason}"):
            read()


def test_an_experiment_has_the_same_digests_with_all_of_it_in_a_bucket(put, tmp_path, copies):
    base = save_tiny_model(tmp_path / "teacher", seed=1)
    exp = experiment_of(tmp_path, {"model": {"path": str(base), "max_length": 32}, "engine": "transformers"}, {})
    there = exp.model_dump()
    there["data"]["path"] = put(tmp_path / "data.jsonl")
    for role in ("teacher", "student"):
        there[role]["model"]["path"] = put(tmp_path / role)
    there["runtime"]["store"] = str(tmp_path / "others")
    there = type(exp).model_validate(there)
    digests = [{n: s.digest for n, s in plan(each).stages.items() if n != "report"} for each in (exp, there)]
    assert digests[0] == digests[1], "but the report's, which shows paths"
    preflight.check(there, list(plan(there).stages.values()))
    tables = []
    for each in (exp, there):
        execute([plan(each).stages["prompts"]], Store(each.runtime.store), each.runtime, say=lambda _: None)
        tables.append(plan(each).stages["prompts"].artifact(Store(each.runtime.store)).table())
    assert tables[0].equals(tables[1]) and tables[0].num_rows == 40
    assert base_is_local(there) and named(there.student.model) == "student", "a card names no bucket"


def test_data_of_every_kind_is_read_where_it_lies(put, tmp_path):
    rows = [{"prompt": f"p{i}", "reference": f"r{i}"} for i in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    folder = tmp_path / "data"
    (folder / "a-b").mkdir(parents=True)
    (folder / "a").mkdir()
    (folder / "a" / "x.jsonl").write_bytes(lines)
    (folder / "a-b" / "x.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / ".hidden.jsonl").write_bytes(b"no")
    pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
    uri, local = put(folder), str(folder)

    def read(path: str):
        data = Data(source="files", path=path)
        return [row for row, _ in pools.pools(data, 0, {})["train"]], data_identity(data)

    head, _, query = uri.partition("?")
    for below in ("", "/x.parquet", "/a/x.jsonl", "/*/x.*", "/**/*.jsonl", "/a-b/**"):
        assert read(f"{head}{below}?{query}") == read(local + below)
    with pytest.raises(PladError, match=r"data\.path: s3://.*/none\.jsonl.* does not exist"):
        read(f"{head}/none.jsonl?{query}")


def test_gs_is_read_by_pyarrows_own_file_system(tmp_path, copies):
    base = save_tiny_model(tmp_path / "tiny")
    objects = {f"models/tiny/{p.name}": p.read_bytes() for p in base.iterdir()}
    objects["data.jsonl"] = b'{"prompt": "a", "reference": "b"}\n'
    with gcs(objects) as uri:
        assert isinstance(Store(uri.format("data")).fs, pafs.GcsFileSystem)
        assert identity(Model(path=uri.format("models/tiny"))) == identity(Model(path=str(base)))
        rows = pools.pools(Data(source="files", path=uri.format("data.jsonl")), 0, {})["train"]
        assert [(row.prompt, where) for row, where in rows] == [("a", "gs://anonymous@bucket/data.jsonl line 1")]
        with pytest.raises(PladError, match=r"model\.path gs://.*/none.*: no model folder, config.json is not there"):
            identity(Model(path=uri.format("none")))
