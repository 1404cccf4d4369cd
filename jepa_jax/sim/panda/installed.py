"""Find MuJoCo and the robot's meshes, or say in one line what to install."""

import functools
import importlib.util
import os
import pathlib
import sys

VERSION = "3.8.1"
INSTALL = "pip install 'jepa_jax[sim]' && pip install --no-deps gym-hil==0.1.14"
GL_INSTALL = "apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 for MUJOCO_GL=osmesa"
_GL = "MUJOCO_GL"
# Mesa's software renderer: threads of its own would fight with the other processes for the cores.
_GL_THREADS = "LP_NUM_THREADS"


class MissingSimulatorError(ImportError):
    """Say what is not installed."""


@functools.cache
def load_mujoco():
    """Import MuJoCo, which reads once and for all how it shall draw.

    The environment variable MUJOCO_GL ('egl', 'osmesa' or 'glfw') decides; without it EGL does on Linux, which needs no window.

    Returns:
        The module.

    Raises:
        MissingSimulatorError: MuJoCo or the library that draws is not there, or its version is another one.
    """
    if sys.platform == "linux":
        os.environ.setdefault(_GL, "egl")
    os.environ.setdefault(_GL_THREADS, "1")
    if importlib.util.find_spec("mujoco") is None:
        raise MissingSimulatorError(f"the simulated Panda needs MuJoCo {VERSION}: {INSTALL}")
    try:
        import mujoco
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        # PyOpenGL finds libraries on import, and fails in as many ways.
        raise MissingSimulatorError(
            f"MuJoCo cannot draw with {_GL}={os.environ.get(_GL, '')} ({error}); on Debian and Ubuntu: {GL_INSTALL}"
        ) from error
    # Without PyOpenGL it is imported all the same, and cannot draw.
    if not hasattr(mujoco, "GLContext"):
        raise MissingSimulatorError(f"MuJoCo cannot draw with {_GL}={os.environ.get(_GL, '')}: PyOpenGL is missing, or finds no library; {INSTALL}, "
                                    f"and on Debian and Ubuntu: {GL_INSTALL}")
    if mujoco.__version__ != VERSION:
        raise MissingSimulatorError(
            f"MuJoCo {mujoco.__version__} is installed; episodes are the same everywhere with {VERSION} only: {INSTALL}"
        )
    return mujoco


def robot_file() -> pathlib.Path:
    """Return the description of arm and gripper that comes with gym-hil, of which nothing is imported.

    Raises:
        MissingSimulatorError: the package is not there.
    """
    spec = importlib.util.find_spec("gym_hil")
    for folder in spec.submodule_search_locations if spec else ():
        path = pathlib.Path(folder) / "assets" / "panda.xml"
        if path.is_file():
            return path
    raise MissingSimulatorError(f"the meshes of the simulated Panda come with gym-hil 0.1.14: {INSTALL}")


def load_simplify():
    """Import the function that makes meshes simpler.

    Raises:
        MissingSimulatorError: the package is not there.
    """
    try:
        from fast_simplification import simplify
    except ImportError as error:
        raise MissingSimulatorError(f"the simulated Panda needs fast-simplification: {INSTALL}") from error
    return simplify


def check_installed() -> None:
    """Raise MissingSimulatorError unless all that the simulated Panda needs is there."""
    load_mujoco()
    robot_file()
    load_simplify()
