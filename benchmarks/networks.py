"""What each network's update costs over the plain one's, at the size of `mt10_fast` and its variants.

python benchmarks/networks.py [--rounds 30] [--precision fp32] [--kernels auto] [--json FILE]

One thread. The updates of all configs take turns, so that a ratio is of neighbours in time. The last column is the
ratio over that of the matrix products' FLOPs: what a network costs beyond its products.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from mtrl.bench.measure import take_turns
from mtrl.bench.settings import make_agent, make_batch
from mtrl.bench.sizes import size_of
from mtrl.settings.files import config_names
from mtrl.settings.train import parse_train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--kernels", default="auto", help="compiled takes a quarter of an hour before")
    parser.add_argument("--optimizer", default="unitary")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    configs = {}
    for name in ("mt10_fast", *config_names()):
        config = parse_train([f"--config={name}"]).config
        if name == "mt10_fast" or (name.startswith("mt10_fast_") and config.agent.network.name != "mlp"):
            configs[config.agent.network.name] = config
    batch = make_batch(10, 32)

    def update(config):
        agent = make_agent(10, config.agent, args.optimizer, precision=args.precision, kernels=args.kernels)
        return lambda: agent.update(batch)

    seconds = take_turns({name: update(config) for name, config in configs.items()}, args.rounds)
    sizes = {name: size_of(config, 10) for name, config in configs.items()}
    rows = {}
    print(f"{'network':14} {'ms':>6} {'over mlp':>9} {'FLOPs':>6} {'beyond':>7}")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds["mlp"], strict=True))
        flops = sizes[name].flops / sizes["mlp"].flops
        rows[name] = {
            "ms": 1000 * statistics.median(times), "over_mlp": ratio, "flops_over_mlp": flops,
            "beyond": ratio / flops, **sizes[name]._asdict(),
        }  # fmt: skip
        print(f"{name:14} {rows[name]['ms']:6.1f} {ratio:9.2f} {flops:6.2f} {ratio / flops:7.2f}")
    if args.json:
        args.json.write_text(
            json.dumps({"precision": args.precision, "kernels": args.kernels, "networks": rows}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
