"""Tensor names of Hugging Face transformers <-> official ones. Hugging Face names live here and in `huggingface.py`.

Source: (HF) models/vjepa2 of transformers 5.23.0.
"""

import re

import numpy as np

from jepa_jax.weights.bundle import WeightsError

# Official name (pattern) -> names here; a tuple holds the equal parts of a fused matrix, in order.
_NAMES = [
    (re.compile(f"{old}\\.(weight|bias)"), new)
    for old, new in (
        (r"patch_embed\.proj", "encoder.embeddings.patch_embeddings.proj"),
        (r"norm", "encoder.layernorm"),
        (
            r"blocks\.(\d+)\.attn\.qkv",
            tuple(rf"encoder.layer.\1.attention.{part}" for part in ("query", "key", "value")),
        ),
        (r"blocks\.(\d+)\.attn\.proj", r"encoder.layer.\1.attention.proj"),
        (r"blocks\.(\d+)\.(norm1|norm2|mlp\.fc1|mlp\.fc2)", r"encoder.layer.\1.\2"),
        (r"predictor_embed", "predictor.embeddings.predictor_embeddings"),
        (r"predictor_norm", "predictor.layernorm"),
        (r"predictor_proj", "predictor.proj"),
        (
            r"predictor_blocks\.(\d+)\.attn\.qkv",
            tuple(rf"predictor.layer.\1.attention.{part}" for part in ("query", "key", "value")),
        ),
        (r"predictor_blocks\.(\d+)\.attn\.proj", r"predictor.layer.\1.attention.proj"),
        (r"predictor_blocks\.(\d+)\.(norm1|norm2|mlp\.fc1|mlp\.fc2)", r"predictor.layer.\1.\2"),
        (r"pooler\.cross_attention_block\.norm(\d)", r"pooler.cross_attention_layer.layer_norm\1"),
        (r"pooler\.cross_attention_block\.xattn\.q", "pooler.cross_attention_layer.cross_attn.q_proj"),
        (
            r"pooler\.cross_attention_block\.xattn\.kv",
            tuple(f"pooler.cross_attention_layer.cross_attn.{part}_proj" for part in "kv"),
        ),
        (r"pooler\.cross_attention_block\.(mlp\.fc1|mlp\.fc2)", r"pooler.cross_attention_layer.\1"),
        (r"pooler\.blocks\.(\d+)\.norm(\d)", r"pooler.self_attention_layers.\1.layer_norm\2"),
        (
            r"pooler\.blocks\.(\d+)\.attn\.qkv",
            tuple(rf"pooler.self_attention_layers.\1.self_attn.{part}_proj" for part in "qkv"),
        ),
        (r"pooler\.blocks\.(\d+)\.attn\.proj", r"pooler.self_attention_layers.\1.self_attn.out_proj"),
        (r"pooler\.blocks\.(\d+)\.(mlp\.fc1|mlp\.fc2)", r"pooler.self_attention_layers.\1.\2"),
        (r"linear", "classifier"),
    )
]
_QUERIES = "pooler.query_tokens"
_OFFICIAL_MASK_TOKEN = re.compile(r"mask_tokens\.(\d+)")
MASK_TOKENS = "predictor.embeddings.mask_tokens"


def _parts(official):
    """Return the names here of an official tensor, in the order in which they are joined."""
    for pattern, new in _NAMES:
        if match := pattern.fullmatch(official):
            return [
                f"{match.expand(part)}.{match[match.lastindex]}" for part in (new if isinstance(new, tuple) else (new,))
            ]
    if official == _QUERIES:
        return [_QUERIES]
    raise WeightsError(f"Hugging Face has no place for {official}")


def from_official(state):
    """Rename and split official tensors, of one or more networks, into those of transformers, without prefix."""
    found, tokens = {}, {}
    for official, value in state.items():
        if match := _OFFICIAL_MASK_TOKEN.fullmatch(official):
            tokens[int(match[1])] = value
            continue
        parts = _parts(official)
        found |= zip(parts, np.split(value, len(parts)))
    if tokens:
        found[MASK_TOKENS] = np.stack([tokens[i] for i in range(len(tokens))])
    return found


def to_official(found, names):
    """Invert `from_official` for the official `names`."""
    state = {}
    for official in names:
        if match := _OFFICIAL_MASK_TOKEN.fullmatch(official):
            state[official] = found[MASK_TOKENS][int(match[1])]
        else:
            parts = [found[part] for part in _parts(official)]
            state[official] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return state
