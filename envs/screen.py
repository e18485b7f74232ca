"""Where the simulator draws without a display: a way that works on this machine, found in a process of its own.

MuJoCo reads the variable MUJOCO_GL when it is imported, and OpenGL may take a process with it. So the variable is
set only for the worker processes that draw, never for the caller's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

from mtrl.envs import process
from mtrl.envs.protocol import SuiteError

VARIABLE = "MUJOCO_GL"
WAYS = ("egl", "osmesa") if sys.platform.startswith("linux") else ("",)
_LONGEST = 60.0
_TRY = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light/><geom size='1'/></worldbody></mujoco>")
with mujoco.Renderer(model, 32, 32) as renderer:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer.update_scene(data)
    assert renderer.render().any()
"""


@cache
def drawing() -> dict[str, str]:
    """The environment variables of a process that draws: the caller's MUJOCO_GL if set, else the first that works.

    Raises `SuiteError` when none works, with what to install.
    """
    own = os.environ.get(VARIABLE)
    ways = WAYS if own is None else (own,)
    for way in ways:
        if _works(way):
            return {VARIABLE: way} if way else {}
    tried = ", ".join(f"{VARIABLE}={way}" for way in ways if way) or "the system's own OpenGL"
    raise SuiteError(
        f"rendering: this machine draws by none of {tried}; Debian and Ubuntu have osmesa as `apt-get install "
        "libosmesa6`, and egl comes with a GPU's driver"
    )


def _works(way: str) -> bool:
    variables = {**process.environment(), **({VARIABLE: way} if way else {})}
    with process.safe_path():
        try:
            done = subprocess.run(
                process.command(f"exec({_TRY!r})"), env=variables, capture_output=True, timeout=_LONGEST
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0
