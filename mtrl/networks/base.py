"""What a network is: a function of one task, ``x [B, in]`` to ``[B, out]``, and the stack of layers most are made of.

Write it for one task, in plain torch: that is enough, and runs as it is under vmap. Which parameters are one task's
own is said by name (:attr:`Network.private_parts`), and no forward pass ever indexes by task.

A network whose operations all act on the last axes, and which uses shared weights through a :class:`Stack` (or
:attr:`LayerModule.run`) alone, may say so (:attr:`Network.all_at_once`). It is then also called with all tasks at
once, ``x [T, B, in]``, private parameters stacked ``[T, ...]``: the fast path (:mod:`mtrl.fast`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtrl.config import MOST_WIDTH, ConfigError, NetworkConfig
from mtrl.layers import Layer, LayerRunner, PlainLayers

Masks = tuple[Tensor, ...]
MOST_PARTS = 100  # experts, sets, modules: more is a slip


class Spec(NamedTuple):
    """What every network is built from.

    Attributes:
        inputs: width of ``x``, the task's code included where :attr:`Network.code_in_input`.
        outputs: width of the result.
        code: width of the task's code: T of a one-hot, that of an embedding, or 0.
        config: the sizes and stabilisers that all networks have: ``hidden``, ``layer_norm``, ``dropout``, ...
        output_gain: gain of the output layer under ``init: orthogonal``.
    """

    inputs: int
    outputs: int
    code: int
    config: NetworkConfig
    output_gain: float = 1.0


class LayerModule(nn.Module):
    """What hands fully connected layers to somebody who runs them: the agent decides whom."""

    run: LayerRunner = PlainLayers()


class Network(LayerModule):
    """One task's function. A subclass adds its options as keyword arguments with defaults.

    Raises:
        ConfigError: (subclasses) an option out of range, named first.
    """

    paper: ClassVar[str] = ""
    """Authors, year, venue or arXiv number."""
    formula: ClassVar[str] = ""
    """What it computes, on one line."""
    private_parts: ClassVar[frozenset[str]] = frozenset()
    """Names of the attributes whose parameters every task has its own of."""
    training_parts: ClassVar[frozenset[str]] = frozenset()
    """Names of the attributes that only training needs; a policy file leaves them out."""
    all_at_once: ClassVar[bool] = False
    """Whether it may be called with all tasks at once."""
    side_by_side: ClassVar[bool] = False
    """Whether, where that is so, N of them may be called as one (:class:`mtrl.networks.together.Together`): its text
    reads nothing of a :class:`Stack`, computes no weight of a layer, and says no ``super()`` beyond the constructor."""
    code_in_input: ClassVar[bool] = True
    """Whether the task's code is appended to ``x``."""
    auxiliary_weight: float = 0.0
    """Of the auxiliary output's loss; 0 is without one."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        """``x [B, in]``, the task's code ``[C]`` → ``[B, out]``; dropout masks for each stack, in order, or none."""
        raise NotImplementedError

    def with_auxiliary(
        self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and the auxiliary one that training may add."""
        return self(x, task, masks), None

    @property
    def mask_widths(self) -> tuple[int, ...]:
        """Of the dropout masks that ``forward`` takes."""
        return tuple(
            width for module in self.modules() if isinstance(module, Stack) for width in module.widths
        )

    @property
    def private(self) -> frozenset[str]:
        return self._of(self.private_parts)

    @property
    def training_only(self) -> frozenset[str]:
        return self._of(self.training_parts)

    def _of(self, parts: frozenset[str]) -> frozenset[str]:
        return frozenset(name for name, _ in self.named_parameters() if parts & set(name.split(".")))


class Stack(LayerModule):
    """Linear → dropout → LayerNorm → activation, for each hidden width, then a linear output, if any.

    Before the output come ``config.blocks`` residual blocks, ``x + layer(activation(layer(x)))``, where a
    layer is linear → dropout → LayerNorm.

    Args:
        in_dim: width of the input.
        out_dim: width of a linear output; None ends with the last hidden layer.
        output_gain: gain of the output under ``init="orthogonal"``.
        scaled: hidden layers have a scale and a shift where there is no LayerNorm, too.
    """

    def __init__(
        self, in_dim: int, out_dim: int | None, config: NetworkConfig, output_gain: float = 1.0,
        scaled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.plain = len(config.hidden)  # that many layers come before the blocks
        self.widths = config.widths
        self.activation, self.layer_norm = config.activation, config.layer_norm
        widths = [in_dim, *config.widths]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        affine = nn.LayerNorm if config.layer_norm else Scale
        self.norms = nn.ModuleList(map(affine, config.widths)) if config.layer_norm or scaled else None
        self.in_dim, self.out_dim = in_dim, widths[-1] if out_dim is None else out_dim
        self.output = None if out_dim is None else nn.Linear(widths[-1], out_dim)
        for layer in (*self.hidden, self.output):
            if layer is not None:
                assert isinstance(layer, nn.Linear)
                initialise(layer, config.init, output_gain if layer is self.output else math.sqrt(2))

    def forward(self, x: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        """``[..., in_dim]`` → ``[..., out_dim]``; takes a mask ``[..., width]`` per hidden layer, if there are some."""
        layers = self.layers(masks)
        if self.plain == len(self.hidden):
            return self.run(x, layers)
        x, layers, output = (
            self.run(x, layers[: self.plain]),
            layers[: len(self.hidden)],
            layers[len(self.hidden) :],
        )
        for first, second in zip(layers[self.plain :: 2], layers[self.plain + 1 :: 2], strict=True):
            x = x + self.run(x, [first, second._replace(activation=None)])
        return self.run(x, output)

    def layers(self, masks: Iterable[Tensor] = ()) -> list[Layer]:
        """All layers, in order; takes the masks of the hidden ones."""
        masks = iter(masks)
        norms = itertools.repeat(None) if self.norms is None else self.norms._modules.values()
        layers = []
        for linear, norm in zip(self.hidden._modules.values(), norms, strict=False):
            # called often: no __getattr__
            assert linear is not None
            weight, bias = linear._parameters.values()
            assert weight is not None
            gamma, beta = (None, None) if norm is None else norm._parameters.values()
            mask = next(masks, None)
            layers.append(Layer(weight, bias, gamma, beta, self.activation, mask, self.layer_norm))
        return layers if self.output is None else [*layers, self.end()]

    def end(self) -> Layer:
        """The output layer."""
        assert self.output is not None
        return Layer(self.output.weight, self.output.bias)


class Scale(nn.Module):
    """The scale and shift ``[width]`` of a LayerNorm, alone; they start at 1 and 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))


def initialise(layer: nn.Linear, init: Literal["torch", "xavier", "orthogonal"], gain: float) -> None:
    """Set a layer's weights in place; ``torch`` leaves what nn.Linear drew."""
    if init == "torch":
        return
    if init == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)


def layer_groups(module: nn.Module, private: frozenset[str]) -> list[list[str]]:
    """Names of a module's parameters, in groups: the same layer of stacks that have it in the same shape."""
    stacks = [f"{name}." for name, part in module.named_modules() if isinstance(part, LayerModule)]
    groups: dict[Any, list[str]] = {}
    for name, parameter in module.named_parameters():
        stack = max((s for s in stacks if name.startswith(s)), key=len, default=name)
        key = (name.removeprefix(stack), tuple(parameter.shape), name in private)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def hidden(config: NetworkConfig, widths: Sequence[int]) -> NetworkConfig:
    """The config with these hidden layers and no blocks."""
    return replace(config, hidden=tuple(widths), blocks=0)


def linear(inputs: int, outputs: int, config: NetworkConfig, gain: float = 1.0) -> Stack:
    """One linear layer."""
    return Stack(inputs, outputs, hidden(config, ()), gain)


def require(valid: object, option: str, value: object, domain: str) -> None:
    """Raise ConfigError naming an option, its value and what would be valid, unless ``valid``."""
    if not valid:
        raise ConfigError(f"{option}: {value!r} is not valid; it must be {domain}")


def require_count(option: str, value: int) -> None:
    require(1 <= value <= MOST_PARTS, option, value, f"from 1 to {MOST_PARTS}")


def require_widths(option: str, widths: Sequence[int], least: int = 0) -> None:
    require(
        least <= len(widths) <= MOST_PARTS and all(0 < width <= MOST_WIDTH for width in widths),
        option, list(widths), f"a list of {least} to {MOST_PARTS} widths from 1 to {MOST_WIDTH}",
    )  # fmt: skip


def require_plain_layers(name: str, config: NetworkConfig) -> None:
    """Raise ConfigError unless the hidden layers are some, and without residual blocks."""
    require(config.hidden, "hidden", list(config.hidden), f"at least one width for the network {name}")
    require(config.blocks == 0, "blocks", config.blocks, f"0 for the network {name}")


def require_code(name: str, spec: Spec) -> None:
    """Raise ConfigError unless the network gets a code of its task."""
    require(
        spec.code > 0, "agent.task_input", "none",
        f"one_hot or embedding for the network {name}, which reads the task's code",
    )  # fmt: skip
