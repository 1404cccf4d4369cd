"""`python -m jepa_jax.plan`, `viz energy` and `bench plan` with tiny random weights: what they print, write and refuse."""

import argparse
import dataclasses
import functools
import json
from fractions import Fraction

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import robots
from compiling import fast_options
from weight_bundles import random_network

from jepa_jax import plan, prepare
from jepa_jax.bench import __main__ as bench
from jepa_jax.bench import planners, planning
from jepa_jax.data.encoding import Encoding, encode_video, rgb_frames
from jepa_jax.data.transforms import centered_crop_box, crop_resize_uint8
from jepa_jax.data.video import decode_frame_list
from jepa_jax.models import ActionPredictor, VideoEncoder
from jepa_jax.planning import Root, bind, calibration, landscape, latent, make_spec
from jepa_jax.planning.command import load_planned
from jepa_jax.planning.observations import crop, read_moves
from jepa_jax.robots.presets import DROID, generic
from jepa_jax.robots.world import Trained, WorldModel
from jepa_jax.viz import __main__ as viz
from jepa_jax.weights import native
from jepa_jax.weights.bundle import Bundle, Preprocessing, network_sha256

ENCODER = VideoEncoder(width=24, depth=1, num_heads=2, patch_size=8)
NETWORKS = {"target_encoder": random_network(ENCODER, 0), "action_predictor": random_network(ActionPredictor(24, 32, 1, 2, grid=(4, 4)), 1)}
WORLD = {"robot": DROID.to_json(), "frames": 4, "fps": 5.0, "crop_aspect": [0.75, 1.35], "views": [],
         "encoder_sha256": network_sha256(NETWORKS["target_encoder"].params)}
STATE = "0.5,0,0.3,3.1,0,0,0.2"
# Recorded targets in other units than states.
TARGETS = generic(tuple("abcdefg"), tuple("tuvwxyz"), state_units=("m",) * 7, action_units=("turns",) * 7, source="recorded", mode="absolute",
                  action_low=tuple(range(7)), action_high=tuple(range(1, 8)))
DRAW = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """Compile what the commands compile as `fast_jit` does: these programs run for moments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=fast_options()))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights, two pictures of 16:9 and two that cannot be used."""
    folder = tmp_path_factory.mktemp("plan")
    native.write(Bundle(NETWORKS, Preprocessing(32, 36, 4), world_model=WORLD), str(folder / "ac"))
    native.write(Bundle({"target_encoder": NETWORKS["target_encoder"]}, Preprocessing(32, 36, 4)), str(folder / "encoder"))
    arm = generic(tuple("abcdefg"), position=0)
    native.write(Bundle(NETWORKS, Preprocessing(32, 36, 4), world_model=WORLD | {"robot": arm.to_json()}), str(folder / "arm"))
    native.write(Bundle(NETWORKS, Preprocessing(32, 36, 4), world_model=WORLD | {"robot": TARGETS.to_json()}), str(folder / "targets"))
    for name, size in (("now", (36, 64)), ("goal", (36, 64)), ("small", (32, 32))):
        cv2.imwrite(str(folder / f"{name}.png"), DRAW.integers(0, 256, (*size, 3), np.uint8))
    holes = DRAW.uniform(size=(36, 64, 3)).astype(np.float32)
    holes[0, 0, 0] = np.nan
    np.save(folder / "holes.npy", holes)
    moves = np.array([[0, 0], [0.05, 0], [0, 0], [0, 0.05], [0, 0], [0.2, 0]], np.float32)
    states = np.tile(np.array([0.5, 0, 0.3, 3.1, 0, 0, 0.2], np.float32), (len(moves), 1))
    states[:, :2] += moves
    np.savez(folder / "moves.npz", observations=DRAW.integers(0, 256, (1, len(moves), 36, 64, 3), np.uint8), states=states[None])
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.fixture
def run(files, capsys):
    """Plan; returns (status, standard output, errors)."""

    def run(*arguments, **changes):
        given = {"model": "ac", "observation": "now.png", "goal": "goal.png"} | changes
        paths = [part for name, value in given.items() for part in (f"--{name}", str(files / value))]
        status = plan.main([*paths, "--state", STATE, "--planner", "cem", "--samples", "12", "--iterations", "2", "--devices", "1", *arguments])
        return status, *capsys.readouterr()

    return run


def test_plan(run, tmp_path):
    status, out, _ = run("--horizon", "2", "--fix", "gripper=0", "--output", str(tmp_path))
    assert status == 0
    record = json.loads((tmp_path / plan.REPORT).read_text())
    actions = np.array(record["actions"])
    assert actions.shape == (2, 7) and (actions[:, 3:] == 0).all() and (np.abs(actions[:, :3]) <= 0.075).all()
    assert f"x       {actions[0, 0]:+9.4f} m" in out and "roll      +0.0000 rad  (not planned)" in out
    assert f"energy {record['energy']['now']:.4f} now, {record['energy']['planned']:.4f} predicted after the plan" in out
    assert record["evaluations"] == (12 * 2 + 1) * 2 and "(50 calls of the model)" in out
    assert "each action lasts 0.2 s\n" in out and record["step_seconds"] == 0.2
    assert cv2.imread(str(tmp_path / plan.PICTURE)).shape[1] > 1000


def test_other_numbers_and_any_setting(run, tmp_path):
    """Rotations are planned too, which the official planner keeps at 0."""
    status, out, error = run("--planned", "yaw,x,roll", "--bounds", "-0.05:0.05,-0.1:0.1,-0.2:0.2", "--set", "choice=best", "--set",
                             "std=(0.01,0.02,0.03)", "--output", str(tmp_path))
    assert status == 0, error
    (action,) = json.loads((tmp_path / plan.REPORT).read_text())["actions"]
    assert all(action[at] for at in (0, 3, 5)) and not any(action[at] for at in (1, 2, 4, 6)) and "roll      " in out and out.count("(not planned)") == 4


def test_candidates_are_spread_over_devices(run, tmp_path):
    found = []
    for number in (1, 4):
        status, out, error = run("--devices", str(number), "--output", str(tmp_path / str(number)))
        assert status == 0, error
        found.append(json.loads((tmp_path / str(number) / plan.REPORT).read_text()))
    assert [record["devices"] for record in found] == [1, 4] and "on 4 devices" in out
    np.testing.assert_allclose(found[0]["actions"], found[1]["actions"], atol=1e-5)


@pytest.mark.parametrize("arguments, changes, message", [
    (("--devices", "5"), {}, "--devices is 5; there are"),
    (("--devices", "3", "--chunk", "4"), {}, "over which 12 and chunks of 4 candidates must divide: 1, 2, 4"),
    ((), {"goal": "small.png"}, "observation and goal are 64 x 36 and 32 x 32 pixels; both must come from the same camera"),
    ((), {"observation": "holes.npy"}, "holes.npy: 1 of 6912 numbers are not finite"),
    ((), {"observation": "text.png"}, "text.png: cannot be read as a picture"),
    ((), {"goal": "nothing.png"}, "nothing.png: there is no such file"),
    (("--state", "0.5,0,0.3"), {}, "state has 3 numbers, 3 of them finite; robot 'droid' needs 7: x (m), y (m)"),
    (("--state", "0.5,0,0.3,nan,0,0,0"), {}, "6 of them finite"),
    (("--state", "0.5,0,0.3,180,0,0,0.2"), {}, "rotation: found an angle of 180; robot 'droid' needs radians within 6.38; these look like degrees"),
    (("--state", "0.5,0,0.3,3.1,0,0,85"), {}, "gripper: found 85 to 85; robot 'droid' needs gripper_range 0 to 1"),
    (("--samples", "2000000000"), {}, "make 4000000001 calls of the model; there may be 2147483647 at most"),
    (("--state", "a,b"), {}, "could not convert string to float: 'a'; give x (m)"),
    (("--bounds", "0.1:-0.1,0:1,0:1,0:1"), {}, "bounds of action number 0 are 0.1 to -0.1; the low one must be below the high one"),
    (("--bounds", "-1:1"), {"model": "arm"}, "the low bounds of an action are 1 numbers; give one for each of a, b, c, d, e, f, g"),
    ((), {"model": "arm"}, "robot 'generic': the bounds of an action are not known; give LOW:HIGH for each of a, b"),
    (("--bounds", "0:1,0:1"), {}, "the low bounds of an action are 2 numbers; give one for each of x, y, z, gripper"),
    (("--fix", "x=5"), {}, "planner: x is fixed to 5; its bounds allow -0.075 to 0.075"),
    (("--fix", "x=nan"), {}, "planner: fixed is ((0, nan),); it must be pairs"),
    (("--planned", "x,elbow"), {}, "--planned x,elbow: robot 'droid' has no elbow; its actions are x, y, z"),
    (("--planned", "x,yaw"), {}, "--planned x,yaw: robot 'droid' has no range for yaw; give --bounds, LOW:HIGH for each of x, yaw"),
    (("--set", "samples=3"), {}, "--set samples: there is an option for it that is given too"),
    (("--set", "temperature=low"), {}, "planner: temperature is 'low'; it must be None or a number above 0"),
    (("--set", "speed=3"), {}, "a planner has no setting speed; it has action_penalty"),
    ((), {"goal": "small.png", "calibrate": "moves.npz"}, "observation and goal are 64 x 36 and 32 x 32 pixels"),
    (("--fix", "yaw=1"), {}, "--fix yaw: robot 'droid' plans x, y, z, gripper"),
    ((), {"model": "encoder"}, "action_predictor"),
    (("--pool", "3"), {}, "pool is 3, which does not divide a grid of 4 x 4"),
    ((), {"calibrate": "now.png"}, "now.png: is no .npz file"),
])
def test_bad_input(run, arguments, changes, message):
    status, _, error = run(*arguments, **changes)
    assert status == 2 and message in error and error.startswith("error: ")


def test_a_budget_that_does_not_fit(run, monkeypatch):
    monkeypatch.setattr("jepa_jax.planning.memory.free_bytes", lambda: 300_000)
    status, _, error = run("--samples", "1000", "--chunk", "500")
    assert status == 2 and "chunk is 500; the largest that fits is" in error
    status, _, error = run("--samples", "5000")
    assert status == 2 and "samples is 5000, whose actions alone take about 0.343 MiB" in error and "the largest that fits is 3541" in error
    status, out, _ = run("--samples", "40")
    assert status == 0 and "at once" in out


def test_calibrate(run, files, tmp_path, monkeypatch):
    """Of the five moves the last one is too long for a step."""
    infer, counts = calibration.infer, []
    monkeypatch.setattr(calibration, "infer", lambda *args: counts.append(len(args[-1].goal)) or infer(*args))
    status, out, error = run("--output", str(tmp_path), calibrate="moves.npz")
    assert status == 0 and counts == [4], error
    record = json.loads((tmp_path / plan.REPORT).read_text())
    matrix = np.array(record["calibration"]["matrix"])
    assert matrix.shape == (2, 2) and np.isfinite(matrix).all() and "note: through this camera x and y look turned by " in out
    trained, params, _ = load_planned(argparse.Namespace(model=str(files / "ac"), encoder=None, robot=None, planned=()))
    frames, states = read_moves(str(files / "moves.npz"), DROID)
    with pytest.raises(ValueError, match="1 moves do not tell 2 directions apart"):
        calibration.watch(trained, params, frames[:2], states[:2])


def test_bounds_on_the_command_line(run, files, tmp_path, capsys):
    """Of a robot that has none: for the search, for calibration, and for the map of energies. 0:0 keeps a number where it is."""
    bounds = ",".join(["-0.1:0.1"] * 6 + ["0:0"])
    status, out, error = run("--bounds", bounds, "--output", str(tmp_path), model="arm", calibrate="moves.npz")
    assert status == 0 and "note: through this camera a and b look turned by" in out, error
    actions = np.array(json.loads((tmp_path / plan.REPORT).read_text())["actions"])
    assert (np.abs(actions) <= 0.1).all() and (actions[:, 6] == 0).all() and actions[:, :6].all()
    seen = [f"--{name}={files / value}" for name, value in (("model", "arm"), ("observation", "now.png"), ("goal", "goal.png"))]
    command = ["energy", *seen, "--state", "-0.5,0,0.3,3.1,0,0,0.2", "--samples", "5", "--output", str(tmp_path)]
    assert viz.main([*command, "--bounds", bounds]) == 0, capsys.readouterr().err
    assert viz.main([*command, "--bounds", bounds, "--dims", "a,g"]) == 1
    assert "the bounds of g are 0 to 0, so there is nothing to draw over it" in capsys.readouterr().err
    assert viz.main(command) == 1 and "the bounds of an action are not known; give LOW:HIGH for each of a, b" in capsys.readouterr().err


def test_what_moves_nothing_may_not_be_known(run, files, tmp_path, capsys):
    """Targets of 0 would be far outside of the bounds."""
    status, out, error = run("--output", str(tmp_path), model="targets")
    assert status == 0 and "if nothing moves" not in out and "better than to stay" not in out, error
    record = json.loads((tmp_path / plan.REPORT).read_text())
    assert record["energy"]["still"] is None and record["energy"]["planned"] > 0
    assert (np.array(record["actions"])[0] >= np.arange(7)).all()
    seen = [f"--{name}={files / value}" for name, value in (("model", "targets"), ("observation", "now.png"), ("goal", "goal.png"))]
    assert viz.main(["energy", *seen, "--state", STATE, "--samples", "5", "--output", str(tmp_path)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("size", [(720, 1280), (480, 600)])
def test_pictures_are_seen_as_stored_frames_were(size):
    """Fine texture, which a resize that skips pixels turns into noise, through both ways to the model."""
    texture = cv2.GaussianBlur(DRAW.normal(size=size).astype(np.float32), (0, 0), 1.2)
    picture = np.repeat(np.clip(128 + 150 * texture, 0, 255).astype(np.uint8)[..., None], 3, -1)
    stored = encode_video(rgb_frames([picture] * 2), Fraction(5), Encoding(crf=1), "picture")
    (frame,) = decode_frame_list(stored.data, [0])
    assert min(frame.shape[:2]) == 256
    trained = Trained(None, 5.0, 0.2, 4, 128, 256, (0.75, 1.35), None, "", ())
    training = crop_resize_uint8([frame], centered_crop_box(*frame.shape[:2], trained.crop_aspect), trained.size)[0].astype(float)
    away = [np.abs(crop(one, picture) - training).mean() for one in (trained, trained._replace(short_side=None))]
    assert away[0] < 1.5 < 4 < away[1], away
    # What is no larger than that was stored as it was.
    np.testing.assert_array_equal(crop(trained, frame), training)


def test_energies_are_those_of_the_last_state(files):
    """Whatever the search adds up, so that they can be compared with the energy now."""
    world = WorldModel(NETWORKS["action_predictor"].module, DROID)
    params = {"action_predictor": NETWORKS["action_predictor"].params}
    root = latent.make_root(world, *(DRAW.normal(size=size).astype(np.float32) for size in ((16, 24), (7,), (16, 24))))
    actions = np.full((2, 4), 0.05, np.float32)
    found = [plan.energies(bind(world, make_spec(DROID, "cem", horizon=2, **changes)), params, root, actions)
             for changes in ({}, {"cost": "sum", "action_penalty": 3.0})]
    assert found[0] == found[1] and found[0][1] != found[0][2]


class TestEnergy:
    def test_command(self, files, tmp_path, capsys):
        frames = DRAW.integers(0, 256, (1, 2, 32, 32, 3), np.uint8)
        states = np.array([[[0.5, 0, 0.3, 3.1, 0, 0, 0.2], [0.55, 0.02, 0.3, 3.1, 0, 0, 0.2]]], np.float32)
        np.savez(tmp_path / "example.npz", observations=frames, states=states)
        common = ["energy", "--model", str(files / "ac"), "--output", str(tmp_path), "--trajectory", str(tmp_path / "example.npz")]
        assert viz.main([*common, "--grid", "notebook", "--dims", "x,z", "--samples", "20", "--reverse"]) == 0
        assert "energy.png" in capsys.readouterr().out and cv2.imread(str(tmp_path / "energy.png")).shape[1] > 1000
        record = json.loads((tmp_path / "energy.json").read_text())
        assert record["names"] == ["x", "y", "z", "gripper"] and record["dims"] == ["x", "z"] and np.shape(record["energies"]) == (5, 5)
        assert 1 <= record["rank"] <= record["samples"] + 1 == 21 and record["true"][0] == pytest.approx(-0.05) and len(record["lowest"]) == 4
        assert viz.main([*common, "--dims", "x,roll"]) == 1
        assert "give two different names of x, y, z, gripper" in capsys.readouterr().err

    def test_finds_the_true_action(self):
        """The energy is the distance to a known action, so the true one is the best, and the map has it as its minimum."""
        true = np.array([0.03, -0.05, 0.06, 0.25], np.float32)
        planner = latent.Planner(lambda params, state, action: state + action,
                                 lambda params, state, goal, action: jnp.abs(state - goal).sum(-1),
                                 make_spec(DROID, "cem"), DROID)
        root = Root(np.zeros(4, np.float32), true)
        found = landscape.measure(planner, {}, root, (0, 2), points=31, true=true, samples=50)
        assert found.rank == 1 and found.true_energy < 1e-6
        row, column = np.unravel_index(found.energies.argmin(), found.energies.shape)
        assert abs(found.axes[0][column] - true[0]) < 3e-3 and abs(found.axes[1][row] - true[2]) < 3e-3
        # Where the goal is more than a step away, what is drawn stays where the model was trained.
        near, far = (landscape.measure(planner, {}, root, (0, 2), points=3, true=true + [0, 0, 0, more], samples=10) for more in (0, 9))
        assert far.others == f"{near.others}, within the bounds"
        np.testing.assert_allclose(far.energies - near.energies, planner.spec.high[3] - true[3], atol=1e-6)
        worse = landscape.measure(planner, {}, root, (0, 1), points=5, true=-true, samples=200)
        assert worse.rank > 100
        notebook = landscape.measure_notebook(planner, {}, root, (0, 2), true=true, samples=10)
        assert notebook.energies.shape == (5, 5) and notebook.axes[0].tolist() == pytest.approx([-0.075, -0.0375, 0, 0.0375, 0.075])
        # Mean over y of |0.0375 - 0.03| + |y + 0.05| + |0.075 - 0.06| + |0 - 0.25|.
        expected = 0.0075 + np.abs(notebook.axes[0] + 0.05).mean() + 0.015 + 0.25
        assert notebook.energies[4, 3] == pytest.approx(expected, abs=1e-6)
        with pytest.raises(ValueError, match="horizon is 2; it must be 1"):
            landscape.measure(planner._replace(spec=make_spec(DROID, "cem", horizon=2)), {}, root, (0, 1))
        own = dataclasses.replace(DROID, source="recorded", action_layout="own")
        with pytest.raises(ValueError, match="robot 'droid' has 0"):
            landscape.measure_notebook(planner._replace(robot=own), {}, root, (0, 2))


class TestBench:
    def test_record(self, tmp_path, monkeypatch, capsys):
        pytest.importorskip("torch")
        tiny = planning.Size("vit_micro", 32, {"width": 16, "depth": 1, "num_heads": 2}, 12, 2)
        monkeypatch.setitem(planning.SIZES, "tiny", tiny)
        output = tmp_path / "record.json"
        assert bench.main(["plan", "--against", "torch", "--horizons", "2", "--repeats", "2", "--output", str(output)]) == 0
        (run,) = json.loads(output.read_text())["runs"]
        # The peer is the official planner, noise and all.
        assert run["max_action_difference"] < 1e-5 and run["torch"]["plan_ms"]["num"] == 2 and run["evaluations"] == 50
        assert "times ours" in capsys.readouterr().out

    def test_planners_are_compared_on_trajectories(self, files, tmp_path, capsys, monkeypatch):
        for number in range(2):
            robots.write_droid(tmp_path / "raw" / str(number), 30, seed=number, views=("left",))
        assert prepare.main(["droid", str(tmp_path / "raw"), "--output", str(tmp_path / "shards"), "--workers", "0"]) == 0
        monkeypatch.setattr(planners, "compare_planners", functools.partial(planners.compare_planners, names=("cem",), reference="notebook"))
        common = ["plan", "--model", str(files / "ac"), "--shards", str(tmp_path / "shards"), "--output", str(tmp_path / "record.json")]
        assert bench.main([*common, "--states", "3", "--apart", "2", "--seed", "4"]) == 0
        record = json.loads((tmp_path / "record.json").read_text())
        assert record["states"] == 3 and record["apart"] == 2 and record["seed"] == 4 and record["horizon"] == 1
        assert "3 test states, 2 steps from their goals" in capsys.readouterr().out
        for wrong, said in ((["--horizons", "1", "2"], "one horizon a run"), (["--samples", "9", "--dtype", "bfloat16"], "--samples, --dtype: "),
                            (["--distance-head", str(tmp_path / "none")], "none")):
            assert bench.main([*common, *wrong]) == 2 and said in capsys.readouterr().err
        assert bench.main(["plan", "--shards", "shards", "--apart", "3"]) == 2 and "--shards, --apart: for --model" in capsys.readouterr().err

    def test_planners_are_compared(self, tmp_path, capsys):
        world = WorldModel(NETWORKS["action_predictor"].module, DROID)
        params = {"action_predictor": NETWORKS["action_predictor"].params}
        latents = DRAW.normal(size=(3, 2, 16, 24)).astype(np.float32)
        poses = np.tile(np.array([0.5, 0, 0.3, 3.1, 0, 0, 0.2], np.float32), (3, 1))
        roots = latent.make_root(world, latents[:, 0], poses, latents[:, 1])
        record = planners.compare_planners(world, params, roots, names=("hybrid",), reference="notebook", batch=2)
        row = record["planners"]["hybrid"]
        assert len(row["final"]) == record["states"] == 3 and len(row["evaluations"]) == len(row["energy"])
        official = record["planners"]["notebook"]
        assert official["share_no_worse"] == 1.0 and max(np.subtract(official["lowest"], official["final"])) < 0
        assert row["share_no_worse_than_lowest"] == np.mean(np.array(row["final"]) <= np.array(official["lowest"]) + 1e-6)
        # Of three states, 95 % lie a tenth of the way from the largest difference to the middle one.
        final, again = np.array(official["final"]), np.array(record["again"]["final"])
        apart = np.sort(np.abs(again - final) / final)
        assert apart[0] > 0 and record["spread"] == pytest.approx(0.1 * apart[1] + 0.9 * apart[2])
        alike = np.maximum(record["spread"] * final, 1e-6)
        assert row["share_no_worse_to_spread"] == np.mean(np.array(row["final"]) <= final + alike)
        assert record["again"]["share_no_worse"] == np.mean(again <= final + 1e-6)
        assert row["evaluations_over_reference"] == row["evaluations_per_plan"] / record["planners"]["notebook"]["evaluations_per_plan"]
        alone = bind(world, make_spec(DROID, "hybrid"))
        assert row["evaluations_per_plan"] == alone.spec.evaluations
        record |= {"benchmark": "planners", "apart": 4, "model": "runs/ac"}
        (tmp_path / "record.json").write_text(json.dumps(record))
        draw = ["planners", "--record", str(tmp_path / "record.json"), "--output", str(tmp_path)]
        assert viz.main(draw) == 0 and cv2.imread(str(tmp_path / "planners.png")).shape[1] > 1000
        (tmp_path / "record.json").write_text('{"benchmark": "step"}')
        assert viz.main(draw) == 1 and "not a comparison of planners (benchmark: step)" in capsys.readouterr().err
