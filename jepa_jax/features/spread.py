"""A loaded encoder on all devices of a host."""

import jax
import jax.numpy as jnp

from jepa_jax.models import token_grid
from jepa_jax.training.sharding import batch_sharding, make_mesh, replicated, use_mesh


class SpreadModel:
    """An encoder that works on each batch with all devices of this process.

    Args:
      model, params: as returned by `jepa_jax.weights.load.load`.

    Attributes:
      params: the weights, on all devices.
      devices: their number; batches are multiples of it.
      width: of a vector.
      crop_size, patch_size: pixels.
      dtype: it computes in.
      sha256: identity of the weights.
    """

    def __init__(self, model, params):
        self._model, self._mesh = model, make_mesh(devices=jax.local_devices())
        self.devices, self.width = self._mesh.size, model.encoder.width
        self.crop_size, self.patch_size = model.preprocessing.crop_size, model.encoder.patch_size
        self.dtype = jnp.dtype(model.encoder.dtype).name
        self.sha256 = model.sha256["encoder"]
        self.params = jax.device_put({"encoder": params["encoder"]}, replicated(self._mesh))

    def encode(self, params, clip, layers=()):
        """Encode clips uint8 `[B, T, H, W, 3]`; as `Model.encode`."""
        with use_mesh(self._mesh):
            return self._model.encode(params, jax.device_put(clip, batch_sharding(self._mesh)), layers)

    def frame_grid(self, size):
        """Return the (h, w) tokens of one square frame of `size` pixels.

        Raises:
          ValueError: if it is not a whole number of patches.
        """
        encoder = self._model.encoder
        return token_grid(1, size, size, encoder.patch_size, encoder.tubelet_size)[1:]
