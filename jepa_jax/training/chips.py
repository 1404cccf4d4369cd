"""What accelerators can do: the one table of their speeds and sizes.

All numbers are of a whole chip. Rates are in operations or bytes per second; bandwidths of networks are one way, what
vendors call bidirectional being twice that. `None` stands where nothing here needs the number.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """One generation.

    Attributes:
      kinds: starts of `jax.Device.device_kind`.
      peak_flops: dense bfloat16, without sparsity.
      hbm_bytes: of a chip, what the compiler lets programs use, which is a little less than what is sold.
      hbm_bandwidth, ici_bandwidth, dcn_bandwidth: of HBM, of all links of a chip to its neighbours together, and of its
        share of the host's network.
      devices: that JAX shows per chip.
      matrix_side: rows and columns of a matrix unit; narrower products leave a part of it idle.
      chips_per_host, cores_per_host: of the virtual machines that slices of several hosts are made of; cores as the
        system counts them.
      axes, chips_per_pod: of the torus that slices are cut from.
      source: where the numbers are from.
    """

    kinds: tuple[str, ...]
    peak_flops: float
    hbm_bytes: float | None = None
    hbm_bandwidth: float | None = None
    ici_bandwidth: float | None = None
    dcn_bandwidth: float | None = None
    devices: int = 1
    matrix_side: int | None = None
    chips_per_host: int | None = None
    cores_per_host: int | None = None
    axes: int | None = None
    chips_per_pod: int | None = None
    source: str = ""


_GIB = 2**30
_USABLE = ("usable HBM: the compiler's message on overflow, libtpu 0.0.42.1; matrix unit: jax/_src/pallas/mosaic/tpu_info.py of JAX 0.10.2; "
           "cores: https://docs.cloud.google.com/kubernetes-engine/docs/concepts/tpus")
_NVIDIA = "https://www.nvidia.com/en-us/data-center (data sheets, without sparsity)"
# By the name that topologies have, where they are.
CHIPS = {
    "v4": Chip(
        ("TPU v4",), 275e12, 30.75 * _GIB, 1200e9, 300e9, 6.25e9, 1, 128, 4, 240, 3, 4096,
        "https://docs.cloud.google.com/tpu/docs/v4; ICI of 6 links of 50 GB/s: arXiv 2304.01433; DCN is not stated, taken "
        "as of v5p; " + _USABLE,
    ),
    "v5e": Chip(
        ("TPU v5 lite", "TPU v5e"), 197e12, 15.75 * _GIB, 819e9, 200e9, 3.125e9, 1, 128, 4, 112, 2, 256,
        "https://docs.cloud.google.com/tpu/docs/v5e (400 GBps ICI both ways, 6.4 Tbps DCN per pod of 256); " + _USABLE,
    ),
    "v5p": Chip(
        ("TPU v5p", "TPU v5"), 459e12, 95.74 * _GIB, 2765e9, 600e9, 6.25e9, 1, 128, 4, 208, 3, 8960,
        "https://docs.cloud.google.com/tpu/docs/v5p (1200 GBps ICI both ways, 50 Gbps DCN per chip); " + _USABLE,
    ),
    "v6e": Chip(
        ("TPU v6",), 918e12, 31.25 * _GIB, 1638e9, 400e9, 12.5e9, 1, 256, 4, 180, 2, 256,
        "https://docs.cloud.google.com/tpu/docs/v6e (800 GBps ICI both ways, 25.6 Tbps DCN per pod of 256); " + _USABLE,
    ),
    "tpu7x": Chip(
        ("TPU7x",), 2307e12, 2 * 94.75 * _GIB, 7380e9, 600e9, 12.5e9, 2, 256, 4, 224, 3, 9216,
        "https://docs.cloud.google.com/tpu/docs/tpu7x (1200 GBps ICI both ways, 100 Gbps DCN per chip); " + _USABLE,
    ),
    "a100": Chip(("NVIDIA A100",), 312e12, source=_NVIDIA),
    "h100": Chip(("NVIDIA H100", "NVIDIA H200", "NVIDIA GH200"), 989e12, source=_NVIDIA),
    "b200": Chip(("NVIDIA B200",), 2250e12, source=_NVIDIA),
}


def find_chip(device_kind):
    """Return the `Chip` of a `device_kind`, or None if it is not in our table."""
    matches = [(len(kind), chip) for chip in CHIPS.values() for kind in chip.kinds if device_kind.startswith(kind)]
    # "TPU v5 lite" is not a "TPU v5": the longest name decides.
    return max(matches, key=lambda match: match[0])[1] if matches else None


def peak_flops(device):
    """Return the bf16 peak of a `jax.Device` in operations per second, or None if it is not in our table."""
    chip = find_chip(device.device_kind)
    return chip and chip.peak_flops / chip.devices
