"""Networks, each written for ONE task; ``vmap`` makes them T.

A network is a plain ``nn.Module``. Parameters named in its ``private`` set belong to one task each
(a head, an embedding): the agent holds them stacked ``[T, ...]`` and the module sees one slice, so
that no forward pass ever indexes by task. All others are shared. Dropout masks are inputs.

Shapes: B rows, D numbers per observation, A per action, T tasks, N critics.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrl.config import ActorConfig, CriticConfig, NetworkConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "tanh": torch.tanh, "silu": F.silu, "gelu": F.gelu, "elu": F.elu,
}  # fmt: skip

TaskInput = Literal["one_hot", "embedding", "heads", "none"]
Masks = tuple[Tensor, ...]


class MLP(nn.Module):
    """Linear → dropout → LayerNorm → activation, for each hidden width, then a linear output.

    Args:
        output_gain: gain of the last layer under ``init="orthogonal"``.
        dtype: of the matrix products; weights, LayerNorm and output are float32 all the same.
    """

    def __init__(
        self, in_dim: int, out_dim: int, config: NetworkConfig, output_gain: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dtype = dtype
        widths = [in_dim, *config.hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(b) for b in config.hidden) if config.layer_norm else None
        self.output = nn.Linear(widths[-1], out_dim)
        self.activation = ACTIVATIONS[config.activation]
        for layer in (*self.hidden, self.output):
            assert isinstance(layer, nn.Linear)
            initialise(layer, config.init, output_gain if layer is self.output else math.sqrt(2))

    def forward(self, x: Tensor, masks: Masks = ()) -> Tensor:
        """``[..., in_dim]`` → ``[..., out_dim]``; one mask ``[..., width]`` per hidden layer, or none."""
        for i, layer in enumerate(self.hidden):
            x = self._linear(layer, x)
            if masks:
                x = x * masks[i]
            if self.norms is not None:
                x = self.norms[i](x)
            x = self.activation(x)
        return self._linear(self.output, x)

    def _linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        if self.dtype == torch.float32:
            return F.linear(x, layer.weight, layer.bias)  # in the parameters' dtype: float64 stays exact
        # explicit casts: autocast's fail under vmap(grad) with LayerNorm
        return F.linear(x.to(self.dtype), layer.weight.to(self.dtype), layer.bias.to(self.dtype)).float()


def initialise(layer: nn.Linear, init: Literal["torch", "xavier", "orthogonal"], gain: float) -> None:
    """Set a layer's weights in place; ``torch`` leaves what nn.Linear drew."""
    if init == "torch":
        return
    if init == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)


class TaskNetwork(nn.Module):
    """What actor and critic share: how the task enters.

    Args:
        task_input: ``one_hot`` appends the one-hot ``[T]``; ``embedding`` appends a learned vector,
            scaled to unit norm; ``heads`` makes the output layer(s) private; ``none`` does nothing.
    """

    def __init__(self, num_tasks: int, task_input: TaskInput, embedding_dim: int) -> None:
        super().__init__()
        self.task_input = task_input
        self.task_dim = {"one_hot": num_tasks, "embedding": embedding_dim, "heads": 0, "none": 0}[task_input]
        if task_input == "embedding":
            self.embedding = nn.Parameter(torch.randn(embedding_dim))

    @property
    def private(self) -> frozenset[str]:
        """Names of the parameters of which each task has its own."""
        if self.task_input == "embedding":
            return frozenset({"embedding"})
        if self.task_input == "heads":
            return frozenset(name for name, _ in self.named_parameters() if "output." in name)
        return frozenset()

    def with_task(self, x: Tensor, task: Tensor) -> Tensor:
        """Append the task to ``x [..., D]``; ``task`` is the one-hot ``[T]`` of the one task."""
        if self.task_dim == 0:
            return x
        code = F.normalize(self.embedding, dim=0) if self.task_input == "embedding" else task
        return torch.cat((x, code.expand(*x.shape[:-1], self.task_dim)), dim=-1)


class Actor(TaskNetwork):
    """Mean and log standard deviation of a Gaussian, squashed by :func:`squashed_sample`."""

    def __init__(
        self, obs_dim: int, action_dim: int, num_tasks: int, config: ActorConfig,
        task_input: TaskInput = "one_hot", embedding_dim: int = 32, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__(num_tasks, task_input, embedding_dim)
        self.config = config
        self.net = MLP(obs_dim + self.task_dim, 2 * action_dim, config, output_gain=0.01, dtype=dtype)

    def forward(self, obs: Tensor, task: Tensor, masks: Masks = ()) -> tuple[Tensor, Tensor]:
        """``obs [..., D]``, one-hot ``task [T]`` → mean ``[..., A]``, log_std ``[..., A]``."""
        mean, raw = self.net(self.with_task(obs, task), masks).chunk(2, dim=-1)
        low, high = self.config.log_std_min, self.config.log_std_max
        if self.config.log_std == "clip":
            return mean, raw.clamp(low, high)
        return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1)

    def draw_masks(self, rows: tuple[int, ...], generator: torch.Generator) -> Masks:
        return dropout_masks(self.config, rows, generator)


class Critic(TaskNetwork):
    """An ensemble of N independent state-action values."""

    def __init__(
        self, obs_dim: int, action_dim: int, num_tasks: int, config: CriticConfig,
        task_input: TaskInput = "one_hot", embedding_dim: int = 32, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__(num_tasks, task_input, embedding_dim)
        self.config = config
        self.nets = nn.ModuleList(
            MLP(obs_dim + action_dim + self.task_dim, 1, config, dtype=dtype) for _ in range(config.ensemble)
        )

    def forward(self, obs: Tensor, action: Tensor, task: Tensor, masks: Masks = ()) -> Tensor:
        """``obs [B, D]``, ``action [B, A]``, one-hot ``task [T]`` → values ``[N, B]``."""
        x = self.with_task(torch.cat((obs, action), dim=-1), task)
        depth = len(self.config.hidden) if masks else 0
        return torch.stack(
            [net(x, masks[i * depth : (i + 1) * depth]).squeeze(-1) for i, net in enumerate(self.nets)]
        )

    def draw_masks(self, rows: tuple[int, ...], generator: torch.Generator) -> Masks:
        return tuple(m for _ in self.nets for m in dropout_masks(self.config, rows, generator))


def dropout_masks(config: NetworkConfig, rows: tuple[int, ...], generator: torch.Generator) -> Masks:
    """One mask ``[*rows, width]`` per hidden layer: 0 with probability ``dropout``, else 1/(1−p)."""
    if config.dropout == 0:
        return ()
    keep = 1 - config.dropout
    return tuple(
        (torch.rand(*rows, width, generator=generator, device=generator.device) < keep).float() / keep
        for width in config.hidden
    )


def squashed_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Action ``tanh(mean + σ·noise) [..., A]`` and its log-probability ``[...]`` (SAC, app. C, eq. 21).

    The log-determinant is the exact ``2(log 2 − u − softplus(−2u))``; Stable-Baselines3 has
    ``log(1 − a² + 1e-6)``.
    """
    u = mean + log_std.exp() * noise
    log_det = 2 * (math.log(2) - u - F.softplus(-2 * u))
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi) - log_det
    return torch.tanh(u), log_prob.sum(-1)


class Parameters(NamedTuple):
    """A network's parameters, by name: ``shared`` as the module has them, ``private`` ``[T, ...]``."""

    shared: dict[str, Tensor]
    private: dict[str, Tensor]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, shared first: the order of every optimizer and file."""
        yield from self.shared.items()
        yield from self.private.items()

    def map(self, function: Callable[[Tensor], Tensor]) -> Parameters:
        return Parameters(
            {k: function(v) for k, v in self.shared.items()},
            {k: function(v) for k, v in self.private.items()},
        )

    def detach(self) -> Parameters:
        return self.map(Tensor.detach)

    def merged(self) -> dict[str, Tensor]:
        """What ``functional_call`` takes; under vmap a private entry is the one task's slice."""
        return {**self.shared, **self.private}


def make_parameters(
    build: Callable[[], TaskNetwork], num_tasks: int, device: torch.device
) -> tuple[TaskNetwork, Parameters]:
    """A network and its leaf parameters: each task's private ones are drawn anew."""
    first = build()
    networks = [first, *(build() for _ in range(num_tasks - 1))] if first.private else [first]
    of_task = [dict(network.named_parameters()) for network in networks]

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().to(device).requires_grad_()

    shared = {k: leaf(v) for k, v in of_task[0].items() if k not in first.private}
    private = {k: leaf(torch.stack([p[k] for p in of_task])) for k in of_task[0] if k in first.private}
    return first.to("meta"), Parameters(shared, private)
