"""How long a step takes at least, by what a chip can compute, move and send; a prediction, not a measurement."""

from typing import NamedTuple

import numpy as np

# Queries that share one reading of all keys and values in the TPU kernel.
_QUERY_BLOCK = 512
# The kernel's backward pass multiplies seven times where four products are needed: scores are computed in both halves.
_BACKWARD_PRODUCTS, _FORWARD_PRODUCTS = 7, 2
# Per token and block, in widths: queries, keys and values (1 in, 3 out), rotation (2, 2), attention (1 and the keys and
# values, 1), projection (1, 1), input and output of the MLP (1, 1), two residual sums (2, 2).
_WIDTHS_PER_BLOCK = 18


class Assumptions(NamedTuple):
    """Shares of what is on the data sheet that programs are taken to reach.

    Attributes:
      peak_fraction: of the matrix units' peak, in products that fill them.
      hbm_fraction: of the bandwidth of HBM.
      network_fraction: of the bandwidth of ICI and DCN.
    """

    peak_fraction: float = 0.5
    hbm_fraction: float = 0.8
    network_fraction: float = 0.5

    def lines(self):
        """Say what is assumed."""
        return [
            f"matrix products reach {self.peak_fraction:g} of the bf16 peak; those of attention that, times head size over the side of "
            "a matrix unit",
            f"the attention kernel's backward pass takes {_BACKWARD_PRODUCTS} products for {2 * _FORWARD_PRODUCTS}; padding of tokens to "
            "whole blocks, norms and the optimiser take no time in the matrix units",
            f"HBM reaches {self.hbm_fraction:g} of its bandwidth. Moved: weights once per pass and once more to gather them, gradients, the "
            f"state twice, and per token and block {_WIDTHS_PER_BLOCK} widths, the hidden layer twice and the keys and values once per "
            f"{_QUERY_BLOCK} queries; twice that backward",
            f"the network reaches {self.network_fraction:g} of its bandwidth, in all links of a chip together; latency is left out",
            "compute, HBM and network overlap perfectly in `step_s`, compute and network not at all in `step_s_without_overlap`",
        ]


def executed_flops(passes):
    """Count what the program multiplies, recomputation and the attention kernel's surplus included.

    Returns:
      (operations of products with weights, dict of head size -> operations of attention) on the global batch.
    """
    dense, attention = 0.0, {}
    for one in passes:
        remat = one.module.remat
        linear = one.samples * (one.flops - one.attention_flops)
        dense += linear * (1 + (2 + (remat == "full") if one.trained else 0))
        backward = _BACKWARD_PRODUCTS / _FORWARD_PRODUCTS + (remat != "none")
        scores = one.samples * one.attention_flops * (1 + (backward if one.trained else 0))
        attention[one.head_dim] = attention.get(one.head_dim, 0.0) + scores
    return dense, attention


def moved_bytes(passes, weights, state_bytes, devices, *, gathered):
    """Estimate what one device reads from and writes to HBM in a step.

    Args:
      passes: `flops.Pass`es.
      weights: number of parameters by network.
      state_bytes: parameters, EMA and moments of one device.
      devices: that share the batch.
      gathered: weights are split over devices and gathered in every pass.

    Returns:
      dict of bytes: weights, activations, state.
    """
    moved = {"weights": 0.0, "activations": 0.0, "state": 2.0 * state_bytes}
    for one in passes:
        item = np.dtype(one.module.dtype).itemsize
        again = one.module.remat == "full"
        visits = 1 + (1 + again if one.trained else 0)
        moved["weights"] += weights[one.network] * item * visits * (2 if gathered else 1)
        if one.trained:
            moved["weights"] += 2 * weights[one.network] * item
        width = one.module.width
        keys = 2 * width * -(-one.tokens // _QUERY_BLOCK)
        per_token = _WIDTHS_PER_BLOCK * width + 2 * int(width * one.module.mlp_ratio) + keys
        forward = one.samples / devices * one.tokens * one.module.depth * per_token * item
        moved["activations"] += forward * (1 + (2 + again if one.trained else 0))
    return moved


def predict(passes, model_flops, items, moved, network, topology, assumptions):
    """Predict the time of a step.

    Args:
      passes: `flops.Pass`es of the global batch.
      model_flops: of the step, without recomputation.
      items: clips or plans of the step.
      moved: from `moved_bytes`.
      network: (ICI bytes, DCN bytes) that a device sends, or None if that is not known.
      topology: `Topology`.
      assumptions: `Assumptions`.

    Returns:
      JSON-able dict; seconds.
    """
    chip, peak = topology.chip, topology.chip.peak_flops * topology.num_chips
    dense, attention = executed_flops(passes)
    reached = peak * assumptions.peak_fraction
    compute = dense / reached + sum(
        work / (reached * min(1.0, size / chip.matrix_side)) for size, work in attention.items()
    )
    times = {"compute": compute,
             "hbm": sum(moved.values()) * chip.devices / (chip.hbm_bandwidth * assumptions.hbm_fraction)}
    if network is not None:
        speeds = [speed * assumptions.network_fraction / chip.devices for speed in (chip.ici_bandwidth, chip.dcn_bandwidth)]
        times["ici"], times["dcn"] = (sent / speed for sent, speed in zip(network, speeds))
        times["network"] = max(times["ici"], times["dcn"])
    bounds = {name: times[name] for name in ("compute", "hbm", "network") if name in times}
    bound = max(bounds, key=bounds.get)
    step = bounds[bound]
    return {
        "seconds": times,
        "bound": bound,
        "step_s": step,
        "step_s_without_overlap": max(times["compute"], times["hbm"]) + times.get("ici", 0.0) + times.get("dcn", 0.0),
        "network_over_compute": times["network"] / compute if network is not None else None,
        "items_per_s": items / step,
        "utilisation": model_flops / (step * peak),
        "executed_tflop": (dense + sum(attention.values())) / 1e12,
        "attention_tflop": sum(attention.values()) / 1e12,
        "hbm_bytes_per_device": moved,
        "assumed": assumptions._asdict(),
        "assumptions": assumptions.lines(),
    }
