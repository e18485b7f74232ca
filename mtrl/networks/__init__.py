"""Networks for one task, each in one file, and the actor and critics made of them. `NETWORKS` is the list."""

from mtrl.networks.actor_critic import (
    Actor,
    Critic,
    TaskInput,
    TaskNetwork,
    dropout_masks,
    squashed_sample,
)
from mtrl.networks.base import LayerModule, Masks, Network, Spec, Stack, layer_groups
from mtrl.networks.catalog import NETWORKS, NetworkInfo, describe_network, find_network, make_network
from mtrl.parameters import Parameters, call, make_parameters

__all__ = [
    "NETWORKS",
    "Actor",
    "Critic",
    "LayerModule",
    "Masks",
    "Network",
    "NetworkInfo",
    "Parameters",
    "Spec",
    "Stack",
    "TaskInput",
    "TaskNetwork",
    "call",
    "describe_network",
    "dropout_masks",
    "find_network",
    "layer_groups",
    "make_network",
    "make_parameters",
    "squashed_sample",
]
