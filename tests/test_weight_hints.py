"""What weights do not show: sizes, heads, positions, labels, protocols."""

import dataclasses

import numpy as np
import pytest
from weight_bundles import (
    BUNDLES,
    ENCODER,
    HINTS,
    PREDICTOR,
    assert_same,
    make_bundle,
    needs_torch,
    official_state,
    path_for,
    random_network,
    refused,
)

from jepa_jax import convert
from jepa_jax.models import ActionPredictor, AttentiveProbe, MaskedPredictor, make_encoder
from jepa_jax.weights import huggingface_config, inference, released, store
from jepa_jax.weights.bundle import WeightsError
from jepa_jax.weights.hints import Hints


@pytest.mark.parametrize(
    "size, heads",
    [
        ("vit_tiny", 3),
        ("vit_small", 6),
        ("vit_base", 12),
        ("vit_large", 16),
        ("vit_huge", 16),
        ("vit_giant_xformers", 22),
        ("vit_gigantic_xformers", 26),
        ("vit_micro", 3),
    ],
)
def test_named_sizes_are_recognised(size, heads):
    notes = []
    wanted = make_encoder(size, table_grid=(32, 16, 16))
    found = inference.infer("encoder", official_state(wanted), Hints(), notes, "file")
    assert found == wanted and found.num_heads == heads
    # Where shapes leave a choice, it is said.
    assert bool(notes) == ("gi" in size)


def test_released_heads():
    """ViT-g has 22 heads, its probe 16, its predictors 12 and 16: no weight shows it."""
    cases = (
        ("predictor", MaskedPredictor(1408), 12),
        ("action_predictor", ActionPredictor(1408), 16),
        ("probe", AttentiveProbe(1408), 16),
    )
    for kind, module, heads in cases:
        found = inference.infer(kind, official_state(module), Hints(), [], "file")
        assert found.num_heads == heads
        assert found.clone(table_grid=module.table_grid) == module if kind == "predictor" else found == module
    giant = official_state(make_encoder("vit_giant_xformers"))
    assert inference.infer("encoder", giant, Hints(size="vit_giant"), [], "file").num_heads == 16
    assert inference.infer("encoder", giant, Hints(heads={"encoder": 16}), [], "file").num_heads == 16
    with pytest.raises(WeightsError, match="11 heads for the encoder contradict its size: vit_giant has 16"):
        inference.infer("encoder", giant, Hints(heads={"encoder": 11}), [], "file")
    with pytest.raises(WeightsError, match=r"not vit_large \(width 1024, depth 24, MLP 4096\).*which is vit_giant or"):
        inference.infer("encoder", giant, Hints(size="vit_large"), [], "file")


@pytest.mark.parametrize("uniform", [True, False])
def test_position_tables_are_recognised_and_written(uniform, tmp_path):
    needs_torch()
    encoder = ENCODER.clone(width=48, positions="sincos", uniform_power=uniform)
    predictor = PREDICTOR.clone(output_dim=48, positions="sincos", uniform_power=uniform)
    state = inference.to_official(encoder, random_network(encoder, 0).params)
    hints = dataclasses.replace(HINTS, positions="sincos")
    assert inference.infer("encoder", state, hints, [], "file") == encoder
    with pytest.raises(WeightsError, match="position table .* give the size of the clips"):
        inference.infer("encoder", state, dataclasses.replace(hints, frames=16), [], "file")
    bundle = make_bundle(encoder=encoder, predictor=predictor)
    store.write(bundle, tmp_path / "sincos.pt")
    assert_same(store.read(tmp_path / "sincos.pt"), bundle)
    with pytest.raises(WeightsError, match="encoder: positions 'sincos', transformers has 'rope'"):
        store.write(bundle, tmp_path / "hf", "huggingface")


@pytest.mark.parametrize("activation", ["swiglu", "swiglu_wide"])
def test_gated_networks_are_recognised(activation):
    encoder = ENCODER.clone(activation=activation, mlp_ratio=4.0)
    found = inference.infer("encoder", official_state(encoder), HINTS, [], "file")
    assert inference.official_shapes(found) == inference.official_shapes(encoder) and found.activation == activation


CONFIG = """
app: vjepa
data: {crop_size: 256, dataset_fpcs: [16, 64], patch_size: 16, tubelet_size: 2}
model: {model_name: vit_tiny, pred_depth: 2, pred_embed_dim: 24, pred_num_heads: 2, use_rope: true}
"""


def test_official_config_fills_and_contradicts(tmp_path, capsys):
    torch = needs_torch()
    bundle = make_bundle(
        target_encoder=make_encoder("vit_tiny"), predictor=MaskedPredictor(192, 24, 2, 2, num_mask_tokens=2)
    )
    content = {
        name: {
            f"module.backbone.{key}": torch.from_numpy(np.ascontiguousarray(value))
            for key, value in inference.to_official(network.module, network.params).items()
        }
        for name, network in bundle.networks.items()
    }
    source, config = tmp_path / "run.pt", tmp_path / "params-pretrain.yaml"
    torch.save(content, source)
    with pytest.raises(WeightsError, match="--heads predictor=N"):
        store.read(source)
    config.write_text(CONFIG)
    found = store.read(source, Hints(config=str(config)))
    assert found.networks["predictor"].module.num_heads == 2 and found.networks["target_encoder"].module.num_heads == 3
    assert found.preprocessing.frames == 64
    for change, message, flags in (
        (("vit_tiny", "vit_small"), r"the weights are not vit_small \(width 384.*which is vit_tiny", ()),
        (
            ("pred_depth: 2", "pred_depth: 12"),
            "contradicts the weights:\n  predictor.depth: 12 in the config, 2 in the weights",
            (),
        ),
        (("tubelet_size: 2", "tubelet_size: 1"), "target_encoder.tubelet_size: 1 in the config, 2", ()),
        (("x", "x"), "crop_size 384 is not its 256", ("--crop-size", "384")),
        (("model:", "modell:"), "needs the sections model and data", ()),
        (("{crop", "{{crop"), "is not YAML", ()),
    ):
        config.write_text(CONFIG.replace(*change))
        refused(source, message, tmp_path, capsys, "--config", str(config), *flags)


# Bad input. Every case: an error that says what is wrong, and nothing written.


def test_protocols_of_released_classifiers(tmp_path):
    """The folder name of a released classifier tells how it sees a video; transformers gives it the last layer only."""
    folder = tmp_path / "vjepa2-vitl-fpc8-256-diving48"
    store.write(BUNDLES["classifier"], folder, "huggingface")
    (folder / "jepa_jax.json").unlink()
    protocol = store.read(folder).protocol
    assert (protocol.name, protocol.num_segments, protocol.num_views, protocol.layers) == ("diving48-vitl", 4, 3, ())
    assert store.read(folder, Hints(protocol="ssv2-vitl")).protocol == released.PROTOCOLS["ssv2-vitl"]
    with pytest.raises(WeightsError, match="protocol 'ucf' is unknown; choose one of ssv2-vitl"):
        store.read(folder, Hints(protocol="ucf"))
    with pytest.raises(WeightsError, match=r"takes blocks \(17, 19, 21, 23\); this encoder has 3"):
        store.read(folder, Hints(protocol="diving48-vitl"))
    # Other names, of fine-tuned classifiers for instance, say nothing.
    for name in ("vjepa2-vitl-fpc8-256-ucf101", "my-vjepa2-vitl-fpc8-256-ssv2", "vjepa2-vitl-fpc16-256-ssv2"):
        folder = folder.rename(tmp_path / name)
        assert store.read(folder).protocol is None
    assert released.PROTOCOLS["ssv2-vitg384"].frames == 64 and released.PROTOCOLS["diving48-vitg384"].layers == (
        24,
        29,
        34,
        39,
    )


@pytest.mark.parametrize("kind", ["jax", "huggingface", "official"])
def test_labels_and_protocol_can_be_given_to_any_format(kind, tmp_path, capsys):
    bundle = BUNDLES["probes"] if kind == "official" else BUNDLES["classifier"]
    source, labels = path_for(kind, tmp_path), tmp_path / "labels.txt"
    store.write(bundle, source, kind)
    labels.write_text("a\nb\nc\nd\ne\n\n")
    assert convert.main([str(source), str(tmp_path / "new"), "--labels", str(labels), "--protocol", "ssv2-vitl"]) == 0
    found = store.read(tmp_path / "new")
    assert found.labels == tuple("abcde") and found.protocol == released.PROTOCOLS["ssv2-vitl"]
    capsys.readouterr()
    for text, message in (
        ("a\nb\n", r"2 labels for a probe with other classes \(5 for label\)"),
        ("a\n\nb\nc\nd\n", "line 2 is empty"),
        ("é\n", "is not UTF-8"),
    ):
        labels.write_bytes(text.encode("latin-1"))
        refused(source, message, tmp_path, capsys, "--labels", str(labels))
    refused(source, "probe_0 has [23] heads, not 6", tmp_path, capsys, "--heads", "probe=6")


@pytest.mark.parametrize("kind", ["jax", "huggingface", "official"])
def test_what_is_said_of_weights_is_compared(kind, tmp_path, capsys):
    source = path_for(kind, tmp_path)
    store.write(BUNDLES["one encoder"], source, kind)
    refused(source, "encoder has 2 heads, not 7", tmp_path, capsys, "--heads", "encoder=7")
    refused(source, "encoder has width 36; vit_large has 1024", tmp_path, capsys, "--size", "vit_large")
    refused(source, "crop_size is 40, not 48", tmp_path, capsys, "--crop-size", "48")
    refused(source, "encoder has rope positions, not sincos", tmp_path, capsys, "--positions", "sincos")
    refused(source, "No such file", tmp_path, capsys, "--config", str(tmp_path / "none.yaml"))
    refused(source, "unknown|no network decoder", tmp_path, capsys, "--networks", "decoder")
    assert store.read(source, Hints(rope_grid="config")).networks["encoder"].module.rope_grid == (5, 5)


def test_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers", reason="needs transformers: bash launch/test.sh --torch")
    config = transformers.VJEPA2Config()
    assert huggingface_config.DEFAULTS == {key: getattr(config, key) for key in huggingface_config.DEFAULTS}


def test_published_protocols():
    """Frames, step, segments, views, size and blocks, as published."""
    large, giant = (17, 19, 21, 23), (24, 29, 34, 39)
    wanted = {
        "ssv2-vitl": (16, 4, 2, 3, 256, ()),
        "ssv2-vitg384": (64, 2, 2, 3, 384, ()),
        "k400-vitl": (16, 4, 8, 3, 256, ()),
        "k400-vitg384": (16, 4, 8, 3, 384, ()),
        "coin-vitl": (16, 4, 8, 3, 256, ()),
        "coin-vitg384": (16, 4, 8, 3, 384, ()),
        "diving48-vitl": (32, 2, 4, 3, 256, large),
        "diving48-vitg384": (32, 2, 4, 3, 384, giant),
        "jester-vitl": (32, 2, 4, 3, 256, large),
        "jester-vitg384": (32, 2, 4, 3, 384, giant),
        "imagenet-vitl": (16, 1, 1, 1, 256, ()),
        "imagenet-vitg384": (18, 1, 1, 1, 384, ()),
    }
    assert {name: dataclasses.astuple(protocol)[1:] for name, protocol in released.PROTOCOLS.items()} == {name: (*row, False) for name, row in wanted.items()}
