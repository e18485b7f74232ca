"""Protocol: names, defaults, round trips and refusals."""

import json
import subprocess
import sys

import numpy as np
import pytest
from metaworld import env_dict

from mtrl.envs import SUITES, Protocol, SuiteError, protocol
from mtrl.envs.point import POINT_TASKS


def test_the_name_reads_and_holds_no_seed():
    assert Protocol().name == "mt10-v2-h500-random50"
    assert Protocol("mt10", reward="v1", horizon=150, goals="fixed", goal_seed=3).name == "mt10-v1-h150-fixed"
    assert Protocol("custom", tasks=("reach", "push")).name == "custom2-v2-h500-random50"


def test_the_name_of_ones_own_suite_says_nothing_of_meta_world():
    suite = "mtrl.envs.protocol:own_point_tasks"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(protocol._FUNCTIONS, suite, lambda: POINT_TASKS)
        assert Protocol(suite, horizon=30).name == f"{suite}-h30"
        assert Protocol(suite, goals="fixed").name == f"{suite}-h500-fixed"
        assert Protocol(suite, num_goals=7).name == f"{suite}-h500-random7"


def test_suites_are_meta_worlds_own_in_its_order():
    assert list(SUITES) == ["mt10", "mt25", "mt50", "point"]
    assert SUITES["mt10"] == tuple(env_dict.MT10_V3)
    assert SUITES["mt25"] == tuple(env_dict.MT25_V3)
    assert SUITES["mt50"] == tuple(env_dict.ALL_V3_ENVIRONMENTS)
    assert [len(SUITES[name]) for name in SUITES] == [10, 25, 50, 5]


def test_tasks_are_named_in_full_and_keep_their_order():
    assert Protocol("reach").task_names == ("reach-v3",)
    assert Protocol("reach") == Protocol("reach-v3")
    assert Protocol("custom", tasks=["push", "door-open-v3"]).task_names == ("push-v3", "door-open-v3")
    assert Protocol("point").task_names == SUITES["point"]


@pytest.mark.parametrize(
    "protocol",
    [Protocol(), Protocol("custom", tasks=("push", "reach"), goals="fixed", goal_seed=7), Protocol("point")],
)
def test_a_protocol_survives_json(protocol):
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"suite": "mt11"}, ["suite", "'mt11'", "mt10", "did you mean 'mt1"]),
        ({"suite": "raech-v3"}, ["suite", "did you mean 'reach-v3'"]),
        ({"suite": None}, ["suite", "None"]),
        ({"suite": "custom"}, ["tasks", "None"]),
        ({"suite": "custom", "tasks": "reach"}, ["tasks", "'reach'"]),
        ({"suite": "custom", "tasks": ["reach", "psuh"]}, ["tasks", "'psuh'", "did you mean 'push-v3'"]),
        ({"suite": "custom", "tasks": ["reach", 3]}, ["tasks", "3"]),
        ({"suite": "custom", "tasks": ["reach", "reach-v3"]}, ["tasks", "'reach-v3'", "more than once"]),
        ({"suite": "mt10", "tasks": ["reach"]}, ["tasks", "custom", "'mt10'"]),
        ({"reward": "v3"}, ["reward", "'v3'", "v1, v2"]),
        ({"reward": None}, ["reward", "None"]),
        ({"suite": "point", "reward": "v1"}, ["reward", "'v1'", "point"]),
        ({"goals": "randm"}, ["goals", "did you mean 'random'"]),
        ({"horizon": 501}, ["horizon", "501", "1 to 500"]),
        ({"horizon": 0}, ["horizon", "0"]),
        ({"horizon": 10.0}, ["horizon", "10.0"]),
        ({"horizon": True}, ["horizon", "True"]),
        ({"num_goals": 0}, ["num_goals", "0", "from 1 to 100000"]),
        ({"goal_seed": -1}, ["goal_seed", "-1"]),
        ({"goal_seed": 2**63}, ["goal_seed", "9223372036854775808"]),
        ({"suite": "point", "horizon": 10**12}, ["horizon", "1000000000000", "1 to 1000000"]),
        ({"num_goals": np.True_}, ["num_goals", "True"]),
        ({"num_goals": np.array([3, 4])}, ["num_goals", "array([3, 4])"]),
        ({"reward": np.array(["v1", "v2"])}, ["reward", "v1, v2"]),
        ({"suite": "custom", "tasks": []}, ["tasks", "[]"]),
        ({"suite": "custom", "tasks": np.array([])}, ["tasks"]),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(values, words):
    with pytest.raises(SuiteError) as refusal:
        Protocol(**values)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_numbers_and_names_of_numpy_are_numbers_and_names():
    given = Protocol(
        np.str_("custom"), tasks=np.array(["point-reach", "point-swap"]), horizon=np.int64(30),
        goals=np.str_("random"), num_goals=np.uint8(3), goal_seed=np.int32(7),
    )  # fmt: skip
    plain = Protocol("custom", tasks=("point-reach", "point-swap"), horizon=30, num_goals=3, goal_seed=7)
    assert given == plain
    assert json.dumps(given.to_dict()) == json.dumps(plain.to_dict())


def test_an_unknown_setting_is_refused_with_the_nearest():
    with pytest.raises(SuiteError, match=r"'horizn'.*did you mean 'horizon'"):
        Protocol.from_dict({"horizn": 3})


def test_the_point_suite_may_last_longer_than_meta_world():
    assert Protocol("point", horizon=501).horizon == 501


def test_the_point_suite_and_the_list_of_suites_load_no_simulator():
    program = (
        "import sys\n"
        "from mtrl.envs import SUITES, Protocol, make_suite\n"
        "assert 'torch' not in sys.modules\n"
        "list(SUITES), len(SUITES), Protocol('mt10')\n"
        "make_suite(Protocol('point', horizon=50)).reset()\n"
        "assert not {'metaworld', 'mujoco'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
