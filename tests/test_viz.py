"""Pictures of a run: they are made, and show what they are about."""

import json

import cv2
import jax
import media
import numpy as np
import pytest

from configs import pretrain as config_file
from jepa_jax.data.records import ClipRecord
from jepa_jax.tasks import loading, pretrain
from jepa_jax.training.checkpoint import CheckpointStore
from jepa_jax.training.metrics import FILE
from jepa_jax.training.state import create_state
from jepa_jax.viz import __main__ as cli
from jepa_jax.viz import canvas, curves, features, masks, summary
from jepa_jax.weights import runs


def _rows(count):
    rows = []
    for step in range(1, count + 1):
        rows.append({
            "step": step, "train/loss": 1 / step, "train/loss/video/long": 1.1 / step, "train/loss/video/short": 0.9 / step,
            "collapse/target_rank": 30.0 - step, "collapse/prediction_rank": 2.0 + step, "collapse/target_std": 0.9,
            "collapse/target_std_min": 0.4, "collapse/prediction_std": 0.3, "collapse/cosine": 0.5, "optim/lr": 1e-3,
            "optim/grad_norm_encoder": 0.1, "optim/grad_norm_predictor": 0.2, "ema/momentum": 0.99,
            "perf/clips_per_s": 10.0 + step, "perf/step_ms": 100.0, "data/wait_share": 0.01, "guard/skipped": 1.0,
        })
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir as training leaves it, with the first parameters as target and others as context encoder."""
    workdir = tmp_path_factory.mktemp("run")
    shards = workdir / "shards"
    shards.mkdir()
    path = media.write_video(workdir / "clip.mp4", frames=40, fps=16, height=64, width=112)
    with open(path, "rb") as file:
        record = ClipRecord("video", file.read(), 16.0, 40, 64, 112, "somewhere/clip.mp4")
    media.write_shard(shards / "clips-00000-of-00001.array_record", [record])
    config = config_file.get_config("demo")
    config.data.size = 64
    config.data.groups.video.update({"frames": 4, "batch_size": 3, "paths": (str(shards),)})
    config.model.predictor.update({"width": 24, "depth": 1, "num_heads": 1})
    encoder, predictor = pretrain.make_models(config.model, (2, 4, 4))
    init = jax.jit(lambda rng: pretrain.init_params(encoder, predictor, rng))
    params, other = init(jax.random.key(config.seed)), init(jax.random.key(1))
    optimizer = pretrain.make_optimizer(config.optim, params, 1)
    store = CheckpointStore(workdir / "checkpoints")
    card = runs.model_card({"encoder": encoder, "predictor": predictor}, config.data.size, 4, target="encoder")
    record = {"config": config.to_dict(), "data": {}, "model": card}
    store.save(7, create_state(other, params["encoder"], optimizer), record)
    store.wait()
    store.close()
    (workdir / FILE).write_text("".join(json.dumps(row) + "\n" for row in _rows(5)) + '{"step": 6, "tra')
    return workdir


def _image(path):
    return cv2.imread(str(path))[..., ::-1]


def test_load_run(run):
    loaded = loading.load_run(run)
    assert loaded.step == 7 and loaded.config.is_locked
    # JSON turned these into lists; specs built from them must be hashable again.
    assert loaded.config.data.crop_scale == (0.3, 1.0)
    assert len(pretrain.make_groups(loaded.config)) == 1
    jax.tree.map(np.testing.assert_array_equal, loaded.initial_params()["encoder"], loaded.target_params)
    leaves = zip(jax.tree.leaves(loaded.params["encoder"]), jax.tree.leaves(loaded.target_params))
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in leaves)


def test_all_pictures(run, tmp_path, capsys):
    assert cli.main(["all", "--workdir", str(run), "--output", str(tmp_path), "--detail", "1"]) == 0
    written = capsys.readouterr().out.splitlines()
    assert written == [f"wrote {tmp_path}/{name}" for name in ("curves.png", "masks.png", "features.png", summary.FILE)]
    for name in ("curves.png", "masks.png", "features.png"):
        image = _image(tmp_path / name)
        assert min(image.shape[:2]) > 400 and image.std() > 20
    assert not list(tmp_path.glob("*.partial"))
    numbers = json.loads((tmp_path / summary.FILE).read_text())
    assert numbers["checkpoint_step"] == 7 and numbers["logged_steps"] == 5
    assert numbers["loss"] == {"first": 1.0, "last": 0.2}
    assert numbers["clips_per_s"]["median"] == 13.0 and numbers["skipped_updates"] == 1
    assert numbers["parameters"]["encoder"] == sum(
        leaf.size for leaf in jax.tree.leaves(loading.load_run(run).target_params)
    )


def test_masks_are_painted_where_they_are():
    frames = np.full((2, 32, 64, 3), (200, 30, 90), np.uint8)
    roles = masks.token_roles((2, 2, 4), np.array([0, 1, 4, 5, 8]), np.array([2, 3, 6, 7, 10, 11]))
    assert roles[0].tolist() == [[masks.CONTEXT] * 2 + [masks.TARGET] * 2] * 2
    assert roles[1].tolist() == [[masks.CONTEXT, masks.UNUSED] + [masks.TARGET] * 2, [masks.UNUSED] * 4]
    painted = masks.paint_roles(frames, roles).astype(int)
    assert (painted[0, :, :28] == (200, 30, 90)).all()
    # Away from the border: a tint that keeps none of the frame's own hue.
    red, green, blue = painted[0, 8, 50]
    assert red > green > blue
    assert (painted[0, :, 31:33] == 255).all()
    grey = painted[1, 24, 8]
    assert grey.max() - grey.min() < 40 and grey.min() > 150


def test_mask_picture_follows_the_batch(run):
    config = loading.load_run(run).config
    (clip,) = masks.read_masked_clips(config, 0)
    assert clip.frames.shape == (2, 64, 64, 3) and sorted(clip.roles) == ["long_range", "short_range"]
    # The clip and the masks of the first row of the whole batch.
    (group,) = pretrain.make_groups(config)
    context_ids, target_ids = group.sampler.sample(0, np.arange(3))
    for roles, context, target in zip(clip.roles.values(), context_ids, target_ids):
        assert np.flatnonzero(roles.reshape(-1) == masks.CONTEXT).tolist() == context[0].tolist()
        assert np.flatnonzero(roles.reshape(-1) == masks.TARGET).tolist() == target[0].tolist()
    (other,) = masks.read_masked_clips(config, 1)
    assert (clip.frames != other.frames).any()


def test_curves_show_the_numbers(run, tmp_path):
    metrics = curves.read_metrics(run)
    # The sixth row was cut short.
    assert metrics["step"].tolist() == [1, 2, 3, 4, 5]
    figure = curves.draw_curves(metrics, "test")
    panels = {panel.get_title(loc="left"): panel for panel in figure.axes}
    lines = {line.get_label(): line for line in panels["Loss"].get_lines()}
    assert set(lines) == {"all", "long", "short"}
    np.testing.assert_allclose(lines["all"].get_ydata(), metrics["train/loss"])
    assert all(panel.get_ylabel() for panel in figure.axes)
    # A run of one row, and one without monitors, still give a picture.
    lone = {"step": np.ones(1), "train/loss": np.ones(1)}
    canvas.save_figure(curves.draw_curves(lone, "test"), str(tmp_path / "lone.png"))


def test_long_curves_are_smoothed():
    noisy = np.linspace(1, 0, 400) + np.random.default_rng(0).normal(0, 0.2, 400)
    noisy[10] = np.nan
    smooth = curves._running_mean(noisy)
    assert np.isfinite(smooth).all() and np.abs(np.diff(smooth)).max() < 0.1
    short = noisy[:50]
    assert curves._running_mean(short) is short


def test_pca_colors_tell_regions_apart():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 16))
    latents = np.empty((3, 4, 6, 16))
    latents[:, :, :3], latents[:, :, 3:] = left, right
    latents += rng.normal(0, 0.02, latents.shape)
    colors, share = features.pca_colors(latents)
    assert colors.shape == (3, 4, 6, 3) and 0 <= colors.min() and colors.max() <= 1 and share > 0.9
    # One side at one end of the first channel, in all time steps alike.
    first = colors[..., 0]
    assert abs(first[:, :, :3].mean() - first[:, :, 3:].mean()) > 0.4
    assert first[:, :, :3].std() < 0.05
    assert np.isfinite(features.pca_colors(np.ones((1, 2, 2, 8)))[0]).all()


def test_clip_is_whole_patches_and_undistorted(run):
    config = loading.load_run(run).config
    clip = features.read_clip(config, None, detail=2)
    # 64 x 112 doubled is 128 x 224; four frames at half of 16 frames/s.
    assert clip.frames.shape == (4, 128, 224, 3) and clip.fps == 8.0 and clip.name == "clip.mp4"
    numbers = [media.read_number(frame) for frame in clip.frames]
    assert numbers == sorted(numbers) and numbers[0] > 10


@pytest.mark.parametrize(
    "kind, message", [("curves", "no metrics"), ("masks", "no checkpoint"), ("features", "no checkpoint")]
)
def test_empty_workdir(kind, message, tmp_path, capsys):
    assert cli.main([kind, "--workdir", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists()


def test_metrics_without_rows(tmp_path, capsys):
    (tmp_path / FILE).write_text("")
    assert cli.main(["curves", "--workdir", str(tmp_path)]) == 1
    assert "holds no metrics yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message", [(None, "no such file"), (b"", "empty"), (b"not a video" * 50, "no known video")]
)
def test_unreadable_video(run, tmp_path, capsys, content, message):
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["features", "--workdir", str(run), "--video", str(path), "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


def test_missing_shards(run, capsys):
    config = loading.load_run(run).config.copy_and_resolve_references()
    config.data.groups.video.paths = ("/nowhere",)
    with pytest.raises(FileNotFoundError, match="no shards found"):
        masks.read_masked_clips(config, 0)
    with pytest.raises(FileNotFoundError, match="no shards found"):
        features.read_clip(config)


def test_command_line_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0 and "features" in capsys.readouterr().out
