"""What the matrix products of an update must cost, whoever computes it."""

from __future__ import annotations

import itertools

from mtrl.bench.settings import ACTION, OBSERVATION, Setting


def update_flops(setting: Setting) -> int:
    """FLOPs of one unitary update's matrix products: 2 · inputs · outputs of each layer for each of T·B rows.

    Forward go the target's actor, two target critics, two critics, the actor and two critics. The critics'
    loss goes back to their weights, and so to every layer's input but the first's. The actor's loss goes
    back through two critics, without their weights' gradients, to the action alone among the first
    layer's inputs, and then to the actor's weights. A learned embedding is one more input of the first layers
    that a gradient goes back to.
    """
    rows = setting.tasks * setting.rows
    state = OBSERVATION + (setting.embedding or setting.tasks)
    actor = layers(state, setting, 2 * ACTION)
    critic = layers(state + ACTION, setting, 1)
    forward = 2 * sum(actor) + 6 * sum(critic)
    critic_backward = 2 * (sum(critic) + sum(critic[1:]))
    first = setting.hidden[0]
    actor_backward = 2 * (ACTION * first + sum(critic[1:])) + sum(actor) + sum(actor[1:])
    embedding_backward = 3 * (setting.embedding or 0) * first
    return 2 * rows * (forward + critic_backward + actor_backward + embedding_backward)


def layers(inputs: int, setting: Setting, outputs: int) -> list[int]:
    """Weights of each layer."""
    return [a * b for a, b in itertools.pairwise((inputs, *setting.hidden, outputs))]
