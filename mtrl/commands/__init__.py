"""The commands of ``mtrl``, one file each; with :mod:`mtrl.cli`, the only code that meets ``envs`` and ``mtrl``."""
