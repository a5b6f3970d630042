"""A store for each training test."""

from __future__ import annotations

import pytest

from plad_ray.artifacts import Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))
