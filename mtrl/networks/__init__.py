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
from mtrl.networks.catalog import NETWORKS, find_network, make_network, options_of
from mtrl.parameters import Parameters, call, make_parameters

__all__ = [
    "NETWORKS",
    "Actor",
    "Critic",
    "LayerModule",
    "Masks",
    "Network",
    "Parameters",
    "Spec",
    "Stack",
    "TaskInput",
    "TaskNetwork",
    "call",
    "dropout_masks",
    "find_network",
    "layer_groups",
    "make_network",
    "make_parameters",
    "options_of",
    "squashed_sample",
]
