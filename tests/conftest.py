"""Shared fixtures: one Ray, tiny models, the shared real data where it is present."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.stores.faults import Faults
from tests.stores.gcs import gcs
from tests.stores.s3 import BUCKET, s3
from tests.stores.s3 import ENVIRONMENT as S3_ENVIRONMENT

os.environ.setdefault("HF_HUB_OFFLINE", "1")
#: a key that must turn up nowhere; here, as Ray's workers get the environment that Ray was started in
API_KEY = "canary-2c7a91e04b"
os.environ["PLAD_TEST_API_KEY"] = API_KEY
os.environ.update(S3_ENVIRONMENT)

SHARED = Path(os.environ.get("PLAD_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data and models; tests that need it skip where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no shared data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server and what goes wrong with it."""
    faults = Faults()
    with s3(faults) as address:
        yield address, faults


@pytest.fixture
def s3_root(s3_server, tmp_path):
    """Root of an empty store on it, which nothing goes wrong with unless ``faults`` is changed."""
    address, faults = s3_server
    faults.share, faults.always, faults.kinds, faults.count = 0.0, None, Faults.kinds, 0
    yield f"s3://{BUCKET}/{tmp_path.name}?endpoint_override={address}&scheme=http"
    faults.share, faults.always = 0.0, None


@pytest.fixture(scope="session")
def gs_server():
    """URI of a bucket of Google's, with {} for the path in it, and what goes wrong with it."""
    faults = Faults()
    with gcs({}, faults) as uri:
        yield uri, faults


@pytest.fixture
def gs_root(gs_server, tmp_path):
    """As ``s3_root``."""
    uri, faults = gs_server
    faults.share, faults.always, faults.kinds, faults.count = 0.0, None, Faults.kinds, 0
    yield uri.format(tmp_path.name)
    faults.share, faults.always = 0.0, None


@pytest.fixture
def copies(tmp_path, monkeypatch) -> Path:
    """This machine's copies, here."""
    from plad_ray import artifacts

    monkeypatch.setattr(artifacts, "COPIES", str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray for the whole session."""
    import ray

    from plad_ray.cluster import connect
    from plad_ray.config import Runtime

    connect(Runtime())
    yield ray
    ray.shutdown()


def worker_lines(run: str) -> list[dict[str, Any]]:
    """What the workers of ``run`` have said in Ray's logs: a line with its name that is no JSON object is an error."""
    import ray

    folder = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    lines = [line for file in folder.glob("worker-*") for line in file.read_text().splitlines() if run in line]
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def gloo():
    with only_worker():
        yield


@contextmanager
def only_worker() -> Iterator[None]:
    """Training without Ray: this process as the only worker of a gloo group, unless it is one already."""
    import torch

    if torch.distributed.is_initialized():
        yield
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update(place)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
        for name in place:
            os.environ.pop(name, None)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """`ray start --head` on free ports with a token of its own; yields (dashboard address, environment).

    Its jobs import plad_ray from here, whatever folder they were submitted from; the canary key is in its environment.
    """
    token = tmp_path_factory.mktemp("cluster") / "token"
    token.write_text("0" * 32)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    port, dashboard = free_port(), free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", "--num-cpus=8", "--object-store-memory=500000000"]
    command.append(f"--dashboard-agent-listen-port={free_port()}")  # by default one port for all clusters of a machine
    command += [f"--temp-dir=/tmp/ray-submit-{os.getpid()}", f"--ray-client-server-port={free_port()}"]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(dashboard)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        processes = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        psutil.wait_procs([psutil.Process(head.pid)], timeout=60)
        for process in (head, *processes):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(10)


def free_port() -> int:
    """Below those that the kernel hands out (from 32768 on), so that nobody is given it before it is used."""
    dice = random.SystemRandom()
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port := dice.randrange(20000, 32000)))
            return port


def wait_for(port: int, seconds: float = 120) -> None:
    """Until something listens."""
    deadline = time.time() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.time() > deadline:
                raise
            time.sleep(1)


#: Sizes of ``save_tiny_model``, as the config of each family calls them.
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
SIZES = {
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "max_position_embeddings": 256,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "t5": {
        "d_model": 64,
        "d_kv": 32,
        "d_ff": 96,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "dropout_rate": 0.0,
    },
}


def save_tiny_model(
    folder: Path, model_type: str = "llama", words: list[str] | None = None, seed: int = 0, **config
) -> Path:
    """A random model of two layers, hidden size 64, head size 32, with a word tokenizer, saved as a folder.

    T5's tokenizer ends every text with EOS, as the real one does.
    """
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoConfig

    from plad_ray.models.load import auto_class
    from plad_ray.models.scratch import word_tokenizer

    tokenizer = word_tokenizer(words or [f"w{i}" for i in range(40)])
    if model_type == "t5":
        eos = (tokenizer.eos_token, tokenizer.eos_token_id)
        tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"$A {eos[0]}", special_tokens=[eos])
    sizes = {**SIZES.get(model_type, LLAMA), "vocab_size": len(tokenizer)}
    torch.manual_seed(seed)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if model_type == "t5":
        ids["decoder_start_token_id"] = tokenizer.pad_token_id
    model_config = AutoConfig.for_model(model_type, **{**sizes, **ids, **config})
    model = auto_class(model_config).from_config(model_config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny_t5"), "t5")


@pytest.fixture(scope="session")
def tiny_gpt_neo(tmp_path_factory) -> Path:
    """A global and a local layer; the local one sees 4 tokens."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny_gpt_neo"), "gpt_neo")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny_llama"))
