from pathlib import Path

import pytest

from tests.conftest import save_tiny_model
from tests.merge.ends import LAYERS, make_end


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"), num_hidden_layers=LAYERS)


@pytest.fixture(scope="session")
def start(base, tmp_path_factory) -> Path:
    return make_end(base, tmp_path_factory.mktemp("ends") / "start", seed=1)


@pytest.fixture(scope="session")
def distilled(base, tmp_path_factory) -> Path:
    return make_end(base, tmp_path_factory.mktemp("ends") / "distilled", seed=2)


@pytest.fixture(scope="session")
def sharp(tmp_path_factory) -> Path:
    """A base of larger weights: its text is far from uniform, so that likelihoods tell models apart."""
    return save_tiny_model(tmp_path_factory.mktemp("sharp"), num_hidden_layers=LAYERS, initializer_range=0.15)
