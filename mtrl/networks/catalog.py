"""The networks by name. A new one is one file, and one line in :data:`NETWORKS`."""

from __future__ import annotations

from typing import Any

from mtrl import registry
from mtrl.config import ActorConfig, ArchitectureConfig, ConfigError
from mtrl.networks.base import Network, Spec
from mtrl.networks.care import CARE
from mtrl.networks.film import FiLM
from mtrl.networks.mlp import MLP
from mtrl.networks.mmoe import MMoE
from mtrl.networks.moore import MOORE
from mtrl.networks.paco import PaCo
from mtrl.networks.ple import PLE
from mtrl.networks.shared_bottom import SharedBottom
from mtrl.networks.small_towers import SmallTowers
from mtrl.networks.soft_modules import SoftModules

NETWORKS: dict[str, type[Network]] = {
    "mlp": MLP,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "ple": PLE,
    "small_towers": SmallTowers,
    "soft_modules": SoftModules,
    "paco": PaCo,
    "moore": MOORE,
    "care": CARE,
    "film": FiLM,
}
"""Every network by the name that configurations use."""

OWN = ("spec",)  # what a constructor gets from the agent


def options_of(cls: type[Network]) -> dict[str, Any]:
    """A network's options and their defaults."""
    return registry.options_of(cls, OWN)


def find_network(name: str, key: str = "agent.network") -> type[Network]:
    """The class called ``name``: a key of :data:`NETWORKS`, or ``module:Class`` of one's own.

    Args:
        key: the setting that an error names.

    Raises:
        ConfigError: there is none.
    """
    try:
        return registry.find(name, NETWORKS, Network, "network")
    except ValueError as error:
        raise ConfigError(f"{key}.name: {error}") from None


def make_network(architecture: ArchitectureConfig, spec: Spec) -> Network:
    """The network of this name with these options.

    Raises:
        ConfigError: there is none of this name, or it has no such option, or the option is out of range; the key,
            the value and what would be valid.
    """
    kind = "actor" if isinstance(spec.config, ActorConfig) else "critic"
    own = f"agent.{kind}.network" if spec.config.network.name else "agent.network"
    name = architecture.name or "mlp"
    cls = find_network(name, own)
    try:
        options = registry.checked(cls, OWN, architecture.options)
    except registry.OptionError as error:
        raise ConfigError(f"{own}.options.{error.option}: network {name!r}{error}") from None
    try:
        return cls(spec, **options)
    except ConfigError as error:
        key = str(error).partition(":")[0]
        prefix = (
            f"{own}.options." if key in options else f"agent.{kind}." if key in ("hidden", "blocks") else ""
        )
        raise ConfigError(f"{prefix}{error}") from None
