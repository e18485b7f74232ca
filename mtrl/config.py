"""Every setting of the agent and of the loop, with its default, once.

A protocol's defaults live in ``envs.Protocol``, a multi-task optimizer's options in its class.
Values are checked when the dataclass is made: :class:`ConfigError` names the key, the value and what
would be valid.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

MOST_LAYERS, MOST_WIDTH, MOST_WORKERS = (
    1_000,
    1_000_000,
    10_000,
)  # more is a slip, and costs memory to refuse later
MOST_STEPS = 10**12
LONGEST_LABEL, LONGEST_VALUE = 100, 200


class ConfigError(ValueError):
    """A setting that cannot be used. One line: the key, its value, what would be valid."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """``, did you mean 'x'?`` with the nearest valid name, or nothing."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def whole(key: str, value: Any, low: int) -> int:
    """The value as an int; whole numbers of any library are one, bools are not.

    Raises:
        ConfigError: it is none, or below ``low``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    _check(not isinstance(value, bool) and number >= low, key, value, f"a whole number >= {low}")
    return number


def _check(condition: object, key: str, value: object, valid: str) -> None:
    if not condition:
        text = repr(value)
        text = text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"
        raise ConfigError(f"{key}: {text} is not valid; it must be {valid}")


def _check_fields(config: object) -> None:
    """Raise unless every number is finite and every field that lists its values has one of them."""
    for key, hint in get_type_hints(type(config)).items():
        value = getattr(config, key)
        if hasattr(value, "item") and not getattr(value, "shape", ()):  # a number of numpy's
            value = value.item()
            object.__setattr__(config, key, value)
        _check(not isinstance(value, float) or math.isfinite(value), key, value, "a finite number")
        if get_origin(hint) is Literal:
            _check(value in get_args(hint), key, value, f"one of {get_args(hint)}")


@dataclass(frozen=True)
class ArchitectureConfig:
    """The networks of actor and critic.

    Args:
        name: as ``mtrl list networks`` has it, or ``module:Class`` of your own. For the actor or the critic alone null
            is what ``agent.network`` says.
        options: of its class, by name.
    """

    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(
            self.name is not None or not self.options,
            "options",
            self.options,
            "left out where no name is given",
        )


@dataclass(frozen=True)
class NetworkConfig:
    """A fully connected network and the step that trains it (both networks have these).

    Args:
        hidden: widths of the hidden layers (``mtrl list networks`` says what other networks do with them).
        activation: the non-linearity after each hidden layer.
        blocks: residual blocks after the hidden layers, of the last one's width: each is linear,
            activation, linear, and adds what came in. With ``layer_norm`` and one hidden layer this
            is the network of BRO (Nauman et al. 2024, arXiv 2405.16158) and BRC (2505.23150).
        layer_norm: LayerNorm before each activation (Ba et al. 2016) and after each linear layer of
            a block; what keeps a critic's values bounded at high update-to-data ratios (Ball et al.
            2023, arXiv 2302.02948).
        dropout: probability that a hidden unit is dropped in an update, before LayerNorm as in
            DroQ (Hiraoka et al. 2022, arXiv 2110.02034); acting never drops.
        init: ``torch`` (uniform ±1/√fan_in), ``xavier`` (uniform, zero biases: the paper's) or
            ``orthogonal`` (gain √2, last layer 0.01 for the actor and 1 for the critic, zero biases).
        learning_rate: of Adam.
        weight_decay: coefficient λ.
        decay_on: ``matrices`` spares biases, LayerNorm's parameters and embeddings; ``as_published``
            decays every parameter, as torch's own ``weight_decay`` and the paper do.
        decay: ``coupled`` adds λθ to the gradient (L2; the paper's), ``decoupled`` shrinks the
            weights apart from it (AdamW, Loshchilov & Hutter 2019, arXiv 1711.05101).
        max_grad_norm: the combined gradient is scaled down to this 2-norm; None leaves it.
    """

    hidden: tuple[int, ...] = (256, 256, 256)
    activation: Literal["relu", "tanh", "silu", "gelu", "elu"] = "relu"
    blocks: int = 0
    layer_norm: bool = False
    dropout: float = 0.0
    init: Literal["torch", "xavier", "orthogonal"] = "orthogonal"
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    decay_on: Literal["matrices", "as_published"] = "matrices"
    decay: Literal["coupled", "decoupled"] = "decoupled"
    max_grad_norm: float | None = None
    network: ArchitectureConfig = field(default_factory=ArchitectureConfig)

    def __post_init__(self) -> None:
        _check_fields(self)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _check(
            len(self.hidden) <= MOST_LAYERS and all(0 < width <= MOST_WIDTH for width in self.hidden),
            "hidden", self.hidden, f"a list of at most {MOST_LAYERS} widths from 1 to {MOST_WIDTH}",
        )  # fmt: skip
        _check(0 <= self.blocks <= MOST_LAYERS, "blocks", self.blocks, f"from 0 to {MOST_LAYERS}")
        _check(
            self.blocks == 0 or len(self.hidden) > 0,
            "blocks",
            self.blocks,
            "0 where there is no hidden layer",
        )
        _check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        _check(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "> 0 and finite")
        _check(self.weight_decay >= 0, "weight_decay", self.weight_decay, ">= 0")
        _check(
            self.max_grad_norm is None or self.max_grad_norm > 0,
            "max_grad_norm", self.max_grad_norm, "> 0, or null",
        )  # fmt: skip

    @property
    def widths(self) -> tuple[int, ...]:
        """Of every layer but the last: the hidden ones, then two for each block."""
        return self.hidden + self.hidden[-1:] * (2 * self.blocks)


@dataclass(frozen=True)
class ActorConfig(NetworkConfig):
    """The squashed-Gaussian actor.

    Args:
        log_std: how the network's second output becomes log σ: ``clip`` cuts it to
            [log_std_min, log_std_max], ``tanh`` rescales tanh(·) into it (never a zero gradient).
        log_std_min, log_std_max: the ends of that range.
    """

    log_std: Literal["clip", "tanh"] = "tanh"
    log_std_min: float = -5.0
    log_std_max: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self.log_std_min < self.log_std_max,
            "log_std_min", self.log_std_min, f"below log_std_max ({self.log_std_max})",
        )  # fmt: skip


@dataclass(frozen=True)
class CriticConfig(NetworkConfig):
    """The critics.

    Args:
        ensemble: how many.
        reduction: what the target and the actor take of their values: ``min`` (Fujimoto et al. 2018,
            arXiv 1802.09477; of all N, where REDQ, arXiv 2101.05982, takes it of a random pair) against
            overestimation, or ``mean``, which needs other means against it
            and underestimates less (BRC). With ``loss: distributional`` the whole distributions: of
            the critic whose value is smaller, or their average.
        loss: ``squared`` error of one number; or cross-entropy of ``atoms`` logits against the Bellman
            target as probabilities: ``distributional`` shifts and projects the next state's
            distribution (C51, BRC), ``two_hot`` and ``hl_gauss`` spread the scalar target over the
            atoms around it. Its gradient does not grow with the error, so no task with large rewards
            drowns the others; see :mod:`mtrl.categorical` for the sources.
        atoms, support: the number of atoms and v, the grid being even on [-v, v]. Values beyond are
            cut off, so it wants rewards that are scaled to it: ``reward_scale: return`` gives about ±10, and
            up to 2.5 times that where rewards come late in an episode.
    """

    layer_norm: bool = True
    ensemble: int = 2
    reduction: Literal["min", "mean"] = "min"
    loss: Literal["squared", "distributional", "two_hot", "hl_gauss"] = "squared"
    atoms: int = 101
    support: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(1 <= self.ensemble <= MOST_LAYERS, "ensemble", self.ensemble, f"from 1 to {MOST_LAYERS}")
        _check(2 <= self.atoms <= MOST_WIDTH, "atoms", self.atoms, f"from 2 to {MOST_WIDTH}")
        _check(self.support > 0, "support", self.support, "> 0")


@dataclass(frozen=True)
class TemperatureConfig:
    """The entropy temperature α.

    Args:
        shared: one α for all tasks (the paper's), or one for each: tasks differ in how soon they
            can afford to stop exploring.
        initial: α at the start. 0.1 suits rewards whose returns are of order ten (see
            ``AgentConfig.reward_scale``); 1 is customary for raw rewards.
        learning_rate: of the temperature's Adam.
        loss: through ``log_alpha`` (SB3's) or ``alpha`` itself (the paper's; gradient × α).
        target_entropy: of an action's A numbers together, in nats, below A log 2, which uniform actions have; None is
            −|A| (Haarnoja et al. 2018, arXiv 1812.05905).
        combine: give the temperatures' gradients to the multi-task optimizer too (the published
            PCGrad runs did; on one shared α it is zero whenever two tasks disagree in sign).
    """

    shared: bool = False
    initial: float = 0.1
    learning_rate: float = 3e-4
    loss: Literal["log_alpha", "alpha"] = "log_alpha"
    target_entropy: float | None = None
    combine: bool = False

    def __post_init__(self) -> None:
        _check_fields(self)
        _check(self.initial > 0, "initial", self.initial, "> 0")
        _check(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "> 0 and finite")
        _check(
            self.shared or not self.combine, "combine", self.combine, "false, or shared true: no method combines what "
            "each task has of its own",
        )  # fmt: skip


@dataclass(frozen=True)
class AgentConfig:
    """MT-SAC.

    Args:
        gamma: discount factor.
        tau: the target critic moves by this share of the difference at each update.
        policy_tau: so does the policy that is evaluated and saved, towards the actor that explores: an
            average over the last 1/policy_tau updates, which swings less from one evaluation to the
            next (Nikishin et al. 2018, "Improving stability in deep reinforcement learning with weight
            averaging"). 1 is the actor itself. Training is the same either way.
        task_input: how the networks know their task: ``one_hot`` and ``embedding`` (learned, unit
            norm, ``embedding_dim`` numbers) are inputs; ``heads`` gives each task its own output
            layer on a shared trunk; ``none`` hides the task.
        embedding_dim: how many numbers an embedding has.
        reward_scale: what a sampled reward is divided by, per task; the buffer keeps raw rewards.
            ``none``; ``sigma``: its running standard deviation (the paper's buffer normalisation);
            ``ema``: divided before it is stored, by a moving average's standard deviation, as the
            older suites do: what lies in the buffer keeps the scale of its time;
            ``return``: the largest discounted sum of past rewards seen plus what entropy can add, over 10
            (after BRC, arXiv 2505.23150; see :class:`mtrl.rewards.ReturnBound`): all tasks' values are then
            of the order of 10.
        ema_coefficient: of the moving average of ``ema``, per reward; results depend on it strongly
            (Kurin et al. 2022).
        target_clip: cut a task's Bellman targets to its largest reward so far over (1 − γ), both as
            scaled: more no policy can return (the paper's runs of IMTL). It leaves out the entropy's
            share, as published, and holds for tasks that never terminate or whose best reward is
            positive.
        precision: of the matrix products of an update; weights, losses, targets, optimizer state and
            everything that acts stay in float32. ``auto`` is ``bf16`` where the processor has it in
            hardware, else ``fp32``; a run's config says which it was, and a resume goes on with that.
        kernels: what computes an update. ``plain`` is stock torch under vmap, as the formulas are written;
            ``torch`` and ``onednn`` the fast path to the same numbers (:mod:`mtrl.fast`), in torch's operations,
            or with oneDNN's products (in float32 on an Intel processor MKL's) and compiled passes over rows;
            ``compiled`` is all of an update in a few graphs that torch's inductor compiles, for half a minute to two
            before the first update; an update then takes 0.6 to 0.9 of the time. It needs a C++ compiler, and batches
            of one shape (``replay.sampling: balanced``). ``auto`` is ``compiled`` for a run of 20,000 updates or more
            with networks of this suite, where that is there; else ``onednn`` where torch has it.
    """

    actor: ActorConfig = field(default_factory=ActorConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    network: ArchitectureConfig = field(default_factory=lambda: ArchitectureConfig("mlp"))
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    gamma: float = 0.99
    tau: float = 0.005
    policy_tau: float = 1.0
    task_input: Literal["one_hot", "embedding", "heads", "none"] = "one_hot"
    embedding_dim: int = 32
    reward_scale: Literal["none", "ema", "sigma", "return"] = "return"
    ema_coefficient: float = 0.001
    target_clip: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    kernels: Literal["auto", "plain", "torch", "onednn", "compiled"] = "auto"

    def __post_init__(self) -> None:
        _check_fields(self)
        _check(0 <= self.gamma < 1, "gamma", self.gamma, "in [0, 1)")
        _check(0 < self.tau <= 1, "tau", self.tau, "in (0, 1]")
        _check(0 < self.policy_tau <= 1, "policy_tau", self.policy_tau, "in (0, 1]")
        _check(
            1 <= self.embedding_dim <= MOST_WIDTH,
            "embedding_dim",
            self.embedding_dim,
            f"from 1 to {MOST_WIDTH}",
        )
        _check(0 < self.ema_coefficient <= 1, "ema_coefficient", self.ema_coefficient, "in (0, 1]")
        _check(self.network.name, "network.name", self.network.name, "a network (`mtrl list networks`)")

    def architecture(self, config: NetworkConfig) -> ArchitectureConfig:
        """Of the actor or the critic, whose config is given."""
        return config.network if config.network.name else self.network


@dataclass(frozen=True)
class ReplayConfig:
    """The replay buffer.

    Args:
        capacity: transitions kept per task.
        batch_size: rows per task in an update; with ``uniform`` sampling their mean, fractions allowed
            (1280 rows of 50 tasks are 25.6).
        sampling: ``balanced`` draws exactly ``batch_size`` rows of each task; ``uniform`` draws
            ``batch_size × T`` rows from all (the paper's), so that a task's share varies.
    """

    capacity: int = 100_000
    batch_size: int | float = 64
    sampling: Literal["balanced", "uniform"] = "balanced"

    def __post_init__(self) -> None:
        _check_fields(self)
        _check(1 <= self.capacity <= MOST_STEPS, "capacity", self.capacity, f"from 1 to {MOST_STEPS}")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, ">= 1")
        _check(
            self.sampling == "uniform" or self.batch_size == int(self.batch_size),
            "batch_size", self.batch_size, "a whole number with balanced sampling",
        )  # fmt: skip


@dataclass(frozen=True)
class OptimizerConfig:
    """The multi-task optimizer.

    Args:
        name: as ``mtrl list optimizers`` has it, or ``module:Class`` of your own.
        options: of its class, by name.
        apply_to: the networks whose gradients it combines; the other one takes the mean.
    """

    name: str = "unitary"
    options: dict[str, Any] = field(default_factory=dict)
    apply_to: Literal["both", "critic", "actor"] = "both"

    def __post_init__(self) -> None:
        _check_fields(self)
        for option in ("name", "num_tasks", "seed", "aggregator"):
            if option in self.options:
                raise ConfigError(
                    f"optimizer.options.{option}: {self.options[option]!r} is not valid; the run sets it itself "
                    "(`mtrl list optimizers` shows the options)"
                )


@dataclass(frozen=True)
class TrainConfig:
    """One training run, but for its protocol.

    Args:
        seed: of everything: networks, exploration, replay, environments and (unless
            ``protocol.goal_seed`` is set) goals.
        total_steps_per_task: environment steps of each task.
        run_dir: where to write; None is ``runs/<suite>/<label>/seed<seed>``.
        label: the run's name in that path; a config's gets the name of another optimizer or network that the
            command line names (``mt10_fast-pcgrad``); None is the optimizer's name, and the network's where it is not
            ``mlp``: ``unitary-mmoe``, ``unitary-actor_mmoe``; a colon in a name becomes a dot.
        device: ``cpu``, ``cuda`` or ``auto``.
        threads: of the learner; ``auto`` is the cores this process may use.
        workers: processes that step the environments, 0 is in process, ``auto`` by cores.
        warmup_steps: steps per task of uniformly random actions before the first update.
        warmup_updates: updates made at once after them, before the policy's first step: the paper's
            runs have as many as random steps, so that no step goes without an update.
        updates_per_step: updates for each step of all tasks.
        eval_every: steps per task between evaluations; 0 is at the end only.
        eval_episodes: per task and evaluation during training, at most one per goal of the protocol (your own
            envs may have no goals, and so no such limit); ``mtrl evaluate`` takes every goal.
        video_every: steps per task between films of one episode of every task, as a GIF in ``videos/`` and among
            TensorBoard's images; 0 is never.
        log_every: steps per task between rows of the log.
        checkpoint_every: minutes between checkpoints, fractions allowed; 0 is only at the end.
        diagnostics_every: updates between measurements of how the tasks' gradients conflict; 0 is never.
    """

    seed: int = 0
    total_steps_per_task: int = 300_000
    run_dir: str | None = None
    label: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | Literal["auto"] = "auto"
    workers: int | Literal["auto"] = "auto"
    warmup_steps: int = 2_500
    warmup_updates: int = 0
    updates_per_step: int = 1
    eval_every: int = 15_000
    eval_episodes: int = 10
    video_every: int = 0
    log_every: int = 500
    checkpoint_every: float = 10.0
    diagnostics_every: int = 500
    agent: AgentConfig = field(default_factory=AgentConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        _check_fields(self)
        for key, low in {
            "seed": 0, "total_steps_per_task": 1, "warmup_steps": 1, "warmup_updates": 0, "updates_per_step": 1,
            "eval_every": 0, "eval_episodes": 1, "video_every": 0,
            "log_every": 1, "checkpoint_every": 0, "diagnostics_every": 0,
        }.items():  # fmt: skip
            _check(getattr(self, key) >= low, key, getattr(self, key), f">= {low}")
            _check(
                getattr(self, key) <= MOST_STEPS or key == "seed", key, getattr(self, key), f"<= {MOST_STEPS}"
            )
        _check(self.seed < 2**63, "seed", self.seed, "< 2**63")
        _check(
            self.threads == "auto" or 1 <= self.threads <= 1024,
            "threads",
            self.threads,
            "from 1 to 1024, or auto",
        )
        _check(
            self.workers == "auto" or 0 <= self.workers <= MOST_WORKERS,
            "workers", self.workers, f"from 0 to {MOST_WORKERS}, or auto",
        )  # fmt: skip
        fits = self.label is None or (
            self.label.isprintable() and self.label.strip(". ") and "/" not in self.label
            and len(self.label) <= LONGEST_LABEL
        )  # fmt: skip
        _check(
            self.agent.kernels != "compiled" or self.replay.sampling == "balanced",
            "agent.kernels", self.agent.kernels, "another, or replay.sampling balanced: a graph has one shape",
        )  # fmt: skip
        valid = f"a folder's name of at most {LONGEST_LABEL} printable characters, without /"
        _check(fits, "label", self.label, valid)
