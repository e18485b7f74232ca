"""What several test files share: small agents, random batches, environments that follow a script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

from mtrl import registry
from mtrl.config import ActorConfig, AgentConfig, CriticConfig, TemperatureConfig
from mtrl.replay import Batch
from mtrl.sac import MTSAC

torch.set_num_threads(1)

# the files that take longest come first, so that two processes end together
LONG = [
    "test_reliability.py", "test_sweep.py", "test_bench.py", "test_cli.py", "test_api.py", "test_train.py",
    "test_own_networks.py", "test_claims.py", "test_kill.py", "test_signals.py",
]  # fmt: skip
OBS, ACT = 3, 2  # D and A of the agents and batches here


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def same_draws() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # whatever a test before has set


@pytest.fixture(autouse=True)
def same_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test types is trusted in no other one."""
    monkeypatch.setattr(registry, "_trusted", set())


@pytest.fixture
def make_agent() -> Callable[..., MTSAC]:
    """A small agent; ``actor``, ``critic`` and ``temperature`` are dicts of what differs."""

    def make(
        num_tasks: int = 3, *, obs_dim: int = OBS, action_dim: int = ACT, hidden: tuple[int, ...] = (8, 8),
        actor: dict[str, Any] | None = None, critic: dict[str, Any] | None = None,
        temperature: dict[str, Any] | None = None, optimizer: str = "unitary", seed: int = 0,
        options: dict[str, Any] | None = None, info: dict[str, Any] | None = None,
        names: tuple[str, ...] | None = None, **config: Any,
    ) -> MTSAC:  # fmt: skip
        agent_config = AgentConfig(
            actor=ActorConfig(**{"hidden": hidden, **(actor or {})}),
            critic=CriticConfig(**{"hidden": hidden, **(critic or {})}),
            temperature=TemperatureConfig(**(temperature or {})),
            **{"reward_scale": "none", "precision": "fp32", **config},
        )
        return MTSAC(
            obs_dim,
            action_dim,
            names or tuple(f"task-{t}" for t in range(num_tasks)),
            agent_config,
            optimizer=optimizer,
            options=options,
            seed=seed,
            info=info,
        )

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A random batch ``[T, B, ·]`` of the agents that ``make_agent`` makes."""

    def make(num_tasks: int = 3, rows: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(num_tasks, rows, *size, generator=generator, dtype=torch.float64).to(dtype)

        return Batch(normal(OBS), normal(ACT).tanh(), normal(), normal(OBS), (normal() > 1).to(dtype))

    return make


class Episode(NamedTuple):
    """One scripted episode."""

    rewards: list[float]
    successes: list[bool]
    terminated: bool = False


class ScriptedEnvs(VecEnv):
    """Every task plays its list of episodes, over and over. Observation: ``100·episode + step``, one-hot."""

    def __init__(self, scripts: list[list[Episode]]) -> None:
        self.scripts = scripts
        tasks = len(scripts)
        super().__init__(
            tasks,
            gym.spaces.Box(-np.inf, np.inf, (1 + tasks,), np.float32),
            gym.spaces.Box(-1, 1, (1,), np.float32),
        )

    def observe(self, t: int) -> np.ndarray:
        return np.array([100 * self.episode[t] + self.steps[t], *np.eye(self.num_envs)[t]], np.float32)

    def reset(self) -> np.ndarray:
        self.episode, self.steps = [0] * self.num_envs, [0] * self.num_envs
        self.success = [False] * self.num_envs
        self._reset_seeds()
        self._reset_options()
        return np.stack([self.observe(t) for t in range(self.num_envs)])

    def step_async(self, actions: np.ndarray) -> None:
        assert actions.shape == (self.num_envs, 1)

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = [], [], [], []
        for t, script in enumerate(self.scripts):
            episode = script[self.episode[t] % len(script)]
            success = episode.successes[self.steps[t]]
            self.success[t] = self.success[t] or success
            rewards.append(episode.rewards[self.steps[t]])
            info: dict[str, Any] = {"success": success, "is_success": self.success[t]}
            self.steps[t] += 1
            done = self.steps[t] == len(episode.rewards)
            if done:
                info |= {
                    "terminal_observation": self.observe(t), "TimeLimit.truncated": not episode.terminated,
                    "episode": {"r": sum(episode.rewards), "l": self.steps[t]},
                }  # fmt: skip
                self.episode[t], self.steps[t], self.success[t] = self.episode[t] + 1, 0, False
            dones.append(done)
            infos.append(info)
            observations.append(self.observe(t))
        return np.stack(observations), np.array(rewards, np.float32), np.array(dones), infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


@pytest.fixture
def scripted() -> Callable[..., ScriptedEnvs]:
    """``scripted([(rewards, successes, terminated), …], …)``: one list of episodes for each task."""
    return lambda *scripts: ScriptedEnvs([[Episode(*episode) for episode in script] for script in scripts])
