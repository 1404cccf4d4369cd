"""The device mesh and who holds what on it."""

import contextlib

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jepa_jax.training.state import tensor_names

BATCH_AXES = ("data", "fsdp")
_RULES = (("batch", BATCH_AXES), ("tokens", None), ("width", None))
# Smaller tensors are cheaper to replicate than to gather.
_MIN_SHARDED_SIZE = 2**14
# Parameters under this name are stacked over depth, and the scan walks that axis.
_STACKED = "layers"


def make_mesh(fsdp=1, devices=None):
    """Arrange devices as (data, fsdp).

    Where the devices are several slices, each with a fast network inside and a slow one between them, the data axis runs
    over the slices and the fsdp axis stays within one: parameters are gathered in every block, gradients once per step.

    Args:
      fsdp: devices over which parameters are split; -1 takes all, of a slice.
      devices: list of devices; all of them if None.

    Raises:
      ValueError: if `fsdp` does not divide the number of devices, of a slice.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({slice_of(device) for device in devices})
    inside = len(devices) // slices
    fsdp = inside if fsdp == -1 else fsdp
    if fsdp < 1 or inside % fsdp:
        where = f"the number of devices, {inside}" if slices == 1 else f"the {inside} devices of a slice"
        raise ValueError(f"mesh.fsdp {fsdp} does not divide {where}")
    types = (AxisType.Auto,) * 2
    if slices == 1:
        return jax.make_mesh((inside // fsdp, fsdp), BATCH_AXES, axis_types=types, devices=devices)
    arranged = mesh_utils.create_hybrid_device_mesh((inside // fsdp, fsdp), (slices, 1), devices)
    return Mesh(arranged, BATCH_AXES, axis_types=types)


def slice_of(device):
    """Return the number of the slice that a device belongs to; 0 where there are no slices."""
    number = getattr(device, "slice_index", None)
    return 0 if number is None else number


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


def _split_axis(name, shape, fsdp):
    """Return the axis of a tensor that is split, or None if it has none that divides."""
    first = 1 if _STACKED in name.split("/") else 0
    divisible = [axis for axis in range(first, len(shape)) if shape[axis] % fsdp == 0]
    return max(divisible, key=lambda axis: shape[axis]) if divisible else None


def _tensor_spec(name, shape, fsdp):
    if fsdp == 1 or int(np.prod(shape)) < _MIN_SHARDED_SIZE or (axis := _split_axis(name, shape, fsdp)) is None:
        return PartitionSpec()
    return PartitionSpec(*[None] * axis, "fsdp")


def unsplit(tree, mesh):
    """List the tensors that are worth splitting over the fsdp axis, but have no axis that divides by it.

    Args:
      tree: of `jax.ShapeDtypeStruct`.

    Returns:
      List of (name, shape).
    """
    fsdp = mesh.shape["fsdp"]
    named = zip(tensor_names(tree), jax.tree.leaves(tree))
    return [(name, leaf.shape) for name, leaf in named
            if fsdp > 1 and int(np.prod(leaf.shape)) >= _MIN_SHARDED_SIZE and _split_axis(name, leaf.shape, fsdp) is None]


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


def place_abstract(tree, shardings):
    """Give the `jax.ShapeDtypeStruct`s of a tree their shardings, a tree alike or one for all."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, own: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own), tree, shardings)


def put_batch(batch, mesh):
    """Assemble the global batch on the devices from the rows this process holds."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
