"""Multi-task suites of environments: one env per task behind a Stable-Baselines3 VecEnv."""

from mtrl.envs.protocol import PRESETS, SUITES, Protocol, SuiteError, preset_fields
from mtrl.envs.suites import make_suite

__all__ = ["PRESETS", "SUITES", "Protocol", "SuiteError", "make_suite", "preset_fields"]
