"""``mtrl train``: from a config to a run folder with an evaluated policy."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path

import torch

from mtrl.config import AgentConfig, ConfigError, TrainConfig
from mtrl.envs import Protocol, make_suite
from mtrl.envs.vec import SuiteVecEnv
from mtrl.machine import choose_threads
from mtrl.networks import Actor, Critic, Stack
from mtrl.optimizers import OptimizerError, make_optimizer
from mtrl.replay import TaskReplay, free_memory
from mtrl.run.folder import RunFolder, describe_run
from mtrl.run.outputs import report
from mtrl.run.session import INTERRUPTED, Session
from mtrl.run.signals import Signals
from mtrl.sac import MTSAC, require_network
from mtrl.settings.files import read_settings
from mtrl.settings.keys import convert, explained
from mtrl.settings.train import Request, changed_settings, label_from, network_words, parse_train, settle
from mtrl.train import Trainer


def main(arguments: list[str]) -> int:
    """Exit codes: see :mod:`mtrl.cli`."""
    if {"-h", "--help"} & set(arguments):
        return print_help()
    return start(parse_train(arguments))


def start(request: Request) -> int:
    """Do what is asked for, from the start or from where the run in that folder stands; the exit code."""
    check_optimizer(request.config, len(request.protocol.task_names))
    networks_without_memory(request.config.agent, 1, 1, len(request.protocol.task_names))  # refuses bad ones
    if request.print_config:
        print(request.text, end="")
        return 0
    config = request.config
    run = RunFolder(folder_of(request))
    device = choose_device(started_on(run.config) if config.device == "auto" else config.device)
    request = settle(request, run.config, "cuda" if device.type == "cuda" else "cpu")
    with Signals() as signals:
        try:
            return train(request, run, device, signals)
        except KeyboardInterrupt:
            if run.locked and run.status.startswith("RUNNING"):
                run.mark("INTERRUPTED at once")
            raise
        finally:
            run.unlock()


def train(request: Request, run: RunFolder, device: torch.device, signals: Signals) -> int:
    """Build and train what is asked for, in that folder; the exit code."""
    config, protocol = request.config, request.protocol
    changes: list[str] = []
    goes_on = run.exists  # asked once: another process may start this run while ours is built
    if goes_on:
        run.require_own()
        run.lock()
        changes = check_resumable(run, request)
        if run.status.startswith("DONE") and not changes:
            print(f"{run.path} is finished already; nothing to do")
            return 0
    torch.set_num_threads(choose_threads(config.threads))
    trainer, envs = build(config, protocol, device)
    try:
        if signals.received:
            if goes_on and run.status.startswith("RUNNING"):  # it was killed before
                run.mark(f"INTERRUPTED by {signals.received} before it went on")
            report(f"stopped by {signals.received} before the training began; the same command begins it")
            return INTERRUPTED
        if not goes_on:
            run.start(
                request.text,
                describe_run({**protocol.to_dict(), "name": protocol.name}, device, request.command),
            )
        return Session(trainer, envs, request, run, signals).train(changes)
    finally:
        trainer.envs.close()
        envs.close()


USAGE = """usage: mtrl train [--config NAME|FILE]... [--SETTING VALUE]... [--import MODULE]... [--resume RUN]
                  [--allow_changes] [--print_config]

Configs are shipped names (mtrl list configs) or YAML files; later ones override earlier ones, settings override all.
--protocol.preset NAME takes a published protocol (mtrl list protocols).
--import lets a file name classes and functions of that module of yours; it may be given more than once.
--resume goes on with the unfinished run in a folder, --allow_changes lets it go on with other settings,
--print_config shows all settings as they would be.
"""


def print_help() -> int:
    """Every setting with its default and what it means."""
    print(USAGE)
    for name, default, text in (*explained(TrainConfig()), *explained(Protocol(), "protocol.")):
        told = textwrap.fill(text.replace("`", ""), 100, initial_indent="    ", subsequent_indent="    ")
        print(f"--{name} ({default})\n{told}")
    return 0


def started_on(config: Path) -> str:
    """The device that a run in this folder was started on; auto without one."""
    return str(read_settings(config).get("device", "auto")) if config.is_file() else "auto"


def check_optimizer(config: TrainConfig, num_tasks: int) -> None:
    """Refuse a bad name or option before ten simulators are built.

    Raises:
        ConfigError: with the whole key.
    """
    chosen = config.optimizer
    try:
        method = make_optimizer(chosen.name, num_tasks, **chosen.options)
    except OptimizerError as error:
        words = str(error).replace("'", " ").split()
        key = next((f"options.{option}" for option in chosen.options if option in words), "name")
        raise ConfigError(f"optimizer.{key}: {error}") from None
    require_network(method, chosen.name, chosen.apply_to, config.agent.temperature.combine)


def check_resumable(run: RunFolder, request: Request) -> list[str]:
    """The settings that changed since the run began, where that is allowed.

    Raises:
        ConfigError: the run is finished or diverged, or settings changed without ``--allow_changes``.
    """
    choices = "choose another --seed, --label or --run_dir"
    changes = changed_settings(run.config, request.text)
    if run.status.startswith("DONE"):
        key = "total_steps_per_task"
        before = convert(int, read_settings(run.config).get(key, 0), f"{run.config}: {key}")
        if not changes and request.resume:
            return []
        if not request.resume and not request.allow_changes:
            raise ConfigError(
                f"run_dir: {run.path} holds a finished run; nothing was changed: {choices}, or train it on with "
                "--resume, --allow_changes and more --total_steps_per_task"
            )
        if not request.allow_changes:
            raise ConfigError(
                f"resume: {run.path} is finished, and {'; '.join(changes)} would be ignored; add --allow_changes to "
                "train on with more --total_steps_per_task"
            )
        if request.config.total_steps_per_task <= before:
            raise ConfigError(
                f"total_steps_per_task: {request.config.total_steps_per_task} is not valid; {run.path} is finished at "
                f"{before} and trains on to more only"
            )
        return changes
    if request.config.total_steps_per_task < (step := run.checkpoints.newest_step() or 0):
        raise ConfigError(
            f"total_steps_per_task: {request.config.total_steps_per_task} is not valid; {run.path} is at {step} already"
        )
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
    if config.video_every:  # refused now, not after an hour
        make_suite(protocol, seed=config.seed, evaluation=True, render_mode="rgb_array").close()
    envs = make_suite(protocol, seed=config.seed, workers=config.workers)
    obs_dim, action_dim = envs.observation_dim, envs.action_dim
    require_memory(config, obs_dim, action_dim, len(names), device)
    agent = MTSAC(
        obs_dim, action_dim, names, config.agent,
        optimizer=config.optimizer.name, options=config.optimizer.options, apply_to=config.optimizer.apply_to,
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
    is kept (the target, an averaged policy), and of a batch one activation per hidden unit.

    Raises:
        ConfigError: it says how much is needed and how much there is.
    """
    agent, free = config.agent, free_memory(device)
    actor, critic = networks_without_memory(agent, obs_dim, action_dim, num_tasks)
    for key, module, part, count, copies in (
        ("actor", actor, agent.actor, 1, 4 + (agent.policy_tau < 1)),
        ("critic", critic, agent.critic, agent.critic.ensemble, 5),
    ):
        private = module.private
        weights = sum(p.numel() * (num_tasks if n in private else 1) for n, p in module.named_parameters())
        units = sum(sum(stack.widths) for stack in module.modules() if isinstance(stack, Stack))
        needed = 4 * count * (copies * weights + num_tasks * config.replay.batch_size * units)
        if needed > free:
            raise ConfigError(
                f"agent.{key}.hidden: {list(part.hidden)} with replay.batch_size {config.replay.batch_size} "
                f"takes at least {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
            )


def networks_without_memory(
    agent: AgentConfig, obs_dim: int, action_dim: int, num_tasks: int
) -> tuple[Actor, Critic]:
    """The actor and one critic of the ensemble, as shapes alone.

    Raises:
        ConfigError: there is no such network or option.
    """
    how = (agent.task_input, agent.embedding_dim)
    actor, critic = replace(agent.actor, init="torch"), replace(agent.critic, init="torch", ensemble=1)
    with torch.device("meta"):
        return (
            Actor(obs_dim, action_dim, num_tasks, actor, *how, agent.architecture(actor)),
            Critic(obs_dim, action_dim, num_tasks, critic, *how, agent.architecture(critic)),
        )


def folder_of(request: Request) -> Path:
    """Where the run lies: as it was said, else ``runs/<suite>/<label>/seed<n>``."""
    config = request.config
    if request.resume or config.run_dir:
        return request.resume or Path(config.run_dir or "")
    suite = request.protocol.suite.replace(":", ".")
    return Path("runs") / suite / (config.label or default_label(config)) / f"seed{config.seed}"


def default_label(config: TrainConfig) -> str:
    """Optimizer, and the network where it is not mlp: ``unitary``, ``unitary-mmoe``, ``unitary-actor_mmoe``."""
    agent = config.agent
    networks = (str(agent.architecture(part).name) for part in (agent.actor, agent.critic))
    return label_from([config.optimizer.name, *network_words(*networks)])


def choose_device(name: str) -> torch.device:
    """``auto`` is cuda where there is one. Raises ConfigError for a device this machine lacks."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' is not available on this machine; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
