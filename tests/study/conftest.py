from __future__ import annotations

import pytest

from tests.conftest import save_tiny_model
from tests.study.here import Here, patch


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("teacher"), seed=5)


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_llama, tiny_teacher, gloo):
    patch(monkeypatch)
    return Here(tmp_path, tiny_llama, tiny_teacher)
