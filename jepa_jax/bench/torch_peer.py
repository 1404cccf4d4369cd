"""The pretraining step in plain PyTorch, to time our step against.

It is written to be fast rather than to resemble ours: fused attention, fused AdamW, patches
and rotary tables made once per step and shared by all passes, no guard, no monitors.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from jepa_jax.models import convert
from jepa_jax.models.pixels import PIXEL_MEAN, PIXEL_STD

_TARGET_NORM_EPS = 1e-5
_ROPE_BASE = 10000.0


def _rotary_table(grid, head_dim, interleaved, device):
    """Cosines and sines for every token of a grid, `[2, N, head_dim]`."""
    t, h, w = grid
    axis_dim = 2 * (head_dim // 3 // 2)
    pairs = axis_dim // 2
    frequencies = 1.0 / _ROPE_BASE ** (torch.arange(pairs, dtype=torch.float64) / pairs)
    frequencies = frequencies.repeat_interleave(2) if interleaved else frequencies.repeat(2)
    ids = torch.arange(t * h * w)
    axes = torch.stack([ids // (h * w), ids % (h * w) // w, ids % w], dim=1)
    angles = (axes[:, :, None] * frequencies).flatten(1)
    angles = F.pad(angles, (0, head_dim - 3 * axis_dim))
    return torch.stack([angles.cos(), angles.sin()]).float().to(device)


def _rotate(x, rotary):
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return (x * rotary[0] + turned * rotary[1]).to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, rotary, mask=None):
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(qkv[0], rotary), _rotate(qkv[1], rotary)
        out = F.scaled_dot_product_attention(q, k, qkv[2], attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


class _Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width, num_heads, hidden, eps):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = _Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = _Mlp(width, hidden)

    def forward(self, x, rotary, mask=None):
        x = x + self.attn(self.norm1(x), rotary, mask)
        return x + self.mlp(self.norm2(x))


def make_blocks(module):
    """Make the blocks of one of our networks in PyTorch."""
    hidden = int(module.width * module.mlp_ratio)
    return nn.ModuleList(_Block(module.width, module.num_heads, hidden, module.norm_eps) for _ in range(module.depth))


class _Patches(nn.Module):
    def __init__(self, module):
        super().__init__()
        size = (module.tubelet_size, module.patch_size, module.patch_size)
        # Holds the weights only; the products run on patches that were cut out already.
        self.proj = nn.Conv3d(3, module.width, size, stride=size)

    def forward(self, patches):
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class _Encoder(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.patch_embed = _Patches(module)
        self.blocks = make_blocks(module)
        self.norm = nn.LayerNorm(module.width, eps=module.norm_eps)

    def forward(self, patches, rotary):
        x = self.patch_embed(patches)
        for block in self.blocks:
            x = block(x, rotary)
        return self.norm(x)


class _Predictor(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.predictor_embed = nn.Linear(module.output_dim, module.width)
        self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, module.width) for _ in range(module.num_mask_tokens))
        self.predictor_blocks = make_blocks(module)
        self.predictor_norm = nn.LayerNorm(module.width, eps=module.norm_eps)
        self.predictor_proj = nn.Linear(module.width, module.output_dim)

    def forward(self, context, num_target, rotary, index):
        x = self.predictor_embed(context)
        token = self.mask_tokens[index % len(self.mask_tokens)].expand(len(x), num_target, -1)
        x = torch.cat([x, token.to(x.dtype)], dim=1)
        for block in self.predictor_blocks:
            x = block(x, rotary)
        return self.predictor_proj(self.predictor_norm(x[:, -num_target:]))


class Rates(NamedTuple):
    """Learning rate, weight decay and 1 - EMA momentum of one step, as Python floats."""

    learning_rate: float
    weight_decay: float
    ema_rate: float


def _take(x, ids):
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


def _cut_patches(video, frames, module):
    video = video.expand(-1, frames, -1, -1, -1) if video.shape[1] != frames else video
    batch, t, h, w, _ = video.shape
    u, p = module.tubelet_size, module.patch_size
    x = video.reshape(batch, t // u, u, h // p, p, w // p, p, 3)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, -1, 3 * u * p * p)


def load_state(module, state):
    """Fill a PyTorch module with arrays under official names; returns it."""
    state = {name: torch.from_numpy(np.array(value)).reshape(module.state_dict()[name].shape)
             for name, value in state.items()}
    module.load_state_dict(state)
    return module


class TorchPeer:
    """Own the PyTorch networks, optimiser and tables of one run.

    Args:
      encoder, predictor: our modules, for their sizes; rotary positions and GELU only.
      params: `{"encoder": ..., "predictor": ...}`, our initial parameters.
      groups: `pretrain.Group`s of the run.
      optim: the `optim` section: b1, b2, eps, loss_exponent.
      half: run the networks in bfloat16 autocast.
      device: "cpu" or "cuda".
      compiled: pass the networks through `torch.compile`.

    Raises:
      ValueError: if the model has an option that the peer lacks.
    """

    def __init__(self, encoder, predictor, params, groups, optim, *, half, device, compiled):
        if (encoder.positions, encoder.activation) != ("rope", "gelu"):
            raise ValueError(f"the PyTorch peer has positions 'rope' and activation 'gelu' only, "
                             f"got {encoder.positions!r} and {encoder.activation!r}")
        self._groups, self._half, self._device, self._sizes = groups, half, device, (encoder, predictor)
        self._exponent = optim.loss_exponent
        self.encoder = load_state(_Encoder(encoder), convert.encoder_to_official(params["encoder"], encoder)).to(device)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = load_state(_Predictor(predictor), convert.predictor_to_official(params["predictor"])).to(device)
        interleaved = encoder.rope_layout == "interleaved"
        self._rotary = [
            [_rotary_table(group.grid, module.width // module.num_heads, interleaved, device) for group in groups]
            for module in (encoder, predictor)
        ]
        trained = [*self.encoder.parameters(), *self.predictor.parameters()]
        self._optimizer = torch.optim.AdamW(
            [{"params": [p for p in trained if p.ndim > 1]}, {"params": [p for p in trained if p.ndim == 1]}],
            betas=(optim.b1, optim.b2), eps=optim.eps, fused=True,
        )
        self._pixel_mean = torch.from_numpy(255.0 * PIXEL_MEAN).to(device)
        self._pixel_std = torch.from_numpy(255.0 * PIXEL_STD).to(device)
        self._run = [torch.compile(m) if compiled else m for m in (self.encoder, self.target, self.predictor)]

    def put(self, batch):
        """Copy a batch of numpy arrays to the device; ids become int64."""
        def move(x):
            return torch.from_numpy(np.asarray(x)).to(self._device)
        return {
            name: {"video": move(rows["video"])} | {
                key: [move(ids).long() for ids in rows[key]] for key in ("context_ids", "target_ids")}
            for name, rows in batch.items()
        }

    def _loss(self, batch):
        encode, encode_target, predict = self._run
        total_weight, total = sum(group.loss_weight for group in self._groups), 0.0
        for index, group in enumerate(self._groups):
            rows = batch[group.spec.name]
            video = (rows["video"].float() - self._pixel_mean) / self._pixel_std
            patches = _cut_patches(video, group.spec.frames, self._sizes[0])
            encoder_rotary, predictor_rotary = (tables[index] for tables in self._rotary)
            with torch.no_grad():
                latents = encode_target(patches, encoder_rotary).float()
                latents = F.layer_norm(latents, latents.shape[-1:], eps=_TARGET_NORM_EPS)
            for context_ids, target_ids in zip(rows["context_ids"], rows["target_ids"]):
                context = encode(_take(patches, context_ids), encoder_rotary[:, context_ids][:, :, None])
                ids = torch.cat([context_ids, target_ids], dim=1)
                predictions = predict(context, target_ids.shape[1], predictor_rotary[:, ids][:, :, None], index)
                distance = (predictions.float() - _take(latents, target_ids)).abs()
                if self._exponent != 1.0:
                    distance = distance**self._exponent / self._exponent
                total = total + distance.mean() * (group.loss_weight / (total_weight * len(rows["context_ids"])))
        return total

    def step(self, batch, rates):
        """Make one optimiser step and the EMA step.

        Args:
          batch: from `put`.
          rates: `Rates` of this step.

        Returns:
          The loss, a float, so that all work of the step has been waited for.
        """
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._half):
            loss = self._loss(batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        decayed, plain = self._optimizer.param_groups
        decayed["lr"] = plain["lr"] = rates.learning_rate
        decayed["weight_decay"], plain["weight_decay"] = rates.weight_decay, 0.0
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.encoder.parameters()), rates.ema_rate)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return float(loss.detach())
