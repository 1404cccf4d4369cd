"""Where the latents of action-conditioned training come from: an encoder, or shards that hold them."""

from typing import NamedTuple

from jepa_jax.data.errors import DataError
from jepa_jax.data.latents import Origin
from jepa_jax.data.trajectory_clips import trajectory_indices
from jepa_jax.models import token_grid
from jepa_jax.tasks.robot_data import first_records
from jepa_jax.weights import bundle as weights
from jepa_jax.weights import store


class Features(NamedTuple):
    """Where the latents of a run come from, and their shape.

    Attributes:
      bundle: the frozen encoder, or None where only stored latents are at hand.
      sha256: identity of the encoder's weights.
      origin: of the latents that are read from the shards; None where they are computed.
      grid: (h, w) tokens of a frame.
      width: D.
    """

    bundle: weights.Bundle | None
    sha256: str
    origin: Origin | None
    grid: tuple[int, int]
    width: int

    @property
    def stored(self):
        """Tell whether latents are read from the shards."""
        return self.origin is not None


def find_features(config, sources, record):
    """Find out where latents come from: an encoder, or the shards.

    Args:
      config: ConfigDict.
      sources: of `robot_data.open_trajectories`.
      record: a `TrajectoryRecord` of the first of them.

    Returns:
      `Features`.

    Raises:
      ValueError: if there is neither, the stored latents are of another encoder, crop or rate, or the
        sources are not all of one kind.
      WeightsError: if the encoder cannot be read.
    """
    latents = _stored_latents(config, record)
    origin = latents and latents.origin
    _check_sources(config, sources, origin)
    if not config.encoder:
        if latents is None:
            raise ValueError("encoder is not set: give --config.encoder=WEIGHTS, or shards made by `prepare features`")
        return Features(None, origin.encoder_sha256, origin, origin.grid, origin.width)
    bundle = store.read(config.encoder, choose=lambda names: (weights.choose_encoder(names),))
    name = weights.choose_encoder(bundle.networks)
    bundle = weights.keep_networks(bundle, [name])
    network = bundle.networks[name]
    sha256 = network.sha256 or weights.network_sha256(network.params)
    size, patch = config.data.size, network.module.patch_size
    grid = token_grid(network.module.tubelet_size, size, size, patch, network.module.tubelet_size)[1:]
    if origin and origin.encoder_sha256 != sha256:
        raise ValueError(
            f"the shards hold latents of the encoder with sha256 {origin.encoder_sha256[:12]}..., but config.encoder "
            f"{config.encoder} is {sha256[:12]}...: give the encoder they were made with, or make them again"
        )
    return Features(bundle, sha256, origin, grid, network.module.width)


def _check_sources(config, sources, origin):
    """Raise ValueError unless the first record of every source holds what that of the first one does."""
    describe = lambda origin: f"features ({origin})" if origin else "frames"
    (first, _), *others = first_records(sources)
    for name, record in others:
        latents = _first_latents(config, record)
        if (other := latents and latents.origin) != origin:
            raise ValueError(f"{first} holds {describe(origin)}, {name} {describe(other)}: all data.paths must be of one kind")


def _first_latents(config, record):
    """Return the latents of a record's first wanted view, or None if it holds frames."""
    views = [view for view in record.views if not config.data.views or view.name in config.data.views]
    return next((view.latents for view in views if view.latents), None)


def _stored_latents(config, record):
    """Return a record's latents, found to be what the config wants, or None if it holds frames."""
    data, latents = config.data, _first_latents(config, record)
    if latents is None:
        return None
    wanted = (data.size, *data.crop_aspect)
    if tuple(latents.crop) != wanted:
        raise ValueError(
            f"the shards hold latents of crops (size, least and greatest aspect) {tuple(latents.crop)}, the config says "
            f"{wanted} (data.size, data.crop_aspect): change it, or make them again with `prepare features`"
        )
    if data.crop_scale[0] <= 1:
        raise ValueError(
            f"data.crop_scale {tuple(data.crop_scale)} asks for random crops, but the shards hold latents of the "
            "centered one: set it to (1.777, 1.777), or give the shards they were made from"
        )
    try:
        trajectory_indices(record.num_frames, record.sampling_fps, frames=data.frames, fps=data.fps, uniform=0.0,
                           stored=latents.frames)
    except DataError as error:
        if error.reason == "rate not stored":
            raise ValueError(
                f"{record.source_id}: {error}; it has latents of rows {', '.join(map(str, latents.frames[:3]))}, ... "
                f"Set data.fps to the rate they were made for, or make them with `prepare features --fps {data.fps:g}`"
            ) from error
    return latents
