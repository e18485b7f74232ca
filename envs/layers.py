"""Through gymnasium's wrappers: methods looked up, and the state that the wrappers themselves have."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from mtrl.envs import plain
from mtrl.envs.protocol import SuiteError

_FIXED_TYPES = (
    gym.Env, gym.Space, EnvSpec, type, np.ufunc,
    types.ModuleType, types.BuiltinFunctionType, types.MethodType,
)  # fmt: skip
_FIXED_NAMES = frozenset({"metadata", "_metadata", "_saved_kwargs"})
_LIBRARIES = ("gymnasium.", "stable_baselines3.")


def layers(env: Any) -> Iterator[Any]:
    """The env and what it wraps, from outside to inside."""
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env


def find(env: Any, *methods: str) -> Any:
    """The outermost layer that has all these methods; None if none has."""
    for layer in layers(env):
        if all(callable(_own(layer, method)) for method in methods):
            return layer
    return None


def _own(layer: Any, name: str) -> Any:
    """An attribute; of a wrapper only its own, because many forward what they have not."""
    if isinstance(layer, gym.Wrapper):
        return vars(layer).get(name) or getattr(type(layer), name, None)
    return getattr(layer, name, None)


def full_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def capture(env: Any) -> tuple[Any, list[dict[str, Any]]]:
    """What the env's own `get_state` returns, and the attributes of each wrapper around its layer.

    Raises `SuiteError` when no layer has `get_state` and `set_state`, or when a wrapper has an attribute of a
    kind that cannot be captured, so that none is lost silently.
    """
    owner = _owner(env)
    around = []
    for layer in layers(env):
        if layer is owner:
            break
        try:
            spaces = [_draws(space) for space in (layer.action_space, layer.observation_space)]
            around.append(
                {"wrapper": full_name(type(layer)), "attributes": _attributes(layer), "spaces": spaces}
            )
        except TypeError as error:
            raise SuiteError(
                f"its wrapper {type(layer).__name__} cannot be saved ({error}); "
                "give that wrapper a get_state and a set_state for itself and what it wraps"
            ) from None
    return owner.get_state(), around


def restore(env: Any, state: Any, around: list[dict[str, Any]]) -> None:
    """Put what `capture` returned into an env of the same layers. Raises `SuiteError` for other layers."""
    owner = _owner(env)
    wrappers: list[Any] = []
    for layer in layers(env):
        if layer is owner:
            break
        wrappers.append(layer)
    here, there = [full_name(type(layer)) for layer in wrappers], [layer["wrapper"] for layer in around]
    if here != there:
        raise SuiteError(f"the state is of an env in wrappers {there}, this one has {here}")
    owner.set_state(state)
    for layer, saved in zip(wrappers, around, strict=True):
        _put(layer, saved["attributes"])
        spaces = (layer.action_space, layer.observation_space)
        for space, state in zip(spaces, saved.get("spaces", ()), strict=False):  # older states have none
            space.np_random.bit_generator.state = state


def _draws(space: gym.Space[Any]) -> Any:
    """The state of the generator of a space, which a wrapper may sample."""
    return space.np_random.bit_generator.state


def _owner(env: Any) -> Any:
    owner = find(env, "get_state", "set_state")
    if owner is None:
        raise SuiteError("its env has no get_state and set_state, so it cannot be saved")
    return owner


def _changing(holder: Any) -> list[str]:
    return [
        name
        for name, value in vars(holder).items()
        if name not in _FIXED_NAMES and not isinstance(value, _FIXED_TYPES)
    ]


def _attributes(holder: Any) -> dict[str, Any]:
    return {name: _encode(name, vars(holder)[name]) for name in _changing(holder)}


def _put(holder: Any, attributes: dict[str, Any]) -> None:
    current = vars(holder)
    for name in _changing(holder):
        if name not in attributes:
            del current[name]
    for name, data in attributes.items():
        current[name] = _decode(data, current.get(name))


def _encode(name: str, value: Any) -> Any:
    if isinstance(value, types.FunctionType):
        # A function is code, but one that was made inside another may keep variables of it.
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return {"function": [None if isinstance(c, _FIXED_TYPES) else _encode(name, c) for c in cells]}
    if type(value).__module__.startswith(_LIBRARIES) and hasattr(value, "__dict__"):
        return {"object": _attributes(value)}  # running moments, say
    return plain.encode(name, value)


def _decode(data: Any, current: Any) -> Any:
    tag = next(iter(data)) if isinstance(data, dict) else None
    if tag == "object":
        _put(current, data["object"])
        return current
    if tag == "function":
        for cell, content in zip(current.__closure__ or (), data["function"], strict=True):
            if not isinstance(cell.cell_contents, _FIXED_TYPES):
                cell.cell_contents = _decode(content, cell.cell_contents)
        return current
    return plain.decode(data)
