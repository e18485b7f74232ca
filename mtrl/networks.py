"""Networks, each written for ONE task: ``vmap`` makes them T, or a leading axis of every argument does.

A network is a plain ``nn.Module``. Parameters named in its ``private`` set belong to one task each
(a head, an embedding): the agent holds them stacked ``[T, ...]`` and the module sees one slice, so
that no forward pass ever indexes by task. All others are shared. Dropout masks are inputs.

Every operation acts on the last axes alone. So the same code, without vmap, also takes the arguments of all
tasks at once, ``[T, ...]`` each, private parameters included (see :mod:`mtrl.gradients`).

Shapes: B rows, D numbers per observation, A per action, T tasks, N critics.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrl.categorical import atoms_on, cross_entropy, expectation, hl_gauss, project, two_hot
from mtrl.config import ActorConfig, CriticConfig, NetworkConfig
from mtrl.layers import Layer, LayerRunner, PlainLayers

TaskInput = Literal["one_hot", "embedding", "heads", "none"]
Masks = tuple[Tensor, ...]


class MLP(nn.Module):
    """Linear → dropout → LayerNorm → activation, for each hidden width, then a linear output.

    Before the output come ``config.blocks`` residual blocks, ``x + layer(activation(layer(x)))``, where a
    layer is linear → dropout → LayerNorm.

    Args:
        output_gain: gain of the last layer under ``init="orthogonal"``.
    """

    def __init__(self, in_dim: int, out_dim: int, config: NetworkConfig, output_gain: float = 1.0) -> None:
        super().__init__()
        self.run: LayerRunner = PlainLayers()
        self.plain = len(config.hidden)  # that many layers come before the blocks
        self.activation = config.activation
        widths = [in_dim, *config.widths]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(b) for b in config.widths) if config.layer_norm else None
        self.output = nn.Linear(widths[-1], out_dim)
        for layer in (*self.hidden, self.output):
            assert isinstance(layer, nn.Linear)
            initialise(layer, config.init, output_gain if layer is self.output else math.sqrt(2))

    def forward(self, x: Tensor, masks: Masks = ()) -> Tensor:
        """``[..., in_dim]`` → ``[..., out_dim]``; one mask ``[..., width]`` per layer but the last, or none."""
        layers = [self._layer(i, masks) for i in range(len(self.hidden))]
        output = Layer(self.output.weight, self.output.bias)
        if self.plain == len(layers):
            return self.run(x, [*layers, output])
        x = self.run(x, layers[: self.plain])
        for first, second in zip(layers[self.plain :: 2], layers[self.plain + 1 :: 2], strict=True):
            x = x + self.run(x, [first, second._replace(activation=None)])
        return self.run(x, [output])

    def _layer(self, i: int, masks: Masks) -> Layer:
        linear, mask = self.hidden[i], masks[i] if masks else None
        assert isinstance(linear, nn.Linear)
        layer = Layer(linear.weight, linear.bias, activation=self.activation, mask=mask)
        if self.norms is None:
            return layer
        norm = self.norms[i]
        assert isinstance(norm, nn.LayerNorm)
        return layer._replace(gamma=norm.weight, beta=norm.bias)


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

    @cached_property
    def slots(self) -> dict[str, tuple[dict[str, Any], str]]:
        """By parameter name the dictionary that holds it, and its key there."""
        owners = {name: module._parameters for name, module in self.named_modules()}
        parts = {name: name.rpartition(".") for name, _ in self.named_parameters()}
        return {name: (owners[owner], key) for name, (owner, _, key) in parts.items()}

    def with_task(self, x: Tensor, task: Tensor) -> Tensor:
        """Append the task to ``x [B, D]``; ``task`` is the one-hot ``[T]`` of the one task."""
        if self.task_dim == 0:
            return x
        code = F.normalize(self.embedding, dim=-1) if self.task_input == "embedding" else task
        return torch.cat((x, code.unsqueeze(-2).expand(*x.shape[:-1], self.task_dim)), dim=-1)


class Actor(TaskNetwork):
    """Mean and log standard deviation of a Gaussian, squashed by :func:`squashed_sample`."""

    def __init__(
        self, obs_dim: int, action_dim: int, num_tasks: int, config: ActorConfig,
        task_input: TaskInput = "one_hot", embedding_dim: int = 32,
    ) -> None:  # fmt: skip
        super().__init__(num_tasks, task_input, embedding_dim)
        self.config = config
        self.net = MLP(obs_dim + self.task_dim, 2 * action_dim, config, output_gain=0.01)

    def forward(self, obs: Tensor, task: Tensor, masks: Masks = ()) -> tuple[Tensor, Tensor]:
        """``obs [B, D]``, one-hot ``task [T]`` → mean ``[B, A]``, log_std ``[B, A]``."""
        mean, raw = self.net(self.with_task(obs, task), masks).chunk(2, dim=-1)
        low, high = self.config.log_std_min, self.config.log_std_max
        if self.config.log_std == "clip":
            return mean, raw.clamp(low, high)
        return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1)

    def draw_masks(self, rows: tuple[int, ...], generator: torch.Generator) -> Masks:
        return dropout_masks(self.config, rows, generator)


class Critic(TaskNetwork):
    """An ensemble of N independent state-action values.

    ``forward`` gives the networks' outputs: the values themselves ``[N, B]``, or with a categorical loss
    logits ``[N, B, K]`` over K atoms. The other methods use no parameter: they say what outputs mean.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, num_tasks: int, config: CriticConfig,
        task_input: TaskInput = "one_hot", embedding_dim: int = 32,
    ) -> None:  # fmt: skip
        super().__init__(num_tasks, task_input, embedding_dim)
        self.config = config
        self.categorical = config.loss != "squared"
        outputs = config.atoms if self.categorical else 1
        self.nets = nn.ModuleList(
            MLP(obs_dim + action_dim + self.task_dim, outputs, config) for _ in range(config.ensemble)
        )

    def forward(self, obs: Tensor, action: Tensor, task: Tensor, masks: Masks = ()) -> Tensor:
        """``obs [B, D]``, ``action [B, A]``, one-hot ``task [T]`` → ``[N, B]`` or ``[N, B, K]``."""
        x = self.with_task(torch.cat((obs, action), dim=-1), task)
        depth = len(self.config.widths) if masks else 0
        outputs = torch.stack([net(x, masks[i * depth : (i + 1) * depth]) for i, net in enumerate(self.nets)])
        return outputs if self.categorical else outputs.squeeze(-1)

    def values(self, outputs: Tensor) -> Tensor:
        """Each critic's value ``[N, B]``."""
        return expectation(outputs, self._atoms(outputs)) if self.categorical else outputs

    def reduced(self, outputs: Tensor) -> Tensor:
        """The ensemble's value ``[B]``: the minimum or the mean."""
        values = self.values(outputs)
        return values.mean(0) if self.config.reduction == "mean" else values.amin(0)

    def target(self, outputs: Tensor, backup: Callable[[Tensor], Tensor]) -> Tensor:
        """What the loss compares outputs with, from the next state's outputs.

        Args:
            backup: a next value ``[B, 1]``, or atoms ``[K]``, to Bellman targets ``[B, ·]``.

        Returns:
            ``[B]``, or probabilities ``[B, K]``.
        """
        if self.config.loss == "distributional":
            atoms = self._atoms(outputs)
            return project(backup(atoms), self._next_distribution(outputs), atoms)
        value = backup(self.reduced(outputs).unsqueeze(-1)).squeeze(-1)
        if self.config.loss == "squared":
            return value
        return {"two_hot": two_hot, "hl_gauss": hl_gauss}[self.config.loss](value, self._atoms(outputs))

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Squared error or cross-entropy, summed over the ensemble: ``[B]``."""
        if self.categorical:
            return cross_entropy(outputs, target).sum(0)
        return (outputs - target).square().sum(0)

    def _next_distribution(self, outputs: Tensor) -> Tensor:
        """``[B, K]``: the critics' average, or for each row that of the critic with the smaller value."""
        probabilities = outputs.softmax(-1)
        if self.config.reduction == "mean":
            return probabilities.mean(0)
        chosen = F.one_hot(self.values(outputs).argmin(0), len(self.nets)).to(outputs.dtype)  # [B, N]
        return torch.einsum("...bn,n...bk->...bk", chosen, probabilities)

    def _atoms(self, outputs: Tensor) -> Tensor:
        return atoms_on(self.config.support, self.config.atoms, outputs)

    def draw_masks(self, rows: tuple[int, ...], generator: torch.Generator) -> Masks:
        return tuple(m for _ in self.nets for m in dropout_masks(self.config, rows, generator))


def dropout_masks(config: NetworkConfig, rows: tuple[int, ...], generator: torch.Generator) -> Masks:
    """One mask ``[*rows, width]`` per layer but the last: 0 with probability ``dropout``, else 1/(1−p)."""
    if config.dropout == 0:
        return ()
    keep = 1 - config.dropout
    return tuple(
        (torch.rand(*rows, width, generator=generator, device=generator.device) < keep).float() / keep
        for width in config.widths
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


def call(network: TaskNetwork, parameters: Parameters, *args: Any) -> Any:
    """The network's forward pass with these parameters: ``torch.func.functional_call``, ten times as quick.

    Under vmap a private parameter is the one task's slice; without, private ones are stacked ``[T, ...]``
    and ``args`` have the task as their first axis.
    """
    own = {}
    for name, tensor in parameters.tensors():
        owner, key = network.slots[name]
        own[name], owner[key] = owner[key], tensor
    try:
        return network(*args)
    finally:
        for name, tensor in own.items():
            owner, key = network.slots[name]
            owner[key] = tensor


def make_parameters(
    build: Callable[[], TaskNetwork], num_tasks: int, device: torch.device
) -> tuple[TaskNetwork, Parameters]:
    """A network and its leaf parameters: each task's private ones are drawn anew."""
    first = build()
    networks = [first, *(build() for _ in range(num_tasks - 1))] if first.private else [first]
    of_task = [dict(network.named_parameters()) for network in networks]

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone(memory_format=torch.contiguous_format).to(device).requires_grad_()

    shared = {k: leaf(v) for k, v in of_task[0].items() if k not in first.private}
    private = {k: leaf(torch.stack([p[k] for p in of_task])) for k in of_task[0] if k in first.private}
    return first.to("meta"), Parameters(shared, private)
