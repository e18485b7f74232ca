"""The fast tasks against Meta-World's own, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from mtrl.envs.fast import _Rotation, _tolerance, fast

SCRIPTED_STEPS = 80
RANDOM_STEPS = 20


@pytest.fixture
def build(compiled_once: None) -> Callable[[type], Any]:
    """Builds envs of the multi-task kind."""

    def build_one(kind: type) -> Any:
        env = kind()
        env._partially_observable = False
        del env.sawyer_observation_space
        env._set_task_called = True
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        env._np_random = np.random.default_rng(1)
        return env

    return build_one


def bits(value: Any) -> tuple[type, bytes]:
    return type(value), np.asarray(value).tobytes()


def physics(env: Any) -> bytes:
    state = np.empty(mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(env.model, env.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    return state.tobytes()


@pytest.mark.parametrize("name", ALL_V3_ENVIRONMENTS)
def test_a_fast_task_gives_the_bits_of_the_stock_one(name: str, build: Callable[[type], Any]):
    kind = ALL_V3_ENVIRONMENTS[name]
    stock, quick = build(kind), build(fast(kind))
    generator = np.random.default_rng(0)
    for reward in ("v2", "v1"):
        stock.reward_function_version = quick.reward_function_version = reward
        policy = ENV_POLICY_MAP[name]()
        for steps, scripted in ((SCRIPTED_STEPS, True), (RANDOM_STEPS, False)):
            expected, _ = stock.reset()
            observation, _ = quick.reset()
            assert bits(observation) == bits(expected), (reward, "reset")
            for step in range(steps):
                action = generator.uniform(-1.5, 1.5, 4)
                if scripted:
                    action = policy.get_action(expected) + 0.02 * action
                action = action.astype(np.float32)
                expected, *expected_rest, expected_info = stock.step(action)
                observation, *rest, info = quick.step(action)
                assert bits(observation) == bits(expected), (reward, step)
                assert [*map(bits, rest)] == [*map(bits, expected_rest)], (reward, step)
                assert {key: bits(value) for key, value in info.items()} == {
                    key: bits(value) for key, value in expected_info.items()
                }, (reward, step)
            assert physics(quick) == physics(stock), reward
    assert set(quick.__dict__) == set(stock.__dict__)


def rotations(generator: np.random.Generator, count: int) -> Any:
    """`[count, 3, 3]`: MuJoCo's matrices of random quaternions, half of them near the branches of the formula."""
    quaternions = generator.normal(size=(count, 4))
    quaternions[::2] = generator.choice([-1.0, 0.0, 1.0, 1e-9], (len(quaternions[::2]), 4))
    quaternions[~quaternions.any(axis=1)] = 1.0
    matrices = np.empty((count, 9))
    for matrix, quaternion in zip(matrices, quaternions, strict=True):
        mujoco.mju_normalize4(quaternion)
        mujoco.mju_quat2Mat(matrix, quaternion)
    return matrices.reshape(count, 3, 3)


def test_the_quaternion_of_a_rotation_has_the_bits_of_scipys():
    for matrix in rotations(np.random.default_rng(0), 5000):
        assert bits(_Rotation.from_matrix(matrix).as_quat()) == bits(Rotation.from_matrix(matrix).as_quat())


def test_a_matrix_that_is_no_rotation_is_left_to_scipy():
    rotation = rotations(np.random.default_rng(0), 2)[1]
    for i, j in np.ndindex(3, 3):
        matrix = rotation.copy()
        matrix[i] += (1e-3 if i == j else 1e-9) * rotation[j]
        assert bits(_Rotation.from_matrix(matrix).as_quat()) == bits(Rotation.from_matrix(matrix).as_quat())
    with pytest.raises(ValueError, match="Non-positive determinant"):
        _Rotation.from_matrix(np.diag([1.0, 1.0, -1.0]))


@pytest.mark.parametrize("sigmoid", ["long_tail", "gaussian"])
def test_the_tolerance_has_the_bits_of_the_stock_one_for_every_kind_of_number(sigmoid: Any):
    generator = np.random.default_rng(0)
    for x_kind, bound_kind, margin_kind in product((float, np.float64, np.float32), repeat=3):
        for x, upper, margin in generator.uniform(-0.2, 1.0, (200, 3)):
            for lower, width in ((0, abs(margin)), (abs(upper) / 2, abs(margin)), (0, 0.0)):
                arguments = x_kind(x), (lower, bound_kind(abs(upper))), margin_kind(width), sigmoid
                assert bits(_tolerance(*arguments)) == bits(reward_utils.tolerance(*arguments))


def test_the_tolerance_refuses_what_the_stock_one_refuses():
    for bounds, margin in (((1.0, 0.0), 0.1), ((0.0, 1.0), -0.1)):
        with pytest.raises(ValueError, match=r"bound|margin"):
            _tolerance(0.5, bounds, margin, "long_tail")


def test_what_a_task_overrides_stays_its_own(build: Callable[[type], Any]):
    class OwnHand(ALL_V3_ENVIRONMENTS["reach-v3"]):  # type: ignore[misc]
        def _reset_hand(self, steps: int = 50) -> None:
            super()._reset_hand(steps + 1)

        def touching_object(self, object_geom_id: int) -> str:
            return "mine"

    stock, quick = build(OwnHand), build(fast(OwnHand))
    assert quick.touching_object(0) == "mine"
    assert bits(quick.reset()[0]) == bits(stock.reset()[0])
    assert physics(quick) == physics(stock)


def test_meta_worlds_own_classes_stay_as_they_are():
    before = {name: dict(vars(kind)) for name, kind in ALL_V3_ENVIRONMENTS.items()}
    base = dict(vars(SawyerXYZEnv))
    for kind in ALL_V3_ENVIRONMENTS.values():
        quick = fast(kind)
        assert quick is not kind
        assert quick.__name__ == kind.__name__
    assert {name: dict(vars(kind)) for name, kind in ALL_V3_ENVIRONMENTS.items()} == before
    assert dict(vars(SawyerXYZEnv)) == base


def test_a_fast_task_refuses_what_the_stock_one_refuses(build: Callable[[type], Any]):
    env = build(fast(ALL_V3_ENVIRONMENTS["reach-v3"]))
    env.reset()
    with pytest.raises(AssertionError, match="size 4"):
        env.step(np.zeros(3, np.float32))
    env.curr_path_length = env.max_path_length
    with pytest.raises(ValueError, match="reset the env"):
        env.step(np.zeros(4, np.float32))
    env._set_task_called = False
    with pytest.raises(RuntimeError, match="set_task"):
        env.step(np.zeros(4, np.float32))


class Contacts(list[SimpleNamespace]):
    """MuJoCo's contacts: a sequence, and each field as a column."""

    def __getattr__(self, field: str) -> Any:
        return np.array([getattr(contact, field) for contact in self], int)


def test_a_touch_is_found_as_the_stock_one_finds_it():
    generator = np.random.default_rng(0)
    pads = {"leftpad_geom": SimpleNamespace(id=0), "rightpad_geom": SimpleNamespace(id=1)}
    found = []
    for _ in range(300):
        ends = [*generator.integers(0, 4, (generator.integers(0, 7), 2)).tolist()]
        contacts = Contacts(
            SimpleNamespace(geom1=first, geom2=second, efc_address=generator.integers(-1, 5))
            for first, second in ends
        )
        force = generator.choice([-1.0, 0.0, 1.0, 0.1], 5)
        env = SimpleNamespace(data=SimpleNamespace(geom=pads.get, contact=contacts, efc_force=force))
        found.append(SawyerXYZEnv.touching_object(env, 2))
        assert fast(SawyerXYZEnv).touching_object(env, 2) == found[-1]
    assert set(found) == {False, True}
