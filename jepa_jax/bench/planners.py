"""Compare what planners reach for how many calls of a trained model, on pairs of frames of held-out trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jepa_jax.bench import report
from jepa_jax.data import ShardSource
from jepa_jax.data.trajectories import KIND
from jepa_jax.evals import samples
from jepa_jax.models.norms import normalize_latents
from jepa_jax.planning import Energy, bind, load_learned, make_root, make_spec
from jepa_jax.planning.memory import fit_memory
from jepa_jax.planning.presets import GENERAL
from jepa_jax.planning.search import curve
from jepa_jax.robots.world import bind_model
from jepa_jax.training.checkpoint import CheckpointError
from jepa_jax.weights.load import load_with_encoder

# Energies that differ by less are alike.
_ALIKE = 1e-6
# On which share of the states two runs of the reference differ by less than what is called their spread.
_SPREAD = 0.95


def measure_planners(model, shards, *, encoder=None, distance_head=None, states=64, apart=4, horizon=1, batch=8, seed=0):
    """Compare all planners on test states of trajectories.

    Args:
      model: path of weights with an action predictor.
      shards: paths of held-out trajectories with frames or features.
      encoder: path of the encoder, where `model` lacks it.
      distance_head: path of a learned distance, the energy; None for L1.
      states: pairs of frames, of as many trajectories as there are.
      apart: steps from a frame to its goal.
      horizon, batch, seed: as in `compare_planners`.

    Returns:
      JSON-able dict.

    Raises:
      ValueError, DataError: if something cannot be read or planned.
    """
    source = ShardSource(shards, KIND)
    stored = samples.holds_latents(samples.first_record(source), None)
    networks = ("action_predictor",) if stored and not encoder else ("encoder", "action_predictor")
    try:
        loaded, params = load_with_encoder(model, encoder, networks)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    trained = bind_model(loaded)
    energy = load_learned(distance_head) if distance_head else Energy()
    if distance_head:
        energy.check_encoder(trained.encoder_sha256)
    found = samples.read_samples(source, samples.make_maker(trained, shards, apart + 1, latents=stored), states, seed=seed)
    device = jax.devices()[0]
    return {
        "benchmark": "planners", "model": model, "shards": list(shards), "apart": apart, "seed": seed,
        "device": {"kind": device.device_kind, "platform": device.platform, "num": 1}, "machine": report.machine(),
        "energy": "learned" if distance_head else energy.distance,
        **compare_planners(trained.world, params, _roots(trained.world, params, found.arrays, batch), energy=energy, horizon=horizon,
                           batch=batch, seed=seed),
    }


def _roots(world, params, arrays, batch):
    """Make roots with a leading axis from the first and last frame of samples."""
    ends = lambda name: np.asarray(arrays[name])[:, [0, -1]]
    if "latents" in arrays:
        latents = np.asarray(jax.jit(normalize_latents)(ends("latents")))
    else:
        encode, frames = jax.jit(world.encode), ends("video")
        latents = np.concatenate([encode(params, frames[at : at + batch]) for at in range(0, len(frames), batch)])
    camera = ends("extrinsics")[:, 0] if "extrinsics" in arrays else None
    return make_root(world, latents[:, 0], ends("states")[:, 0], latents[:, 1], camera)


def compare_planners(world, params, roots, *, energy=None, horizon=1, names=tuple(GENERAL), reference="paper", batch=8, seed=0):
    """Say what each planner reaches for how many calls of the model, on the same test states.

    Args:
      world: `WorldModel`.
      params: of it.
      roots: `Root` with a leading axis of N test states.
      energy: as in `planning.bind`.
      horizon: of all planners.
      names: presets to compare.
      reference: preset they are compared with, at least as good in energy.
      batch: test states planned together; compiled once for each planner.
      seed: of the search.

    Returns:
      JSON-able dict: for each planner `evaluations` and mean `energy` along its search, `final` `[N]` energies,
      `lowest` of all that were evaluated, `evaluations_per_plan`, and beside the reference `evaluations_over_reference` and
      `share_no_worse`: on which share of the states `final` is at most the reference's `final` and a millionth;
      `share_no_worse_to_spread`: the same, and where `spread` of that energy is more, that; and
      `share_no_worse_than_lowest`: at most its `lowest` and a millionth, which official planners do not answer with.
      Beside the planners, `again` is a second run of the reference with other draws, `final` and shares, and `spread` by how much, as a
      part of the energy, the two differ at most on 95 % of the states.
    """
    keys = jax.random.split(jax.random.key(seed), len(roots.goal))
    others = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), len(roots.goal))

    def search(name, keys, label):
        planner = bind(world, fit_memory(world, make_spec(world.robot, name, horizon=horizon), robots=batch), energy)

        def solve(params, rng, root):
            output = planner.plan(params, rng, root)
            return output.cost, curve(output, planner.spec)

        final, (work, best) = _for_each(solve, params, (keys, roots), batch, label)
        return {"evaluations": work[0].tolist(), "energy": best.mean(0).tolist(), "final": final.tolist(),
                "lowest": best[:, -1].tolist(), "evaluations_per_plan": planner.spec.evaluations}

    rows = {name: search(name, keys, name) for name in (reference, *names)}
    again = {"final": search(reference, others, f"{reference}, other draws")["final"]}
    other = rows[reference]
    final = np.array(other["final"])
    spread = float(np.quantile(np.abs(again["final"] - final) / np.fmax(final, _ALIKE), _SPREAD))
    for row in (*rows.values(), again):
        for share, known, alike in (("share_no_worse", final, _ALIKE), ("share_no_worse_than_lowest", np.array(other["lowest"]), _ALIKE),
                                    ("share_no_worse_to_spread", final, np.fmax(_ALIKE, spread * final))):
            row[share] = float(np.mean(np.array(row["final"]) <= known + alike))
    for row in rows.values():
        row["evaluations_over_reference"] = row["evaluations_per_plan"] / other["evaluations_per_plan"]
    return {"reference": reference, "states": len(roots.goal), "horizon": horizon, "spread": spread, "again": again, "planners": rows}


def _for_each(function, params, arguments, batch, label):
    """Return what a function (params, *arguments) gives for each of the leading axis of its arguments, a batch at a time."""
    mapped = jax.jit(jax.vmap(function, (None, *(0,) * len(arguments))))
    count, found = len(jax.tree.leaves(arguments)[0]), []
    with tqdm(total=count, desc=f"{label} (compiles first)", unit=" states", dynamic_ncols=True) as bar:
        for first in range(0, count, batch):
            # The last batch is filled up, so that all have one shape.
            at = np.minimum(np.arange(first, first + batch), count - 1)
            found.append(jax.device_get(mapped(params, *jax.tree.map(lambda leaf: jnp.asarray(leaf)[at], arguments))))
            bar.update(min(batch, count - first))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *found)
