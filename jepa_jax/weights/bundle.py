"""What every format of weights is turned into, and checked against: networks, weights, and how to feed them."""

import dataclasses
import hashlib
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from jepa_jax.models import pixels
from jepa_jax.models.spec import abstract_params
from jepa_jax.training.state import tensor_names

# The encoder that evaluation uses, then the one that is taken where the first is absent.
ENCODERS = ("target_encoder", "encoder")
NETWORKS = (*ENCODERS, "predictor", "action_predictor")
# Probes of one file are numbered: probe_0, probe_1, ...
PROBE = "probe_"
PROBE_NAME = re.compile(PROBE + r"\d+")
# What a loaded model is made of.
ROLES = ("encoder", "predictor", "action_predictor", "probe")
_SHOWN = 20


class WeightsError(ValueError):
    """Say why weights cannot be used: what is wrong, where, and what would be right."""


class Network(NamedTuple):
    """A network and its weights.

    Attributes:
      module: Flax module from `jepa_jax.models`.
      params: nested dict of float32 numpy arrays.
      sha256: identity of the weights as stored with them, or "" where it was not; see
        `network_sha256`.
    """

    module: Any
    params: dict
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How frames become the input of the encoder; pinned with the weights.

    Attributes:
      crop_size: side of the square input, pixels.
      short_side: frames are resized to this short side before the centre crop, pixels.
      frames: frames per clip in the last phase of training; the encoder takes others too.
      interpolation, antialias: of the resize. Official evaluation: "bilinear" (half-pixel
        centres), without antialias.
      mean, std: per channel, in units of [0, 1].
    """

    crop_size: int = 256
    short_side: int = 292
    frames: int = 64
    interpolation: str = "bilinear"
    antialias: bool = False
    mean: tuple[float, ...] = tuple(float(f"{x:.3f}") for x in pixels.PIXEL_MEAN)
    std: tuple[float, ...] = tuple(float(f"{x:.3f}") for x in pixels.PIXEL_STD)

    def __post_init__(self):
        if self.interpolation != "bilinear" or self.antialias:
            raise WeightsError(
                f"preprocessing with interpolation {self.interpolation!r}, antialias {self.antialias}; this "
                "code resizes as official evaluations do: 'bilinear', without antialias"
            )
        if not 0 < self.crop_size <= self.short_side or len(self.mean) != 3 or len(self.std) != 3:
            raise WeightsError(f"impossible preprocessing: {self}")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a probe was trained to see a video.

    Attributes:
      name: for people, e.g. "ssv2".
      frames: frames of a segment.
      frame_step: native frames from one to the next.
      num_segments: segments in time; the probe gets the tokens of all of them at once.
      num_views: square crops along the long side; their probabilities are averaged. A single view
        is the central crop of `Preprocessing`.
      crop_size: side of a view, pixels.
      layers: 0-based blocks whose outputs the probe gets, joined along the tokens;
        empty for the output of the encoder.
      use_pos_embed: add to the tokens when their frames are shown in the video, see `models.time_table`. Off in all released
        configs; for tokens of a single layer.

    Raises:
      WeightsError: if times are to be added to several layers.
    """

    name: str
    frames: int
    frame_step: int
    num_segments: int
    num_views: int
    crop_size: int
    layers: tuple[int, ...] = ()
    use_pos_embed: bool = False

    def __post_init__(self):
        if self.use_pos_embed and self.layers:
            raise WeightsError(f"protocol.use_pos_embed is on and protocol.layers is {self.layers}; times are added to the encoder's output only: "
                               "leave protocol.layers empty")

    def describe(self):
        """Say it in words."""
        segments = f"{self.num_segments} segment{'s' * (self.num_segments != 1)} of {self.frames} frames every {self.frame_step}"
        views = f"{self.num_views} view{'s' * (self.num_views != 1)} of {self.crop_size}"
        levels = f", layers {', '.join(map(str, self.layers))}" if self.layers else ""
        times = ", times of the frames added" if self.use_pos_embed else ""
        return f"{self.name}: {segments}, {views}{levels}{times}"

    def to_json(self):
        """Return the fields as JSON-able dict; `use_pos_embed` only where it is on, so that what was written before there was one is equal."""
        fields = dataclasses.asdict(self) | {"layers": list(self.layers)}
        return fields if self.use_pos_embed else {name: value for name, value in fields.items() if name != "use_pos_embed"}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Networks that belong together.

    Attributes:
      networks: dict from a name (`NETWORKS`, or `PROBE` and a number) to `Network`.
      preprocessing: `Preprocessing`; None where only a probe is known.
      labels: class names of the probes, or None.
      protocol: `Protocol` of the probes, or None.
      provenance: JSON-able dict: where the weights come from.
      notes: what was assumed, or left out and why; lines for people.
      world_model: JSON-able dict of what the action predictor was trained on, or None: `robot` (the
        fields of a `jepa_jax.robots.RobotSpec`), `frames`, `fps` (asked for), `crop_aspect`, `views`, `encoder_sha256`
        and, where they are known, `step_seconds` (from a frame to the next, in truth) and `short_side` (pixels, of the
        stored frames that were cropped).
      anticipation: JSON-able dict of what the probes anticipate, or None; see `weights.anticipation`.
    """

    networks: dict[str, Network]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    protocol: Protocol | None = None
    provenance: dict = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    world_model: dict | None = None
    anticipation: dict | None = None

    def probes(self):
        """Return the names of the probes, in order."""
        return probe_names(self.networks)


def probe_names(names):
    """Return those of the names of networks that are probes, in order."""
    return sorted((name for name in names if name.startswith(PROBE)), key=lambda name: int(name[len(PROBE) :]))


def choose_probe(names, index=0):
    """Return the name of a probe by its number in the file.

    Raises:
      WeightsError: if there is none, or not that many.
    """
    probes = probe_names(names)
    if not probes:
        raise WeightsError(
            f"no classifier: these weights hold {', '.join(names)}; join a probe to its encoder: "
            "python -m jepa_jax.convert PROBE DST --join ENCODER"
        )
    if not 0 <= index < len(probes):
        raise WeightsError(f"probe {index} is not there: these weights hold probes 0 to {len(probes) - 1}")
    return probes[index]


def choose_encoder(names, wanted=None):
    """Return the name of the encoder to use: the one wanted, or else the EMA target, as evaluation does.

    Args:
      names: names of the networks that are there.
      wanted: one of `ENCODERS`, or None.

    Raises:
      WeightsError: if it, or any encoder, is absent.
    """
    if wanted is not None and wanted not in ENCODERS:
        raise WeightsError(f"encoder {wanted!r} is unknown; choose one of {', '.join(ENCODERS)}")
    for name in (wanted,) if wanted else ENCODERS:
        if name in names:
            return name
    have = ", ".join(names)
    if wanted is None and probe_names(names):
        raise WeightsError(
            f"a probe where an encoder is expected: these weights hold {have} only. Join them with "
            "their encoder: python -m jepa_jax.convert PROBE DST --join ENCODER"
        )
    raise WeightsError(f"these weights have no {wanted or 'encoder'}; they hold: {have}")


def choose_networks(names, encoder=None, probe=0, roles=None):
    """Choose one network for every role a model has.

    Args:
      names: names of the networks that are there.
      encoder: see `choose_encoder`.
      probe: see `choose_probe`.
      roles: which of `ROLES` to fill, each of which must be there; all possible if None.

    Returns:
      dict from role to name.

    Raises:
      WeightsError: if a role is unknown or cannot be filled, or there is no encoder.
    """
    unknown = [role for role in roles or () if role not in ROLES]
    if unknown:
        raise WeightsError(f"unknown networks {', '.join(unknown)}; choose from {', '.join(ROLES)}")
    chosen = {}
    if roles is None or "encoder" in roles:
        chosen["encoder"] = choose_encoder(names, encoder)
    for role in ("predictor", "action_predictor"):
        if role in names and (roles is None or role in roles):
            chosen[role] = role
    if probe_names(names) and roles is None or "probe" in (roles or ()):
        chosen["probe"] = choose_probe(names, probe)
    absent = [role for role in roles or () if role not in chosen]
    if absent:
        raise WeightsError(f"these weights have no {', '.join(absent)}; they hold: {', '.join(names)}")
    return chosen


def keep_networks(bundle, names):
    """Return a bundle with some of its networks.

    Raises:
      WeightsError: if a name is unknown.
    """
    unknown = [name for name in names if name not in bundle.networks]
    if unknown:
        raise WeightsError(f"no network {', '.join(unknown)} here; there are: {', '.join(bundle.networks)}")
    networks = {name: network for name, network in bundle.networks.items() if name in names}
    return dataclasses.replace(bundle, networks=networks)


def combine(probe, backbone):
    """Join the probes of one bundle with the encoder and predictor of another.

    Raises:
      WeightsError: if the first has no probe, or the two do not fit.
    """
    probes = {name: probe.networks[name] for name in probe.probes()}
    if not probes:
        raise WeightsError(f"nothing to join: SRC has no probe, it holds {', '.join(probe.networks)}")
    encoder = backbone.networks[choose_encoder(backbone.networks)].module
    for name, network in probes.items():
        if network.module.width != encoder.width:
            raise WeightsError(
                f"{name} takes features of width {network.module.width}, this encoder has {encoder.width}"
            )
    rest = {name: network for name, network in backbone.networks.items() if not name.startswith(PROBE)}
    provenance = backbone.provenance | {"probe": probe.provenance}
    return dataclasses.replace(
        probe,
        networks=rest | probes,
        preprocessing=backbone.preprocessing,
        provenance=provenance,
        notes=(*backbone.notes, *probe.notes),
    )


def network_sha256(params):
    """Return the identity of a network's weights: a hash of names, shapes, dtypes and values.

    It does not depend on the file format, so a converted network keeps it.

    Args:
      params: nested dict of arrays.

    Returns:
      64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(zip(tensor_names(params), jax.tree.leaves(params))):
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(leaf.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def count_params(params):
    """Return the number of parameters of a nested dict of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def abstract_tree(module):
    """Return the parameters a network must have, as `models.spec.abstract_params` does.

    Raises:
      WeightsError: if its sizes are impossible, such as a width that heads do not divide.
    """
    try:
        return abstract_params(module)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise WeightsError(f"impossible {type(module).__name__}: {str(error).splitlines()[0]}") from error


def expected_shapes(module):
    """Return the tensors a network must have, as dict from flat name to shape."""
    abstract = abstract_tree(module)
    return {name: leaf.shape for name, leaf in zip(tensor_names(abstract), jax.tree.leaves(abstract))}


def check_tensors(found, expected, what, allowed=()):
    """Check that tensors are those of a network: none missing, none left over, none of another shape.

    Args:
      found, expected: dicts from name to shape.
      what: the file or entry, for the message.
      allowed: names that may be there without being expected.

    Raises:
      WeightsError: listing every tensor that does not fit.
    """
    problems = [f"missing: {name} {expected[name]}" for name in expected if name not in found]
    problems += [f"unknown: {name} {found[name]}" for name in found if name not in expected and name not in allowed]
    problems += [
        f"shape: {name} is {found[name]}, needed {expected[name]}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] * (len(problems) > _SHOWN)
        lines = "\n  ".join(problems[:_SHOWN] + more)
        raise WeightsError(
            f"{what} does not hold the network it should ({len(problems)} tensors do not fit):\n  {lines}"
        )


def check_values(tensors, what):
    """Check that every tensor is a finite float, and return them as float32 (exact for narrower floats).

    Raises:
      WeightsError: naming the tensors that are not.
    """
    checked, problems = {}, []
    for name, value in tensors.items():
        wide = np.asarray(value)
        # bfloat16 is no numpy float, but casts like one.
        if wide.dtype.kind not in "fV" or wide.dtype.itemsize > 4:
            problems.append(f"{name} is {wide.dtype}")
            continue
        wide = wide.astype(np.float32, copy=False)
        if not np.isfinite(wide).all():
            problems.append(f"{name} has {int((~np.isfinite(wide)).sum())} values that are not finite")
        checked[name] = wide
    if problems:
        raise WeightsError(f"{what} holds tensors that are no weights: {'; '.join(problems[:_SHOWN])}")
    return checked
