"""MuJoCo, imported also where MUJOCO_GL names a way of drawing that this machine does not have.

MuJoCo reads the variable when it is imported, and fails. Who only trains does not draw; who draws is told by
:func:`mtrl.envs.screen.drawing`.
"""

from __future__ import annotations

import os

from mtrl.envs.screen import VARIABLE

try:
    import mujoco
except Exception:  # whatever OpenGL raises
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        raise
    os.environ[VARIABLE] = "disable"
    try:
        import mujoco
    finally:
        os.environ[VARIABLE] = wanted

__all__ = ["mujoco"]
