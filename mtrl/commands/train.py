"""``mtrl train``: from a config to a run folder with an evaluated policy."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from mtrl.config import ConfigError, TrainConfig
from mtrl.envs import Protocol, make_suite
from mtrl.envs.vec import SuiteVecEnv
from mtrl.machine import choose_threads
from mtrl.optimizers import make_optimizer
from mtrl.replay import TaskReplay, free_memory
from mtrl.run.folder import RunFolder, describe_run
from mtrl.run.session import Session
from mtrl.sac import MTSAC
from mtrl.settings import Request, changed_settings, parse_train, settle
from mtrl.train import Trainer


def main(arguments: list[str]) -> int:
    """Exit codes: see :mod:`mtrl.cli`."""
    request = parse_train(arguments)
    config, protocol = request.config, request.protocol
    run = RunFolder(request.resume or config.run_dir or default_folder(config, protocol))
    device = choose_device(config.device)
    request = settle(request, run.config, device)
    config = request.config
    changes: list[str] = []
    goes_on = run.exists  # asked once: another process may start this run while ours is built
    try:
        if goes_on:
            run.lock()
            if run.status.startswith("DONE") and request.resume:
                print(f"{run.path} is finished already; nothing to do")
                return 0
            changes = check_resumable(run, request)
        torch.set_num_threads(choose_threads(config.threads))
        trainer, envs = build(config, protocol, device)
        try:
            if not goes_on:
                run.start(request.text, describe_run({**protocol.to_dict(), "name": protocol.name}, device))
            return Session(trainer, envs, request, run).train(changes)
        finally:
            trainer.envs.close()
            envs.close()
    finally:
        run.unlock()


def check_resumable(run: RunFolder, request: Request) -> list[str]:
    """The settings that changed since the run began, where that is allowed.

    Raises:
        ConfigError: the run is finished or diverged, or settings changed without ``--allow_changes``.
    """
    choices = "choose another --seed, --label or --run_dir"
    if run.status.startswith("DONE"):
        raise ConfigError(f"run_dir: {run.path} holds a finished run; nothing was changed: {choices}")
    changes = changed_settings(run.config, request.text)
    if changes and not request.allow_changes:
        raise ConfigError(
            f"run_dir: {run.path} holds an unfinished run of other settings ({'; '.join(changes)}); "
            f"add --allow_changes to go on with the new ones, or {choices}"
        )
    if run.status.startswith("DIVERGED") and not changes:
        raise ConfigError(f"run_dir: {run.path} is marked {run.status}; it would diverge again: {choices}")
    return changes


def build(config: TrainConfig, protocol: Protocol, device: torch.device) -> tuple[Trainer, SuiteVecEnv]:
    """The trainer of a config, and environments to evaluate on."""
    names = protocol.task_names
    # refuses a bad name or option before ten simulators are built
    make_optimizer(config.optimizer.name, num_tasks=len(names), **config.optimizer.options)
    envs = make_suite(protocol, seed=config.seed, workers=config.workers)
    obs_dim, action_dim = envs.observation_dim, envs.action_dim
    require_memory(config, obs_dim, action_dim, len(names), device)
    agent = MTSAC(
        obs_dim, action_dim, names, config.agent,
        optimizer=config.optimizer.name, options=config.optimizer.options,
        seed=config.seed, device=device,
        info={"protocol": protocol.to_dict(), "seed": config.seed},
    )  # fmt: skip
    replay = TaskReplay(
        len(names), min(config.replay.capacity, config.total_steps_per_task), obs_dim, action_dim,
        sampling=config.replay.sampling, seed=config.seed, device=device,
    )  # fmt: skip
    trainer = Trainer(
        agent, envs, replay, batch_size=config.replay.batch_size, warmup_steps=config.warmup_steps,
        updates_per_step=config.updates_per_step, diagnostics_every=config.diagnostics_every,
        warmup_updates=config.warmup_updates,
    )  # fmt: skip
    return trainer, make_suite(protocol, seed=config.seed, workers=config.workers, evaluation=True)


def require_memory(
    config: TrainConfig, obs_dim: int, action_dim: int, num_tasks: int, device: torch.device
) -> None:
    """Refuse networks and batches that this machine cannot hold, before any memory is taken.

    Counts the weights four times (Adam has two more, a gradient one), once more where an average of them
    is kept (the target, an averaged policy), and of a batch its rows and one activation per hidden unit.

    Raises:
        ConfigError: it says how much is needed and how much there is.
    """
    agent, free = config.agent, free_memory(device)
    task = num_tasks if agent.task_input == "one_hot" else agent.embedding_dim
    rows = num_tasks * config.replay.batch_size
    heads = num_tasks if agent.task_input == "heads" else 1
    atoms = 1 if agent.critic.loss == "squared" else agent.critic.atoms
    for key, network, inputs, outputs, count, copies in (
        ("actor", agent.actor, obs_dim + task, 2 * action_dim, 1, 4 + (agent.policy_tau < 1)),
        ("critic", agent.critic, obs_dim + action_dim + task, atoms, agent.critic.ensemble, 5),
    ):
        widths = [inputs, *network.widths]
        weights = sum(a * b for a, b in itertools.pairwise(widths)) + widths[-1] * outputs * heads
        needed = 4 * count * (copies * weights + rows * (sum(widths) + outputs))
        if needed > free:
            raise ConfigError(
                f"agent.{key}.hidden: {list(network.hidden)} with replay.batch_size {config.replay.batch_size} "
                f"takes at least {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
            )


def default_folder(config: TrainConfig, protocol: Protocol) -> Path:
    """``runs/<suite>/<label>/seed<n>``."""
    return Path("runs") / protocol.suite / (config.label or config.optimizer.name) / f"seed{config.seed}"


def choose_device(name: str) -> torch.device:
    """``auto`` is cuda where there is one. Raises ConfigError for a device this machine lacks."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' is not available on this machine; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
