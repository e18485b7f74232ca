"""Multi-task suites of environments: one env per task behind a Stable-Baselines3 VecEnv."""

from envs.protocol import SUITES, Protocol, SuiteError
from envs.suites import make_suite

__all__ = ["SUITES", "Protocol", "SuiteError", "make_suite"]
