"""The device mesh and who holds what on it."""

import contextlib

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jepa_jax.training.state import tensor_names

BATCH_AXES = ("data", "fsdp")
_RULES = (("batch", BATCH_AXES), ("tokens", None), ("width", None))
# Smaller tensors are cheaper to replicate than to gather.
_MIN_SHARDED_SIZE = 2**14
# Parameters under this name are stacked over depth, and the scan walks that axis.
_STACKED = "layers"


def make_mesh(fsdp=1, devices=None):
    """Arrange devices as (data, fsdp).

    Args:
      fsdp: devices over which parameters are split; -1 takes all.
      devices: list of devices; all of them if None.

    Raises:
      ValueError: if `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    fsdp = len(devices) if fsdp == -1 else fsdp
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"mesh.fsdp {fsdp} does not divide the number of devices, {len(devices)}")
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


@contextlib.contextmanager
def use_mesh(mesh):
    """Make a mesh and the logical axis rules of the models current."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(_RULES):
        yield


def batch_sharding(mesh):
    """Split the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh):
    """Hold a value whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(name, size, mesh, parts=1):
    """Raise ValueError unless a global batch divides over the mesh and the accumulation parts."""
    if size < 1 or size % (mesh.size * parts):
        raise ValueError(
            f"batch size {size} of group {name!r} is not a multiple of {mesh.size * parts} "
            f"({mesh.size} devices x {parts} accumulation parts)"
        )


def _tensor_spec(name, shape, fsdp):
    if fsdp == 1 or int(np.prod(shape)) < _MIN_SHARDED_SIZE:
        return PartitionSpec()
    first = 1 if _STACKED in name.split("/") else 0
    divisible = [axis for axis in range(first, len(shape)) if shape[axis] % fsdp == 0]
    if not divisible:
        logging.info("replicated, no axis divides by %d: %s %s", fsdp, name, shape)
        return PartitionSpec()
    axis = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * axis, "fsdp")


def state_sharding(abstract_state, mesh):
    """Choose the sharding of every tensor of a state.

    The longest axis that divides by the fsdp size is split, never the depth axis of
    stacked blocks. Adam moments and the EMA copy have the shapes and names of their
    parameter, so the same rule gives them its sharding.

    Args:
      abstract_state: tree of `jax.ShapeDtypeStruct`.

    Returns:
      Tree of `NamedSharding`.
    """
    leaves, treedef = jax.tree.flatten(abstract_state)
    specs = [
        _tensor_spec(name, leaf.shape, mesh.shape["fsdp"]) for name, leaf in zip(tensor_names(abstract_state), leaves)
    ]
    return treedef.unflatten([NamedSharding(mesh, spec) for spec in specs])


def put_batch(batch, mesh):
    """Assemble the global batch on the devices from the rows this process holds."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
