"""Errors that the command line turns into one line, of modules that load torch; here, where none is needed."""

from __future__ import annotations


class OptimizerError(ValueError):
    """A name, an option, a state or a Jacobian that no optimizer can work with; one line of text."""


class PolicyError(ValueError):
    """A policy file that cannot be used, or an observation it was not made for. One line."""


class CheckpointError(ValueError):
    """No checkpoint can be used. One line: which file, and what is wrong with it."""
