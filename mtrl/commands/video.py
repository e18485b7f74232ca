"""``mtrl video``: a policy's episodes on film, a tile per task; the episode that is shown is the one that is scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtrl.commands.evaluate import episodes_on, find_policy, protocol_of
from mtrl.config import ConfigError
from mtrl.envs import Protocol, make_suite
from mtrl.evaluate import Scores
from mtrl.policy import Policy
from mtrl.results.tables import scores_table, show
from mtrl.results.video import TILE, film, position, require_kind
from mtrl.settings.files import path_of
from mtrl.settings.parser import Parser
from mtrl.values import shown


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl video", description=__doc__)
    parser.add_argument("run", type=str, help="a run's folder, one that `mtrl card` made, or a policy file")
    parser.add_argument("--task", type=str, nargs="+", help="tasks to show; default: all, in a grid")
    parser.add_argument("--episodes", type=int, default=1, help="per task, each from another goal")
    parser.add_argument(
        "--out", type=str, help=".mp4, .gif, or .png for the end alone; default: video.mp4 next to the policy"
    )
    parser.add_argument("--tile", type=int, default=TILE, help="pixels of a tile's side; even")
    parser.add_checkpoint()
    parser.add_argument("--seed", type=int, help="draw other goals than the run's")
    parser.add_import()
    args = parser.parse_args(arguments)
    require_within("seed", args.seed or 0, 0, 2**63 - 1)
    require_sizes(args.episodes, args.tile)
    place = path_of("run", args.run)
    neighbour = (place if place.is_dir() else place.parent) / "video.mp4"
    out = path_of("out", args.out) if args.out else neighbour
    found = find_policy(place, args.checkpoint)
    protocol, seed = protocol_of(found, args.seed)
    scores = shoot(found.policy, protocol, seed, out, args.episodes, args.task, args.tile)
    show(scores_table(scores, f"what {out} shows"))
    return 0


def require_sizes(episodes: int, tile: int) -> None:
    """Raise ConfigError for a number of episodes or a tile's side in pixels that no film has."""
    require_within("episodes", episodes, 1, 100)
    require_within("tile", tile, 64, 1024, step=2)


def require_within(key: str, value: int, low: int, high: int, step: int = 1) -> None:
    """Raise ConfigError unless the value is a whole number from ``low`` to ``high``, a multiple of ``step``."""
    if type(value) is not int or not low <= value <= high or value % step:
        even = " and even" if step == 2 else ""
        raise ConfigError(f"{key}: {shown(value)} is not valid; it must be from {low} to {high}{even}")


def shoot(
    policy: Policy, protocol: Protocol, seed: int, out: Path,
    episodes: int = 1, tasks: Sequence[str] | None = None, tile: int = TILE,
) -> Scores:  # fmt: skip
    """Film the first episodes of an evaluation; see :func:`mtrl.results.video.film`."""
    require_sizes(episodes, tile)
    require_kind(out)
    for name in tasks or ():
        position(name, protocol.task_names)
    envs = make_suite(protocol, seed=seed, evaluation=True, render_mode="rgb_array")
    try:
        episodes_on(envs, episodes)
        return film(policy, envs, out, episodes=episodes, tasks=tasks, tile=tile)
    finally:
        envs.close()
