"""One small model behind an application in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mlx_delta import load_model
from mlx_delta.language_model import LanguageModel
from mlx_delta.server.app import create_app


@pytest.fixture(scope="package")
def model(tiny: Path) -> LanguageModel:
    """It keeps nothing, so that the same request is told the same figures."""
    return load_model(tiny, prefix_cache_bytes=0)


@pytest.fixture(scope="package")
def client(model: LanguageModel) -> Iterator[TestClient]:
    with TestClient(create_app(model, name="tiny"), base_url="http://127.0.0.1") as client:
        yield client
