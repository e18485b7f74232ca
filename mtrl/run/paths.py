"""Where a run's parts lie in its folder, for who reads them; loads nothing of training."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mtrl.config import ConfigError
from mtrl.run.status import read_status


class RunPaths:
    """The parts of one run's folder by name (see :mod:`mtrl.run.folder`); nothing need be there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.meta = self.path / "meta.json"
        self.progress = self.path / "progress.csv"
        self.evaluations = self.path / "eval.jsonl"
        self.conflicts = self.path / "conflict.jsonl"
        self.unseen = self.path / "unseen.json"
        self.last = self.path / "policy.safetensors"
        self.best = self.path / "policy_best.safetensors"
        self.evidence = self.path / "evidence.safetensors"

    @property
    def exists(self) -> bool:
        """Whether a config lies here.

        Raises:
            ConfigError: the folder may not be entered.
        """
        try:
            return stat.S_ISREG(os.stat(self.config).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise ConfigError(f"run_dir: {self.path} cannot be read ({error.strerror})") from None

    @property
    def status(self) -> str:
        """As :func:`mtrl.run.status.read_status` tells it."""
        return read_status(self.path)
