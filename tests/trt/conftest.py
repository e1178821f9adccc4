"""The small models, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import write_small_models


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of ``small_models``."""
    folder = tmp_path_factory.mktemp("small")
    write_small_models(folder)
    return folder
