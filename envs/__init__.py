"""Multi-task suites of environments: one env per task behind a Stable-Baselines3 VecEnv."""

from mtrl.envs.protocol import PRESETS, SUITES, Protocol, SuiteError, is_own, name_own, preset_fields
from mtrl.envs.suites import make_suite

__all__ = ["PRESETS", "SUITES", "Protocol", "SuiteError", "is_own", "make_suite", "name_own", "preset_fields"]
