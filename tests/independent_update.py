"""An update of MT-SAC written apart from the package, from the papers: loops over tasks, an Adam of its own.

It takes weights, random numbers and what rewards were seen; nothing of the agent's losses, networks, gradients,
reward scales, optimizers or average. All in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]  # of one network; names in `private` are stacked [T, ...]


@dataclass
class Recipe:
    """What the update needs to know of the agent's settings."""

    tasks: int
    task_input: str
    critic_loss: str
    through_alpha: bool
    shared_alpha: bool
    method: str
    gamma: float
    tau: float
    policy_tau: float
    target_entropy: float
    atoms: int
    support: float
    critics: int
    learning_rate: dict[str, float]
    weight_decay: dict[str, float]
    decoupled: dict[str, bool]
    max_grad_norm: float | None
    log_std: tuple[float, float] = (-5.0, 2.0)
    scale: Any = None  # α [T] → [T]


@dataclass
class State:
    """What the update changes."""

    actor: Weights
    critic: Weights
    target: Weights
    averaged: Weights
    log_alpha: Tensor  # [1], or [T, 1]
    private: dict[str, set[str]]
    generators: dict[str, torch.Generator]
    adam: dict[str, dict[str, list[Any]]] = field(default_factory=dict)


def of_task(weights: Weights, private: set[str], t: int) -> Weights:
    return {k: v[t] if k in private else v for k, v in weights.items()}


def with_code(x: Tensor, w: Weights, recipe: Recipe, t: int) -> Tensor:
    if recipe.task_input == "one_hot":
        code = torch.zeros(recipe.tasks, dtype=x.dtype)
        code[t] = 1
    elif recipe.task_input == "embedding":
        code = w["embedding"] / w["embedding"].square().sum().sqrt()
    else:
        return x
    return torch.cat([x, code.repeat(len(x), 1)], 1)


def mlp(x: Tensor, w: Weights, prefix: str) -> Tensor:
    i = 0
    while f"{prefix}hidden.{i}.weight" in w:
        x = x @ w[f"{prefix}hidden.{i}.weight"].T + w[f"{prefix}hidden.{i}.bias"]
        if f"{prefix}norms.{i}.weight" in w:
            centred = x - x.mean(1, keepdim=True)
            x = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
            x = x * w[f"{prefix}norms.{i}.weight"] + w[f"{prefix}norms.{i}.bias"]
        x = x * (x > 0)  # relu's slope at 0 is 0
        i += 1
    return x @ w[f"{prefix}output.weight"].T + w[f"{prefix}output.bias"]


def act(obs: Tensor, w: Weights, recipe: Recipe, t: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Action and log π: the density of tanh(u), u normal, by the change of variables."""
    mean, raw = mlp(with_code(obs, w, recipe, t), w, "net.stack.").chunk(2, 1)
    low, high = recipe.log_std
    log_std = low + (high - low) / 2 * (raw.tanh() + 1)
    u = mean + log_std.exp() * noise
    density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 − tanh² u) = 2 log sech u, by log cosh u = |u| + log((1 + e^(−2|u|)) / 2)
    slope = -2 * (u.abs() + torch.log1p((-2 * u.abs()).exp()) - math.log(2))
    return u.tanh(), (density - slope).sum(1)


def outputs(obs: Tensor, action: Tensor, w: Weights, recipe: Recipe, t: int) -> list[Tensor]:
    x = with_code(torch.cat([obs, action], 1), w, recipe, t)
    return [mlp(x, w, f"nets.{n}.stack.") for n in range(recipe.critics)]


def grid(recipe: Recipe) -> Tensor:
    step = 2 * recipe.support / (recipe.atoms - 1)
    return torch.tensor([-recipe.support + i * step for i in range(recipe.atoms)], dtype=torch.float64)


def value(output: Tensor, recipe: Recipe) -> Tensor:
    return output[:, 0] if recipe.critic_loss == "squared" else output.softmax(1) @ grid(recipe)


def onto_neighbours(position: float, mass: float, row: Tensor, recipe: Recipe) -> None:
    step = 2 * recipe.support / (recipe.atoms - 1)
    place = (min(max(position, -recipe.support), recipe.support) + recipe.support) / step
    below = min(int(place), recipe.atoms - 2)
    row[below] += mass * (below + 1 - place)
    row[below + 1] += mass * (place - below)


def bellman(next_outputs: list[Tensor], base: Tensor, slope: Tensor, recipe: Recipe) -> Tensor:
    """Targets ``base + slope · next value`` ``[B]``, or as probabilities ``[B, K]``."""
    values = torch.stack([value(o, recipe) for o in next_outputs])
    y = base + slope * values.min(0).values
    if recipe.critic_loss == "squared":
        return y
    result = torch.zeros(len(base), recipe.atoms, dtype=torch.float64)
    step = 2 * recipe.support / (recipe.atoms - 1)
    for b in range(len(base)):
        if recipe.critic_loss == "two_hot":
            onto_neighbours(float(y[b]), 1.0, result[b], recipe)
        elif recipe.critic_loss == "hl_gauss":
            centre = min(max(float(y[b]), -recipe.support), recipe.support)
            for k, atom in enumerate(grid(recipe).tolist()):
                ends = [
                    math.erf((atom + side * step / 2 - centre) / (0.75 * step * 2**0.5)) for side in (-1, 1)
                ]
                result[b, k] = ends[1] - ends[0]
            result[b] /= result[b].sum()
        else:
            chosen = next_outputs[int(values[:, b].argmin())][b].softmax(0)
            for atom, mass in zip(grid(recipe).tolist(), chosen.tolist(), strict=True):
                onto_neighbours(float(base[b]) + float(slope[b]) * atom, mass, result[b], recipe)
    return result


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum() / max(1.0, float(weight.sum()))


def update(state: State, recipe: Recipe, batch: dict[str, Tensor], noise: tuple[Tensor, Tensor]) -> None:
    """One step, in place. batch: obs, actions, rewards, next_obs, terminated, weight, each ``[T, B, ·]``."""
    alpha = state.log_alpha.detach().exp().flatten().expand(recipe.tasks)
    scale = recipe.scale(alpha)
    here = [t for t in range(recipe.tasks) if batch["weight"][t].sum() > 0]

    targets = []
    with torch.no_grad():
        for t in range(recipe.tasks):
            a, log_prob = act(
                batch["next_obs"][t], of_task(state.actor, state.private["actor"], t), recipe, t, noise[0][t]
            )
            after = outputs(
                batch["next_obs"][t], a, of_task(state.target, state.private["critic"], t), recipe, t
            )
            goes_on = recipe.gamma * (1 - batch["terminated"][t])
            base = batch["rewards"][t] / scale[t] - goes_on * alpha[t] * log_prob
            targets.append(bellman(after, base, goes_on, recipe))

    def critic_loss(t: int) -> Tensor:
        w = of_task(state.critic, state.private["critic"], t)
        total = torch.zeros(len(targets[t]), dtype=torch.float64)
        for output in outputs(batch["obs"][t], batch["actions"][t], w, recipe, t):
            if recipe.critic_loss == "squared":
                total = total + (output[:, 0] - targets[t]) ** 2
            else:
                total = total - (targets[t] * F.log_softmax(output, 1)).sum(1)
        return weighted_mean(total, batch["weight"][t])

    step(state, recipe, "critic", state.critic, [critic_loss(t) for t in range(recipe.tasks)], here)

    log_probs = []

    def actor_loss(t: int) -> Tensor:
        w = of_task(state.actor, state.private["actor"], t)
        a, log_prob = act(batch["obs"][t], w, recipe, t, noise[1][t])
        frozen = {k: v.detach() for k, v in of_task(state.critic, state.private["critic"], t).items()}
        values = [value(o, recipe) for o in outputs(batch["obs"][t], a, frozen, recipe, t)]
        log_probs.append(weighted_mean(log_prob.detach(), batch["weight"][t]))
        return weighted_mean(alpha[t] * log_prob - torch.stack(values).min(0).values, batch["weight"][t])

    step(state, recipe, "actor", state.actor, [actor_loss(t) for t in range(recipe.tasks)], here)

    temperature = {"log_alpha": state.log_alpha}
    losses = []
    for t in range(recipe.tasks):
        own = state.log_alpha[0] if recipe.shared_alpha else state.log_alpha[t, 0]
        x = own.exp() if recipe.through_alpha else own
        losses.append(-x * (log_probs[t] + recipe.target_entropy))
    step(state, recipe, "temperature", temperature, losses, here)

    with torch.no_grad():
        for average, learned, tau in (
            (state.target, state.critic, recipe.tau), (state.averaged, state.actor, recipe.policy_tau),
        ):  # fmt: skip
            for k in average:
                average[k] += tau * (learned[k] - average[k])


def step(
    state: State, recipe: Recipe, name: str, weights: Weights, losses: list[Tensor], here: list[int]
) -> None:
    """Task by task the gradient of its loss; one gradient of them; clip; Adam."""
    private = state.private[name]
    shared = [k for k in weights if k not in private]
    rows, own = {}, {k: torch.zeros_like(weights[k]) for k in weights if k in private}
    for t in here:
        found = torch.autograd.grad(losses[t], list(weights.values()), retain_graph=True, allow_unused=True)
        found = [
            torch.zeros_like(w) if g is None else g for g, w in zip(found, weights.values(), strict=True)
        ]
        by_name = dict(zip(weights, found, strict=True))
        rows[t] = torch.cat([by_name[k].flatten() for k in shared]) if shared else torch.zeros(0)
        for k in own:
            own[k][t] = by_name[k][t] / len(here)
    method = "unitary" if name == "temperature" else recipe.method
    flat = combined([rows[t] for t in here], method, state.generators.get(name))
    gradients: Weights = dict(own)
    for k in shared:
        gradients[k], flat = flat[: weights[k].numel()].view_as(weights[k]), flat[weights[k].numel() :]
    if name == "critic" and recipe.max_grad_norm is not None:
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        if norm > recipe.max_grad_norm:
            gradients = {k: g * (recipe.max_grad_norm / (norm + 1e-6)) for k, g in gradients.items()}
    with torch.no_grad():
        for k, w in weights.items():
            matrix = w.dim() - (k in private) >= 2
            adam(state, recipe, name, k, w, gradients[k], recipe.weight_decay[name] if matrix else 0.0)


def combined(rows: list[Tensor], method: str, generator: torch.Generator | None) -> Tensor:
    mean = torch.stack(rows).mean(0)
    if method == "unitary" or not mean.numel():
        return mean
    assert generator is not None
    if method == "pcgrad":
        keys = torch.rand(len(rows), len(rows), generator=generator)
        total = torch.zeros_like(mean)
        for i, row in enumerate(rows):
            others = sorted((j for j in range(len(rows)) if j != i), key=lambda j: float(keys[i, j]))
            p = row.clone()
            for j in others:
                if p @ rows[j] < 0:
                    p -= (p @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
            total += p
        return total / len(rows)
    assert method == "graddrop"
    draws = torch.rand(len(mean), generator=generator)
    result = torch.zeros_like(mean)
    for i in range(len(mean)):
        column = [float(row[i]) for row in rows]
        up, down = sum(x for x in column if x > 0), sum(x for x in column if x < 0)
        if up - down > 0:
            result[i] = (up if up / (up - down) > float(draws[i]) else down) / len(rows)
    return result


def adam(state: State, recipe: Recipe, network: str, name: str, w: Tensor, g: Tensor, decay: float) -> None:
    """Kingma & Ba 2015, algorithm 1; decay as L2, or decoupled (Loshchilov & Hutter 2019, algorithm 2)."""
    lr = recipe.learning_rate[network]
    memory = state.adam.setdefault(network, {}).setdefault(
        name, [0, torch.zeros_like(w), torch.zeros_like(w)]
    )
    if recipe.decoupled[network]:
        w -= lr * decay * w
    else:
        g = g + decay * w
    memory[0] += 1
    memory[1] = 0.9 * memory[1] + 0.1 * g
    memory[2] = 0.999 * memory[2] + 0.001 * g * g
    first, second = memory[1] / (1 - 0.9 ** memory[0]), memory[2] / (1 - 0.999 ** memory[0])
    w -= lr * first / (second.sqrt() + 1e-8)
