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
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from mtrl.config import ConfigError, whole
from mtrl.conflict import Conflict
from mtrl.evaluate import listed, names_of
from mtrl.machine import flushed_subnormals
from mtrl.replay import TaskReplay
from mtrl.run.callbacks import LogCallback
from mtrl.run.checkpoint import with_arrays
from mtrl.sac import MTSAC

Callback = BaseCallback | Callable[[dict[str, Any], dict[str, Any]], bool | None]


class Trainer:
    """Steps the tasks, fills the replay, updates the agent, calls back.

    Stable-Baselines3's callbacks find here what they touch on its algorithms.

    Args:
        agent, envs, replay: one environment per task, observations ending with the task's one-hot.
        logger: where training is recorded every ``log_every`` steps per task, and callbacks record; None is silent.
        batch_size: rows per task in an update; with uniform sampling their mean.
        warmup_steps: vector steps of random actions before the first update.
        warmup_updates: updates made at once after them, before the policy acts.
        updates_per_step: updates for each vector step.
        diagnostics_every: updates between conflict measurements; 0 is never.

    Raises:
        ConfigError: a number is out of range, agent, envs and replay are not of the same tasks, in the same
            order, and sizes, or a VecNormalize is around the envs.
    """

    def __init__(
        self, agent: MTSAC, envs: VecEnv, replay: TaskReplay, *, logger: Logger | None = None,
        batch_size: float = 64, warmup_steps: int = 1000, updates_per_step: int = 1, diagnostics_every: int = 0,
        warmup_updates: int = 0, log_every: int = 500,
    ) -> None:  # fmt: skip
        self.agent, self.envs, self.replay_buffer = agent, envs, replay
        self.logger = logger or Logger(None, [])
        self.own_log = LogCallback(whole("log_every", log_every, 1)) if logger is not None else None
        self._require_fit()
        replay.require_rows(batch_size)
        self.batch_size = batch_size
        self.warmup_steps = whole("warmup_steps", warmup_steps, 0)
        self.warmup_updates = whole("warmup_updates", warmup_updates, 0)
        self.updates_per_step = whole("updates_per_step", updates_per_step, 0)
        self.diagnostics_every = whole("diagnostics_every", diagnostics_every, 0)
        self.num_timesteps = 0
        self.num_updates = 0
        # asked after each update of the burst: False stops there, and a resumed run goes on in its middle
        self.between_updates: Callable[[], bool] = lambda: True
        self.metrics: dict[str, Any] = {}
        self.seconds = {"env": 0.0, "update": 0.0, "evaluation": 0.0, "total": 0.0}
        self.began = time.perf_counter()  # perf_counter() minus the seconds trained so far
        self.observations: npt.NDArray[Any] | None = None

    @property
    def task_names(self) -> tuple[str, ...]:
        return self.agent.policy.task_names

    def _require_fit(self) -> None:
        """Raise unless agent, envs and replay are of the same tasks and sizes."""
        policy, envs, names = self.agent.policy, self.envs, self.task_names
        if len(set(names)) != len(names):
            raise ConfigError(f"tasks: {listed(names)} are not different names")
        known = names_of(envs)
        if known not in (None, names):
            raise ConfigError(
                f"tasks: the agent's are {listed(names)}, those of the envs {listed(known or ())}"
            )
        if unwrap_vec_normalize(envs) is not None:
            raise ConfigError(
                "envs: a VecNormalize around them would scale the one-hot and the stored rewards; "
                "leave it out (agent.reward_scale scales rewards when they are sampled)"
            )
        data = self.replay_buffer.data
        sizes = {
            "agent": (len(names), policy.obs_dim, policy.action_dim),
            "envs": (
                envs.num_envs, (envs.observation_space.shape or (0,))[0] - envs.num_envs,
                (envs.action_space.shape or (0,))[0],
            ),
            "replay": (self.replay_buffer.num_tasks, data["obs"].shape[-1], data["actions"].shape[-1]),
        }  # fmt: skip
        if len(set(sizes.values())) > 1:
            told = "; ".join(f"{name} {t}, {d}, {a}" for name, (t, d, a) in sizes.items())
            raise ConfigError(f"tasks, numbers per observation and per action differ: {told}")

    def learn(self, total_timesteps: int, callback: Callback | Sequence[Callback] | None = None) -> Trainer:
        """Train until ``total_timesteps`` transitions in all (T per vector step), or a callback says no.

        A plain function ``f(locals, globals)`` is a callback too, which ends the training by returning False.

        Raises:
            ConfigError: a callback is none, or the observations do not end with the tasks' one-hot.
        """
        total_timesteps = whole("total_timesteps", total_timesteps, 0)
        callback = as_callback(callback)
        if self.own_log is not None:
            callback = CallbackList([callback, self.own_log])
        callback.init_callback(self)  # type: ignore[arg-type]
        if self.observations is None:
            self.observations = self.envs.reset()  # type: ignore[assignment]
        assert self.observations is not None
        if not np.array_equal(self.observations[:, self.agent.policy.obs_dim :], np.eye(self.envs.num_envs)):
            raise ConfigError(
                "envs: row t of the observations must end with task t's one-hot; does a wrapper change it?"
            )
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

    def keep_time(self) -> None:
        """Bring ``seconds["total"]`` up to now."""
        self.seconds["total"] = time.perf_counter() - self.began

    @flushed_subnormals()
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
        size = self.agent.policy.obs_dim  # the one-hot after it is not stored: the first axis is the task
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
            "agent": self.agent.state_dict(),
            # envs that cannot be saved begin new episodes when a run goes on
            "envs": self.envs.get_state() if self.envs.savable else None,  # type: ignore[attr-defined]
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a loaded checkpoint's :meth:`state_dict`."""
        if state["envs"] is not None:  # first: it knows its tasks
            self.envs.set_state(with_arrays(state["envs"]))  # type: ignore[attr-defined]
        self.num_timesteps, self.num_updates = state["num_timesteps"], state["num_updates"]
        self.seconds = state["seconds"]
        self.observations = None if state["envs"] is None else state["observations"].numpy()
        self.metrics = {k: Conflict(*v) if isinstance(v, list) else v for k, v in state["metrics"].items()}
        self.agent.load_state_dict(state["agent"])
        if state["envs"] is None:  # not the run's first episodes again
            self.envs.seed(
                int(torch.randint(2**31, (), generator=self.agent.generator, device=self.agent.device))
            )
            self.agent.rewards.begin_episodes()

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
        """Write what was recorded, at the suite's own unit: steps per task."""
        self.logger.dump(self.num_timesteps // self.envs.num_envs)


def as_callback(callback: Callback | Sequence[Callback] | None) -> BaseCallback:
    """One callback of what :meth:`Trainer.learn` takes.

    Raises:
        ConfigError: it is neither a callback, nor a function, nor several of them.
    """
    if isinstance(callback, BaseCallback):
        return callback
    if callback is None or isinstance(callback, list | tuple):
        return CallbackList([as_callback(one) for one in callback or ()])
    if not callable(callback):
        raise ConfigError(f"callback: {callback!r} is neither a callback nor a function")
    function = callback
    return ConvertCallback(lambda local, world: function(local, world) is not False)
