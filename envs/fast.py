"""Meta-World's tasks with the same arithmetic in fewer Python operations: not one bit differs.

Physics is a quarter of a stock step; the rest is look-ups, copies and array calls on three numbers. `fast`
makes a subclass of a task's class. Meta-World itself stays as it is, also for other envs of the process.
"""

from __future__ import annotations

import types
from functools import cache
from math import sqrt
from typing import Any

from mtrl.envs.physics import mujoco  # before Meta-World, which imports it too

# isort: split
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation


@cache
def fast(stock: type[SawyerXYZEnv]) -> type[SawyerXYZEnv]:
    """A subclass of a task's class that computes the same bits in less time.

    The task's own methods keep their code, but the names in it stand for the functions below. What it inherits
    unchanged from `SawyerXYZEnv` is replaced by the method of `_Fast`; what it overrides stays its own.
    """
    methods: dict[str, Any] = {"__module__": stock.__module__, "__qualname__": stock.__qualname__}
    for kind in stock.__mro__[: stock.__mro__.index(SawyerXYZEnv) + 1]:
        for name, method in vars(kind).items():
            if isinstance(method, types.FunctionType) and getattr(stock, name) is method:
                methods[name] = _rebound(method)
    for name, method in vars(_Fast).items():
        if not name.startswith("__") and getattr(stock, name) is getattr(SawyerXYZEnv, name):
            methods[name] = method
    return type(stock.__name__, (stock,), methods)


def _rebound(function: types.FunctionType) -> types.FunctionType:
    """The function with the same code, in which the names of `_SUBSTITUTES` stand for the fast ones."""
    names = {
        name: next((quick for slow, quick in _SUBSTITUTES if value is slow), value)
        for name, value in function.__globals__.items()
    }
    rebound = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    return rebound


class _Fast:
    """The methods of `SawyerXYZEnv` that `fast` replaces, for it to take; never an env itself."""

    def step(
        self: Any, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], Any, bool, bool, dict[str, Any]]:
        """The stock step without what it computes twice; whatever makes it raise is left to it."""
        done = self.curr_path_length >= self.max_path_length or self._did_see_sim_exception
        if len(action) != 4 or not self._set_task_called or done:
            return SawyerXYZEnv.step(self, action)  # type: ignore[no-any-return]
        self.set_xyz_action(action[:3])
        self._step_mujoco_simulation([action[-1], -action[-1]], self.frame_skip)
        self.curr_path_length += 1
        # The stock step first moves the target's sites, but this computes the place of every site anew.
        mujoco.mj_forward(self.model, self.data)
        space = self.sawyer_observation_space
        observation = self._get_obs().clip(space.low, space.high)
        self._last_stable_obs = observation
        reward, info = self.evaluate_state(observation, action)
        return observation.copy(), reward, False, self.curr_path_length == self.max_path_length, info

    def set_xyz_action(self: Any, action: NDArray[Any]) -> None:
        """`np.clip` is the method `clip` behind three calls; the float32 product stays one."""
        moved = self.data.mocap_pos + action.clip(-1, 1) * self.action_scale
        moved[0].clip(self.mocap_low, self.mocap_high, out=moved[0])
        self.data.mocap_pos[:] = moved
        self.data.mocap_quat[:] = (1, 0, 1, 0)

    def touching_object(self: Any, object_geom_id: int) -> bool:
        """Contacts as whole columns: iterating over them, as the stock one does, ends by a costly exception.

        Per pad the forces are added in the order of the contacts, as there.
        """
        left, right = self.data.geom("leftpad_geom").id, self.data.geom("rightpad_geom").id
        contact = self.data.contact
        left_force = right_force = 0.0
        columns = contact.geom1.tolist(), contact.geom2.tolist(), contact.efc_address.tolist()
        for first, second, address in zip(*columns, strict=True):
            if object_geom_id in (first, second):
                if left in (first, second):
                    left_force += self.data.efc_force[address]
                if right in (first, second):
                    right_force += self.data.efc_force[address]
        return bool(left_force > 0 and right_force > 0)

    def _get_curr_obs_combined_no_goal(self: Any) -> NDArray[np.float64]:
        """`[18]`, each part written to its place instead of split, padded and stacked."""
        data = self.data
        observation = np.zeros(4 + self._obs_obj_max_len)
        observation[:3] = self.get_endeff_pos()
        apart = data.body("rightclaw").xpos - data.body("leftclaw").xpos
        observation[3] = min(max(sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
        positions, quaternions = self._get_pos_objects(), self._get_quat_objects()
        for i in range(len(positions) // 3):
            start = 4 + 7 * i
            observation[start : start + 3] = positions[3 * i : 3 * i + 3]
            observation[start + 3 : start + 7] = quaternions[4 * i : 4 * i + 4]
        return observation

    def _get_obs(self: Any) -> NDArray[np.float64]:
        """`[39]`: `np.hstack` of vectors is `np.concatenate` after checks."""
        goal = self._get_pos_goal()
        if self._partially_observable:
            goal = np.zeros_like(goal)
        now = self._get_curr_obs_combined_no_goal()
        observation = np.concatenate((now, self._prev_obs, goal))
        self._prev_obs = now
        return observation

    def _reset_hand(self: Any, steps: int = 50) -> None:
        """All steps in one call: what is set before each of them, no step changes."""
        mocap = self.model.body_mocapid[self.data.body("mocap").id]
        self.data.mocap_pos[mocap] = self.hand_init_pos
        self.data.mocap_quat[mocap] = (1, 0, 1, 0)
        self._step_mujoco_simulation([-1, 1], steps * self.frame_skip)
        self.init_tcp = self.tcp_center


_LONG_TAIL = np.sqrt(1 / 0.1 - 1)


def _tolerance(
    x: Any,
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: Any = 0.0,
    sigmoid: Any = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:
    """`reward_utils.tolerance` of one float64 with the sigmoid that nearly all tasks use, without arrays.

    The expressions are the stock ones. Numbers of another kind are left to it, for the sake of their precision.
    """
    lower, upper = bounds
    floats = isinstance(x, float) and isinstance(margin, float)
    if not floats or not isinstance(lower, float | int) or not isinstance(upper, float | int):
        return reward_utils.tolerance(x, bounds, margin, sigmoid, value_at_margin)
    if sigmoid != "long_tail" or value_at_margin != 0.1 or lower > upper or not margin > 0:
        return reward_utils.tolerance(x, bounds, margin, sigmoid, value_at_margin)
    if lower <= x <= upper:
        return 1.0
    d = (lower - x if x < lower else x - upper) / margin
    return float(1 / ((d * _LONG_TAIL) ** 2 + 1))


class _Rotation:
    """scipy's `Rotation` as far as the tasks use it: `Rotation.from_matrix(matrix).as_quat()`."""

    def __init__(self, quaternion: NDArray[np.float64]) -> None:
        self.quaternion = quaternion

    @staticmethod
    def from_matrix(matrix: NDArray[np.float64]) -> _Rotation:
        """matrix: `[3, 3]`. A matrix that scipy would refuse or first make orthogonal is left to scipy."""
        if not _is_rotation(*matrix.ravel().tolist()):
            return _Rotation(Rotation.from_matrix(matrix).as_quat())
        return _Rotation(np.array(_quaternion(matrix.tolist())))

    def as_quat(self) -> NDArray[np.float64]:
        """`[4]`, the scalar last."""
        return self.quaternion


def _is_rotation(
    a: float, b: float, c: float, d: float, e: float, f: float, g: float, h: float, i: float
) -> bool:
    """Whether rows (a, b, c), (d, e, f), (g, h, i) are a rotation, ten times closer than scipy asks for."""
    return (
        abs(a * a + b * b + c * c - 1) < 1e-13
        and abs(d * d + e * e + f * f - 1) < 1e-13
        and abs(g * g + h * h + i * i - 1) < 1e-13
        and abs(a * d + b * e + c * f) < 1e-13
        and abs(a * g + b * h + c * i) < 1e-13
        and abs(d * g + e * h + f * i) < 1e-13
        and a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g) > 0
    )


def _quaternion(m: list[list[float]]) -> list[float]:
    """scipy's `_from_matrix_orthogonal` of one rotation matrix, operation by operation."""
    trace = m[0][0] + m[1][1] + m[2][2]
    # The first of the largest, as scipy chooses.
    decision = [m[0][0], m[1][1], m[2][2], trace]
    i = decision.index(max(decision))
    if i == 3:
        q = [m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1], 1 + trace]
    else:
        j, k = (i + 1) % 3, (i + 2) % 3
        q = [0.0, 0.0, 0.0, m[k][j] - m[j][k]]
        q[i] = 1 - trace + 2 * m[i][i]
        q[j] = m[j][i] + m[i][j]
        q[k] = m[k][i] + m[i][k]
    norm = sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    return [q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm]


_REWARD_UTILS = types.SimpleNamespace(**{**vars(reward_utils), "tolerance": _tolerance})

_SUBSTITUTES: tuple[tuple[Any, Any], ...] = (
    (Rotation, _Rotation),
    (reward_utils, _REWARD_UTILS),
    (reward_utils.tolerance, _tolerance),
)
"""What the tasks' modules refer to, and what stands in its place in a fast task."""
