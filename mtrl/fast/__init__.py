"""The same numbers in less time. An update can be understood without it, and runs without: ``agent.kernels: plain``."""
