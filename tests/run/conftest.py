"""What the tests of a run's life share."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_runs import train, written


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the tiny run writes when nothing happens."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert train(folder) == 0
    return written(folder)
