"""Multi-task optimizers by name. `OPTIMIZERS` is the list; a new method is one file and one line here."""

from __future__ import annotations

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
    "RowMethod",
    "Scalarization",
    "make_optimizer",
    "of_present",
    "options_of",
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


def options_of(cls: type[MultiTaskOptimizer]) -> dict[str, Any]:
    """A method's options and their defaults."""
    return registry.options_of(cls, OWN)


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
    try:
        cls = registry.find(name, OPTIMIZERS, MultiTaskOptimizer, "optimizer", f"{PREFIX}NAME")  # type: ignore[type-abstract]
    except ValueError as error:
        raise OptimizerError(str(error)) from None
    try:
        taken = registry.checked(cls, OWN, options)
    except registry.OptionError as error:
        raise OptimizerError(f"optimizer {name!r}{error}") from None
    try:
        return cls(num_tasks, seed=seed, **taken)
    except OptimizerError as error:
        raise OptimizerError(f"optimizer {name!r}: {error}") from None
