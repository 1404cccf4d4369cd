"""The encoder of Hugging Face's transformers, to compare ours with."""

import time

import numpy as np
import torch
from transformers import VJEPA2Model
from transformers.utils.logging import disable_progress_bar

from jepa_jax.bench.peer import torch_device
from jepa_jax.models.pixels import PIXEL_MEAN, PIXEL_STD


class HfEncoder:
    """V-JEPA 2 of transformers with weights from a folder, used as its documentation says.

    It has the same methods as `encode.OurEncoder`. Attention is the fused kernel of PyTorch; the plain
    one would hold all scores, at 64 frames and 256 pixels 4.3 GB a layer for ViT-L.

    Args:
      folder: Hugging Face folder.
      dtype: "float32" or "bfloat16".
    """

    def __init__(self, folder, dtype):
        self._device = torch_device()
        disable_progress_bar()
        model, loading = VJEPA2Model.from_pretrained(
            folder, attn_implementation="sdpa", dtype=getattr(torch, dtype), output_loading_info=True)
        if wrong := {kind: names for kind, names in loading.items() if names}:
            raise ValueError(f"transformers did not take the weights of {folder} as they are: {wrong}")
        self._model = model.eval().to(self._device)
        self._tokens = None

    def prepare(self, path):
        """Read clips (uint8 `[B, T, H, W, 3]`, .npy) and normalise them, which is not timed; returns 0."""
        clip = torch.from_numpy(np.load(path)).to(self._device)
        mean, std = (torch.from_numpy(255.0 * x).to(self._device) for x in (PIXEL_MEAN, PIXEL_STD))
        self._pixels = ((clip.float() - mean) / std).permute(0, 1, 4, 2, 3).contiguous().to(self._model.dtype)
        return 0.0

    @torch.inference_mode()
    def encode(self):
        """Encode the clips; returns milliseconds."""
        start = time.perf_counter()
        self._tokens = self._model(pixel_values_videos=self._pixels, skip_predictor=True).last_hidden_state
        if self._device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    def save(self, path):
        """Write the last tokens as float32 .npy; returns the peak of device memory in bytes, or None on CPU."""
        np.save(path, self._tokens.float().cpu().numpy())
        return torch.cuda.max_memory_allocated() if self._device == "cuda" else None

    def describe(self):
        """Return the attention implementation and the number of threads, as dict."""
        return {"attention_backend": "sdpa", "threads": torch.get_num_threads(), "device": self._device}
