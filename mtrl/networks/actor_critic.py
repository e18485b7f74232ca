"""Actor and critics: what a :class:`mtrl.networks.base.Network` computes for the agent, and what it means.

Shapes: B rows, D numbers per observation, A per action, T tasks, N critics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrl.categorical import atoms_on, cross_entropy, expectation, hl_gauss, project, two_hot
from mtrl.config import ActorConfig, ArchitectureConfig, ConfigError, CriticConfig, NetworkConfig
from mtrl.networks.base import Masks, Network, Spec
from mtrl.networks.catalog import find_network, make_network
from mtrl.networks.together import Together
from mtrl.parameters import TaskModule

TaskInput = Literal["one_hot", "embedding", "heads", "none"]
MLP = ArchitectureConfig("mlp")


class TaskNetwork(TaskModule):
    """What actor and critic share: how the task enters, and the networks.

    Args:
        num_tasks: T.
        task_input: ``one_hot`` and ``embedding`` (learned, scaled to unit norm) are the task's code;
            ``heads`` makes an mlp's output layer(s) private; ``none`` gives no code.
        embedding_dim: of an embedding.
        architecture: name and options of the networks.

    Raises:
        ConfigError: there is no such network or option, or the network cannot do with this ``task_input``.
    """

    def __init__(
        self, num_tasks: int, task_input: TaskInput, embedding_dim: int, architecture: ArchitectureConfig
    ) -> None:
        super().__init__()
        self.task_input, self.architecture = task_input, architecture
        self.code_dim = {"one_hot": num_tasks, "embedding": embedding_dim, "heads": 0, "none": 0}[task_input]
        kind = find_network(architecture.name or "mlp")
        self.code_in_input, self.all_at_once = kind.code_in_input, kind.all_at_once
        if task_input == "heads" and architecture.name not in (None, "mlp"):
            raise ConfigError(
                "agent.task_input: 'heads' is not valid; it must be one_hot, embedding or none for the network "
                f"{architecture.name} (for heads of each task's own take the network shared_bottom)"
            )
        if task_input == "embedding":
            self.embedding = nn.Parameter(torch.randn(embedding_dim))

    def make(self, inputs: int, outputs: int, config: NetworkConfig, output_gain: float = 1.0) -> Network:
        """One network ``[B, inputs]`` → ``[B, outputs]``; the task's code is added to the inputs."""
        inputs += self.code_dim if self.code_in_input else 0
        return make_network(self.architecture, Spec(inputs, outputs, self.code_dim, config, output_gain))

    @property
    def private(self) -> frozenset[str]:
        """Names of the parameters of which each task has its own."""
        found = {name for name, _ in self.named_parameters() if name == "embedding"}
        if self.task_input == "heads":
            found |= {name for name, _ in self.named_parameters() if "output." in name}
        for prefix, module in self.named_modules():
            if isinstance(module, Network):
                found |= {f"{prefix}.{name}" for name in module.private}
        return frozenset(found)

    @property
    def training_only(self) -> frozenset[str]:
        """Names of the parameters that no policy file has."""
        return frozenset(
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, Network)
            for name in module.training_only
        )

    def code(self, task: Tensor) -> Tensor:
        """The code ``[C]`` of the task whose one-hot ``[T]`` is given."""
        if self.task_input == "embedding":
            return F.normalize(self.embedding, dim=-1)
        return task if self.task_input == "one_hot" else task[..., :0]

    def with_code(self, x: Tensor, code: Tensor) -> Tensor:
        """``x [B, n]`` with the code appended, where the network wants it."""
        if self.code_dim == 0 or not self.code_in_input:
            return x
        return torch.cat((x, code.unsqueeze(-2).expand(*x.shape[:-1], self.code_dim)), dim=-1)


class Actor(TaskNetwork):
    """Mean and log standard deviation of a Gaussian, squashed by :func:`squashed_sample`."""

    def __init__(
        self, obs_dim: int, action_dim: int, num_tasks: int, config: ActorConfig,
        task_input: TaskInput = "one_hot", embedding_dim: int = 32,
        architecture: ArchitectureConfig = MLP,
    ) -> None:  # fmt: skip
        super().__init__(num_tasks, task_input, embedding_dim, architecture)
        self.config = config
        self.net = self.make(obs_dim, 2 * action_dim, config, output_gain=0.01)

    def forward(self, obs: Tensor, task: Tensor, masks: Masks = ()) -> tuple[Tensor, Tensor]:
        """``obs [B, D]``, one-hot ``task [T]`` → mean ``[B, A]``, log_std ``[B, A]``."""
        code = self.code(task)
        return self.gaussian(self.net(self.with_code(obs, code), code, masks))

    def with_auxiliary(
        self, obs: Tensor, task: Tensor, masks: Masks = ()
    ) -> list[tuple[float, tuple[Tensor, Tensor]]]:
        """Weight and result of :meth:`forward`, and of the auxiliary head where there is one."""
        code = self.code(task)
        output, auxiliary = self.net.with_auxiliary(self.with_code(obs, code), code, masks)
        found = [(1.0, self.gaussian(output))]
        return found if auxiliary is None else [*found, (self.net.auxiliary_weight, self.gaussian(auxiliary))]

    def gaussian(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 2A]`` → mean and log_std ``[B, A]``."""
        mean, raw = output.chunk(2, dim=-1)
        low, high = self.config.log_std_min, self.config.log_std_max
        if self.config.log_std == "clip":
            return mean, raw.clamp(low, high)
        return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1)

    def draw_masks(self, rows: tuple[int, ...], generator: torch.Generator) -> Masks:
        if self.config.dropout == 0:
            return ()
        return dropout_masks(self.config.dropout, self.net.mask_widths, rows, generator)


class Critic(TaskNetwork):
    """An ensemble of N independent state-action values.

    ``forward`` gives the networks' outputs: the values themselves ``[N, B]``, or with a categorical loss
    logits ``[N, B, K]`` over K atoms. The other methods use no parameter: they say what outputs mean.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, num_tasks: int, config: CriticConfig,
        task_input: TaskInput = "one_hot", embedding_dim: int = 32,
        architecture: ArchitectureConfig = MLP,
    ) -> None:  # fmt: skip
        super().__init__(num_tasks, task_input, embedding_dim, architecture)
        self.config = config
        self.categorical = config.loss != "squared"
        outputs = config.atoms if self.categorical else 1
        self.nets = nn.ModuleList(
            self.make(obs_dim + action_dim, outputs, config) for _ in range(config.ensemble)
        )

    def forward(self, obs: Tensor, action: Tensor, task: Tensor, masks: Masks = ()) -> Tensor:
        """``obs [B, D]``, ``action [B, A]``, one-hot ``task [T]`` → ``[N, B]`` or ``[N, B, K]``."""
        x, code = self._inputs(obs, action, task)
        networks = self._networks()
        if self._as_one(masks):
            return self._values_of(self._together(x.unsqueeze(0), code.unsqueeze(0)))
        own = zip(networks, self._own(masks), strict=True)
        return self._values_of(torch.stack([net(x, code, masks) for net, masks in own]))

    def with_auxiliary(
        self, obs: Tensor, action: Tensor, task: Tensor, masks: Masks = ()
    ) -> list[tuple[float, Tensor]]:
        """Weight and result of :meth:`forward`, and of the auxiliary towers where there are some."""
        networks = self._networks()
        weight = networks[0].auxiliary_weight
        if weight == 0:
            return [(1.0, self(obs, action, task, masks))]
        x, code = self._inputs(obs, action, task)
        if self._as_one(masks):
            found = self._together.with_auxiliary(x.unsqueeze(0), code.unsqueeze(0))
        else:
            own = zip(networks, self._own(masks), strict=True)
            pairs = [net.with_auxiliary(x, code, masks) for net, masks in own]
            found = [torch.stack(outputs) for outputs in zip(*pairs, strict=True)]
        return [
            (share, self._values_of(outputs)) for share, outputs in zip((1.0, weight), found, strict=True)
        ]

    def _inputs(self, obs: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        code = self.code(task)
        return self.with_code(torch.cat((obs, action), dim=-1), code), code

    def _networks(self) -> list[Network]:
        return list(self.nets)  # type: ignore[arg-type]

    @cached_property
    def _together(self) -> Together:
        return Together(self.nets)

    def _as_one(self, masks: Masks) -> bool:
        """Whether all networks are called as one."""
        first = self._networks()[0]
        return first.side_by_side and first.run.grouped and not masks

    def _own(self, masks: Masks) -> list[Masks]:
        """Every network's own masks, of which a forward pass need not take all."""
        if not masks:
            return [()] * len(self.nets)
        number = len(self._networks()[0].mask_widths)
        return [masks[i * number : (i + 1) * number] for i in range(len(self.nets))]

    def _values_of(self, outputs: Tensor) -> Tensor:
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
        smaller = self.values(outputs).argmin(0).unsqueeze(-1)
        # not F.one_hot, which looks at the numbers: that cannot be traced
        chosen = (smaller == torch.arange(len(self.nets), device=outputs.device)).to(outputs.dtype)  # [B, N]
        return torch.einsum("...bn,n...bk->...bk", chosen, probabilities)

    def _atoms(self, outputs: Tensor) -> Tensor:
        return atoms_on(self.config.support, self.config.atoms, outputs)

    def draw_masks(self, rows: tuple[int, ...], generator: torch.Generator) -> Masks:
        if self.config.dropout == 0:
            return ()
        widths = [width for net in self._networks() for width in net.mask_widths]
        return dropout_masks(self.config.dropout, widths, rows, generator)


def dropout_masks(
    dropout: float, widths: Sequence[int], rows: tuple[int, ...], generator: torch.Generator
) -> Masks:
    """One mask ``[*rows, width]`` per width: 0 with probability ``dropout``, else 1/(1−p). None without dropout."""
    if dropout == 0:
        return ()
    keep = 1 - dropout
    return tuple(
        (torch.rand(*rows, width, generator=generator, device=generator.device) < keep).float() / keep
        for width in widths
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
