"""The device mesh and who holds what on it."""

import contextlib

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jepa_jax.training.state import tensor_names

BATCH_AXES, SEQUENCE = ("data", "fsdp"), "sequence"
_RULES = (("batch", BATCH_AXES), ("tokens", SEQUENCE), ("width", None))
# Smaller tensors are cheaper to replicate than to gather.
_MIN_SHARDED_SIZE = 2**14
# Parameters under this name are stacked over depth, and the scan walks that axis.
_STACKED = "layers"


def make_mesh(fsdp=1, devices=None, sequence=1):
    """Arrange devices as (data, fsdp, sequence).

    The batch is split over data and fsdp, the tokens of every clip over sequence: for clips so long that there are fewer of
    them than devices, or that one does not fit. Where the devices are several slices, each with a fast network inside and a slow one between them, the data axis runs
    over the slices and the fsdp axis stays within one: parameters are gathered in every block, gradients once per step.

    Args:
      fsdp: devices over which parameters are split; -1 takes all, of a slice.
      devices: list of devices; all of them if None.
      sequence: devices over which the tokens of a clip are split; they are of one process, since processes read different clips.

    Raises:
      ValueError: if `fsdp` and `sequence` do not divide the number of devices, of a slice, or `sequence` not those of a process.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({slice_of(device) for device in devices})
    inside = len(devices) // slices
    where = f"the number of devices, {inside}" if slices == 1 else f"the {inside} devices of a slice"
    if sequence < 1 or inside % sequence:
        raise ValueError(f"mesh.sequence {sequence} does not divide {where}")
    fsdp = inside // sequence if fsdp == -1 else fsdp
    if fsdp < 1 or inside % (fsdp * sequence):
        raise ValueError(f"mesh.fsdp {fsdp}{f' x mesh.sequence {sequence}' if sequence > 1 else ''} does not divide {where}")
    shape = (inside // (fsdp * sequence), fsdp, sequence)
    names, types = (*BATCH_AXES, SEQUENCE), (AxisType.Auto,) * 3
    if sequence > 1:
        # Whatever the network looks like, neighbours in this axis are of one process.
        ordered = sorted(devices, key=lambda device: (slice_of(device), device.process_index, device.id))
        arranged = np.array(ordered).reshape(slices * shape[0], *shape[1:])
        if any(len({device.process_index for device in group}) > 1 for group in arranged.reshape(-1, sequence)):
            raise ValueError(f"mesh.sequence {sequence} does not divide the devices of a process; the tokens of a clip are split within one")
        return Mesh(arranged, names, axis_types=types)
    # Axes of the network are split between ours only where ours fit no other way, as 64 does not into 16 x 16.
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        arranged = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(arranged, names, axis_types=types)


def fitting_devices(*sizes):
    """List over how many of this process's devices batches of all these sizes can be split evenly, ascending."""
    return [number for number in range(1, jax.local_device_count() + 1) if not any(size % number for size in sizes)]


def slice_of(device):
    """Return the number of the slice that a device belongs to; 0 where there are no slices."""
    number = getattr(device, "slice_index", None)
    return 0 if number is None else number


@contextlib.contextmanager
def use_mesh(mesh):
    """Make a mesh and the logical axis rules of the models current."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(_RULES):
        yield


def batch_parts(mesh):
    """Return into how many parts a batch is split."""
    return mesh.size // mesh.shape[SEQUENCE]


def batch_sharding(mesh):
    """Split the leading axis over all devices but those that share clips."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh):
    """Hold a value whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(name, size, mesh, parts=1):
    """Raise ValueError unless a global batch divides over the mesh and the accumulation parts."""
    shares = batch_parts(mesh)
    if size < 1 or size % (shares * parts):
        groups = "devices" if shares == mesh.size else f"groups of {mesh.size // shares} devices"
        raise ValueError(
            f"batch size {size} of group {name!r} is not a multiple of {shares * parts} "
            f"({shares} {groups} x {parts} accumulation parts)"
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
