"""What one's own env may return, be given and be made by: accepted as meant, or refused in one line."""

import fractions
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from own_envs import OwnEnv

from mtrl.envs import Protocol, SuiteError, make_suite

ABSENT = object()


class Returns(gym.Env):
    """Returns what it is told to."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, **values):
        self.values = values

    def reset(self, *, seed=None, options=None):
        return self.values.get("start", (np.zeros(2, np.float32), {}))

    def step(self, action):
        return self.values.get(
            "stepped",
            (
                self.values.get("observation", np.zeros(2)), self.values.get("reward", 0.0),
                self.values.get("terminated", False), self.values.get("truncated", False),
                self.values.get("info", {"success": False}),
            ),
        )  # fmt: skip


def step(**values):
    envs = make_suite({"good": Returns, "a": lambda: Returns(**values)}, horizon=3)
    envs.reset()
    return envs.step(np.zeros((2, 1)))


def refusal(**values):
    with pytest.raises(SuiteError) as error:
        step(**values)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (True, True), (np.True_, True), (np.float32(0), False), (1.0, True), (0, False), (np.int8(1), True),
        (torch.tensor(False), False), (torch.tensor([1.0]), True), (np.array([False]), False),
        (np.array(1), True), (fractions.Fraction(1), True), (-0.0, False), (np.array([[True]]), True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["success", "is_success"])
def test_success_is_a_bool_or_0_or_1_of_any_library(value, meant, key):
    info = step(info={key: value})[3][1]
    assert (info["success"], info["is_success"]) == (meant, meant)
    assert type(info["success"]) is bool


@pytest.mark.parametrize("value", [
    None, "False", "0", "", float("nan"), [False], [], (), np.array([False, False]), np.array([]), -1, 0.3, 2,
    np.inf, {"task": False}, {}, 1j, np.array("1"), np.array([None]), torch.zeros(2), object(),
    fractions.Fraction(10**5000), b"1",
])  # fmt: skip
@pytest.mark.parametrize("key", ["success", "is_success"])
def test_any_other_success_is_refused_by_task_value_and_step(value, key):
    message = refusal(info={key: value})
    assert message.startswith(f"task a: {key} is ")
    assert "step 1 of the episode" in message


@pytest.mark.parametrize("key", ["terminated", "truncated"])
def test_an_end_is_true_or_false_as_success_is(key):
    assert step(**{key: np.True_})[2].tolist() == [False, True]
    assert step(**{key: np.array([False])})[2].tolist() == [False, False]
    assert f"task a: {key} is 'False' at step 1" in refusal(**{key: "False"})
    assert f"task a: {key} is None at step 1" in refusal(**{key: None})


def test_an_env_that_tells_no_success_is_named_once_and_its_success_is_not_known():
    envs = make_suite({"silent": lambda: Returns(info={}), "tells": Returns}, horizon=2)
    envs.reset()
    with pytest.warns(UserWarning, match="task silent: .*neither success nor is_success") as told:
        infos = [envs.step(np.zeros((2, 1)))[3] for _ in range(5)][-1]
    assert len(told) == 1
    assert [info["success"] for info in infos] == [None, False]
    assert [info["is_success"] for info in infos] == [None, False]


def test_a_success_that_is_told_at_the_end_alone_is_that_of_the_episode():
    class AtTheEnd(OwnEnv):
        def step(self, action):
            *rest, _ = super().step(action)
            return *rest, {"is_success": True} if self.steps == 3 else {}

    envs = make_suite({"a": AtTheEnd}, horizon=3)
    envs.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = [envs.step(np.zeros((1, 2)))[3][0]["is_success"] for _ in range(6)]
    assert told == [None, None, True] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_env_that_cannot_be_drawn_is_named_with_its_reason_in_one_line(workers):
    class Undrawn(Returns):
        render_mode = "rgb_array"

        def render(self):
            raise gym.error.DependencyNotInstalled("no pygame:\npip install pygame")

    envs = make_suite({"blind": Undrawn}, render_mode="rgb_array", workers=workers)
    envs.reset()
    with pytest.raises(SuiteError) as error:
        envs.get_images()
    envs.close()
    assert str(error.value) == (
        "task blind: its env cannot be drawn (DependencyNotInstalled: no pygame: pip install pygame)"
    )


def test_an_env_that_gymnasium_does_not_know_is_named_in_one_line():
    with pytest.raises(SuiteError, match=r"task a: its env cannot be made .NameNotFound: Environment `Pend"):
        make_suite({"a": lambda: gym.make("Pendulun-v1")})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"observation": 0.5}, "the observation is 0.5, of shape .. and type float64, at step 1"),
        ({"observation": np.zeros(1)}, r"the observation .* shape .1,. .* must be \[2\]"),
        ({"observation": np.zeros((2, 1))}, r"the observation .* shape .2, 1."),
        ({"observation": np.zeros((1, 2))}, r"the observation .* shape .1, 2."),
        ({"observation": np.zeros(2, complex)}, "the observation .* complex128"),
        ({"observation": np.array(["1", "2"])}, "the observation .* <U1"),
        ({"observation": np.array([None, 1.0])}, "the observation .* object"),
        ({"observation": [[1.0], [1.0, 2.0]]}, "the observation is"),
        ({"observation": None}, "the observation is None"),
        ({"observation": {"a": 1}}, "the observation is"),
        ({"reward": 1j}, "the reward is 1j at step 1"),
        ({"reward": np.complex64(1)}, "the reward is"),
        ({"reward": None}, "the reward is None"),
        ({"reward": "1.5"}, "the reward is '1.5'"),
        ({"reward": np.zeros(1)}, "the reward is"),
        ({"reward": np.zeros(2)}, "the reward is"),
        ({"reward": [1.0]}, "the reward is"),
        ({"reward": 10**400}, "the reward is inf at step 1"),
        ({"reward": 1e300}, r"the reward is 1e\+300 at step 1"),  # infinite in float32
        ({"reward": float("nan")}, "the reward is nan at step 1"),
        ({"info": None}, "info is None at step 1 .* a dict"),
        ({"info": [("success", True)]}, "info is"),
        ({"stepped": (np.zeros(2), 0.0, False, {})}, "what step returned is .* terminated, truncated"),
        ({"stepped": None}, "what step returned is None"),
        ({"start": np.zeros(2)}, "its reset returned .*, not .observation, info."),
        ({"start": (np.zeros(2), None)}, "info is None at step 0"),
        ({"start": (np.zeros(1), {})}, "the observation .* at step 0"),
    ],
)  # fmt: skip
def test_what_no_env_may_return_is_refused_by_task_and_value(values, words):
    with pytest.raises(SuiteError, match=f"task a: {words}"):
        step(**values)
    refusal(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"observation": [0.5, 0.5]}, {"observation": (1, 0)}, {"observation": torch.full((2,), 0.5)},
        {"observation": np.array([1, 0])}, {"reward": 1}, {"reward": np.float32(1)}, {"reward": np.array(1.0)},
        {"reward": torch.tensor(1.0)}, {"reward": True},
    ],
)  # fmt: skip
def test_numbers_of_any_library_are_taken(values):
    observations, rewards, *_ = step(**values)
    assert rewards[1] == float(values.get("reward", 0))
    np.testing.assert_array_equal(observations[1, :2], np.asarray(values.get("observation", np.zeros(2))))


class Checks(gym.Env):
    """Asks that its action lies in its box, keeps it, and then spoils it in place."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, low=-1.0, high=1.0, dtype=np.float32):
        self.action_space = gym.spaces.Box(
            np.array([low, low], dtype), np.array([high, high], dtype), dtype=dtype
        )

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), (action, self.action_space)
        self.last = action.copy()
        action *= 0
        return np.zeros(2, np.float32), 0.0, False, False, {"success": False}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_action_lies_in_the_envs_box(dtype):
    generator = np.random.default_rng(0)
    boxes = [(-1.0, 1.0), (-0.4, 0.7), (-3.0, 0.2), (0.0, 10.0), (-0.1, 0.3), (2.0, 2.0)]
    boxes += [
        tuple(sorted(generator.normal(scale=10.0**power, size=2))) for power in (-3, 0, 3) for _ in range(40)
    ]
    for low, high in boxes:
        envs = make_suite({"a": lambda low=low, high=high: Checks(low, high, dtype)})
        envs.reset()
        for action in (1.0, -1.0, 0.0, 0.3, 1.5, -7.0):  # beyond ±1 is clipped
            envs.step(np.full((1, 2), action))
            last = envs.get_attr("last")[0]
            expected = low + (np.clip(action, -1, 1) + 1) / 2 * (high - low)
            digits = 2e-3 if dtype == np.float16 else 1e-6
            np.testing.assert_allclose(last.astype(float), expected, atol=digits * max(abs(low), abs(high)))


def test_the_widest_box_does_not_overflow():
    largest = float(np.finfo(np.float32).max)
    envs = make_suite({"a": lambda: Checks(-largest, largest)})
    envs.reset()
    envs.step(np.full((1, 2), 0.0))
    np.testing.assert_array_equal(envs.get_attr("last")[0], [0.0, 0.0])


@pytest.mark.parametrize("low", [-1.0, -2.0])
def test_an_env_may_change_its_action_in_place(low):
    envs = make_suite({"a": lambda: Checks(low=low)})
    envs.reset()
    actions = np.full((1, 2), 0.5, np.float32)
    envs.step(actions)
    np.testing.assert_array_equal(actions, [[0.5, 0.5]])


def test_an_action_that_is_not_finite_or_not_of_the_shape_is_refused():
    envs = make_suite(Protocol("point"))
    envs.reset()
    actions = np.zeros((5, 2))
    actions[2, 1] = np.nan
    with pytest.raises(SuiteError, match="task point-swap: the action is not finite"):
        envs.step(actions)
    for wrong in (np.zeros((5, 3)), np.zeros((4, 2)), np.zeros(2)):
        with pytest.raises(SuiteError, match="actions of shape"):
            envs.step(wrong)
    envs.step(np.zeros((5, 2)))


@pytest.mark.parametrize("space", [
    gym.spaces.Discrete(3), gym.spaces.Box(0, 4, (1,), np.int64), gym.spaces.Box(0, 1, (1,), np.uint8),
    gym.spaces.Box(-1, 1, (1, 1)), gym.spaces.Box(-np.inf, 1, (1,)), gym.spaces.MultiBinary(2),
])  # fmt: skip
def test_other_actions_than_bounded_floating_point_numbers_are_refused(space):
    class Acts(Returns):
        action_space = space

    with pytest.raises(SuiteError, match="task a: its action space"):
        make_suite({"a": Acts})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Returns(), "is not a function"), ("Pendulum-v1", "'Pendulum-v1' is not a function"),
        (lambda seed: Returns(), "is not a function that makes an env from no arguments"),
        (None, "None is not a function"), (lambda: None, "made None, which is not a gymnasium Env"),
        (lambda: "env", "made 'env'"),
    ],
)  # fmt: skip
def test_what_does_not_make_an_env_is_refused_by_task(make, words):
    with pytest.raises(SuiteError, match=f"task a: .*{words}"):
        make_suite({"a": make})


@pytest.mark.parametrize("name", [3, None, "", " ", "a\nb", ("a",)])
def test_a_task_name_is_a_printable_text(name):
    with pytest.raises(SuiteError, match="task name"):
        make_suite({name: Returns})


def test_goals_that_are_none_are_refused():
    class NoGoals(Returns):
        def draw_goals(self, num_goals, seed):
            return np.zeros((0, 2))

        def set_goal(self, goal): ...

    with pytest.raises(SuiteError, match="task a: draw_goals returned"):
        make_suite({"a": NoGoals})
