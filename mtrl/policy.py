"""A policy: an actor with its parameters, that acts, and lives in one file without code in it.

The file is safetensors; its JSON metadata holds the architecture, the task names in order and the
sizes, so that it loads without the training config, on any device. Its bytes depend on the training
alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.func import vmap

from mtrl.config import MOST_WIDTH, ActorConfig, ArchitectureConfig, ConfigError
from mtrl.errors import PolicyError
from mtrl.files import write_synced
from mtrl.networks import Actor, Parameters, TaskInput, call, find_network, squashed_sample
from mtrl.replay import free_memory

FORMAT = "mtrl-policy-3"
MOST_TASKS = 1_000
Array = npt.NDArray[Any]


class Policy:
    """Acts for several tasks; every observation row ends with its task's one-hot.

    Args:
        actor: the one-task network.
        parameters: its parameters (held, not copied: an agent's policy follows its training).
        task_names: T names, in the order of the one-hot.
        obs_dim, action_dim: D without the one-hot, A.
        info: whatever else shall be told in the file, as plain JSON values (the protocol, say).
    """

    def __init__(
        self, actor: Actor, parameters: Parameters, task_names: Sequence[str],
        obs_dim: int, action_dim: int, info: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.actor, self.parameters = actor, parameters
        self.task_names = tuple(task_names)
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.info = dict(info or {})

    @property
    def device(self) -> torch.device:
        return next(self.parameters.tensors())[1].device

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions ``[n, A]`` in [-1, 1] for rows ``[n, D + T]`` of any tasks, in any order.

        Args:
            noise: standard normal ``[n, A]``; None takes the Gaussian's mean.
        """
        # rows with gaps take another product where parameters want gradients, with another rounding
        obs, one_hot = observations[:, : self.obs_dim].contiguous(), observations[:, self.obs_dim :]
        shared, private = self.parameters
        own = Parameters(shared, {name: stacked[one_hot.argmax(1)] for name, stacked in private.items()})

        # each row is a batch of one, and of its own task
        act: Callable[..., Any] = partial(call, self.actor)
        if not self.actor.all_at_once:
            act = vmap(act, in_dims=(Parameters(None, 0), 0, 0))  # type: ignore[arg-type]
        mean, log_std = act(own, obs.unsqueeze(1), one_hot)
        mean, log_std = mean.squeeze(1), log_std.squeeze(1)
        return torch.tanh(mean) if noise is None else squashed_sample(mean, log_std, noise)[0]

    def predict(
        self, observation: Array, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """Stable-Baselines3's ``predict``: rows ``[n, D + T]``, or one ``[D + T]``, to actions.

        With ``deterministic=False`` noise comes from torch's global generator.

        Raises:
            PolicyError: the observation has another size, or its one-hot is none.
        """
        rows = np.asarray(observation, dtype=np.float32)
        tasks = len(self.task_names)
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.obs_dim + tasks:
            raise PolicyError(
                f"observation of shape {rows.shape}: this policy takes {self.obs_dim} numbers and a one-hot "
                f"of its {tasks} tasks ({', '.join(self.task_names)}), so {self.obs_dim + tasks} per row"
            )
        one_hot = rows[..., self.obs_dim :]
        if not (((one_hot == 0) | (one_hot == 1)).all() and (one_hot.sum(-1) == 1).all()):
            raise PolicyError(f"the last {tasks} numbers of an observation must be its task's one-hot")
        inputs = torch.as_tensor(np.atleast_2d(rows), device=self.device)
        noise = None if deterministic else torch.randn(len(inputs), self.action_dim, device=self.device)
        actions: Array = self.act(inputs, noise).cpu().numpy()
        return (actions if rows.ndim == 2 else actions[0]), state

    def to_bytes(self) -> bytes:
        """The file's content: equal training gives equal bytes."""
        config, left_out = asdict(self.actor.config), self.actor.training_only
        config["network"] = asdict(self.actor.architecture)
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.parameters.tensors()
            if name not in left_out
        }
        metadata = {
            "format": FORMAT,
            "task_names": self.task_names,
            "obs_dim": self.obs_dim,
            "action_dim": self.action_dim,
            "actor": config,
            "task_input": self.actor.task_input,
            "embedding_dim": self.actor.code_dim,
            "private": sorted(self.parameters.private.keys() & tensors.keys()),
            "info": self.info,
        }
        metadata = json.loads(json.dumps(metadata))  # as it will be read
        metadata["sha256"] = checksum(metadata, tensors)
        content: bytes = save(tensors, {"mtrl": json.dumps(metadata, sort_keys=True)})
        return content

    def save(self, path: str | Path) -> None:
        """Write the policy; a reader never sees half a file."""
        write_synced(Path(path), self.to_bytes())


def checksum(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Of all that a file tells: a bit that flipped in a weight or a name is noticed."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        kind = f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} "
        digest.update(kind.encode() + tensors[name].cpu().numpy().tobytes())
    return digest.hexdigest()


def load_policy(path: str | Path, device: str | torch.device = "cpu") -> Policy:
    """Read a policy file. No code in it is executed.

    Raises:
        PolicyError: missing, truncated, not a policy of this project, or its parts contradict; or this machine has
            no such device.
    """
    path = Path(path)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # the latter where torch has no CUDA
        raise PolicyError(f"device: {str(device)!r} is not available on this machine; use cpu") from None
    try:
        there = path.is_file()
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}") from None
    if not there:
        raise PolicyError(f"{path}: no such policy file")
    size, free = path.stat().st_size, free_memory(torch.device("cpu"))
    if 2 * size > free:
        raise PolicyError(f"{path}: its {size} bytes do not fit in memory ({free} are free)")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            text = (file.metadata() or {}).get("mtrl")
            if text is None:
                raise PolicyError(
                    f"{path}: a safetensors file, but not a policy of mtrl (no 'mtrl' metadata)"
                )
            return _from_parts(json.loads(text), file)
    except PolicyError as error:
        raise PolicyError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    except (SafetensorError, OSError) as error:
        raise PolicyError(f"{path}: not a whole safetensors file ({error})") from None
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PolicyError(f"{path}: damaged policy metadata or tensors ({detail})") from None


def _from_parts(meta: dict[str, Any], file: Any) -> Policy:
    """The policy of the metadata and an open safetensors file, whose tensors are read once they fit."""
    expected_sum = meta.pop("sha256")
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']!r}, this version reads {FORMAT!r}")
    names, obs_dim, action_dim = meta["task_names"], int(meta["obs_dim"]), int(meta["action_dim"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("task_names is no list of names")
    if not 1 <= len(set(names)) == len(names) <= MOST_TASKS:
        raise ValueError(f"it has not from 1 to {MOST_TASKS} different tasks")
    if not (1 <= obs_dim <= MOST_WIDTH and 1 <= action_dim <= MOST_WIDTH):
        raise ValueError(f"observations of {obs_dim} and actions of {action_dim} numbers")
    task_input: TaskInput = meta["task_input"]
    architecture = ArchitectureConfig(**meta["actor"].pop("network"))
    try:
        find_network(str(architecture.name), "network")
    except ConfigError as error:
        raise PolicyError(f"the policy's {error}") from None
    try:
        with torch.device("meta"):
            actor = Actor(
                obs_dim, action_dim, len(names), ActorConfig(**meta["actor"]), task_input,
                int(meta["embedding_dim"]), architecture,
            )  # fmt: skip
    except ConfigError as error:
        raise ValueError(str(error)) from None
    meta["actor"]["network"] = asdict(architecture)
    private = actor.private
    expected = {
        name: (len(names), *p.shape) if name in private else tuple(p.shape)
        for name, p in actor.named_parameters()
        if name not in actor.training_only
    }
    kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    if kinds != {"F32"}:
        raise ValueError(f"tensors of type {', '.join(sorted(kinds))}, not F32")
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if expected != found:
        wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        raise PolicyError(
            f"its tensors are not those of this version's network {architecture.name!r}: it is of another version "
            f"or damaged ({', '.join(wrong)})"
        )
    # in a file tensors begin at any fourth byte, where products round otherwise
    tensors = {name: file.get_tensor(name).clone() for name in found}
    if expected_sum != checksum(meta, tensors):
        raise ValueError("the content does not match its checksum")
    bad = sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if bad:
        raise ValueError(f"non-finite numbers in {', '.join(bad)}")
    parameters = Parameters(
        {k: v for k, v in tensors.items() if k not in private},
        {k: v for k, v in tensors.items() if k in private},
    )
    return Policy(actor, parameters, names, obs_dim, action_dim, meta.get("info"))
