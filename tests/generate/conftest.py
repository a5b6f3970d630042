from pathlib import Path

import pytest

from plad_ray.artifacts import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "runs"))
