"""TPU topologies that are compiled for without a TPU."""

import importlib.util
import math
import os
import re
from typing import NamedTuple

from jepa_jax.training.chips import CHIPS

# What keeps libtpu from looking for a machine it runs on. None of it changes what is compiled.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8",
    # Only one process may hold a TPU; of those that compile, there may be several.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_MIN_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "3",
}
# On v4, two cores make one device, as on Cloud TPU; libtpu shows them apart unless asked.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
_NAME = re.compile(r"([a-z0-9]+):(\d+(?:x\d+)+)")


class Topology(NamedTuple):
    """Chips of one generation in a grid, once or several times.

    Attributes:
      generation: key of `training.chips.CHIPS`.
      grid: chips along each axis of a slice.
      slices: how many such slices.
    """

    generation: str
    grid: tuple[int, ...]
    slices: int = 1

    @property
    def name(self):
        """Return its name, such as `v5p:4x4x4`."""
        return f"{self.generation}:{'x'.join(map(str, self.grid))}"

    @property
    def chip(self):
        """Return its `Chip`."""
        return CHIPS[self.generation]

    @property
    def num_chips(self):
        """Count the chips of all slices."""
        return self.slices * math.prod(self.grid)


def parse(text, slices=1):
    """Read a topology such as `v5p:4x4x4`.

    Raises:
      ValueError: if it is not written so, or the generation is not in our table.
    """
    known = [name for name, chip in CHIPS.items() if chip.ici_bandwidth]
    match = _NAME.fullmatch(text)
    if not match or match[1] not in known:
        raise ValueError(f"topology {text!r} is not GENERATION:GRID, such as v5e:16x16 or v5p:4x4x4, with one of the generations "
                         f"{', '.join(known)}")
    grid = tuple(map(int, match[2].split("x")))
    chip = CHIPS[match[1]]
    if len(grid) != chip.axes or not 1 <= math.prod(grid) <= chip.chips_per_pod:
        raise ValueError(f"topology {text!r}: a slice of {match[1]} has {chip.axes} axes and from 1 to {chip.chips_per_pod} chips")
    return Topology(match[1], grid, slices)


def prepare():
    """Set the environment for compiling without a TPU; call it before JAX is first imported.

    Raises:
      ImportError: if there is no libtpu.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError("compiling for TPUs needs libtpu, which needs no TPU: pip install 'jepa_jax[tpu]'")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def devices(topology):
    """Return the devices of a topology, to compile for; nothing can run on them.

    Raises:
      ValueError: if there is no such topology.
    """
    import jax
    from jax.experimental import topologies

    options = dict(_OPTIONS.get(topology.generation, {}))
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology {topology.name} does not exist: {error}") from error
