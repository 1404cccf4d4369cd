"""The learned distance and energies over several layers: what they learn, where they lead, and what is refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import robots
from compiling import fast_options
from weight_bundles import random_network

from configs import world_model as configs
from jepa_jax import evaluate, evaluate_distance, plan, planning, prepare
from jepa_jax.evals import learned_distance
from jepa_jax.evals.closed_loop import sight
from jepa_jax.models import ActionPredictor, VideoEncoder
from jepa_jax.models.norms import normalize_latents
from jepa_jax.robots.presets import DROID, generic
from jepa_jax.robots.world import WorldModel
from jepa_jax.tasks import world_model
from jepa_jax.tasks.latents import Features
from jepa_jax.training import sharding
from jepa_jax.weights import load, native, tensors
from jepa_jax.weights.bundle import Bundle, Preprocessing, WeightsError, network_sha256
from jepa_jax.weights.learned_energy import init_points, read_points

GRID, WIDTH, FRAMES = (1, 16), 8, 12
ENCODER = VideoEncoder(width=24, depth=2, num_heads=2, patch_size=8)
NETWORKS = {"target_encoder": random_network(ENCODER, 0), "action_predictor": random_network(ActionPredictor(24, 32, 1, 2, grid=(4, 4)), 1)}
SHA256 = network_sha256(NETWORKS["target_encoder"].params)
WORLD = {"robot": DROID.to_json(), "frames": 4, "fps": 5.0, "crop_aspect": [0.75, 1.35], "views": ["left"], "encoder_sha256": SHA256}


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """Compile what the commands compile as `fast_jit` does: these programs run for moments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=fast_options()))
        yield


def slide(places, seed):
    """Draw tokens `[..., N, D]`: a narrow bump of a pattern at places along a line, before a background of each clip's own."""
    pattern = np.random.default_rng(99).normal(size=WIDTH)
    background = np.random.default_rng(seed).normal(size=(len(places), 1, GRID[1], WIDTH))
    bump = np.exp(-2 * (np.arange(GRID[1]) - places[..., None]) ** 2)
    return np.float32(background + 6 * bump[..., None] * pattern)


def wander(count, seed):
    """Move to and fro along a line, at most one token per step: places `[M, F]`, which time alone does not tell."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([-1, 1], (count, 1)) * rng.uniform(0.3, 1, (count, FRAMES))
    steps *= np.where(np.arange(FRAMES) < rng.integers(5, 2 * FRAMES, (count, 1)), 1, -1)
    return np.clip(rng.uniform(3, 13, (count, 1)) + np.cumsum(steps, 1), 0, GRID[1] - 1)


def new_energy(sha256="a" * 64, grid=GRID, width=WIDTH, seed=0, measures=("steps", "states")):
    params = {name: init_points(jax.random.key(seed + n), grid[0] * grid[1], width) for n, name in enumerate(measures)}
    return planning.LearnedEnergy(params, grid, sha256, 4.0, FRAMES, {"clips": 3})


def measure(energy, latents):
    return learned_distance.clip_energies(energy, latents, GRID, np.zeros((*latents.shape[:2], 7)))


@pytest.fixture(scope="module")
def learnt():
    done = []
    apart = learned_distance.steps_apart(300, FRAMES)
    params = learned_distance.fit_points(slide(wander(300, 0), 0), apart, detours=True, steps=250, on_steps=done.append)
    assert sum(done) == 250
    return dataclasses.replace(new_energy(), params={"steps": params})


def test_the_distance_follows_the_way_of_things_in_clips_that_were_held_out(learnt):
    places = wander(20, 1)
    latents, way = slide(places, 1), np.abs(places[:, :, None] - places[:, None])
    found, plain = (measure(energy, latents) for energy in (learnt, planning.Energy()))
    assert found.shape == (20, FRAMES, FRAMES) and np.abs(np.diagonal(found, axis1=1, axis2=2)).max() < 0.02
    assert learned_distance.rank_correlation(found, way) > max(0.9, 0.02 + learned_distance.rank_correlation(plain, way))
    # Where the patterns no longer overlap, only the learnt one still knows the way.
    (ours,), (theirs,) = (learned_distance.right_way(energies, way / 50, (3 / 50, np.inf)) for energies in (found, plain))
    assert ours > 0.85 and ours > theirs + 0.1
    goal = slide(np.array([[1.0]]), 5)[0, 0]
    line = learnt(slide(np.arange(2.0, 12)[None], 5)[0], goal, GRID)
    assert (np.diff(line) > 0).mean() > 0.8 and float(line[-1]) > 1.5 * float(line[1])


def test_ranks_and_shares_are_those_of_a_known_order():
    truth = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))[None].astype(float)
    assert learned_distance.rank_correlation(truth**3, truth) == pytest.approx(1) and learned_distance.rank_correlation(-truth, truth) == pytest.approx(-1)
    assert np.isnan(learned_distance.rank_correlation(np.zeros_like(truth), truth))
    assert learned_distance.right_way(truth, truth, (0, 2, 9, 10)) == [1, 1, pytest.approx(np.nan, nan_ok=True)]
    assert learned_distance.right_way(-truth, truth, (0, 9)) == [0]
    held = learned_distance.hold_out(np.array([4, 4, 7, 9, 9]), 0.4)
    assert held[0] == held[1] and held[3] == held[4] and 0 < held.sum() < 5
    with pytest.raises(ValueError, match="clips of 1 trajectory"):
        learned_distance.hold_out(np.array([4, 4]), 0.5)
    with pytest.raises(ValueError, match="clips of 1 frame"):
        learned_distance.fit_points(np.zeros((2, 1, 4, 8), np.float32), np.zeros((2, 1, 1), np.float32), detours=True)


def test_distances_of_states_count_what_changes_in_a_step():
    states = np.zeros((2, 4, 7))
    states[0, :, 0] = [0, 0.1, 0.2, 0.3]
    states[0, :, 6] = [0, 0, 0, 1]
    # A gripper that turns is not counted, nor what stands still in all clips.
    states[1, :, 3] = [0, 1, 2, 3]
    apart = learned_distance.states_apart(DROID, states)
    usual = np.sqrt([3 * 0.1**2 / 6, 1 / 6])
    assert apart.dtype == np.float32 and not apart[1].any()
    np.testing.assert_allclose(apart[0, 0], [0, 0.1 / usual[0], 0.2 / usual[0], np.hypot(0.3 / usual[0], 1 / usual[1])], rtol=1e-6)
    np.testing.assert_array_equal(apart, apart.transpose(0, 2, 1))
    # A robot without a position is all its numbers, with or without a gripper.
    joints = np.zeros((1, 4, 3))
    joints[0, :, 0] = [0, 1, 2, 3]
    for fields in ({}, {"gripper": 2}):
        np.testing.assert_allclose(learned_distance.states_apart(generic(("a", "b", "gripper"), **fields), joints)[0, 0], [0, 1, 2, 3])
    with pytest.raises(ValueError, match="robot 'droid' never moves in these clips"):
        learned_distance.states_apart(DROID, np.zeros((2, 4, 7)))


def test_grippers_of_no_known_range_are_not_judged():
    posed = dataclasses.replace(DROID, name="arm", gripper_range=())
    clips, states = slide(wander(2, 0), 0), np.zeros((2, FRAMES, 7))
    titles = ["\n".join(evaluate_distance._judge({}, clips, GRID, robot, states)) for robot in (DROID, posed)]
    assert ["open and closed grippers" in text for text in titles] == [True, False]


def test_a_distance_of_states_knows_both_directions_of_an_error():
    """Time is only the most that frames are apart; states are as far apart as they say."""
    places = wander(300, 0)
    way = np.float32(np.abs(places[:, :, None] - places[:, None]))
    params = learned_distance.fit_points(slide(places, 0), way, detours=False, steps=250)
    energy = dataclasses.replace(new_energy(), params={"states": params})
    others = wander(20, 1)
    found, truth = measure(energy, slide(others, 1)), np.abs(others[:, :, None] - others[:, None])
    far = truth > 2
    assert np.median(np.abs(found - truth)) < 0.5 and abs(np.median(found[far] / truth[far]) - 1) < 0.15
    # Energies of several measures add up.
    latents, goal = slide(others, 1)[0], slide(others, 1)[0, 3]
    both = dataclasses.replace(energy, params={"states": params, "steps": params})
    np.testing.assert_allclose(both(latents, goal, GRID), 2 * energy(latents, goal, GRID), rtol=1e-6)


def test_pairs_are_told_apart():
    energies = np.arange(9.0).reshape(1, 3, 3)
    alike, differ = energies < 3, energies > 6
    assert learned_distance.told_apart(energies, alike, differ) == 1 and learned_distance.told_apart(-energies, alike, differ) == 0
    assert np.isnan(learned_distance.told_apart(energies, alike, energies < 0))


def test_gradients_lead_to_the_goal_and_do_not_break_there(learnt):
    """A planner by gradients alone moves the pattern to where the goal shows it."""
    world, draw = WorldModel(ActionPredictor(WIDTH, 24, 2, 2, grid=GRID), DROID), jnp.asarray(slide(np.zeros((1, 1)), 7)[0, 0])
    bump = lambda place: draw * 0 + 6 * jnp.exp(-2 * (jnp.arange(GRID[1]) - place) ** 2)[:, None] * np.random.default_rng(99).normal(size=WIDTH)
    slope = jax.grad(lambda place: learnt(bump(place), bump(4.0), GRID))
    assert np.isfinite(float(slope(4.0))) and slope(6.0) > 0 > slope(2.0)
    spec = planning.PlanSpec(low=(-3,), high=(3,), samples=1, iterations=0, gradient_steps=24, restarts=4, choice="best")
    cost = lambda params, place, goal, action: learnt(jax.vmap(bump)(place[:, 0]), goal, GRID)
    root = planning.Root(jnp.array([6.0]), bump(4.0))
    out = jax.jit(lambda rng: planning.plan((), rng, root, lambda params, place, action: place + action, cost, spec))(jax.random.key(0))
    assert abs(float(out.actions[0, 0]) + 2) < 0.4
    # As the model's planner takes it; the grid is looked at before anything is compiled.
    assert planning.bind(world, planning.make_spec(DROID, "cem"), learnt).cost_fn
    with pytest.raises(ValueError, match="fitted on a grid of 1 x 16 tokens, used on one of 2 x 8"):
        planning.bind(dataclasses.replace(world, predictor=world.predictor.clone(grid=(2, 8))), planning.make_spec(DROID, "cem"), learnt)


@pytest.mark.parametrize("reduce, summed", [("mean", 1), ("sum", 2)])
def test_predictions_are_compared_as_a_planner_reads_them(reduce, summed):
    config = configs.get_config("demo")
    config.rollout.update({"auto_steps": 2, "reduce": reduce})
    network = random_network(ActionPredictor(WIDTH, 24, 2, 2, grid=GRID), 1)
    energy, rng = new_energy(), np.random.default_rng(0)
    batch = {"latents": rng.normal(size=(2, 4, GRID[1], WIDTH)), "actions": rng.normal(size=(2, 3, 7)), "states": rng.normal(size=(2, 4, 7))}
    batch = {name: np.float32(value) for name, value in batch.items()}
    world = WorldModel(network.module, DROID)

    def losses(**options):
        loss_fn = world_model.make_loss(world, config.rollout, frames_at_once=4, loss_exponent=2.0, monitor_tokens=8, **options)
        total, aux = jax.jit(loss_fn)({"action_predictor": network.params}, {}, batch)
        found = {name: float(value) for name, value in aux["losses"].items()}
        assert float(total) == pytest.approx(sum(found[f"train/loss/{part}"] for part in parts), rel=1e-5)
        return found

    parts = ("teacher_forcing", "rollout")
    plain = losses()
    assert "train/loss/energy" not in plain
    parts += ("energy",)
    found = losses(energy=energy, energy_weight=0.01)
    assert all(found[name] == pytest.approx(plain[name], rel=1e-5) for name in plain)
    # By hand: points of what is predicted, from true frames and in a rollout, against those of what came.
    latents = normalize_latents(jnp.asarray(batch["latents"]))
    params, told = {"action_predictor": network.params}, (batch["actions"], batch["states"][:, :-1])
    forced = world.predict_next(params, latents[:, :-1], *told)
    rolled = world.rollout(params, latents[:, :1], *(value[:, :2] for value in told))
    misread = lambda seen, true: sum(((read_points(one, seen) - read_points(one, true)) ** 2).sum(-1).mean() for one in energy.params.values())
    expected = misread(forced, latents[:, 1:]) + summed * misread(rolled, latents[:, 1:3])
    assert found["train/loss/energy"] == pytest.approx(0.01 * float(expected), rel=1e-3)


@pytest.mark.parametrize("sha256, grid, message", [
    ("f" * 64, GRID, "encoder with sha256 aaaaaaaaaaaa.*the world model sees with the one with sha256 ffffffffffff"),
    ("a" * 64, (2, 8), "fitted on a grid of 1 x 16 tokens, used on one of 2 x 8"),
])
def test_a_distance_of_other_latents_is_no_loss(sha256, grid, message, tmp_path):
    planning.save_learned(new_energy(), tmp_path / "head.safetensors")
    config = configs.get_config("demo")
    config.energy.distance_head = str(tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=message):
        world_model.make_program(config, DROID, Features(None, sha256, None, grid, WIDTH), None, {}, sharding.make_mesh(1))


class TestFile:
    def test_round_trip(self, learnt, tmp_path):
        planning.save_learned(learnt, tmp_path / "steps.safetensors")
        found = planning.load_learned(tmp_path / "steps.safetensors")
        latents = slide(wander(2, 3), 3)
        np.testing.assert_array_equal(found(latents[0], latents[1, 0], GRID), learnt(latents[0], latents[1, 0], GRID))
        plain = lambda energy: {name: value for name, value in vars(energy).items() if name != "params"}
        assert plain(found) == plain(learnt) and hash(found) != hash(learnt)
        with pytest.raises(WeightsError, match="exists already"):
            planning.save_learned(learnt, tmp_path / "steps.safetensors")
        with pytest.raises(ValueError, match="fitted on the encoder with sha256 aaaaaaaaaaaa..., but the planner sees with the one with sha256 bbb"):
            found.check_encoder("b" * 64)

    def test_other_files(self, tmp_path):
        energy, path = new_energy(), tmp_path / "a.safetensors"
        arrays = {f"{measure}.{name}": np.asarray(leaf) for measure, own in energy.params.items() for name, leaf in own.items()}
        tensors.write_safetensors(arrays, path)
        with pytest.raises(WeightsError, match="holds no learned distance; make one with"):
            planning.load_learned(path)
        planning.save_learned(energy, tmp_path / "b.safetensors")
        header = tensors.read_metadata(tmp_path / "b.safetensors")
        tensors.write_safetensors({**arrays, "steps.flat": arrays["steps.flat"][:-1]}, path, header)
        with pytest.raises(WeightsError, match="tensors steps.flat are missing, unknown or of another shape than its header says, 1 x 16 tokens of 8"):
            planning.load_learned(path)
        tensors.write_safetensors({**arrays, "states.flat": arrays["states.flat"] * np.nan}, path, header)
        with pytest.raises(WeightsError, match="states.flat hold numbers that are not finite"):
            planning.load_learned(path)
        for changed in ({"version": 9}, {"points": {}}, {"points": {"smell": 64}}):
            tensors.write_safetensors(arrays, path, {"jepa_jax": json.dumps(json.loads(header["jepa_jax"]) | changed)})
            with pytest.raises(WeightsError, match="holds no learned distance"):
                planning.load_learned(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights with and without an action predictor, shards, and pictures."""
    folder = tmp_path_factory.mktemp("distance")
    native.write(Bundle(NETWORKS, Preprocessing(32, 36, 4), world_model=WORLD), str(folder / "ac"))
    native.write(Bundle({"target_encoder": NETWORKS["target_encoder"]}, Preprocessing(32, 36, 4)), str(folder / "encoder"))
    for number in range(4):
        robots.write_droid(folder / "raw" / str(number), 26, seed=number, views=("left",))
    assert prepare.main(["droid", str(folder / "raw"), "--output", str(folder / "frames"), "--workers", "0"]) == 0
    for name in ("now", "goal"):
        np.save(folder / f"{name}.npy", np.random.default_rng(len(name)).integers(0, 256, (32, 32, 3), np.uint8))
    return folder


@pytest.fixture(scope="module")
def head(files):
    planning.save_learned(new_energy(SHA256, (4, 4), 24), files / "head.safetensors")
    return files / "head.safetensors"


def fit(files, output, *arguments, model="ac", shards="frames"):
    common = ["distance", str(files / shards), "--model", str(files / model), "--output", str(output), "--frames", "4", "--samples", "6"]
    return evaluate.main([*common, "--steps", "4", "--held-out", "0.3", *arguments])


def make_plan(files, *arguments):
    given = ["--model", str(files / "ac"), "--observation", str(files / "now.npy"), "--goal", str(files / "goal.npy"), "--samples", "8"]
    return plan.main([*given, "--state", "0.5,0,0.3,3.1,0,0,0.2", "--planner", "cem", "--elites", "2", "--iterations", "1", *arguments])


class TestCommand:
    def test_fits_on_frames_and_on_features_and_is_planned_with(self, files, tmp_path, capsys):
        assert fit(files, tmp_path / "frames.safetensors") == 0
        out = capsys.readouterr().out
        assert "6 clips of 4 trajectories, 4 frames at 5/s" in out and "wrote" in out
        assert {"learned", "l1"} <= set(out.split()) and "the way of the robot" in out and "goals over 30 cm away" in out
        assert "open and closed grippers told apart" in out
        energy = planning.load_learned(tmp_path / "frames.safetensors")
        assert (energy.grid, energy.encoder_sha256, energy.fps, energy.frames) == ((4, 4), SHA256, 5.0, 4)
        assert make_plan(files, "--distance", "learned", "--distance-head", str(tmp_path / "frames.safetensors")) == 0
        assert "energy" in capsys.readouterr().out
        features = ["features", str(files / "frames"), "--model", str(files / "encoder"), "--output", str(files / "features")]
        assert prepare.main([*features, "--size", "32", "--fps", "5", "--all-frames", "--workers", "0"]) == 0
        capsys.readouterr()
        assert fit(files, tmp_path / "encoder.safetensors", "--fps", "5", model="encoder", shards="features") == 0
        assert "the way of the robot" not in capsys.readouterr().out
        other = planning.load_learned(tmp_path / "encoder.safetensors")
        # Without a robot, its states mean nothing.
        assert plan_fields(other) == plan_fields(energy) and set(energy.params) == {"position", "gripper"} and set(other.params) == {"steps"}

    def test_refusals(self, files, head, tmp_path, capsys):
        def said(status, words):
            assert status == 2
            error = capsys.readouterr().err
            assert words in error, error

        said(fit(files, head), "exists already")
        said(fit(files, tmp_path / "a", "--frames", "200"), "need more than")
        said(fit(files, tmp_path / "a", "--of", "states", model="encoder"), "--of states: these weights name no robot; say with --robot")
        said(make_plan(files, "--distance", "learned"), "needs --distance-head FILE")
        said(make_plan(files, "--distance-head", str(head)), "--distance-head is for --distance learned, not l1")
        said(make_plan(files, "--distance", "learned", "--distance-head", str(head), "--pool", "2"), "--pool is 2 and --smooth 0")
        planning.save_learned(new_energy("f" * 64, (4, 4), 24), tmp_path / "other.safetensors")
        said(make_plan(files, "--distance", "learned", "--distance-head", str(tmp_path / "other.safetensors")),
             f"fitted on the encoder with sha256 ffffffffffff..., but the planner sees with the one with sha256 {SHA256[:12]}")

    @pytest.mark.parametrize("arguments, words", [
        (["--policy", "model", "--layers", "0,-1"], "--layers 0,-1: the world model predicts the encoder's output alone, that of its last layer"),
        (["--layers", "0,2"], "layers 0,2: the encoder has layers 0 to 1, -1 for the last; name each once"),
        (["--layers", "1,-1"], "name each once"),
        (["--layers", "0", "--sight", "patches"], "layers 0: encoder 'patches' has none"),
        (["--sight", "untrained", "--distance", "learned"], "but policy oracle, sight untrained, sees with other eyes"),
        (["--layers", "0,1", "--distance", "learned"], "but policy oracle, sight trained, sees with other eyes"),
    ])
    def test_what_a_policy_cannot_see_with(self, files, head, tmp_path, capsys, arguments, words):
        told = ["--distance-head", str(head)] if "learned" in arguments else []
        common = ["robot", "--model", str(files / "ac"), "--output", str(tmp_path), "--policy", "oracle", "--films", "0", "--episodes", "1"]
        assert evaluate.main([*common, *arguments, *told]) == 2
        error = capsys.readouterr().err
        assert words in error, error

    def test_the_oracle_plans_with_it_and_who_is_blind_does_not_mind(self, files, head, tmp_path, capsys):
        status = evaluate.main([
            "robot", "--model", str(files / "encoder"), "--output", str(tmp_path), "--policy", "oracle,zero", "--films", "0", "--episodes", "1",
            "--steps", "2", "--range", "0.05,0.1", "--nuisance", "0", "--planner", "cem", "--set", "samples=4", "--set", "elites=2",
            "--set", "iterations=1", "--distance", "learned", "--distance-head", str(head),
        ])
        assert status == 0, capsys.readouterr().err
        oracle, zero = json.loads((tmp_path / "robot.json").read_text())["rows"]
        assert len(oracle["energy_median"]) == 2 and min(oracle["energy_median"]) > 0 and zero["energy_median"] is None


def plan_fields(energy):
    return energy.grid, energy.encoder_sha256, energy.fps, energy.frames


def test_layers_are_seen_together_each_normalised(files):
    model, params = load.load(str(files / "encoder"))
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    see = lambda layers: (eyes := sight.make_sight(sight.TRAINED, model, params, layers=layers)).see(eyes.params, frames)
    both, first, last = see((0, -1)), see((0,)), see(())
    assert both.shape == (2, 16, 48) and last.shape == (2, 16, 24)
    np.testing.assert_allclose(both, np.concatenate([first, last], -1), atol=1e-5)
    np.testing.assert_allclose(np.asarray(first).std(-1), 1, atol=1e-2)
    assert np.abs(first - last).mean() > 0.02
    # The L1 energy of them is the mean of theirs.
    energy = planning.Energy()
    parts = [energy(latents[:1], latents[1], (4, 4)) for latents in (first, last, both)]
    np.testing.assert_allclose((parts[0] + parts[1]) / 2, parts[2], rtol=1e-5)


