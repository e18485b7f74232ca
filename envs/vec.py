"""SuiteVecEnv: a suite as a Stable-Baselines3 VecEnv, in this process or shared among workers.

The only module of the package that imports Stable-Baselines3, and with it torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices

from mtrl.envs.group import Group
from mtrl.envs.layers import full_name
from mtrl.envs.protocol import NotFiniteError, Protocol, SuiteError
from mtrl.envs.worker import RemoteGroup
from mtrl.envs.wrappers import TaskSpec


class SuiteVecEnv(VecEnv):
    """One env per task; row t of every array belongs to task t, named `task_names[t]`.

    Observations `[T, D + T]` float32, the last T of them the task's one-hot; actions `[T, A]` in [-1, 1];
    rewards `[T]` float32; dones `[T]` bool. All arrays are fresh. An episode that ends is reset in the same
    step: the observation is the next episode's first, the true last one is `info["terminal_observation"]`.

    Raises `SuiteError` when the tasks' spaces differ or an env returns what it may not, `NotFiniteError` when a
    task is given or returns a non-finite number, `WorkerDiedError` when a worker process has died, or was ended
    because it gave no answer for `step_timeout` seconds; then `restart_workers` and `set_state` go on from the last
    known state.
    """

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        *,
        protocol: Protocol | None,
        workers: int,
        step_timeout: float,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.task_names = tuple(spec.name for spec in specs)
        self.task_dim = len(specs)
        self.protocol = protocol
        self.suite_seed = specs[0].seed % 2**31  # what any generator takes, with a task's number added
        self.horizon = specs[0].horizon
        self._groups: list[Group | RemoteGroup] = []
        self._rows: list[list[int]] = []
        self._closed = False
        try:
            remote = partial(RemoteGroup, timeout=step_timeout, variables=variables)
            kind: Callable[[Sequence[TaskSpec]], Group | RemoteGroup] = remote if workers else Group
            for rows in np.array_split(np.arange(len(specs)), min(max(workers, 1), len(specs))):
                self._groups.append(kind([specs[t] for t in rows]))
                self._rows.append(rows.tolist())
            spaces = self._flat(self._ask("spaces"))
            _require_equal(self.task_names, spaces, self.task_dim)
            low = np.min([observations.low for observations, _ in spaces], axis=0)
            high = np.max([observations.high for observations, _ in spaces], axis=0)
            modes = self._flat(self._ask("modes"))
            _require_one_mode(self.task_names, [mode for mode, _ in modes])
            super().__init__(len(specs), gym.spaces.Box(low, high, dtype=np.float32), spaces[0][1])
            self.metadata["render_fps"] = modes[0][1]
            self.observation_dim = len(low) - self.task_dim
            self.action_dim = spaces[0][1].shape[0]
        except BaseException:
            self.close()
            raise

    def reset(self) -> NDArray[np.float32]:
        """Start an episode of every task with the seeds and options set before: observations `[T, D + T]`."""
        for group, rows in zip(self._groups, self._rows, strict=True):
            group.send("reset", [self._seeds[t] for t in rows], [self._options[t] for t in rows])
        self._reset_seeds()
        self._reset_options()
        started = self._receive()
        self.reset_infos = self._flat([infos for _, infos in started])
        return np.concatenate([observations for observations, _ in started])

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Start a step with actions `[T, A]`. Beyond [-1, 1] they are clipped; the caller's array is not touched."""
        given = np.asarray(actions, np.float32)
        if given.shape != (self.num_envs, self.action_dim):
            raise SuiteError(
                f"actions of shape {given.shape}: {self.num_envs} tasks take {(self.num_envs, self.action_dim)}"
            )
        # An env may change its action in place, and the caller stores his.
        actions = given.clip(-1.0, 1.0)
        if not np.isfinite(actions).all():
            task = self.task_names[np.flatnonzero(~np.isfinite(actions).all(axis=1))[0]]
            raise NotFiniteError(f"task {task}: the action is not finite")
        for group, rows in zip(self._groups, self._rows, strict=True):
            group.send("step", actions[rows[0] : rows[-1] + 1])

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """The end of that step: observations `[T, D + T]`, rewards `[T]`, dones `[T]`, infos."""
        stepped = self._receive()
        for rows, (*_, begun) in zip(self._rows, stepped, strict=True):
            for i, info in begun.items():
                self.reset_infos[rows[i]] = info
        return (
            np.concatenate([observations for observations, *_ in stepped]),
            np.concatenate([rewards for _, rewards, *_ in stepped]),
            np.concatenate([dones for _, _, dones, *_ in stepped]),
            self._flat([infos for _, _, _, infos, _ in stepped]),
        )

    def get_images(self) -> list[NDArray[np.uint8]]:
        """Per task its picture `[height, width, 3]`, as it is now.

        Raises `SuiteError` when the suite was not made with `render_mode="rgb_array"`.
        """
        if self.render_mode != "rgb_array":
            raise SuiteError(
                f"render_mode: {self.render_mode!r} gives no pictures; make the suite with 'rgb_array'"
            )
        return self._flat(self._ask("render"))

    @property
    def num_goals(self) -> int:
        """Goals of each task, of the task that has the fewest; 0 where no env has any."""
        return min(filter(None, self._flat(self._ask("goals"))), default=0)

    @property
    def savable(self) -> bool:
        """Whether every task's env, or a wrapper around it, has `get_state` and `set_state`."""
        return all(self._flat(self._ask("savable")))

    def get_state(self) -> list[dict[str, Any]]:
        """Per task all that an episode changes, as plain data, from which `set_state` goes on bit for bit."""
        return self._flat(self._ask("get_state"))

    def set_state(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from what `get_state` returned, here or in another env of the same suite."""
        if len(states) != self.num_envs:
            raise SuiteError(f"the state is of {len(states)} tasks, the suite has {self.num_envs}")
        saved = tuple(state["task"] for state in states)
        if saved != self.task_names:
            raise SuiteError(
                f"the state is of tasks {', '.join(saved)}, the suite has {', '.join(self.task_names)}"
            )
        for group, rows in zip(self._groups, self._rows, strict=True):
            group.send("set_state", [states[t] for t in rows])
        self._receive()

    def restart_workers(self) -> tuple[str, ...]:
        """Start anew the workers that have died; return their tasks, which wait for a reset or a state."""
        restarted: list[str] = []
        for group in self._groups:
            if isinstance(group, RemoteGroup) and not group.is_alive():
                group.restart()
                restarted.extend(group.task_names)
        return tuple(restarted)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return self._at(indices, "get", attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        self._at(indices, "set", attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return self._at(indices, "call", method_name, after=(method_args, method_kwargs))

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        return self._at(indices, "wrapped", full_name(wrapper_class))

    def close(self) -> None:
        """Close the envs and end the workers; a second call does nothing."""
        if not self._closed:
            self._closed = True
            for group in self._groups:
                group.close()

    def _ask(self, method: str) -> list[Any]:
        for group in self._groups:
            group.send(method)
        return self._receive()

    def _receive(self) -> list[Any]:
        """Every group's answer. All are taken before an error is raised, so that none is left in a pipe."""
        answers, errors = [], []
        for group in self._groups:
            try:
                answers.append(group.receive())
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return answers

    def _at(
        self, indices: VecEnvIndices, method: str, *arguments: Any, after: tuple[Any, ...] = ()
    ) -> list[Any]:
        """A method of the groups for some tasks, its results in the order of `indices`."""
        wanted = list(self._get_indices(indices))
        results: dict[int, Any] = {}
        for group, rows in zip(self._groups, self._rows, strict=True):
            chosen = [t for t in rows if t in wanted]
            if chosen:
                group.send(method, *arguments, [rows.index(t) for t in chosen], *after)
                results.update(zip(chosen, group.receive() or [None] * len(chosen), strict=True))
        return [results[t] for t in wanted]

    @staticmethod
    def _flat(lists: Sequence[list[Any]]) -> list[Any]:
        return [item for items in lists for item in items]


def _require_equal(names: Sequence[str], spaces: Sequence[tuple[Any, Any]], num_tasks: int) -> None:
    for kind, offset in (("observation", num_tasks), ("action", 0)):
        sizes = [pair[0 if kind == "observation" else 1].shape[0] - offset for pair in spaces]
        for name, size in zip(names, sizes, strict=True):
            if size != sizes[0]:
                raise SuiteError(
                    f"task {name}: its {kind}s have {size} numbers, those of task {names[0]} {sizes[0]}; "
                    "the tasks of a suite need equal ones"
                )


def _require_one_mode(names: Sequence[str], modes: Sequence[str | None]) -> None:
    for name, mode in zip(names, modes, strict=True):
        if mode != modes[0]:
            raise SuiteError(
                f"task {name}: its env has render_mode {mode!r}, that of task {names[0]} {modes[0]!r}; "
                "the tasks of a suite need the same"
            )
