"""Envs of a user, for the tests. Imports no torch: workers import this module."""

import os
import sys
import time

import gymnasium as gym
import numpy as np


class OwnEnv(gym.Env):
    """Observation: the last action as the env received it and a draw of the env's own generator."""

    def __init__(self, low=0.0, high=10.0, size=3, bad=None, length=None):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = gym.spaces.Box(low, high, (2,), np.float32)
        self.size, self.bad, self.length = size, bad, length

    @property
    def modules(self):
        return sorted(sys.modules)

    @property
    def path(self):
        return list(sys.path)

    @property
    def pythonpath(self):
        return os.environ.get("PYTHONPATH")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.full(self.size, self.np_random.random()), {}

    def step(self, action):
        self.steps += 1
        observation = np.resize(np.append(action, self.np_random.random()), self.size)
        reward = 1.0
        if self.steps == 3 and self.bad == "observation":
            observation[1] = np.nan
        if self.steps == 3 and self.bad == "reward":
            reward = np.inf
        if self.steps == 3 and self.bad == "crash":
            raise ZeroDivisionError("the third step")
        return observation, reward, self.steps == self.length, False, {"success": self.steps == 2}


class SavedEnv(OwnEnv):
    """One that can be saved."""

    def get_state(self):
        return {"steps": getattr(self, "steps", 0), "generator": self.np_random.bit_generator.state}

    def set_state(self, state):
        self.steps = state["steps"]
        self.np_random.bit_generator.state = state["generator"]


class HangingEnv(OwnEnv):
    """One whose second step never ends."""

    def step(self, action):
        if self.steps == 1:
            time.sleep(1000)
        return super().step(action)
