"""What the caller says about weights, applied to what was read: the same for every format."""

import dataclasses

from jepa_jax.models import encoder_size, token_grid
from jepa_jax.weights import official_config
from jepa_jax.weights.bundle import ENCODERS, WeightsError
from jepa_jax.weights.inference import kind_of
from jepa_jax.weights.released import find_protocol


def settle(bundle, hints, what):
    """Apply labels, protocol and the way to read rotary positions, and compare everything else.

    Args:
      bundle: `Bundle`.
      hints: `Hints`.
      what: the path, for messages.

    Returns:
      `Bundle`.

    Raises:
      WeightsError: if the hints contradict it, or there are not as many labels as classes.
    """
    if hints.config:
        config = official_config.read_config(hints.config)
        hints = official_config.add_to_hints(config, hints, hints.config)
        official_config.compare(config, bundle.networks, hints.config)
    wrong = [line for name, network in bundle.networks.items() for line in _contradictions(name, network.module, hints)]
    if bundle.preprocessing:
        for key in ("crop_size", "frames"):
            said, there = getattr(hints, key), getattr(bundle.preprocessing, key)
            if said not in (None, there):
                wrong.append(f"{key} is {there}, not {said}")
    if wrong:
        raise WeightsError(f"{what} is not what was said of it:\n  " + "\n  ".join(wrong))
    if hints.rope_grid == "config":
        networks = {name: _with_configured_grid(name, network) for name, network in bundle.networks.items()}
        bundle = dataclasses.replace(bundle, networks=networks)
    protocol, notes = find_protocol(hints.protocol) if hints.protocol else bundle.protocol, bundle.notes
    if bundle.protocol not in (None, protocol):
        notes = (*notes, f"protocol {protocol.describe()} as asked for; the weights say {bundle.protocol.describe()}")
    bundle = dataclasses.replace(bundle, protocol=protocol, labels=hints.labels or bundle.labels, notes=notes)
    check_surroundings(bundle, what)
    return bundle


def _contradictions(name, module, hints):
    kind = kind_of(name)
    if hints.heads.get(kind, module.num_heads) != module.num_heads:
        yield f"{name} has {module.num_heads} heads, not {hints.heads[kind]}"
    if kind in ("encoder", "predictor") and hints.positions not in (None, module.positions):
        yield f"{name} has {module.positions} positions, not {hints.positions}"
    if kind == "action_predictor" and hints.use_extrinsics and not module.use_extrinsics:
        yield f"{name} gets no camera extrinsics"
    if kind == "encoder" and hints.size:
        try:
            size = encoder_size(hints.size)
        except ValueError as error:
            raise WeightsError(str(error)) from error
        for key in ("width", "depth", "num_heads"):
            if getattr(module, key) != size[key]:
                yield f"{name} has {key} {getattr(module, key)}; {hints.size} has {size[key]}"


def _with_configured_grid(name, network):
    if name not in ENCODERS:
        return network
    return network._replace(module=network.module.clone(rope_grid=network.module.table_grid[1:]))


def check_surroundings(bundle, what):
    """Check that labels and protocol fit the networks.

    Raises:
      WeightsError: if there are not as many labels as classes, or the encoder cannot take the protocol's clips.
    """
    for name in bundle.probes():
        outputs = bundle.networks[name].module.outputs
        if bundle.labels is not None and (len(outputs) != 1 or len(bundle.labels) != outputs[0][1]):
            classes = ", ".join(f"{count} for {output}" for output, count in outputs)
            raise WeightsError(f"{what}: {len(bundle.labels)} labels for a probe with other classes ({classes})")
    encoders = [bundle.networks[name].module for name in ENCODERS if name in bundle.networks]
    if bundle.protocol is None or not encoders:
        return
    protocol = bundle.protocol
    for _, problem in find_misfits(encoders[0], protocol.frames, protocol.crop_size, protocol.layers):
        raise WeightsError(f"protocol {protocol.name} does not suit this encoder: {problem}")


def find_misfits(encoder, frames, crop_size, layers=()):
    """List what an encoder cannot take of what it is asked for.

    Args:
      encoder: `VideoEncoder`.
      frames, crop_size, layers: see `Protocol`.

    Returns:
      list of (name of the argument, what is wrong with it); empty where all fits.
    """
    found = []
    if any(not 0 <= layer < encoder.depth for layer in layers):
        found.append(("layers", f"it takes blocks {tuple(layers)}; this encoder has {encoder.depth}, counted from 0"))
    patch, tubelet = encoder.patch_size, encoder.tubelet_size
    for name, clip in (("frames", (frames, patch, patch)), ("crop_size", (tubelet, crop_size, crop_size))):
        try:
            token_grid(*clip, patch, tubelet)
        except ValueError as error:
            found.append((name, str(error)))
    return found


def note_levels(protocol, encoder):
    """Return a line for people, in a tuple, where a probe does not get the encoder's last block; an empty tuple where it does."""
    if not protocol.layers or max(protocol.layers) == encoder.depth - 1:
        return ()
    return (f"protocol {protocol.name} takes blocks {', '.join(map(str, protocol.layers))} and not the encoder's last, {encoder.depth - 1}: "
            "is it that of another model?",)
