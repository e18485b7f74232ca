"""``mtrl card``: a folder to publish, with a policy, its config, its evaluation, a picture and a model card."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from mtrl.commands.evaluate import described, find_policy, protocol_of, scores_of
from mtrl.commands.video import shoot
from mtrl.config import ConfigError
from mtrl.envs import SuiteError
from mtrl.results.card import model_card, require_cards
from mtrl.results.tables import scores_table, show
from mtrl.run.board import differences
from mtrl.run.folder import RunFolder
from mtrl.settings.files import dump_yaml, path_of, read_settings
from mtrl.settings.parser import Parser
from mtrl.settings.train import parse_train

PICTURE = "picture.png"


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl card", description=__doc__)
    parser.add_argument("run", type=str, help="a run's folder")
    parser.add_argument("folder", type=str, help="the folder to make; it must not exist")
    parser.add_argument("--name", type=str, help="the policy's name; default: that of the folder")
    parser.add_checkpoint()
    parser.add_import()
    args = parser.parse_args(arguments)
    require_cards()
    run, folder = RunFolder(path_of("run", args.run)), path_of("folder", args.folder)
    if os.path.lexists(folder):
        raise ConfigError(f"folder: {folder} exists already; nothing was changed: name another")
    if not folder.absolute().parent.is_dir():
        raise ConfigError(f"folder: {folder} cannot be made (there is no {folder.absolute().parent})")
    if not run.config.is_file():
        raise ConfigError(f"run: {run.path} is no run's folder (it has no config.yaml)")
    found = find_policy(run.path, args.checkpoint)
    protocol, seed = protocol_of(found)
    scores = scores_of(found.policy, protocol, seed)
    evaluation = described(found, protocol, seed, scores)
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}.") as made:
        place = Path(made) / folder.name
        place.mkdir()
        found.policy.save(place / "policy.safetensors")
        settings = {**read_settings(run.config), "run_dir": None}  # it was a place on this machine
        config = dump_yaml(settings)
        (place / "config.yaml").write_text(config, encoding="utf-8")
        (place / "evaluation.json").write_text(json.dumps(evaluation, indent=1) + "\n")
        picture: str | None = PICTURE
        try:
            shoot(found.policy, protocol, seed, place / PICTURE)
        except SuiteError as error:
            picture = None
            print(f"mtrl: note: the card has no picture: {error}", file=sys.stderr)
        differing = differences(config, parse_train([]).text)
        text = model_card(args.name or folder.name, evaluation, run.described(), differing, picture)
        (place / "README.md").write_text(text, encoding="utf-8")
        place.rename(folder)
    show(scores_table(scores, f"{folder} ({args.checkpoint}, {protocol.name})"))
    print(f"made {folder}; to publish it: hf upload YOU/{folder.name} {folder}")
    return 0
