"""The three kinds of multi-task optimizer, and what they share.

A method turns the gradients of T tasks into one. It belongs to the kind that says what it needs to see:

==================  ===============================  ==============================================
kind                what it sees                     what it gives
==================  ===============================  ==============================================
`Scalarization`     losses           ``[T]``         weights ``[T]`` of *one* loss, one backward pass
`GramianMethod`     Gramian ``J Jᵀ`` ``[T, T]``      weights ``[T]`` of the Jacobian's rows
`RowMethod`         Jacobian         ``[T, P]``      the combined gradient ``[P]`` itself
==================  ===============================  ==============================================

``T`` is the number of tasks, ``P`` the number of parameters. Every method is brought to the scale of the
**mean**: T identical gradients give that gradient, so that one learning rate and one L2 coefficient mean the
same for all.

A method is written as one verb: `weights`, or `combine_rows`. Two doors lead there. `MultiTaskOptimizer.combine`
is for anyone: it validates its input and may wait for the device. `of_present` is for an update loop, whose batch
may lack tasks: it checks nothing, and a gradient that is not finite gives a result that is not finite, never an
exception.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtrl.errors import OptimizerError

Array = npt.NDArray[np.float64]
BLOCK = 2**16  # columns of a Jacobian that are held in float64 at once


def require(valid: bool, option: str, value: object, domain: str) -> None:
    """Raise `OptimizerError` naming `option`, its `value` and the valid `domain`, unless `valid`."""
    if not valid:
        raise OptimizerError(f"{option} = {value!r} is not valid: must be {domain}")


def on_host(matrix: Tensor) -> Array:
    """A copy in float64 on the CPU, where the small solvers work: T numbers a side cost less there than a
    launch.
    """
    return matrix.detach().to("cpu", torch.float64, copy=True).numpy()


def like(values: Array, reference: Tensor) -> Tensor:
    """`values` as a tensor of `reference`'s dtype and device."""
    return torch.as_tensor(values, dtype=reference.dtype, device=reference.device)


def gramian_of(jacobian: Tensor) -> Tensor:
    """``J Jᵀ`` in float64, ``[T, P]`` -> ``[T, T]``, without overflow whatever the rows' norms.

    The products run in float64, a block of columns at a time, on rows scaled to unit size.
    """
    size = jacobian.abs().amax(dim=1, keepdim=True)
    size = torch.where(size > 0, size, torch.ones_like(size))
    products = jacobian.new_zeros(len(jacobian), len(jacobian), dtype=torch.float64)
    for start in range(0, jacobian.shape[1], BLOCK):
        block = (jacobian[:, start : start + BLOCK] / size).double()
        products += block @ block.T
    size = size.double()
    return products * size * size.T


def weighted_sum(weights: Tensor, jacobian: Tensor) -> Tensor:
    """``weights @ jacobian`` ``[P]``: summed in float64, a block of columns at a time, since large weights cancel."""
    blocks = torch.split(jacobian, BLOCK, dim=1)
    return torch.cat([weights.double() @ block.double() for block in blocks]).to(jacobian.dtype)


class MultiTaskOptimizer(ABC):
    """Common base: the number of tasks, the generator, validation, state.

    Args:
        num_tasks: T, at least 1.
        seed: of the method's own generator; no method draws from torch's global one.

    A subclass adds its options as keyword arguments with defaults; they are listed and validated from there.
    """

    kind: ClassVar[str]
    """What it sees, in a word."""
    paper: ClassVar[str]
    """Authors, year, venue or arXiv number."""
    formula: ClassVar[str]
    """What it computes, on one line."""
    critic_only: ClassVar[bool] = False
    """Needs non-negative losses: it acts on the critic, and the actor takes the plain mean."""
    needs_after_step: ClassVar[bool] = False
    """Wants `after_step` to be called with the losses recomputed on the same batch and noise."""
    saved: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes (tensors, numbers, None) that change in training, apart from the generator."""
    fallbacks: int | None = None
    """How often, since the start, a solver had no solution and something else was taken; None: nothing is solved."""

    def __init__(self, num_tasks: int, *, seed: int = 0) -> None:
        require(
            isinstance(num_tasks, int) and num_tasks >= 1, "num_tasks", num_tasks, "an integer of at least 1"
        )
        self.num_tasks = num_tasks
        self.generator = torch.Generator().manual_seed(seed)

    def combine(self, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
        """One gradient from one per task: ``[T, P]`` -> ``[P]``, of the Jacobian's dtype and device.

        Args:
            losses: ``[T]``, which a scalarization sees, and may learn from; None is 1 each.

        Raises:
            OptimizerError: the Jacobian is not a floating-point ``[T, P]``, or a task's gradient is not
                finite (the message names the task by number).
        """
        if jacobian.ndim != 2 or jacobian.shape[0] != self.num_tasks:
            raise OptimizerError(
                f"expected a Jacobian [T, P] of {self.num_tasks} rows, one per task, "
                f"got shape {list(jacobian.shape)}"
            )
        if not jacobian.is_floating_point():
            raise OptimizerError(f"expected a floating-point Jacobian, got {jacobian.dtype}")
        bad = (~jacobian.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            tasks = ", ".join(map(str, bad))
            raise OptimizerError(f"the gradient of task {tasks} is not finite (tasks count from 0)")
        losses = torch.ones_like(jacobian[:, 0]) if losses is None else losses.detach()
        return self._combine(jacobian.detach(), losses)

    @abstractmethod
    def _combine(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """`combine` for a Jacobian known to be valid."""

    def after_step(self, losses: Tensor) -> None:  # noqa: B027 - most methods have nothing to do here
        """Learn from the losses ``[T]`` after the parameter step, on the same batch and noise."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes in training, the generator included; safe for
        ``torch.load(weights_only=True)``.
        """
        state: dict[str, Any] = {"num_tasks": self.num_tasks, "generator": self.generator.get_state()}
        for name in self.saved:
            value = getattr(self, name)
            state[name] = value.clone() if isinstance(value, Tensor) else value
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as the optimizer that gave `state` would.

        Raises:
            OptimizerError: `state` comes from another method or another number of tasks.
        """
        expected = {"num_tasks", "generator", *self.saved}
        if set(state) != expected:
            raise OptimizerError(
                f"state holds {sorted(state)}, {type(self).__name__} needs {sorted(expected)}"
            )
        if state["num_tasks"] != self.num_tasks:
            raise OptimizerError(
                f"state is of {state['num_tasks']} tasks, this optimizer has {self.num_tasks}"
            )
        self.generator.set_state(state["generator"].cpu())
        for name in self.saved:
            value = state[name]
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)

    def draw_seed(self) -> int:
        """A seed from the own generator, for draws that have to be made on another device or by other
        code.
        """
        return int(torch.randint(2**62, (), generator=self.generator))


class Scalarization(MultiTaskOptimizer):
    """Weights from the losses: one loss ``(weights * losses).sum()``, one backward pass."""

    kind = "scalarization"
    reads_losses: ClassVar[bool] = True
    """Whether the weights depend on the losses, not only on their number.

    A class that defines `weights` and does not say it reads them, whatever it extends.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "weights" in vars(cls) and "reads_losses" not in vars(cls):
            cls.reads_losses = True

    @abstractmethod
    def weights(self, losses: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Losses ``[n]`` -> weights ``[n]``, detached, of the same dtype and device. It may learn from the losses.

        Args:
            tasks: long ``[n]``, which of the T tasks these are, for what a method keeps of each; None is all of them.
        """

    def _combine(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        return weighted_sum(self.weights(losses.double()), jacobian)


class GramianMethod(MultiTaskOptimizer):
    """Weights from the inner products of the task gradients: the combined gradient is ``weights @
    jacobian``.
    """

    kind = "Gramian"

    @abstractmethod
    def weights(self, gramian: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Gramian ``J Jᵀ`` ``[n, n]`` -> weights ``[n]``, detached, of the same dtype and device.

        Scaling the Gramian must not change the weights. A Gramian computed in float32 can be slightly indefinite.

        Args:
            tasks: long ``[n]``, which of the T tasks these are, for what a method keeps of each; None is all of them.
        """

    def _combine(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        return weighted_sum(self.weights(gramian_of(jacobian)), jacobian)


class HostSolver(GramianMethod):
    """A Gramian method that solves a small problem in T dimensions: with numpy in float64, on the host.

    At T = 50 a solve is a handful of products of 50 × 50 numbers, which cost less there than launching them
    one by one on a device; on a GPU each call waits for the Gramian.
    """

    saved = ("fallbacks",)
    fallbacks: int = 0

    @abstractmethod
    def solve(self, gramian: Array) -> Array:
        """Finite Gramian ``[n, n]`` -> weights ``[n]``. Adds to ``fallbacks`` where they are not the method's own."""

    def weights(self, gramian: Tensor, tasks: Tensor | None = None) -> Tensor:
        host = on_host(gramian)
        if not np.isfinite(host).all():  # solvers raise or loop on NaN; an update must do neither
            return torch.full_like(gramian[0], torch.nan)
        return like(self.solve(host), gramian)


def cosines_of(gramian: Array) -> tuple[Array, Array]:
    """Norms ``[n]`` and cosines ``[n, n]`` of a Gramian, so that solvers see numbers near 1 whatever its
    scale.

    A zero gradient has cosine 0 with every other and 1 with itself.
    """
    norms = np.sqrt(gramian.diagonal().clip(min=0))
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines = inverse[:, None] * gramian * inverse
    cosines = (cosines + cosines.T) / 2
    np.fill_diagonal(cosines, 1.0)
    return norms, cosines


def lifted(cosines: Array, ridge: float) -> Array:
    """``C + x I``, positive definite: x is `ridge`, and more where rounding has left C ``[n, n]`` indefinite."""
    shift = ridge + max(0.0, -float(np.linalg.eigvalsh(cosines)[0]))
    result: Array = cosines + shift * np.eye(len(cosines))
    return result


class RowMethod(MultiTaskOptimizer):
    """A combination that no weights ``[T]`` can express, such as one that decides coordinate by
    coordinate.
    """

    kind = "rows"

    @abstractmethod
    def combine_rows(self, jacobian: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Jacobian ``[n, P]`` -> combined gradient ``[P]``.

        Args:
            tasks: long ``[n]``, which of the T tasks these are, for what a method keeps of each; None is all of them.
        """

    def _combine(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        return self.combine_rows(jacobian)


def of_present(method: MultiTaskOptimizer, seen: Tensor, present: Tensor | None = None) -> Tensor:
    """What a method makes of a batch from which tasks may be absent: weights ``[T]``, or the gradient ``[P]``.

    The method sees the present tasks only, so its result is at the scale of *their* mean. Absent tasks get 0, whatever
    ``seen`` has of them, NaN included. Without any task all is 0.

    Args:
        seen: losses ``[T]``, Gramian ``[T, T]`` or Jacobian ``[T, P]``, by the method's kind.
        present: bool ``[T]``; None is all. Selecting waits for the device; None does not.
    """
    tasks = None if present is None else present.nonzero().flatten()
    if tasks is not None:
        seen = seen[tasks][:, tasks] if isinstance(method, GramianMethod) else seen[tasks]
    if isinstance(method, RowMethod):
        if not len(seen):
            return seen.new_zeros(seen.shape[1])
        return method.combine_rows(seen) if tasks is None else method.combine_rows(seen, tasks)
    assert isinstance(method, Scalarization | GramianMethod)
    if tasks is None:
        return method.weights(seen)
    weights = seen.new_zeros(method.num_tasks)
    if len(tasks):
        weights[tasks] = method.weights(seen, tasks)
    return weights
