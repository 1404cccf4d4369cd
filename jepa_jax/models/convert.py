"""Official PyTorch names and layouts <-> our parameter trees. Official names live only here."""

import numpy as np

_LAYERS = ("blocks", "layers")


def _transposed(x):
    return np.swapaxes(x, -1, -2)


class _Same:
    read = write = staticmethod(lambda x: x)


class _Kernel:
    """Linear weight (out, in) <-> kernel (in, out); stacked leading axes pass through."""

    read = write = staticmethod(_transposed)


class _PatchKernel:
    """Convolution (O, 3, [u,] p, p) <-> kernel over patches flattened as (u, p, p, 3)."""

    def __init__(self, patch_size, tubelet_size, is_image):
        self.shape = ((tubelet_size,) if not is_image else ()) + (patch_size, patch_size)

    def read(self, x):
        return np.moveaxis(x, (0, 1), (-1, -2)).reshape(-1, x.shape[0])

    def write(self, x):
        return np.moveaxis(x.reshape(*self.shape, 3, x.shape[-1]), (-1, -2), (0, 1))


_BLOCK = {
    "norm1.weight": (("norm1", "scale"), _Same),
    "norm1.bias": (("norm1", "bias"), _Same),
    "attn.qkv.weight": (("attention", "qkv", "kernel"), _Kernel),
    "attn.qkv.bias": (("attention", "qkv", "bias"), _Same),
    "attn.proj.weight": (("attention", "proj", "kernel"), _Kernel),
    "attn.proj.bias": (("attention", "proj", "bias"), _Same),
    "norm2.weight": (("norm2", "scale"), _Same),
    "norm2.bias": (("norm2", "bias"), _Same),
} | {
    f"mlp.{fc}.{old}": (("mlp", fc, new), kind)
    for fc in ("fc1", "fc2", "fc3")
    for old, new, kind in (("weight", "kernel", _Kernel), ("bias", "bias", _Same))
}


def _linear(old, new):
    return {f"{old}.weight": ((new, "kernel"), _Kernel), f"{old}.bias": ((new, "bias"), _Same)}


def _norm(old):
    return {f"{old}.weight": (("norm", "scale"), _Same), f"{old}.bias": (("norm", "bias"), _Same)}


def _encoder_names(encoder):
    is_image = encoder.tubelet_size == 1 and encoder.table_grid[0] == 1
    patch = _PatchKernel(encoder.patch_size, encoder.tubelet_size, is_image)
    return {
        "patch_embed.proj.weight": (("patch_embed", "kernel"), patch),
        "patch_embed.proj.bias": (("patch_embed", "bias"), _Same),
    } | _norm("norm")


def _predictor_names():
    return _linear("predictor_embed", "embed") | _norm("predictor_norm") | _linear("predictor_proj", "proj")


def _put(tree, path, value):
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _get(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def _read(state, names, blocks, tables):
    state = {name: np.asarray(value) for name, value in state.items() if name not in tables}
    params = {}
    for old, (path, kind) in names.items():
        _put(params, path, kind.read(state.pop(old)))
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith(blocks + "."))
    for old, (path, kind) in _BLOCK.items():
        if f"{blocks}.0.{old}" in state:
            stack = np.stack([state.pop(f"{blocks}.{i}.{old}") for i in range(depth)])
            _put(params, _LAYERS + path, kind.read(stack))
    return params, state


def _write(params, names, blocks):
    state = {old: kind.write(np.asarray(_get(params, path))) for old, (path, kind) in names.items()}
    layers = _get(params, _LAYERS)
    for old, (path, kind) in _BLOCK.items():
        if path[1] in layers[path[0]]:
            for i, value in enumerate(kind.write(np.asarray(_get(layers, path)))):
                state[f"{blocks}.{i}.{old}"] = value
    return state


def _expect_empty(left, what):
    if left:
        raise ValueError(f"{what} has tensors that do not belong to it: {', '.join(sorted(left))}")


def encoder_from_official(state, encoder):
    """Convert an official encoder state dict.

    Args:
      state: mapping of official names (no prefix) to arrays.
      encoder: the `VideoEncoder` they are meant for.

    Returns:
      Nested dict of numpy arrays, the `params` of `encoder`.

    Raises:
      KeyError: if a tensor is missing.
      ValueError: if a tensor is left over. The fixed position table is ignored.
    """
    params, left = _read(state, _encoder_names(encoder), "blocks", {"pos_embed"})
    _expect_empty(left, "encoder state")
    return params


def encoder_to_official(params, encoder):
    """Invert `encoder_from_official`; the position table is not written."""
    return _write(params, _encoder_names(encoder), "blocks")


def predictor_from_official(state):
    """Convert an official predictor state dict; see `encoder_from_official`."""
    params, left = _read(state, _predictor_names(), "predictor_blocks", {"predictor_pos_embed"})
    tokens = [left.pop(f"mask_tokens.{i}") for i in range(sum(name.startswith("mask_tokens.") for name in left))]
    _expect_empty(left, "predictor state")
    params["mask_tokens"] = np.concatenate(tokens).reshape(len(tokens), -1)
    return params


def predictor_to_official(params):
    """Invert `predictor_from_official`."""
    tokens = {f"mask_tokens.{i}": token[None, None] for i, token in enumerate(np.asarray(params["mask_tokens"]))}
    return _write(params, _predictor_names(), "predictor_blocks") | tokens
