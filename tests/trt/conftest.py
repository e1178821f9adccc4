"""The small models, and engines built of them, once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_builds import Builds
from small_models import write_small_models


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of ``small_models``."""
    folder = tmp_path_factory.mktemp("small")
    write_small_models(folder)
    return folder


@pytest.fixture(scope="session")
def builds(small: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    """Asked for, they begin; a minute or two later they are done."""
    begun = Builds(small, tiny, tmp_path_factory.mktemp("engines"), tmp_path_factory.mktemp("tiny-engines"))
    try:
        yield begun
    finally:
        begun.end()
