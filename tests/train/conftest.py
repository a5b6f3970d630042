"""Training without Ray: this process as the only worker of a gloo group."""

from __future__ import annotations

import os
import socket

import pytest
import torch

from plad_ray.artifacts import Store


@pytest.fixture(scope="session")
def gloo():
    """A process group of this process alone."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update(place)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    for name in place:
        os.environ.pop(name, None)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))
