"""What learns in the agent: parameters, the method that makes one gradient of the tasks', and Adam."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from mtrl.config import NetworkConfig
from mtrl.conflict import Conflict, measure_conflict
from mtrl.gradients import Gradient, Path, multitask_gradient, task_share
from mtrl.optimizers import MultiTaskOptimizer
from mtrl.parameters import Parameters, Weights

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names


class Learner:
    """Loss → gradient → clip → Adam → the method's own step.

    Args:
        weights: what is learned; its first part has weight decay.
        method: combines the tasks' gradients.
        path: how they are computed.
        learning_rate: Adam's.
        config: of the network; None is without decay and clipping.
    """

    def __init__(
        self, weights: Weights, method: MultiTaskOptimizer, path: Path, learning_rate: float,
        config: NetworkConfig | None = None,
    ) -> None:  # fmt: skip
        self.weights, self.method, self.path = weights, method, path
        self.max_grad_norm = None if config is None else config.max_grad_norm
        self.gradient, *moments = (weights.like(torch.zeros_like(weights.buffer)) for _ in range(3))
        self.moments = dict(zip(MOMENTS, moments, strict=True))
        for parameter, gradient in zip(weights.tensors(), self.gradient.tensors(), strict=True):
            parameter.requires_grad_().grad = gradient
        # Adam sees a buffer's part as one parameter: a step is one call. torch's functions, for its classes import all
        # of torch._dynamo, which takes a second.
        function = adamw if config is not None and config.decay == "decoupled" else adam
        buffers = (weights.buffer.detach(), *(of.buffer for of in (self.gradient, *moments)))
        self.steps: list[Tensor] = []  # of each part, all equal
        self.adam: list[Callable[[], None]] = []  # of each part
        for part, decay in zip(
            weights.parts, (0.0 if config is None else config.weight_decay, 0.0), strict=True
        ):
            if len(weights.buffer[part]) > 0:
                numbers, gradients, first, second = ([buffer[part]] for buffer in buffers)
                self.steps.append(torch.zeros((), device=weights.buffer.device))
                self.adam.append(
                    partial(
                        function, numbers, gradients, first, second, [], [self.steps[-1]], fused=True, lr=learning_rate,
                        beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=decay, amsgrad=False, maximize=False,
                    )
                )  # fmt: skip

    @property
    def parameters(self) -> Parameters:
        return self.weights.parameters

    def step(
        self, loss: Callable[..., tuple[Tensor, Any]], *inputs: Any, present: Tensor | None = None,
        diagnose: bool = False,
    ) -> tuple[Gradient, Conflict | None]:  # fmt: skip
        """One step along the method's gradient of a one-task loss, which is called as ``loss(parameters, *inputs)``.

        Args:
            present: ``[T]`` bool, see :func:`mtrl.gradients.multitask_gradient`.
            diagnose: also measure the tasks' conflict and what the method made of it, before the step.
        """
        parameters, path = self.parameters, self.path
        gradient = multitask_gradient(self.method, loss, parameters, *inputs, present=present, path=path)
        conflict = None
        if diagnose:
            tasks = path.eager.per_task(loss, parameters, *inputs)
            share = task_share(tasks.losses, present)
            conflict = measure_conflict(tasks, gradient.params.shared, gradient.weights, share)
        with torch.no_grad():
            torch._foreach_copy_(self.gradient.tensors(), [g for _, g in gradient.params.tensors()])
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.weights.tensors(), self.max_grad_norm)
        with torch.no_grad():
            for step_of_part in self.adam:
                step_of_part()
        increment_version(self.weights.buffer)  # torch's fused Adam does not
        if self.method.needs_after_step:
            with torch.no_grad():
                self.method.after_step(path.over_tasks(loss, parameters, *inputs)[0])
        return gradient, conflict

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes in training, by the parameters' names; no copies."""
        return {
            "parameters": self.parameters._asdict(),
            "moments": {key: moment.parameters._asdict() for key, moment in self.moments.items()},
            "step": self.steps[0],
            "method": self.method.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with this learner's own learning rate and decay."""
        self.weights.load(state["parameters"])
        for key, moment in self.moments.items():
            moment.load(state["moments"][key])
        for step in self.steps:
            step.copy_(state["step"])
        self.method.load_state_dict(state["method"])


def decayed(parameters: Parameters, config: NetworkConfig) -> frozenset[str]:
    """Names of the parameters with weight decay: matrices (K biases as one matrix are biases), or ``as_published``
    everything.
    """
    if config.decay_on == "as_published":
        return frozenset(name for name, _ in parameters.tensors())
    matrices = [name for name, p in parameters.shared.items() if p.dim() >= 2]
    matrices += [name for name, p in parameters.private.items() if p.dim() >= 3]
    return frozenset(name for name in matrices if not name.endswith("bias"))
