"""What makes Meta-World's envs quick to build."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import mujoco
import pytest
from gymnasium.envs.mujoco import MujocoEnv


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    """Envs of one task after the other have copies of one compiled model: to compile it is most of a build's time."""
    compiled: dict[str, Any] = {}  # the last one
    original = MujocoEnv._initialize_simulation

    def from_copy(env: MujocoEnv) -> tuple[Any, Any]:
        if env.fullpath not in compiled:
            compiled.clear()
            compiled[env.fullpath] = original(env)[0]
        model = copy.copy(compiled[env.fullpath])
        return model, mujoco.MjData(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MujocoEnv, "_initialize_simulation", from_copy)
        yield
