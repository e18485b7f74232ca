"""What lies in an env's wrappers: methods of the env within, and the state of the wrappers themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from mtrl.envs.protocol import SuiteError

Env = gym.Env[Any, Any]
FIXED = ("env", "_saved_kwargs", "_metadata", "_cached_spec")  # of a wrapper, whatever they hold


def layers(env: Env) -> Iterator[Env]:
    """The env and what it wraps, from outside in."""
    while True:
        yield env
        if not isinstance(env, gym.Wrapper):
            return
        env = env.env


def find(env: Env, method: str) -> Any:
    """The method of the outermost layer that defines it; none if no layer does."""
    return next((getattr(layer, method) for layer in layers(env) if hasattr(layer, method)), None)


def get_state(env: Env, task: str) -> dict[str, Any]:
    """The state of the layer that has `get_state`, and what the wrappers around it hold, as plain data.

    Raises `SuiteError` when no layer has `get_state` and `set_state`, or a wrapper holds something else.
    """
    outer, inner = _split(env, task)
    return {"env": inner.get_state(), "wrappers": [_held(layer, task) for layer in outer]}  # type: ignore[attr-defined]


def set_state(env: Env, task: str, state: dict[str, Any]) -> None:
    """Go on from what `get_state` returned for an env of the same wrappers."""
    outer, inner = _split(env, task)
    kinds = [type(layer).__name__ for layer in outer]
    if kinds != [held["kind"] for held in state["wrappers"]]:
        raise SuiteError(
            f"task {task}: the state is of an env in other wrappers than {', '.join(kinds) or 'none'}"
        )
    inner.set_state(state["env"])  # type: ignore[attr-defined]
    for layer, held in zip(outer, state["wrappers"], strict=True):
        for name, value in held["attributes"].items():
            setattr(layer, name, _like(getattr(layer, name, None), value))


def _split(env: Env, task: str) -> tuple[list[Env], Env]:
    """The wrappers around the outermost layer that can be saved, and this layer."""
    outer: list[Env] = []
    for layer in layers(env):
        if hasattr(layer, "get_state") and hasattr(layer, "set_state"):
            return outer, layer
        outer.append(layer)
    raise SuiteError(f"task {task}: its env has no get_state and set_state, so it cannot be saved")


def _held(layer: Env, task: str) -> dict[str, Any]:
    attributes = {}
    for name, value in vars(layer).items():
        constant = callable(value) or isinstance(value, (gym.Space, gym.Env, gym.envs.registration.EnvSpec))
        if name in FIXED or constant:
            continue
        try:
            attributes[name] = _plain(value)
        except TypeError:
            kind = type(layer).__name__
            raise SuiteError(
                f"task {task}: its wrapper {kind} holds {name!r} ({type(value).__name__}), which cannot be saved; "
                f"{kind} needs get_state and set_state of its own"
            ) from None
    return {"kind": type(layer).__name__, "attributes": attributes}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, np.generic)):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.copy()
    if isinstance(value, np.random.Generator):
        return _plain(value.bit_generator.state)
    if isinstance(value, (list, tuple, deque)):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError


def _like(now: Any, saved: Any) -> Any:
    """A saved value as the kind of thing that stands in its place: a file has lists for tuples."""
    if isinstance(now, np.random.Generator):
        now.bit_generator.state = saved
        return now
    if saved is not None and isinstance(now, deque):
        return deque(saved, now.maxlen)
    if saved is not None and isinstance(now, tuple):
        return tuple(saved)
    if saved is not None and isinstance(now, np.ndarray):
        return np.array(saved, now.dtype)
    return saved
