"""An official-style loader: decord on the original files, crops in PyTorch; to compare our data path with."""

from jepa_jax.data import sampling, transforms
from jepa_jax.data.errors import DataError
from jepa_jax.models.pixels import PIXEL_MEAN, PIXEL_STD


class MissingPeer(ImportError):
    """What the comparison needs is not installed."""


class DecordLoader:
    """Read clips from original videos by the official rules, with their windows and crops drawn as ours.

    It decodes with decord and does float32 crops, resizes and normalisation in PyTorch, in the
    official order, one thread each: more threads decode a file sooner, but cost more time in all.

    Args:
      group: `GroupSpec`: frames and rate.
      crop: `CropSpec`.

    Raises:
      MissingPeer: if decord or PyTorch is missing.

    Source: src/datasets/video_dataset.py, app/vjepa/transforms.py
    """

    def __init__(self, group, crop):
        try:
            import decord
            import torch
        except ImportError as error:
            raise MissingPeer(f"{error.name} is not installed; the comparison with an official-style loader needs "
                              "pip install 'jepa_jax[peers]'") from error
        torch.set_num_threads(1)
        self._decord, self._torch = decord, torch
        self._group, self._crop = group, crop
        self._mean, self._std = (255 * torch.tensor(values).reshape(3, 1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))

    def load(self, path, rng):
        """Read one clip.

        Args:
          path: the video file.
          rng: consumed as `pipeline.load_clip` does, so that both choose the same clip.

        Returns:
          Tensor float32 `[3, F, S, S]`, normalised.
        """
        frames = self.decode(path, rng)
        return self._augment(frames, rng.random((transforms.CROP_ATTEMPTS, 4)), rng.random())

    def decode(self, path, rng):
        """Read the whole frames of one clip, the first part of `load`; uint8 `[F, H, W, 3]`.

        Raises:
          DataError: 'not for decord'.
        """
        try:
            return self._read(path, rng)
        # It fails, for one, at widths that FFmpeg pads, such as 96.
        except (self._decord.DECORDError, RuntimeError) as error:
            raise DataError("not for decord", f"{path}: decord cannot read it: {error}") from error

    def _read(self, path, rng):
        reader = self._decord.VideoReader(path, num_threads=1, ctx=self._decord.cpu(0))
        group = self._group
        indices = sampling.sample_frame_indices(
            len(reader), reader.get_avg_fps(), frames=group.frames, fps=group.fps, uniforms=rng.random(1))[0]
        reader.seek(0)
        return reader.get_batch(indices).asnumpy()

    def _augment(self, frames, uniforms, flip):
        crop = self._crop
        pixels = self._torch.tensor(frames, dtype=self._torch.float32).permute(3, 0, 1, 2)
        top, left, height, width = transforms.random_crop_box(*frames.shape[1:3], crop.scale, crop.aspect, uniforms)
        pixels = pixels[:, :, top : top + height, left : left + width]
        pixels = self._torch.nn.functional.interpolate(pixels, (crop.size, crop.size), mode="bilinear",
                                                       align_corners=False)
        if flip < crop.flip:
            pixels = pixels.flip(-1)
        return pixels.sub_(self._mean).div_(self._std)
