"""Loaded weights, ready to run: `model, params = load(path)`, `model.encode(params, clip)`."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.models import VideoEncoder, join_levels, join_segments, normalize_pixels, time_table, token_grid
from jepa_jax.weights.bundle import Preprocessing, Protocol, WeightsError, choose_probe


class Features(NamedTuple):
    """Features of a batch of clips.

    Attributes:
      tokens: `[B, N, D]` after the final norm, row-major over (time, row, column), in the
        compute dtype; `[L, B, N, D]` where L layers were asked for.
      grid: (t, h, w), N = t * h * w.
    """

    tokens: jax.Array
    grid: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Model:
    """An encoder and what belongs to it. Weights are separate: every method takes `params`.

    Attributes:
      networks: dict from "encoder", "predictor", "action_predictor" or "probe" to its module;
        `params` has the same keys.
      preprocessing: how frames become its input.
      sha256: dict from the same keys to the identity of the weights.
      labels: class names of the probe, or None.
      protocol: how the probe was trained to see a video, or None.
      provenance: where the weights come from; JSON-able.
      notes: what was assumed about the weights, or left out of them, and why.
      world_model: what the action predictor was trained on, or None; see `Bundle`.
    """

    networks: dict
    preprocessing: Preprocessing
    sha256: dict[str, str]
    labels: tuple[str, ...] | None = None
    protocol: Protocol | None = None
    provenance: dict = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    world_model: dict | None = None

    @property
    def encoder(self) -> VideoEncoder:
        """Return the encoder module."""
        return self.networks["encoder"]

    def encode(self, params, clip, layers=()):
        """Encode clips; compiled once per shape.

        Args:
          params: as returned by `load`.
          clip: uint8 RGB, `[T, H, W, 3]` for one clip, `[B, T, H, W, 3]` for a batch; an image
            is a clip of one frame. T, H and W are whole tubelets and patches.
          layers: 0-based blocks whose outputs are wanted instead of the last one's, each after the final
            norm; negative ones count from the end.

        Returns:
          `Features`; the batch axis is there also for one clip.

        Raises:
          TypeError: if the clip is not uint8.
          ValueError: if a size is not whole tubelets or patches, or a layer does not exist.
        """
        clip = jnp.asarray(check_clip(clip))
        encoder = self.encoder
        grid = token_grid(*clip.shape[1:4], encoder.patch_size, encoder.tubelet_size)
        layers = tuple(layer + encoder.depth if layer < 0 else layer for layer in layers)
        pre = self.preprocessing
        return Features(_encode(encoder, params["encoder"], clip, layers, pre.mean, pre.std), grid)

    def predict(self, params, context, context_ids, target_ids, grid, mask_index=1):
        """Predict the latents of hidden tokens from those of visible ones.

        Args:
          params: as returned by `load`.
          context: `[B, Kc, D]` tokens of the encoder at `context_ids`.
          context_ids, target_ids: int32 `[B, Kc]`, `[B, Kt]` token ids on `grid`.
          grid: (t, h, w).
          mask_index: which mask token stands for a hidden token. Parity: released evaluations and
            Hugging Face use 1, training uses the index of the clip group (0 for one group).

        Returns:
          `[B, Kt, D]`, in the order of `target_ids`.

        Raises:
          WeightsError: if these weights have no predictor.
        """
        if "predictor" not in self.networks:
            raise WeightsError(f"no predictor: these weights hold {', '.join(self.networks)}")
        return _predict(
            self.networks["predictor"], params["predictor"], context, context_ids, target_ids, tuple(grid), mask_index
        )

    def check_classifier(self):
        """Return the probe, if it is one that classifies.

        Raises:
          WeightsError: if these weights have no probe, or one that does not classify.
        """
        if "probe" not in self.networks:
            choose_probe(self.networks)
        probe = self.networks["probe"]
        names = [name for name, _ in probe.outputs]
        if len(names) != 1:
            raise WeightsError(
                f"this probe anticipates {', '.join(names)} from predicted features; it does not classify clips"
            )
        return probe

    def classify(self, params, views, frame_indices=None):
        """Compute class probabilities of one video.

        Args:
          params: as returned by `load`.
          views: uint8 `[S, V, T, H, W, 3]`: S segments in time, V square views.
          frame_indices: int `[S, T]`, which frames of the video they show; needed only where the protocol adds their times.

        Returns:
          float32 `[classes]`: the probe sees the tokens of all segments at once; the softmax is
          averaged over the views.

        Raises:
          WeightsError: if these weights have no probe, or one that does not classify.
          ValueError: if the frames are needed and not given.

        Source: evals/video_classification_frozen/eval.py.
        """
        probe = self.check_classifier()
        layers, times = self.protocol.layers if self.protocol else (), None
        if self.protocol and self.protocol.use_pos_embed:
            if frame_indices is None:
                raise ValueError("this probe takes the times of frames (use_pos_embed): frame_indices are needed, int [S, T], as "
                                 "features.views.read_views returns them")
            times = time_table(self.encoder.width, np.asarray(frame_indices)[:, None], self.encoder.tubelet_size)
        total = 0.0
        for view in np.swapaxes(views, 0, 1):
            # Clip by clip and view by view: both networks need far more memory than what is kept.
            tokens = [self.encode(params, clip, layers).tokens for clip in view]
            total += _classify(probe, params["probe"], tokens, bool(layers), times)
        return total / views.shape[1]


def check_clip(clip):
    """Return a uint8 array of numpy or JAX as a batch `[B, T, H, W, 3]`.

    Raises:
      TypeError: if it is not uint8.
      ValueError: if it is no RGB clip.
    """
    if getattr(clip, "dtype", None) != np.uint8:
        raise TypeError(
            "a clip is a uint8 array of RGB in 0..255 (normalisation is the model's part), not "
            f"{getattr(clip, 'dtype', type(clip).__name__)}; for normalised floats call model.encoder.apply"
        )
    if clip.ndim not in (4, 5) or clip.shape[-1] != 3 or not all(clip.shape):
        raise ValueError(f"a clip is [T, H, W, 3] or [B, T, H, W, 3], not {list(clip.shape)}")
    return clip[None] if clip.ndim == 4 else clip


@functools.partial(jax.jit, static_argnames=("encoder", "layers", "mean", "std"))
def _encode(encoder, params, clip, layers, mean, std):
    video = normalize_pixels(clip, np.float32(mean), np.float32(std))
    if layers:
        return encoder.apply({"params": params}, video, layers, method="encode_layers")
    return encoder.apply({"params": params}, video)


@functools.partial(jax.jit, static_argnames=("probe", "several_layers"))
def _classify(probe, params, tokens, several_layers, times):
    """Turn the tokens of the segments of one view, `[1, N, D]` or `[L, 1, N, D]` each, and their times, if any, into probabilities."""
    if several_layers:
        tokens = [join_levels(segment) for segment in tokens]
    joined = join_segments(jnp.stack(tokens)[:, None], times)[0]
    (logits,) = probe.apply({"params": params}, joined).values()
    return jax.nn.softmax(logits[0])


@functools.partial(jax.jit, static_argnames=("predictor", "grid", "mask_index"))
def _predict(predictor, params, context, context_ids, target_ids, grid, mask_index):
    return predictor.apply({"params": params}, context, context_ids, target_ids, grid, mask_index)
