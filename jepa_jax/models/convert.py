"""Official PyTorch names and layouts <-> our parameter trees. Official names live only here."""

import re

import numpy as np

_LAYERS = ("blocks", "layers")


def _transposed(x):
    return np.swapaxes(x, -1, -2)


class _Same:
    read = write = staticmethod(lambda x: x)


class _Kernel:
    """Linear weight (out, in) <-> kernel (in, out); stacked leading axes pass through."""

    read = write = staticmethod(_transposed)


class _Queries:
    """Query tokens (1, Q, D) <-> (Q, D)."""

    read = staticmethod(lambda x: x[0])
    write = staticmethod(lambda x: x[None])


class _Token:
    """One mask token (1, 1, D) <-> (D,)."""

    read = staticmethod(lambda x: x[0, 0])
    write = staticmethod(lambda x: x[None, None])


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
_PROBE_BLOCKS = "pooler.blocks"
# Official linear head: our name of the output.
PROBE_HEADS = {
    "linear": "label", "verb_classifier": "verb", "noun_classifier": "noun", "action_classifier": "action",
}


def _linear(old, *new):
    return {f"{old}.weight": ((*new, "kernel"), _Kernel), f"{old}.bias": ((*new, "bias"), _Same)}


def _norm(old, *new):
    return {f"{old}.weight": ((*new, "scale"), _Same), f"{old}.bias": ((*new, "bias"), _Same)}


def _encoder_names(encoder):
    is_image = encoder.tubelet_size == 1 and encoder.table_grid[0] == 1
    patch = _PatchKernel(encoder.patch_size, encoder.tubelet_size, is_image)
    return {
        "patch_embed.proj.weight": (("patch_embed", "kernel"), patch),
        "patch_embed.proj.bias": (("patch_embed", "bias"), _Same),
    } | _norm("norm", "norm")


def _predictor_names():
    return (
        _linear("predictor_embed", "embed") | _norm("predictor_norm", "norm") | _linear("predictor_proj", "proj")
    )


def _action_predictor_names():
    return _predictor_names() | {
        name: entry
        for new in ("action", "state", "extrinsics")
        for name, entry in _linear(f"{new}_encoder", new).items()
    }


def _probe_names(heads):
    cross = "pooler.cross_attention_block"
    names = {"pooler.query_tokens": (("query_tokens",), _Queries)}
    for norm in ("norm1", "norm2"):
        names |= _norm(f"{cross}.{norm}", "cross", norm)
    for old, new in (("xattn.q", ("q",)), ("xattn.kv", ("kv",)), ("mlp.fc1", ("mlp", "fc1")), ("mlp.fc2", ("mlp", "fc2"))):
        names |= _linear(f"{cross}.{old}", "cross", *new)
    for head in heads:
        names |= _linear(head, PROBE_HEADS[head])
    return names


def _put(tree, path, value):
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _get(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def _without(state, table):
    """Drop a fixed position table, which files may or may not hold."""
    return {name: value for name, value in state.items() if name != table}


def _block_names(state, blocks, depth):
    """Return dict from our path to (official names block by block, kind)."""
    # Gated MLPs have a third matrix.
    gated = any(".mlp.fc3." in name for name in state)
    return {
        _LAYERS + path: ([f"{blocks}.{i}.{old}" for i in range(depth)], kind)
        for old, (path, kind) in _BLOCK.items() if gated or "fc3" not in path
    }


def _read(state, names, blocks, what, least_depth=1):
    """Convert the tensors of `names` and of the stack `blocks`; all of `state` must be among them."""
    state = {name: np.asarray(value) for name, value in state.items()}
    indices = {match[1] for name in state if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))}
    depth = max(least_depth, len(indices))
    stacks = _block_names(state, blocks, depth) if depth else {}
    needed = [*names, *(old for olds, _ in stacks.values() for old in olds)]
    missing = [old for old in needed if old not in state]
    if missing:
        raise KeyError(f"{what} lacks tensors: {', '.join(missing)}")
    left = sorted(state.keys() - set(needed))
    if left:
        raise ValueError(f"{what} has tensors that do not belong to it: {', '.join(left)}")
    params = {}
    for old, (path, kind) in names.items():
        _put(params, path, kind.read(state[old]))
    for path, (olds, kind) in stacks.items():
        _put(params, path, kind.read(np.stack([state[old] for old in olds])))
    return params


def _write(params, names, blocks):
    state = {old: kind.write(np.asarray(_get(params, path))) for old, (path, kind) in names.items()}
    # A probe of depth 1 has no stack.
    layers = _get(params, _LAYERS) if _LAYERS[0] in params else {}
    for old, (path, kind) in _BLOCK.items():
        if path[1] in layers.get(path[0], ()):
            for i, value in enumerate(kind.write(np.asarray(_get(layers, path)))):
                state[f"{blocks}.{i}.{old}"] = value
    return state


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
    return _read(_without(state, "pos_embed"), _encoder_names(encoder), "blocks", "encoder state")


def encoder_to_official(params, encoder):
    """Invert `encoder_from_official`; the position table is not written."""
    return _write(params, _encoder_names(encoder), "blocks")


def predictor_from_official(state):
    """Convert an official predictor state dict; see `encoder_from_official`."""
    count = sum(name.startswith("mask_tokens.") for name in state)
    names = _predictor_names() | {f"mask_tokens.{i}": ((i,), _Token) for i in range(max(count, 1))}
    params = _read(_without(state, "predictor_pos_embed"), names, "predictor_blocks", "predictor state")
    params["mask_tokens"] = np.stack([params.pop(i) for i in range(count)])
    return params


def predictor_to_official(params):
    """Invert `predictor_from_official`."""
    tokens = {f"mask_tokens.{i}": _Token.write(token) for i, token in enumerate(np.asarray(params["mask_tokens"]))}
    return _write(params, _predictor_names(), "predictor_blocks") | tokens


def action_predictor_from_official(state):
    """Convert the state dict of an official action-conditioned predictor; see `encoder_from_official`."""
    return _read(state, _action_predictor_names(), "predictor_blocks", "action predictor state")


def action_predictor_to_official(params):
    """Invert `action_predictor_from_official`.

    Raises:
      ValueError: if it is conditioned by modulation, which the official predictor does not have.
    """
    if "modulation" in _get(params, _LAYERS):
        raise ValueError(
            "an action predictor with conditioning 'adaln' has no official form: the official code knows 'tokens' only"
        )
    return _write(params, _action_predictor_names(), "predictor_blocks")


def probe_from_official(state):
    """Convert the state dict of an official attentive probe; see `encoder_from_official`.

    The outputs are those whose linear heads are in `state`: "label", or "verb", "noun", "action".
    """
    heads = [head for head in PROBE_HEADS if any(name.startswith(head + ".") for name in state)]
    # Without any head, the one of a classifier is what is missing.
    names = _probe_names(heads or ["linear"])
    return _read(state, names, _PROBE_BLOCKS, "probe state", least_depth=0)


def probe_to_official(params):
    """Invert `probe_from_official`.

    Raises:
      ValueError: if an output has no official name.
    """
    outputs = params.keys() - {"query_tokens", "blocks", "cross"}
    unknown = sorted(outputs - set(PROBE_HEADS.values()))
    if unknown:
        known = ", ".join(PROBE_HEADS.values())
        raise ValueError(f"probe outputs {unknown} have no official name; those of {known} have")
    heads = [head for head, output in PROBE_HEADS.items() if output in outputs]
    return _write(params, _probe_names(heads), _PROBE_BLOCKS)
