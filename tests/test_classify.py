"""Videos are seen as the protocol says, and classified as the probe was trained to."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jepa_jax
from jepa_jax import classify
from jepa_jax.data import sampling
from jepa_jax.features.views import read_single_view, read_views
from jepa_jax.models import AttentiveProbe, VideoEncoder, normalize_pixels
from jepa_jax.models.spec import abstract_params
from jepa_jax.weights import store
from jepa_jax.weights.hints import Hints
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing, Protocol, WeightsError
from media import read_number, write_image, write_video

ENCODER = VideoEncoder(24, 3, 2, patch_size=8, table_grid=(2, 4, 4))
LABELS = tuple(f"doing {thing}" for thing in ("nothing", "a dance", "the dishes", "sports", "maths", "magic"))
PROTOCOL = Protocol("test", frames=4, frame_step=3, num_segments=2, num_views=3, crop_size=32, layers=(0, 2))


def write_classifier(folder, protocol=PROTOCOL, outputs=(("label", 6),), **extra):
    """Write random weights of a tiny classifier and return its path."""
    rng = np.random.default_rng(3)
    probe = AttentiveProbe(24, 2, 2, num_queries=len(outputs), outputs=outputs)
    networks = {}
    for name, module in {"encoder": ENCODER, "probe_0": probe}.items():
        params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), abstract_params(module))
        networks[name] = Network(module, params)
    pre = Preprocessing(crop_size=32, short_side=36, frames=4)
    store.write(Bundle(networks, pre, LABELS if len(outputs) == 1 else None, protocol, **extra), folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Path of a classifier with segments, views and layers."""
    return write_classifier(tmp_path_factory.mktemp("classifier") / "model")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Path of a wide numbered video of 60 frames."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", frames=60, height=64, width=128)


def test_segments_and_views(video):
    views, _ = read_views(video, PROTOCOL)
    assert views.shape == (2, 3, 4, 32, 32, 3) and views.dtype == np.uint8
    wanted = sampling.sample_frame_indices(
        60, 30.0, frames=4, num_clips=2, step=3, allow_overlap=True, uniforms=np.full(2, 0.5)
    )
    # The three squares side by side are the whole frame: 64 of 32 wide views at offsets 0, 16, 32.
    whole = np.concatenate([views[:, 0], views[:, 2]], axis=-2)
    numbers = [[read_number(frame) for frame in segment] for segment in whole]
    np.testing.assert_array_equal(numbers, wanted)
    np.testing.assert_array_equal(views[:, 1, :, :, :16], views[:, 0, :, :, 16:])


def test_one_view_is_the_central_crop(video):
    views, _ = read_views(video, dataclasses.replace(PROTOCOL, num_views=1))
    assert views.shape == (2, 1, 4, 32, 32, 3)
    indices = sampling.sample_frame_indices(
        60, 30.0, frames=4, num_clips=2, step=3, allow_overlap=True, uniforms=np.full(2, 0.5)
    )
    clip = jepa_jax.read_clip(video, frames=60, size=32)
    np.testing.assert_array_equal(views[:, 0], clip[indices])


def test_short_videos_and_images(tmp_path):
    short = write_video(tmp_path / "short.mp4", frames=5, height=64, width=64)
    views, _ = read_views(short, PROTOCOL)
    assert views.shape == (2, 3, 4, 32, 32, 3)
    # Five frames are no window of twelve: both segments are the same, and end in repetition.
    np.testing.assert_array_equal(views[0], views[1])
    image = write_image(tmp_path / "image.png", 64, 96)
    views, _ = read_views(image, PROTOCOL)
    assert views.shape == (2, 3, 4, 32, 32, 3) and (views[0, 0, 0] == views[1, 0, 3]).all()
    assert read_single_view(image, Preprocessing(crop_size=32, short_side=36, frames=4)).shape == (1, 1, 4, 32, 32, 3)


def test_probabilities_are_those_of_the_protocol(classifier, video):
    """Levels and segments are joined along the tokens, views are averaged after the softmax."""
    model, params = jepa_jax.load(classifier)
    views, _ = read_views(video, PROTOCOL)
    found = model.classify(params, views)
    wanted = []
    for view in range(3):
        tokens = []
        for segment in range(2):
            pixels = normalize_pixels(views[segment, view])[None]
            levels = model.encoder.apply({"params": params["encoder"]}, pixels, (0, 2), method="encode_layers")
            tokens += [levels[0], levels[1]]
        logits = model.networks["probe"].apply({"params": params["probe"]}, jnp.concatenate(tokens, axis=1))["label"]
        wanted.append(jax.nn.softmax(logits[0]))
    np.testing.assert_allclose(found, np.mean(wanted, axis=0), atol=1e-5)
    assert np.ptp(np.asarray(wanted), axis=0).max() > 1e-3, "views that agree would hide how they are averaged"
    np.testing.assert_allclose(np.sum(found), 1, atol=1e-5)


def test_command_prints_labels(classifier, video, tmp_path, capsys):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(open(video, "rb").read()[:2000])
    assert classify.main([video, str(broken), "--model", classifier, "--top", "3"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == video and len(lines) == 4
    assert "protocol test: 2 segments of 4 frames every 3, 3 views of 32" in err and "skipped, truncated" in err
    assert classify.main([video, "--model", classifier, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    model, params = jepa_jax.load(classifier)
    probabilities = np.asarray(model.classify(params, read_views(video, PROTOCOL)[0]))
    assert [entry["label"] for entry in result["top"]] == [LABELS[i] for i in np.argsort(-probabilities)[:5]]
    np.testing.assert_allclose(
        [entry["probability"] for entry in result["top"]], np.sort(probabilities)[::-1][:5], atol=1e-6
    )
    assert [f"{entry['probability']:7.2%}  {entry['label']}" for entry in result["top"][:3]] == [
        line[2:] for line in lines[1:]
    ]


def test_command_adds_the_times_of_frames_where_the_protocol_says_so(video, tmp_path, capsys):
    protocol = dataclasses.replace(PROTOCOL, layers=(), use_pos_embed=True)
    path = write_classifier(tmp_path / "model", protocol)
    assert classify.main([video, "--model", path, "--json"]) == 0
    model, params = jepa_jax.load(path)
    found = json.loads(capsys.readouterr().out)["top"][0]["probability"]
    views, indices = read_views(video, protocol)
    np.testing.assert_allclose(found, model.classify(params, views, indices).max(), atol=1e-6)
    assert abs(found - model.classify(params, views, 0 * indices).max()) > 1e-4


def test_command_without_protocol(video, tmp_path, capsys):
    path = write_classifier(tmp_path / "model", protocol=None)
    assert classify.main([video, "--model", path, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "one clip of 4 frames spread over the whole video" in err
    model, params = jepa_jax.load(path)
    clip = jepa_jax.read_clip(video, frames=4, size=32)
    tokens = model.encode(params, clip).tokens
    logits = model.networks["probe"].apply({"params": params["probe"]}, tokens)["label"][0]
    np.testing.assert_allclose(json.loads(out)["top"][0]["probability"], jax.nn.softmax(logits).max(), atol=1e-5)


def test_command_refuses(video, tmp_path, capsys):
    encoder = tmp_path / "encoder"
    anticipation = write_classifier(tmp_path / "anticipation", outputs=(("verb", 2), ("noun", 3)))
    path = write_classifier(tmp_path / "model")
    bundle = store.read(path)
    store.write(dataclasses.replace(bundle, networks={"encoder": bundle.networks["encoder"]}), encoder)
    for arguments, message in (
        (["--model", str(encoder)], "no classifier: these weights hold encoder"),
        (["--model", anticipation], "anticipates verb, noun from predicted features"),
        (["--model", str(tmp_path / "nothing")], "nothing does not exist"),
        (["--model", path, "--protocol", "diving48-vitl"], r"takes blocks (17, 19, 21, 23); this encoder has 3"),
        (["--model", path, "--probe", "4"], "probe 4 is not there"),
    ):
        assert classify.main([video, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert classify.main([str(tmp_path / "none*.mp4"), "--model", path]) == 2
    assert classify.main(["nosuch://bucket/*.mp4", "--model", path]) == 2
    # Another way to see a video than the probe was trained with is said, not taken silently.
    assert any("the weights say test: 2 segments" in note for note in store.read(path, Hints(protocol="ssv2-vitl")).notes)
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert classify.main([str(tmp_path / "empty.mp4"), "--model", path]) == 1
    with pytest.raises(WeightsError, match="no classifier"):
        model, params = jepa_jax.load(encoder)
        model.classify(params, np.zeros((1, 1, 4, 32, 32, 3), np.uint8))
