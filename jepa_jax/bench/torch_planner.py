"""The official planner and its action-conditioned predictor in PyTorch, to time beside ours.

It does what the official code does, in the order it does it: a Python loop over iterations and steps, the whole history
through the predictor at every step, and the poses of the candidates moved one by one on the processor.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import nn

from jepa_jax.bench.torch_peer import load_state, make_blocks
from jepa_jax.models import convert
from jepa_jax.models.rope import grid_positions, rotary_angles

_LATENT_NORM_EPS = 1e-5
_GRIPPER = 3
_DEADZONE = 0.25


class _ActionPredictor(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.predictor_embed = nn.Linear(module.output_dim, module.width)
        self.action_encoder = nn.Linear(module.action_dim, module.width)
        self.state_encoder = nn.Linear(module.state_dim, module.width)
        self.extrinsics_encoder = nn.Linear(module.extrinsics_dim, module.width)
        self.predictor_blocks = make_blocks(module)
        self.predictor_norm = nn.LayerNorm(module.width, eps=module.norm_eps)
        self.predictor_proj = nn.Linear(module.width, module.output_dim)

    def forward(self, frames, actions, poses, rotary, mask):
        batch, steps, patches, _ = frames.shape
        told = [self.action_encoder(actions)[:, :, None], self.state_encoder(poses)[:, :, None]]
        x = torch.cat([*told, self.predictor_embed(frames)], dim=2).flatten(1, 2)
        for block in self.predictor_blocks:
            x = block(x, rotary, mask)
        x = x.view(batch, steps, patches + 2, -1)[:, :, 2:]
        return self.predictor_proj(self.predictor_norm(x))


class TorchPlanner:
    """Own the predictor and the tables of a planner of one size.

    Args:
      predictor: our module, for its sizes; conditioned by tokens, without extrinsics.
      params: its parameters.
      spec: `PlanSpec` with an official preset.
      half: run the predictor in bfloat16 autocast.
      device: "cpu" or "cuda".
    """

    def __init__(self, predictor, params, spec, *, half, device):
        self._spec, self._half, self._device = spec, half, device
        self._network = load_state(_ActionPredictor(predictor), convert.action_predictor_to_official(params)).to(device).eval()
        (h, w), steps = predictor.grid, spec.horizon
        cells = np.array(grid_positions(np.arange(steps * h * w), (steps, h, w)), np.float32).reshape(steps, h * w, 3)
        times = np.zeros((steps, 2, 3), np.float32)
        times[..., 0] = np.arange(steps)[:, None]
        positions = np.concatenate([times, cells], 1).reshape(-1, 3)
        angles = torch.from_numpy(np.array(rotary_angles(positions, predictor.width // predictor.num_heads, predictor.rope_layout)))
        self._rotary = torch.stack([angles.cos(), angles.sin()]).to(device)
        frame = torch.arange(len(positions)) // (h * w + 2)
        self._mask = (frame[:, None] >= frame).to(device)
        self._per_frame = h * w + 2
        self._low, self._high = (torch.tensor(bound, device=device) for bound in (spec.low, spec.high))

    @torch.inference_mode()
    def plan(self, latents, pose, goal, noise=None):
        """Search a plan.

        Args:
          latents, goal: float32 `[h*w, D]` numpy arrays.
          pose: float32 `[7]`.
          noise: float32 `[I, R, S, 4]`, or None to draw it.

        Returns:
          float32 `[R, 4]` numpy array: planned numbers.
        """
        spec, device = self._spec, self._device
        first, goal, pose = (torch.from_numpy(np.array(value)).to(device) for value in (latents, goal, pose))
        mean = torch.zeros(spec.horizon, spec.dims, device=device)
        std = torch.tensor(spec.std, device=device).repeat(spec.horizon, 1)
        stay_mean, stay_std = (torch.tensor(value, device=device) for value in (spec.momentum_mean, spec.momentum_std))
        for number in range(spec.iterations):
            frames, poses = first[None, None].repeat(spec.samples, 1, 1, 1), pose[None, None].repeat(spec.samples, 1, 1)
            drawn, actions = [], None
            for step in range(spec.horizon):
                normal = torch.randn(spec.samples, spec.dims, device=device) if noise is None else torch.from_numpy(
                    np.array(noise[number, step])).to(device)
                drawn.append(torch.clip(normal * std[step] + mean[step], self._low, self._high))
                action = torch.cat([drawn[-1][:, :_GRIPPER], torch.zeros_like(drawn[-1][:, :_GRIPPER]), drawn[-1][:, _GRIPPER:]], 1)
                actions = action[:, None] if actions is None else torch.cat([actions, action[:, None]], 1)
                frames, poses = self._advance(frames, actions, poses)
            costs = (frames[:, -1] - goal).abs().mean((1, 2))
            elites = torch.stack(drawn, 1)[costs.topk(spec.elites, largest=False).indices]
            mean = (1 - stay_mean) * elites.mean(0) + stay_mean * mean
            std = (1 - stay_std) * elites.std(0) + stay_std * std
        mean[:, _GRIPPER] = torch.where(mean[:, _GRIPPER].abs() < _DEADZONE, 0.0, mean[:, _GRIPPER])
        return mean.cpu().numpy()

    def _advance(self, frames, actions, poses):
        """Append the predicted frame and the next pose."""
        length = frames.shape[1] * self._per_frame
        rotary, mask = self._rotary[:, :length], self._mask[:length, :length]
        chunk = self._spec.chunk or len(frames)
        found = []
        for start in range(0, len(frames), chunk):
            rows = slice(start, start + chunk)
            with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._half):
                found.append(self._network(frames[rows], actions[rows], poses[rows], rotary, mask)[:, -1:].float())
        predicted = torch.cat(found)
        predicted = F.layer_norm(predicted, predicted.shape[-1:], eps=_LATENT_NORM_EPS)
        moved = [_move(pose, action) for pose, action in zip(poses[:, -1].cpu().numpy(), actions[:, -1].cpu().numpy())]
        moved = torch.from_numpy(np.stack(moved))[:, None].to(poses)
        return torch.cat([frames, predicted], 1), torch.cat([poses, moved], 1)


def _move(pose, action):
    """Move one pose on the processor, as the official code does for each candidate."""
    turned = Rotation.from_euler("xyz", action[3:6]) * Rotation.from_euler("xyz", pose[3:6])
    gripper = np.clip(pose[6:] + action[6:], 0, 1)
    return np.concatenate([pose[:3] + action[:3], turned.as_euler("xyz"), gripper]).astype(np.float32)
