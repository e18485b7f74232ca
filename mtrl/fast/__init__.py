"""The same numbers in less time. An update can be understood without it, and runs without: ``agent.kernels: plain``."""

EPS = 1e-5  # of a layer norm: torch's default
