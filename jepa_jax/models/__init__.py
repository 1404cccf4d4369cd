"""Networks as pure Flax modules: `params = model.init(rng, ...)`, `model.apply(params, ...)`."""

from jepa_jax.models.action_predictor import ActionPredictor
from jepa_jax.models.aggregate import join_levels, join_segments, time_table
from jepa_jax.models.anticipation import anticipate, furthest_grid
from jepa_jax.models.attention import attention
from jepa_jax.models.encoder import VideoEncoder, gather_tokens, token_grid
from jepa_jax.models.layers import BlockStack, FrameCache
from jepa_jax.models.norms import LayerNorm, normalize_latents
from jepa_jax.models.pixels import erase_boxes, normalize_pixels
from jepa_jax.models.predictor import MaskedPredictor
from jepa_jax.models.probe import AttentiveProbe
from jepa_jax.models.variants import NAMES, encoder_size, make_encoder
from jepa_jax.models.world_model import encode_frames, predict_next, rollout

__all__ = [
    "NAMES", "ActionPredictor", "AttentiveProbe", "BlockStack", "FrameCache", "LayerNorm", "MaskedPredictor",
    "VideoEncoder", "anticipate", "attention", "encode_frames", "encoder_size", "erase_boxes", "furthest_grid",
    "gather_tokens", "join_levels", "join_segments", "make_encoder", "normalize_latents", "normalize_pixels",
    "predict_next", "rollout", "time_table", "token_grid",
]
