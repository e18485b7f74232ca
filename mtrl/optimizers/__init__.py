"""Multi-task optimizers by name. `OPTIMIZERS` is the list; a new method is one file and one line here."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mtrl.errors import OptimizerError
from mtrl.optimizers.aligned_mtl import AlignedMTL
from mtrl.optimizers.base import (
    GramianMethod,
    MultiTaskOptimizer,
    RowMethod,
    Scalarization,
)
from mtrl.optimizers.cagrad import CAGrad
from mtrl.optimizers.famo import FAMO
from mtrl.optimizers.graddrop import GradDrop
from mtrl.optimizers.gradvac import GradVac
from mtrl.optimizers.imtl_g import IMTLG
from mtrl.optimizers.mgda import MGDA
from mtrl.optimizers.nash_mtl import NashMTL
from mtrl.optimizers.pcgrad import PCGrad
from mtrl.optimizers.rlw import RLW
from mtrl.optimizers.static import Static
from mtrl.optimizers.torchjd_adapter import PREFIX, TorchJDAggregator
from mtrl.optimizers.uncertainty import Uncertainty
from mtrl.optimizers.unitary import Unitary
from mtrl.optimizers.upgrad import UPGrad

__all__ = [
    "OPTIMIZERS",
    "GramianMethod",
    "MultiTaskOptimizer",
    "OptimizerError",
    "OptimizerInfo",
    "RowMethod",
    "Scalarization",
    "describe",
    "make_optimizer",
]

OPTIMIZERS: dict[str, type[MultiTaskOptimizer]] = {
    "unitary": Unitary,
    "static": Static,
    "rlw": RLW,
    "uncertainty": Uncertainty,
    "famo": FAMO,
    "pcgrad": PCGrad,
    "gradvac": GradVac,
    "graddrop": GradDrop,
    "mgda": MGDA,
    "cagrad": CAGrad,
    "imtl_g": IMTLG,
    "nash_mtl": NashMTL,
    "upgrad": UPGrad,
    "aligned_mtl": AlignedMTL,
}
"""Every method by the name that configurations use."""


@dataclass(frozen=True)
class OptimizerInfo:
    """What there is to say about a method, read from its class: the only place where it is written."""

    name: str
    kind: str  # "scalarization", "Gramian" or "rows"
    paper: str
    formula: str
    options: dict[str, Any]  # option -> default


def describe(name: str) -> OptimizerInfo:
    """The name, kind, paper, formula and options (with their defaults) of one method in `OPTIMIZERS`."""
    cls = OPTIMIZERS[name]
    kinds = {Scalarization: "scalarization", GramianMethod: "Gramian", RowMethod: "rows"}
    kind = next(word for base, word in kinds.items() if issubclass(cls, base))
    options = {option: parameter.default for option, parameter in _options(cls).items()}
    return OptimizerInfo(name, kind, cls.paper, cls.formula, options)


def make_optimizer(name: str, num_tasks: int, seed: int = 0, **options: Any) -> MultiTaskOptimizer:
    """The method called `name`, for `num_tasks` tasks.

    Args:
        name: a key of `OPTIMIZERS`, or ``torchjd:`` and the name of one of torchjd's aggregators, whose
            constructor then takes the options.
        num_tasks: T.
        seed: of the method's own generator.
        options: the method's own; what is left out keeps its default.

    Raises:
        OptimizerError: unknown name (the nearest valid one is named) or option (the valid ones are named),
            or a value of the wrong type or out of range (key, value and valid values are named); one line
            each.
    """
    if name.startswith(PREFIX):
        return TorchJDAggregator(num_tasks, aggregator=name.removeprefix(PREFIX), seed=seed, **options)
    if name not in OPTIMIZERS:
        near = difflib.get_close_matches(name.lower(), OPTIMIZERS, n=1, cutoff=0.0)
        valid = f"{', '.join(OPTIMIZERS)}, {PREFIX}NAME"
        raise OptimizerError(f"no optimizer {name!r}: did you mean {near[0]!r}? valid: {valid}")
    cls = OPTIMIZERS[name]
    known = _options(cls)
    hints = get_type_hints(cls.__init__)
    for option, value in options.items():
        if option not in known:
            valid = f"its options are {', '.join(known)}" if known else "it has none"
            raise OptimizerError(f"optimizer {name!r} has no option {option!r}: {valid}")
        if not _fits(value, hints[option]):
            valid = _words(hints[option])
            raise OptimizerError(f"optimizer {name!r}: {option} = {value!r} is not valid: must be {valid}")
    try:
        return cls(num_tasks, seed=seed, **options)
    except OptimizerError as error:
        raise OptimizerError(f"optimizer {name!r}: {error}") from None


def _options(cls: type[MultiTaskOptimizer]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(cls.__init__).parameters
    return {name: p for name, p in parameters.items() if name not in ("self", "num_tasks", "seed")}


def _fits(value: object, hint: Any) -> bool:
    """Whether `value` is of the type `hint`, of those that options have."""
    if get_origin(hint) is Literal:
        return any(value == valid and type(value) is type(valid) for valid in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list | tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if get_args(hint):  # a union
        return any(_fits(value, member) for member in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is list:
        return f"a list of {_words(get_args(hint)[0]).removeprefix('a ')}s"
    if get_args(hint):
        return " or ".join(_words(member) for member in get_args(hint))
    names: dict[type, str] = {float: "a number", int: "an integer", bool: "true or false", type(None): "none"}
    return names.get(hint, str(hint))
