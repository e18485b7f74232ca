"""Replay: one ring of transitions per task, as tensors ``[T, capacity, ·]``."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mtrl.config import ConfigError, nearest, whole
from mtrl.streams import stream

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


class Batch(NamedTuple):
    """Rows of every task; inside a one-task loss the same without the first axis.

    Attributes:
        obs, next_obs: ``[T, B, D]``, without the task's one-hot: the first axis is the task.
        actions: ``[T, B, A]`` in [-1, 1].
        rewards: ``[T, B]``, as stored when sampled; divided by the task's scale before a loss sees them.
        terminated: ``[T, B]``, 1 where the task ended for real, never for a time limit.
        weight: ``[T, B]``, 1 for a row and 0 for padding; None where every row counts.
    """

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    next_obs: Tensor
    terminated: Tensor
    weight: Tensor | None = None

    @property
    def present(self) -> Tensor | None:
        """``[T]`` bool, which tasks have a row at all; None is all."""
        return None if self.weight is None else self.weight.any(dim=1)


class TaskReplay:
    """The last ``capacity`` transitions of each task, sampled with replacement.

    Args:
        num_tasks, capacity, obs_dim, action_dim: T, transitions per task, D (without one-hot), A.
        sampling: ``balanced``: exactly B rows of each task. ``uniform``: T·B rows from all
            transitions alike; counts per task are then multinomial and the batch is padded.
        seed: of the buffer's own generator.

    Raises:
        ConfigError: a size or name that is none; or the machine has not the memory: says how much it takes and how
            much there is.
    """

    def __init__(
        self, num_tasks: int, capacity: int, obs_dim: int, action_dim: int, *,
        sampling: Literal["balanced", "uniform"] = "balanced", seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        num_tasks, capacity = whole("num_tasks", num_tasks, 1), whole("capacity", capacity, 1)
        obs_dim, action_dim = whole("obs_dim", obs_dim, 1), whole("action_dim", action_dim, 1)
        kinds = ("balanced", "uniform")
        if not isinstance(sampling, str) or sampling not in kinds:
            near = nearest(str(sampling), kinds)
            raise ConfigError(f"sampling: {sampling!r} is not valid; it must be one of {kinds}{near}")
        self.num_tasks, self.capacity, self.sampling = num_tasks, capacity, sampling
        self.device = torch.device(device)
        widths = {"obs": obs_dim, "actions": action_dim, "rewards": 1, "next_obs": obs_dim, "terminated": 1}
        self.nbytes = 4 * num_tasks * capacity * sum(widths.values())
        free = free_memory(self.device)
        if self.nbytes > 0.9 * free:
            raise ConfigError(
                f"replay.capacity: {capacity} transitions for each of {num_tasks} tasks take "
                f"{self.nbytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
                f"at most {int(0.9 * free / self.nbytes * capacity)} would fit"
            )
        # not zeros, which take all pages at once: the system gives these as rows are written, and no other row is read
        self.data = {
            name: torch.empty(num_tasks, capacity, width, device=self.device)
            for name, width in widths.items()
        }
        self.added = 0
        self.generator = torch.Generator(self.device).manual_seed(stream(whole("seed", seed, 0), "replay"))
        self._first_row = torch.arange(num_tasks, device=self.device).unsqueeze(1) * capacity

    @property
    def size(self) -> int:
        """Transitions kept per task."""
        return min(self.added, self.capacity)

    def add(
        self, obs: Tensor, actions: Tensor, rewards: Tensor, next_obs: Tensor, terminated: Tensor
    ) -> None:
        """One transition of every task: ``[T, D]``, ``[T, A]``, ``[T]``, ``[T, D]``, ``[T]``."""
        new = {
            "obs": obs,
            "actions": actions,
            "rewards": rewards,
            "next_obs": next_obs,
            "terminated": terminated,
        }
        for name, value in new.items():
            column = self.data[name]
            column[:, self.added % self.capacity] = value.to(self.device, column.dtype).view(
                self.num_tasks, -1
            )
        self.added += 1

    def sample(self, batch_size: float) -> Batch:
        """``batch_size`` rows per task, drawn with the buffer's own generator.

        With uniform sampling that is their mean: T·B rows in all, rounded to a whole number.

        Raises:
            ValueError: nothing was added yet.
            ConfigError: no such number of rows can be drawn.
        """
        self.require_rows(batch_size)
        if self.size == 0:
            raise ValueError("the replay buffer is empty")
        if self.sampling == "balanced":
            return self._rows(self._draw(self.size, (self.num_tasks, int(batch_size))), None)
        task = self._draw(self.num_tasks, (round(self.num_tasks * batch_size),))
        counts = torch.bincount(task, minlength=self.num_tasks)
        longest = int(counts.max())
        weight = (torch.arange(longest, device=self.device) < counts.unsqueeze(1)).float()
        return self._rows(self._draw(self.size, (self.num_tasks, longest)), weight)

    def require_rows(self, batch_size: float) -> None:
        """Raises :class:`ConfigError` unless :meth:`sample` can draw ``batch_size`` rows per task."""
        fits = isinstance(batch_size, Real) and not isinstance(batch_size, bool) and math.isfinite(batch_size)
        whole_number = fits and batch_size == int(batch_size)
        if self.sampling == "balanced" and not whole_number:
            raise ConfigError(
                f"batch_size: {batch_size!r} is not valid; with balanced sampling it must be a whole number >= 1"
            )
        if not fits or round(self.num_tasks * batch_size) < 1:
            raise ConfigError(
                f"batch_size: {batch_size!r} is not valid; it must leave at least one row in all"
            )

    def _draw(self, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def _rows(self, index: Tensor, weight: Tensor | None) -> Batch:
        flat = (index + self._first_row).flatten()
        rows = {
            name: column.flatten(0, 1).index_select(0, flat).view(*index.shape, -1)
            for name, column in self.data.items()
        }
        return Batch(
            rows["obs"], rows["actions"], rows["rewards"].squeeze(-1),
            rows["next_obs"], rows["terminated"].squeeze(-1), weight,
        )  # fmt: skip

    def rows_since(self, start: int, end: int | None = None) -> tuple[int, dict[str, Tensor]]:
        """Copies of the kept rows from the ``start``-th added on, up to the ``end``-th or the last.

        Returns:
            the number of the first of them, counted since the first :meth:`add`, and
            ``[T, end − first, ·]`` by column.
        """
        first = max(start, self.added - self.size)
        index = torch.arange(first, self.added if end is None else end, device=self.device) % self.capacity
        return first, {name: column.index_select(1, index) for name, column in self.data.items()}

    def load_rows(self, first: int, rows: dict[str, Tensor]) -> None:
        """Put back what :meth:`rows_since` returned."""
        index = torch.arange(first, first + rows["rewards"].shape[1], device=self.device) % self.capacity
        for name, column in self.data.items():
            column.index_copy_(1, index, rows[name].to(self.device))

    def state_dict(self) -> dict[str, Any]:
        """The rows kept, their count, and the generator."""
        first, rows = self.rows_since(0)
        return {"added": self.added, "generator": self.generator.get_state(), "first": first, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.added = state["added"]
        self.generator.set_state(state["generator"].cpu())
        self.load_rows(state["first"], state["rows"])


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken: the device's, or what the system calls available."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as file:
            available = next((line for line in file if line.startswith("MemAvailable")), None)
        if available:
            free = int(available.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # no Linux: what was found so far stands
    return min([free, *_free_in_groups()])


def _free_in_groups() -> Iterator[int]:
    """Bytes that each memory limit above this process leaves: of control groups of version 2 or 1, at every level."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = []
    places = {("", "0::/"): CGROUP}  # in a container its own group is the root
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "" or "memory" in kinds.split(","):
            root = CGROUP if kinds == "" else CGROUP / "memory"
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(len(parts) + 1):
                places[kinds, "/".join(parts[:depth])] = root.joinpath(*parts[:depth])
    for folder in places.values():
        for limit, used, inactive in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                most, now = (int((folder / name).read_text()) for name in (limit, used))
            except (OSError, ValueError):
                continue  # no such group, or no limit
            # files that were read or written count as used until the memory is wanted
            yield max(0, most - now + int(statistics.get(inactive, 0)))
