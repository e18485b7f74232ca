"""Any aggregator of torchjd by name: ``torchjd:ConFIG``."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl.errors import OptimizerError
from mtrl.optimizers.base import RowMethod

PREFIX = "torchjd:"


class TorchJDAggregator(RowMethod):
    """An aggregator of torchjd (Quinton & Rey 2024), at our scale and with its randomness and state saved.

    * The Jacobian is divided by its largest norm before and the result multiplied after, since several
      aggregators change behaviour at norms far from 1.
    * The result is divided by what as many identical unit gradients give (T for those that sum, such as GradDrop or
      PCGrad; 1 + c for CAGrad; 1 for those that average), found on a copy.
    * One that keeps something of each pair of tasks (GradVac) begins anew when a batch has other tasks than the last.
    * Draws, which torchjd takes from torch's global generator, come from the own one; the global one is left
    alone.

    Args:
        aggregator: its class name in ``torchjd.aggregation``.
        options: of the aggregator's constructor, unchanged.

    Raises:
        OptimizerError: torchjd, or a solver that this aggregator needs, is not installed; no such aggregator;
            options or a number of tasks that it does not take; a state that cannot be saved.
    """

    paper = "Quinton & Rey 2024, arXiv:2406.16232"
    formula = "the aggregator of that name in torchjd"

    def __init__(self, num_tasks: int, *, aggregator: str, seed: int = 0, **options: Any) -> None:
        super().__init__(num_tasks, seed=seed)
        self.shares: dict[int, float] = {}
        self.seen: list[int] | None = None  # tasks of the last batch; None is all
        cls = find_aggregator(aggregator)
        known = list(inspect.signature(cls).parameters)
        for option in options:
            if option not in known:
                valid = f"its options are {', '.join(known)}" if known else "it has none"
                raise OptimizerError(f"{aggregator} has no option {option!r}: {valid}")
        try:
            self.aggregator = cls(**options)
            self.fresh = copy.deepcopy(self.aggregator)
            share = self.share(num_tasks)
            _state_of(self.aggregator)
        except (TypeError, ValueError, RuntimeError, ImportError) as error:
            raise OptimizerError(f"{aggregator}: {' '.join(str(error).split())}") from None
        if not share > 0:
            raise OptimizerError(f"{aggregator} turns {num_tasks} gradients of 1 into {share}")

    def combine_rows(self, jacobian: Tensor, tasks: Tensor | None = None) -> Tensor:
        seen = None if tasks is None or len(tasks) == self.num_tasks else tasks.tolist()
        if seen != self.seen:
            self.aggregator, self.seen = copy.deepcopy(self.fresh), seen
        norm = jacobian.norm(dim=1).max()
        norm = torch.where(norm > 0, norm, torch.ones_like(norm))
        result = aggregate(self.aggregator, jacobian / norm, self.draw_seed())
        return result * (norm / self.share(len(jacobian)))

    def share(self, tasks: int) -> float:
        """What the aggregator makes of so many gradients of 1."""
        if tasks not in self.shares:
            self.shares[tasks] = float(aggregate(copy.deepcopy(self.fresh), torch.ones(tasks, 1), 0))
        return self.shares[tasks]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "aggregator": _state_of(self.aggregator), "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = dict(state)
        values, seen = own.pop("aggregator", None), own.pop("seen", None)
        if values is None or set(values) != set(_state_of(self.aggregator)):
            raise OptimizerError(f"the state is not that of a {type(self.aggregator).__name__}")
        super().load_state_dict(own)
        self.seen = seen
        modules = dict(self.aggregator.named_modules())
        for key, value in values.items():
            path, name = key.rsplit("/", 1)
            setattr(modules[path], name, value.clone() if isinstance(value, Tensor) else restored(value))


def aggregate(aggregator: Any, jacobian: Tensor, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[jacobian.device] if jacobian.is_cuda else []):
        torch.default_generator.manual_seed(seed)
        if jacobian.is_cuda:
            with torch.cuda.device(jacobian.device):
                torch.cuda.manual_seed(seed)
        result: Tensor = aggregator(jacobian)
    return result.detach()


def find_aggregator(name: str) -> Any:
    """The class called `name` in ``torchjd.aggregation``."""
    try:
        from torchjd import aggregation
    except ImportError:
        raise OptimizerError(f"{PREFIX}{name} needs torchjd: pip install 'mtrl-suite[torchjd]'") from None
    names = [n for n in aggregation.__all__ if not n.endswith(("Weighting", "Aggregator"))]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise OptimizerError(
            f"torchjd has no aggregator {name!r}: did you mean {near!r}? valid: {', '.join(names)}"
        )
    return getattr(aggregation, name)


def _state_of(aggregator: Any) -> dict[str, Any]:
    """The plain values and tensors that the modules of an aggregator hold, by ``module path/attribute``.

    torchjd keeps a part of its state in plain attributes, which a module's own ``state_dict`` leaves out.
    """
    state: dict[str, Any] = {}
    for path, module in aggregator.named_modules():
        for name, value in {**vars(module), **module._buffers}.items():
            if isinstance(value, np.ndarray):
                raise OptimizerError(f"torchjd's {type(module).__name__} keeps a state that cannot be saved")
            if name not in vars(torch.nn.Module()) and (
                value is None or isinstance(value, Tensor | bool | int | float | str | tuple)
            ):
                state[f"{path}/{name}"] = value.clone() if isinstance(value, Tensor) else stored(value)
    return state


def stored(value: Any) -> Any:
    """A value as a checkpoint can hold it: tuples and dtypes by name."""
    if isinstance(value, tuple):
        return {"tuple": [stored(item) for item in value]}
    return {"dtype": str(value).removeprefix("torch.")} if isinstance(value, torch.dtype) else value


def restored(value: Any) -> Any:
    """What :func:`stored` was given."""
    if isinstance(value, dict) and "tuple" in value:
        return tuple(restored(item) for item in value["tuple"])
    return getattr(torch, value["dtype"]) if isinstance(value, dict) else value
