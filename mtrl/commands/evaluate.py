"""``mtrl evaluate``: a saved policy's success per task, by name, with intervals."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mtrl import registry
from mtrl.config import MOST_WORKERS, ConfigError, TrainConfig, whole
from mtrl.envs import Protocol, SuiteError, is_own, make_suite
from mtrl.envs.vec import SuiteVecEnv
from mtrl.errors import PolicyError
from mtrl.evaluate import Scores, evaluate
from mtrl.policy import Policy, load_policy
from mtrl.results.reading import read_json
from mtrl.results.tables import report_json, require_writable, scores_table, show
from mtrl.run.folder import RunFolder
from mtrl.settings.files import path_of
from mtrl.settings.parser import Parser, whole_number
from mtrl.values import shown

UNSEEN = 50  # goals per task, whatever number a run trained on
APART = 1_000_003  # between the seed of a run's goals and that of those it never trained on


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl evaluate", description=__doc__)
    parser.add_argument("run", type=str, help="a run's folder, one that `mtrl card` made, or a policy file")
    parser.add_checkpoint()
    parser.add_argument(
        "--episodes",
        type=int,
        help="per task, each from another goal; default: every goal of the run's protocol, or "
        f"{TrainConfig().eval_episodes} where the envs have none",
    )
    parser.add_argument("--json", type=str, help="write the scores to this file, or - for standard output")
    parser.add_argument("--seed", type=int, help="draw other goals than the run's")
    parser.add_argument(
        "--goals", choices=["own", "unseen"], default="own",
        help=f"unseen: {UNSEEN} goals per task that the run never trained on, of another seed; recorded in its folder "
        "for `mtrl export`, `compare --metric unseen` and `claims`",
    )  # fmt: skip
    parser.add_import()
    parser.add_argument("--workers", type=str, default="auto", help="processes; 0 is in process")
    args = parser.parse_args(arguments)
    if args.episodes is not None and args.episodes < 1:
        raise ConfigError(f"episodes: {args.episodes} is not valid; it must be >= 1")
    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise ConfigError(f"seed: {shown(args.seed)} is not valid; it must be from 0 to 2**63 - 1")
    workers = (
        args.workers if args.workers == "auto" else whole_number("workers", args.workers, 0, MOST_WORKERS)
    )
    require_writable(args.json)

    if unseen := args.goals == "unseen":
        for key, plain in (("episodes", None), ("seed", None), ("checkpoint", "last")):
            if getattr(args, key) != plain:
                raise ConfigError(
                    f"goals: unseen is always the last policy on {UNSEEN} goals; leave out --{key}"
                )
    found = find_policy(path_of("run", args.run), args.checkpoint)
    protocol, seed = protocol_of(found, args.seed)
    if unseen:
        record = record_of(found)
        protocol = unseen_protocol(protocol, seed)
    scores = scores_of(found.policy, protocol, seed, args.episodes, workers)
    result = described(found, protocol, seed, scores)
    if unseen:
        report_json(result, str(record))
    if report_json(result, args.json):
        return 0
    steps = result["steps_per_task"]
    at = "" if steps is None else f" at {steps} steps per task"
    title = f"{args.run} ({found.checkpoint}{at}, {protocol.name})"
    show(scores_table(scores, title))
    if unseen:
        print(f"Goals of seed {protocol.goal_seed}, on which it never trained: recorded in {record}")
    if protocol.goals == "fixed" and not is_own(protocol.suite):
        print("Goals are fixed and the policy is deterministic: one episode per task is exact: no interval.")
    if scores.silent:
        print(f"{', '.join(scores.silent)} never told success in an episode: no success is shown")
    return 0


@dataclass(frozen=True)
class Found:
    """A policy, and where it was found.

    Attributes:
        named: as the user named the place.
        checkpoint: best or last; not known of a file of another name.
        status: of its run; "not known" for a file.
    """

    policy: Policy
    named: str
    checkpoint: str
    status: str


def scores_of(
    policy: Policy,
    protocol: Protocol,
    seed: int,
    episodes: int | None = None,
    workers: int | Literal["auto"] = "auto",
) -> Scores:
    """Evaluate on every goal once, or on the first ``episodes`` of them; see :func:`episodes_on`."""
    envs = make_suite(protocol, seed=seed, workers=workers, evaluation=True)
    try:
        return evaluate(policy, envs, episodes_on(envs, episodes), protocol.task_names)
    finally:
        envs.close()


def described(found: Found, protocol: Protocol, seed: int, scores: Scores) -> dict[str, Any]:
    """Scores with all that they depend on, for JSON."""
    goal_seed = seed if protocol.goal_seed is None else protocol.goal_seed
    steps = found.policy.info.get("steps_per_task")
    return {
        "protocol": {**protocol.to_dict(), "name": protocol.name, "goal_seed": goal_seed},
        "checkpoint": found.checkpoint, "run_status": found.status,
        # files of before it was written have none
        "steps_per_task": steps if type(steps) is int else None, **scores.to_dict(),
    }  # fmt: skip


def protocol_of(found: Found, seed: int | None = None) -> tuple[Protocol, int]:
    """The protocol that a policy's file tells, and the seed of its goals; with ``seed``, other goals.

    A file may come from anybody: what it names is imported only if the command line, or the program, did.

    Raises:
        PolicyError: it tells none, one of other tasks, or code that nobody named.
    """
    policy, named = found.policy, found.named
    told = policy.info.get("protocol")
    suite = told.get("suite") if isinstance(told, dict) else None
    if isinstance(suite, str) and is_own(suite):
        try:
            registry.require_trusted(suite, called=True)
        except ValueError as error:
            raise PolicyError(f"{named}: its tasks' {error}") from None
    try:
        protocol = Protocol.from_dict(policy.info["protocol"])
        own = whole("seed", policy.info["seed"], 0)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = str(error) if isinstance(error, SuiteError) else "it tells none"
        raise PolicyError(
            f"{named}: the policy file has no protocol to evaluate it under ({reason}); a run's file has one, and "
            'so has that of MTSAC(…, info={"protocol": protocol.to_dict(), "seed": 0})'
        ) from None
    if seed is not None:
        protocol = Protocol.from_dict({**protocol.to_dict(), "goal_seed": None})
    if sorted(policy.task_names) != sorted(protocol.task_names):
        raise PolicyError(
            f"{named}: its tasks ({', '.join(policy.task_names)}) are not those of its protocol "
            f"({', '.join(protocol.task_names)})"
        )
    return protocol, own if seed is None else seed


def unseen_protocol(protocol: Protocol, seed: int) -> Protocol:
    """The same tasks with :data:`UNSEEN` goals of another seed, the same one for every run of these goals.

    Raises:
        ConfigError: there are no goals that could be others.
    """
    if protocol.goals == "fixed" or is_own(protocol.suite):
        reason = "one fixed goal per task" if protocol.goals == "fixed" else "no goals that this suite draws"
        raise ConfigError(f"goals: unseen is not valid; {protocol.name} has {reason} (it needs random goals)")
    own = seed if protocol.goal_seed is None else protocol.goal_seed
    return replace(protocol, goal_seed=(own + APART) % 2**63, num_goals=UNSEEN)


def record_of(found: Found) -> Path:
    """Where the scores on unseen goals are kept.

    Raises:
        ConfigError: it is no finished run's folder, or may not be written.
    """
    run = RunFolder(found.named)
    if not run.exists or not run.status.startswith("DONE"):
        state = f"it is {run.status}" if run.exists else "it is none"
        raise ConfigError(f"goals: unseen is for the folder of a run that is DONE; {found.named}: {state}")
    require_writable(str(run.unseen), "goals")
    return run.unseen


def episodes_on(envs: SuiteVecEnv, episodes: int | None) -> int:
    """How many episodes each task has: as asked for, else one for every goal, or without goals as many as in training.

    Raises:
        ConfigError: no such number; or there are goals, and fewer than the episodes that are asked for.
    """
    if episodes is not None and (type(episodes) is not int or episodes < 1):
        raise ConfigError(f"episodes: {shown(episodes)} is not valid; it must be a whole number from 1 on")
    goals = envs.num_goals
    if episodes is not None and 0 < goals < episodes:
        name = "this suite" if envs.protocol is None else envs.protocol.name
        raise ConfigError(
            f"episodes: {episodes} is not valid; it must be <= {goals}, the goals of each task in "
            f"{name}: the policy is deterministic, so a goal's second episode repeats the first"
        )
    return episodes or goals or TrainConfig().eval_episodes


def find_policy(path: Path, checkpoint: str) -> Found:
    """The policy of a run's folder, or of a file.

    Raises:
        ConfigError: there is nothing there, with what there is; no such checkpoint, or a file that is another's.
        PolicyError: the file is damaged or foreign.
    """
    found = _found_policy(path, checkpoint)
    if checkpoint not in ("best", "last"):
        raise ConfigError(f"checkpoint: {shown(checkpoint)} is not valid; it must be best or last")
    if checkpoint == "best" and found.checkpoint != "best":
        raise ConfigError(
            f"checkpoint: best is not valid; {path} is one policy, which is {found.checkpoint}: give a run's folder"
        )
    return found


def _found_policy(path: Path, checkpoint: str) -> Found:
    """What lies there; ``checkpoint`` chooses in a run's folder alone."""
    if path.is_file():
        names = {"policy.safetensors": "last", "policy_best.safetensors": "best"}
        of_a_run = RunFolder(path.parent).meta.exists()
        kind = names.get(path.name, "not known") if of_a_run else "not known"
        return Found(load_policy(path), str(path), kind, "not known")
    run = RunFolder(path)
    if (path / "evaluation.json").is_file() and not run.meta.exists():  # made by `mtrl card`
        told = read_json(path / "evaluation.json")
        said = told.get("checkpoint") if isinstance(told, dict) else None
        kind = said if said in ("best", "last") else "not known"
        return Found(load_policy(run.last), str(path), kind, "published")
    if not run.config.is_file():
        there = sorted(str(p.parent) for p in Path("runs").glob("*/*/*/policy.safetensors"))[:4]
        hint = f"; policies are in {', '.join(there)}" if there else ""
        what = "is neither a run's folder nor a policy file" if path.exists() else "does not exist"
        raise ConfigError(f"run: {path} {what}{hint}")
    file = run.best if checkpoint == "best" else run.last
    if not file.exists():
        raise ConfigError(f"checkpoint: {run.path} has no {file.name} yet (the run is {run.status})")
    if not run.status.startswith(("DONE", "RUNNING")):
        print(f"mtrl: note: this run is marked {run.status}", file=sys.stderr)
    return Found(load_policy(file), str(path), checkpoint, run.status)
