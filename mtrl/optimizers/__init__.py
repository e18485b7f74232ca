"""Multi-task optimizers by name. `OPTIMIZERS` is the list; a new method is one file and one line here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from mtrl import registry
from mtrl.errors import OptimizerError
from mtrl.optimizers.aligned_mtl import AlignedMTL
from mtrl.optimizers.base import (
    GramianMethod,
    MultiTaskOptimizer,
    RowMethod,
    Scalarization,
    of_present,
)
from mtrl.optimizers.cagrad import CAGrad
from mtrl.optimizers.famo import FAMO
from mtrl.optimizers.graddrop import GradDrop
from mtrl.optimizers.gradvac import GradVac
from mtrl.optimizers.imtl_g import IMTLG
from mtrl.optimizers.mgda import MGDA
from mtrl.optimizers.nash_mtl import NashMTL
from mtrl.optimizers.pcgrad import PCGrad
from mtrl.optimizers.pe_ltr import PELTR
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
    "of_present",
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
    "pe_ltr": PELTR,
    "cagrad": CAGrad,
    "imtl_g": IMTLG,
    "nash_mtl": NashMTL,
    "upgrad": UPGrad,
    "aligned_mtl": AlignedMTL,
}
"""Every method by the name that configurations use."""

OWN = ("num_tasks", "seed")  # what a constructor gets from the agent


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
    return OptimizerInfo(name, kind, cls.paper, cls.formula, registry.options_of(cls, OWN))


def make_optimizer(name: str, num_tasks: int, seed: int = 0, **options: Any) -> MultiTaskOptimizer:
    """The method called `name`, for `num_tasks` tasks.

    Args:
        name: a key of `OPTIMIZERS`; ``torchjd:`` and the name of one of torchjd's aggregators, whose
            constructor then takes the options; or ``module:Class`` of one's own.
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
    if ":" in name:
        try:
            cls = registry.find(name, OPTIMIZERS, MultiTaskOptimizer, "optimizer")  # type: ignore[type-abstract]
        except ValueError as error:
            raise OptimizerError(str(error)) from None
    elif name in OPTIMIZERS:
        cls = OPTIMIZERS[name]
    else:
        near = difflib.get_close_matches(name.lower(), OPTIMIZERS, n=1, cutoff=0.0)
        valid = f"{', '.join(OPTIMIZERS)}, {PREFIX}NAME, module:Class"
        raise OptimizerError(f"no optimizer {name!r}: did you mean {near[0]!r}? valid: {valid}")
    wrong = registry.problem(cls, OWN, options)
    if wrong is not None:
        raise OptimizerError(f"optimizer {name!r}{wrong[1]}")
    try:
        return cls(num_tasks, seed=seed, **options)
    except OptimizerError as error:
        raise OptimizerError(f"optimizer {name!r}: {error}") from None
