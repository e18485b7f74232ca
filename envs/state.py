"""The whole state of a MuJoCo env as plain data (see plain.py), and back."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mtrl.envs import plain
from mtrl.envs.physics import mujoco

MODEL_FIELDS = ("body_pos", "site_pos")
"""The fields of the model that Meta-World's resets change."""

_FIXED_TYPES = (mujoco.MjModel, mujoco.MjData, gym.spaces.Space)
_FIXED_NAMES = frozenset(
    {"mujoco_renderer", "metadata", "spec", "fullpath", "_ezpickle_args", "_ezpickle_kwargs"}
    | {"render_mode", "width", "height", "camera_name", "camera_id", "reward_function_version"}
)


def capture(env: Any) -> dict[str, Any]:
    """The state of an env with `model` and `data`.

    Raises `TypeError` when an attribute is of a kind that cannot be captured, so that none is lost silently.
    """
    physics = np.empty(mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(env.model, env.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    fields = _Fields(env)
    return {
        "physics": physics,
        "model": {name: getattr(env.model, name).copy() for name in MODEL_FIELDS},
        "attributes": {
            name: plain.encode(name, env.__dict__[name], fields.encode) for name in _changing(env)
        },
    }


def restore(env: Any, state: dict[str, Any]) -> None:
    """Put what `capture` returned into an env of the same task."""
    for name in MODEL_FIELDS:
        getattr(env.model, name)[:] = state["model"][name]
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(env.model, env.data, state["physics"], kind)
    # Positions of bodies and sites are derived; computing them overwrites the warm start, hence twice.
    mujoco.mj_forward(env.model, env.data)
    mujoco.mj_setState(env.model, env.data, state["physics"], kind)
    for name in _changing(env):
        del env.__dict__[name]

    def view(tag: str, content: Any) -> NDArray[Any]:
        assert tag == "view", tag
        owner, field, first, *shape = content
        whole = getattr(getattr(env, owner), field).reshape(-1)
        return np.asarray(whole[first : first + int(np.prod(shape))].reshape(shape))

    for name, value in state["attributes"].items():
        env.__dict__[name] = plain.decode(value, view)


def _changing(env: Any) -> list[str]:
    return [
        name
        for name, value in env.__dict__.items()
        if name not in _FIXED_NAMES and not isinstance(value, _FIXED_TYPES)
    ]


class _Fields:
    """Where the arrays of an env's model and data lie in memory."""

    def __init__(self, env: Any) -> None:
        self._spans: list[tuple[int, int, str, str]] | None = None
        self._env = env

    def encode(self, name: str, array: NDArray[Any]) -> Any:
        """A copy, or of a live view of the simulator's memory its place: a copy would no longer follow it."""
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        if root.flags.owndata:
            return array.copy()
        found = self.find(array)
        if found is None or not array.flags.c_contiguous:
            raise TypeError(f"attribute {name} is a view of memory that cannot be captured")
        return {"view": [*found, *array.shape]}

    def find(self, array: NDArray[Any]) -> tuple[str, str, int] | None:
        """(owner, field, first element) when `array` is a contiguous part of a field, else None."""
        if self._spans is None:
            self._spans = []
            for owner in ("data", "model"):
                holder = getattr(self._env, owner)
                for field in dir(holder):
                    value = None if field.startswith("_") else getattr(holder, field, None)
                    if isinstance(value, np.ndarray) and value.size:
                        start = value.__array_interface__["data"][0]
                        self._spans.append((start, start + value.nbytes, owner, field))
        start = array.__array_interface__["data"][0]
        for low, high, owner, field in self._spans:
            if low <= start < high:
                return owner, field, (start - low) // array.itemsize
        return None
