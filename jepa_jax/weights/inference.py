"""Read a network's architecture off its official tensors; the tensors a network has under official names."""

import jax
import numpy as np

from jepa_jax.models import ActionPredictor, AttentiveProbe, MaskedPredictor, VideoEncoder, convert
from jepa_jax.models.sincos import sincos_table
from jepa_jax.weights.bundle import ENCODERS, PROBE, WeightsError, abstract_tree
from jepa_jax.weights.hints import CROP_SIZE, FRAMES, decide_heads, decide_size, mlp_ratio

# What the official code can be told, by field; anything else it computes differently.
_OFFICIAL = {"rope_layout": ("tiled",), "rope_grid": (None,), "conditioning": ("tokens",),
             "predicts_change": (False,), "merge": (1,)}
_OFFICIAL_EPS = {"probe": 1e-5}


def kind_of(name):
    """Turn the name of a network in a bundle into its kind: "encoder", "predictor", "action_predictor" or "probe"."""
    return "encoder" if name in ENCODERS else "probe" if name.startswith(PROBE) else name


def is_action_predictor(state):
    """Tell whether a predictor's state dict is that of the action-conditioned one."""
    return "action_encoder.weight" in state


def infer(kind, state, hints, notes, what, encoder=None):
    """Build the network that fits a state dict.

    Args:
      kind: see `kind_of`.
      state: dict from official name to array.
      hints: `Hints`.
      notes: list of lines; assumptions are added.
      what: file and entry, for messages.
      encoder: the encoder of the same file, whose token grid and kind of positions others share; or None.

    Returns:
      The Flax module.

    Raises:
      WeightsError: if the tensors are not those of such a network, or leave something open.
    """
    try:
        return _INFER[kind](state, hints, notes, encoder)
    except KeyError as error:
        names = ", ".join(sorted(state)[:5])
        raise WeightsError(
            f"{what} is no {kind.replace('_', ' ')}: it has no {error}; it holds {names}, ..."
        ) from error
    except WeightsError as error:
        raise WeightsError(f"{what}: {error}") from error
    except (ValueError, IndexError, TypeError) as error:
        # A tensor of another rank than this network has; which one, the message of numpy does not say.
        shapes = ", ".join(f"{name} {value.shape}" for name, value in list(state.items())[:3])
        raise WeightsError(f"{what} is no {kind.replace('_', ' ')}: {error} ({shapes}, ...)") from error


def _blocks(state, prefix):
    """Return depth, MLP width and activation of a stack of blocks."""
    depth = len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
    if not depth:
        return 0, None, "gelu"
    hidden, width = state[f"{prefix}0.mlp.fc1.weight"].shape
    activation = "gelu"
    if f"{prefix}0.mlp.fc3.weight" in state:
        # The plain gated form keeps the hidden width of its ratio, four times the width in all configs.
        activation = "swiglu" if hidden == 4 * width else "swiglu_wide"
    return depth, hidden, activation


def _encoder(state, hints, notes, _):
    kernel = state["patch_embed.proj.weight"].shape
    depth, hidden, activation = _blocks(state, "blocks.")
    if not depth or len(kernel) not in (4, 5) or kernel[1] != 3 or kernel[-1] != kernel[-2]:
        raise WeightsError(
            f"no video encoder: {depth} blocks, patch kernel {kernel}; needed: (width, 3, [tubelet,] patch, patch)"
        )
    width, patch, is_image = kernel[0], kernel[-1], len(kernel) == 4
    tubelet = 1 if is_image else kernel[2]
    size = decide_size(width, depth, hidden, activation, hints, notes)
    heads = size.get("num_heads") or decide_heads("encoder", width, hints, notes)
    side = max(1, (hints.crop_size or CROP_SIZE) // patch)
    grid = (1 if is_image else max(1, (hints.frames or FRAMES) // tubelet), side, side)
    fields = {"table_grid": grid}
    if "pos_embed" in state and hints.positions is None:
        raise WeightsError(
            "it holds a position table, which a network with fixed positions uses and a rotary one may carry "
            "along; say which it is: --positions sincos or --positions rope (released V-JEPA 2)"
        )
    if hints.positions == "sincos":
        fields = {"positions": "sincos", "table_grid": grid, "uniform_power": _uniform_power(state["pos_embed"], grid)}
    ratio = size.get("mlp_ratio") or mlp_ratio(width, hidden, activation)
    return VideoEncoder(width, depth, heads, ratio, patch, tubelet, activation=activation, **fields)


def _uniform_power(table, grid):
    """Find out how the channels of a fixed position table are split."""
    if grid[0] * grid[1] * grid[2] == table.shape[1]:
        for uniform in (True, False):
            wanted = sincos_table(table.shape[2], grid, uniform)
            if wanted.shape == table.shape[1:] and np.allclose(wanted, table[0], atol=1e-5):
                return uniform
    raise WeightsError(
        f"the position table {table.shape} is not that of a token grid {grid}; give the size of the clips "
        "in training: --frames and --crop-size"
    )


def _predictor(state, hints, notes, encoder):
    depth, hidden, activation = _blocks(state, "predictor_blocks.")
    output_dim, width = state["predictor_proj.weight"].shape
    count = sum(name.startswith("mask_tokens.") for name in state)
    fields = {} if encoder is None else {"table_grid": encoder.table_grid}
    if hints.positions == "sincos":
        grid = fields.get("table_grid", MaskedPredictor.table_grid)
        fields = {
            "positions": "sincos",
            "table_grid": grid,
            "uniform_power": _uniform_power(state["predictor_pos_embed"], grid),
        }
    heads = decide_heads("predictor", width, hints, notes)
    ratio = mlp_ratio(width, hidden, activation)
    return MaskedPredictor(output_dim, width, depth, heads, ratio, count, activation=activation, **fields)


def _action_predictor(state, hints, notes, encoder):
    depth, hidden, activation = _blocks(state, "predictor_blocks.")
    output_dim, width = state["predictor_proj.weight"].shape
    dims = {f"{name}_dim": state[f"{name}_encoder.weight"].shape[1] for name in ("action", "state", "extrinsics")}
    if not hints.use_extrinsics:
        notes.append("action_predictor: no camera extrinsics, as released; weights do not show it (--use-extrinsics)")
    fields = {} if encoder is None else {"grid": encoder.table_grid[1:]}
    return ActionPredictor(
        output_dim,
        width,
        depth,
        decide_heads("action_predictor", width, hints, notes),
        mlp_ratio(width, hidden, activation),
        use_extrinsics=hints.use_extrinsics,
        **dims,
        **fields,
    )


def _probe(state, hints, notes, _):
    num_queries, width = state["pooler.query_tokens"].shape[1:]
    hidden = state["pooler.cross_attention_block.mlp.fc1.weight"].shape[0]
    outputs = tuple(
        (name, len(state[f"{official}.bias"]))
        for official, name in convert.PROBE_HEADS.items()
        if f"{official}.bias" in state
    )
    if len(outputs) != num_queries:
        raise WeightsError(
            f"a probe with {num_queries} queries and {len(outputs)} linear heads; it needs one head per "
            f"query, out of {', '.join(convert.PROBE_HEADS)}"
        )
    heads = decide_heads("probe", width, hints, notes)
    depth = 1 + _blocks(state, "pooler.blocks.")[0]
    return AttentiveProbe(width, depth, heads, mlp_ratio(width, hidden, "gelu"), num_queries, outputs)


_INFER = {"encoder": _encoder, "predictor": _predictor, "action_predictor": _action_predictor, "probe": _probe}


def from_official(module, state):
    """Convert an official state dict that was checked against `official_shapes`; tables are left out."""
    if isinstance(module, VideoEncoder):
        return convert.encoder_from_official(state, module)
    if isinstance(module, MaskedPredictor):
        return convert.predictor_from_official(state)
    if isinstance(module, ActionPredictor):
        return convert.action_predictor_from_official(state)
    return convert.probe_from_official(state)


def to_official(module, params):
    """Invert `from_official`; a sincos network gets its position table."""
    if isinstance(module, (VideoEncoder, MaskedPredictor)):
        is_encoder = isinstance(module, VideoEncoder)
        state = convert.encoder_to_official(params, module) if is_encoder else convert.predictor_to_official(params)
        if module.positions == "sincos":
            table = sincos_table(module.width, module.table_grid, module.uniform_power).astype(np.float32)
            state["pos_embed" if is_encoder else "predictor_pos_embed"] = table[None]
        return state
    if isinstance(module, ActionPredictor):
        return convert.action_predictor_to_official(params)
    return convert.probe_to_official(params)


def official_shapes(module):
    """Return the tensors of a network under official names, as dict from name to shape."""
    # One number seen as many: no memory is needed to find out names and shapes.
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_tree(module))
    return {name: value.shape for name, value in to_official(module, zeros).items()}


def refuse_unofficial(name, module):
    """Raise WeightsError if the official code cannot compute what this network computes."""
    for field, allowed in _OFFICIAL.items():
        value = getattr(module, field, allowed[0])
        if value not in allowed:
            raise WeightsError(
                f"{name} has {field}={value!r}, which the official code does not have; it knows {allowed[0]!r}"
            )
    eps = _OFFICIAL_EPS.get(kind_of(name), 1e-6)
    if module.norm_eps != eps:
        raise WeightsError(
            f"{name} has norm_eps {module.norm_eps}, the official code has {eps} fixed: it would compute something else"
        )
