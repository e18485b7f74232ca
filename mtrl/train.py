"""The training loop, on one screen, with the outer shape of a Stable-Baselines3 algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from mtrl.config import ConfigError
from mtrl.conflict import Conflict
from mtrl.replay import TaskReplay
from mtrl.run.checkpoint import with_arrays
from mtrl.sac import MTSAC


class Trainer:
    """Steps the tasks, fills the replay, updates the agent, calls back.

    Stable-Baselines3's callbacks find here what they touch on its algorithms.

    Args:
        agent, envs, replay: one environment per task, observations ending with the task's one-hot.
        logger: where callbacks record; None is silent.
        batch_size: rows per task in an update; with uniform sampling their mean.
        warmup_steps: vector steps of random actions before the first update.
        warmup_updates: updates made at once behind them, before the policy acts.
        updates_per_step: updates for each vector step.
        diagnostics_every: updates between conflict measurements; 0 is never.

    Raises:
        ConfigError: the envs have other tasks than the agent, or in another order.
    """

    def __init__(
        self, agent: MTSAC, envs: VecEnv, replay: TaskReplay, *, logger: Logger | None = None,
        batch_size: float = 64, warmup_steps: int = 1000, updates_per_step: int = 1, diagnostics_every: int = 0,
        warmup_updates: int = 0,
    ) -> None:  # fmt: skip
        names = getattr(envs, "task_names", None)
        if envs.num_envs != agent.num_tasks or (names is not None and tuple(names) != agent.task_names):
            raise ConfigError(
                f"envs: their tasks ({', '.join(names or [str(envs.num_envs)])}) are not the agent's in its order "
                f"({', '.join(agent.task_names)})"
            )
        self.agent, self.envs, self.replay_buffer = agent, envs, replay
        self.logger = logger or Logger(None, [])
        self.batch_size, self.warmup_steps, self.warmup_updates = batch_size, warmup_steps, warmup_updates
        self.updates_per_step, self.diagnostics_every = updates_per_step, diagnostics_every
        self.num_timesteps = 0
        self.num_updates = 0
        # asked after each update of the burst: False stops there, and a resumed run goes on in its middle
        self.between_updates: Callable[[], bool] = lambda: True
        self.metrics: dict[str, Any] = {}
        self.seconds = {"env": 0.0, "update": 0.0, "evaluation": 0.0, "total": 0.0}
        self.began = time.perf_counter()  # perf_counter() minus the seconds trained so far
        self.observations: npt.NDArray[Any] | None = None

    def learn(
        self, total_timesteps: int,
        callback: BaseCallback | Sequence[BaseCallback] | Callable[[Any, Any], bool] | None = None,
    ) -> Trainer:  # fmt: skip
        """Train until ``total_timesteps`` transitions in all (T per vector step), or a callback says no.

        Raises:
            ConfigError: observations do not end with the tasks' one-hots, as when a wrapper scales them.
        """
        if callable(callback) and not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        callback = callback if isinstance(callback, BaseCallback) else CallbackList(list(callback or ()))
        callback.init_callback(self)  # type: ignore[arg-type]
        if self.observations is None:
            self.observations = self.envs.reset()  # type: ignore[assignment]
        self._require_one_hots()
        callback.on_training_start(locals(), globals())
        callback.on_rollout_start()
        clock = time.perf_counter
        self.began = clock() - self.seconds["total"]
        while self.num_timesteps < total_timesteps:
            obs = torch.as_tensor(self.observations)
            warm = self.num_timesteps >= self.warmup_steps * self.envs.num_envs
            if warm and self.num_updates < self.warmup_updates:  # the burst; before anything is drawn
                self._update(1)
                self.keep_time()
                if not self.between_updates():
                    break
                continue
            actions = (self.agent.act(obs) if warm else self.agent.random_actions()).cpu()
            self.envs.step_async(actions.numpy())
            if warm:
                self._update(self.updates_per_step)
            t = clock()
            new_obs, rewards, dones, infos = self.envs.step_wait()
            assert isinstance(new_obs, np.ndarray)
            self.seconds["env"] += clock() - t
            self._remember(obs, actions, rewards, new_obs, dones, infos)
            self.observations = new_obs
            self.num_timesteps += self.envs.num_envs
            self.keep_time()
            callback.update_locals(locals())
            if not callback.on_step():
                break
        callback.on_rollout_end()
        callback.on_training_end()
        return self

    def _require_one_hots(self) -> None:
        assert self.observations is not None
        tasks, size = self.envs.num_envs, self.agent.policy.obs_dim
        shape = self.observations.shape
        if shape != (tasks, size + tasks) or not (self.observations[:, size:] == np.eye(tasks)).all():
            raise ConfigError(
                f"envs: observations of shape {shape} do not end with the one-hots of {tasks} tasks; nothing may "
                "scale or stack them (VecNormalize does): the agent scales rewards itself"
            )

    def keep_time(self) -> None:
        """Bring ``seconds["total"]`` up to now."""
        self.seconds["total"] = time.perf_counter() - self.began

    def _update(self, times: int) -> None:
        start = time.perf_counter()
        for _ in range(times):
            diagnose = self.diagnostics_every > 0 and self.num_updates % self.diagnostics_every == 0
            metrics = self.agent.update(self.replay_buffer.sample(self.batch_size), diagnose=diagnose)
            self.metrics |= metrics
            if diagnose:
                self.metrics["conflict_update"] = self.num_updates
            self.num_updates += 1
        self.seconds["update"] += time.perf_counter() - start

    def _remember(
        self, obs: torch.Tensor, actions: torch.Tensor, rewards: Any, new_obs: Any, dones: Any, infos: Any
    ) -> None:
        """Store the transitions with the true last observation; a time limit is no termination."""
        next_obs, terminated = new_obs, dones
        if dones.any():
            next_obs, terminated = new_obs.copy(), dones.copy()
            for t in np.flatnonzero(dones):
                next_obs[t] = infos[t]["terminal_observation"]
                terminated[t] = not infos[t].get("TimeLimit.truncated", False)
        size = self.agent.policy.obs_dim  # the one-hot behind it is not stored: the first axis is the task
        reward = torch.as_tensor(rewards, dtype=torch.float32)
        self.agent.rewards.observe(reward, torch.as_tensor(dones))
        self.replay_buffer.add(
            obs[:, :size], actions, self.agent.rewards.on_store(reward),
            torch.as_tensor(next_obs)[:, :size], torch.as_tensor(terminated),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes in training, but for the replay, whose rows are saved apart."""
        metrics = {k: list(v) if isinstance(v, Conflict) else v for k, v in self.metrics.items()}
        return {
            "num_timesteps": self.num_timesteps, "num_updates": self.num_updates,
            "seconds": dict(self.seconds), "observations": self.observations, "metrics": metrics,
            "agent": self.agent.state_dict(), "envs": self.envs.get_state(),  # type: ignore[attr-defined]
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a loaded checkpoint's :meth:`state_dict`."""
        self.num_timesteps, self.num_updates = state["num_timesteps"], state["num_updates"]
        self.seconds = state["seconds"]
        self.observations = state["observations"].numpy()
        self.metrics = {k: Conflict(*v) if isinstance(v, list) else v for k, v in state["metrics"].items()}
        self.agent.load_state_dict(state["agent"])
        self.envs.set_state(with_arrays(state["envs"]))  # type: ignore[attr-defined]

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[Any], Any]:
        return self.agent.predict(observation, state, episode_start, deterministic)

    def get_env(self) -> VecEnv:
        return self.envs

    def get_vec_normalize_env(self) -> None:
        """There is none: rewards are scaled when sampled."""

    def save(self, path: str | Path) -> None:
        """The policy, as ``<path>.safetensors`` whatever suffix Stable-Baselines3's callbacks give, and its step."""
        policy = self.agent.policy
        policy.info["steps_per_task"] = self.num_timesteps // self.envs.num_envs
        policy.save(str(path).removesuffix(".zip").removesuffix(".safetensors") + ".safetensors")

    def save_replay_buffer(self, path: str | Path) -> None:
        torch.save(self.replay_buffer.state_dict(), path)

    def dump_logs(self) -> None:
        self.logger.dump(self.num_timesteps)
