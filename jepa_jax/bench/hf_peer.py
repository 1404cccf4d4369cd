"""The encoder of Hugging Face's transformers, to compare ours with."""

import json
import os

import numpy as np
import torch
from transformers import VJEPA2Model
from transformers.utils.logging import disable_progress_bar

from jepa_jax.bench import report
from jepa_jax.bench.torch_setup import make_fast

_PROCESSOR = "video_preprocessor_config.json"


class HfEncoder:
    """V-JEPA 2 of transformers with weights from a folder, used as its documentation says.

    It has the methods of `encode.OurEncoder`. Attention is the fused kernel of PyTorch; the plain
    one would hold all scores, at 64 frames and 256 pixels 4.3 GB a layer for ViT-L.

    Args:
      folder: Hugging Face folder.
      dtype: "float32" or "bfloat16".
      device: "cpu" or "cuda".
    """

    def __init__(self, folder, dtype, device):
        make_fast(device)
        disable_progress_bar()
        model, loading = VJEPA2Model.from_pretrained(
            folder, attn_implementation="sdpa", dtype=getattr(torch, dtype), output_loading_info=True)
        if wrong := {kind: names for kind, names in loading.items() if names}:
            raise ValueError(f"transformers did not take the weights of {folder} as they are: {wrong}")
        self._folder, self._device, self._model = folder, device, model.eval().to(device)
        self._pixels = self._tokens = None
        self.times = report.Times([], [])

    def prepare(self, path):
        """Read clips (uint8 `[B, T, H, W, 3]`, .npy) and normalise them, which is not timed; returns 0."""
        with open(os.path.join(self._folder, _PROCESSOR), encoding="utf-8") as file:
            processor = json.load(file)
        mean, std = (255 * torch.tensor(processor[key]) for key in ("image_mean", "image_std"))
        pixels = (torch.from_numpy(np.load(path)) - mean) / std
        self._pixels = pixels.permute(0, 1, 4, 2, 3).contiguous().to(self._device, self._model.dtype)
        return 0.0

    @torch.inference_mode()
    def _encode(self):
        self._tokens = self._model(pixel_values_videos=self._pixels, skip_predictor=True).last_hidden_state
        if self._device == "cuda":
            torch.cuda.synchronize()

    def encode(self):
        """Encode the clips, and append to `times`."""
        self.times.measure(self._encode)

    def save(self, path):
        """Write the last tokens as float32 .npy; returns the peak of device memory in bytes, or None on CPU."""
        np.save(path, self._tokens.float().cpu().numpy())
        return torch.cuda.max_memory_allocated() if self._device == "cuda" else None

    def describe(self):
        """Return what ran (dict), and the `report.Times` of all calls."""
        return {"attention_backend": "sdpa", "threads": torch.get_num_threads()}, self.times
