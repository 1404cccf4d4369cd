"""Presets of probes: what is published, and encoders that they suit."""

import dataclasses

import pytest

from configs.probe import get_config
from jepa_jax.models import make_encoder
from jepa_jax.models.spec import abstract_params
from jepa_jax.tasks import probe as task
from jepa_jax.tasks import sweep
from jepa_jax.weights.released import PROTOCOLS
from jepa_jax.weights.settle import note_levels


@pytest.mark.parametrize("size, argument", [
    ("vit_large", "own"), ("vit_huge", "own"), ("vit_giant_xformers", "own"), ("vit_giant_xformers", "own,model=vitg384"), ("vit_base", "own"),
])
def test_presets_for_own_videos_suit_encoders_of_released_sizes(size, argument):
    config, module = get_config(argument).lock(), make_encoder(size)
    protocol = task.make_protocol(config)
    task.check_encoder(module, protocol.frames, config.data.size, protocol.layers)
    assert abstract_params(task.make_probe(config.model, module.width, ((task.OUTPUT, 3),)))
    assert dataclasses.replace(protocol, name="", crop_size=256) == dataclasses.replace(PROTOCOLS["ssv2-vitl"], name="")
    assert (config.data.num_classes, config.model.depth, config.model.num_heads, len(sweep.make_sweep(config.optim))) == (0, 1, 16, 6)


def test_every_preset_has_its_published_protocol():
    for name in ("ssv2", "diving48", "jester", "k400", "coin", "imagenet"):
        for model in ("vitl", "vitg384"):
            assert task.make_protocol(get_config(f"{name},model={model}")) == PROTOCOLS[f"{name}-{model}"]
    assert len(sweep.make_sweep(get_config("ssv2").optim)) == 20


@pytest.mark.parametrize("model, size, levels", [("vith", "vit_huge", (25, 27, 29, 31)), ("vitg", "vit_giant_xformers", (24, 29, 34, 39))])
def test_models_without_an_official_config_take_that_of_vitl(model, size, levels):
    for name in ("ssv2", "diving48", "jester", "k400", "coin", "imagenet"):
        config, large = get_config(f"{name},model={model}"), get_config(name)
        found, wanted = (task.make_protocol(one) for one in (config, large))
        layers = levels if wanted.layers else ()
        assert found == dataclasses.replace(wanted, name=f"{name}-{model}", layers=layers)
        assert not note_levels(found, make_encoder(size))
        task.check_encoder(make_encoder(size), found.frames, found.crop_size, found.layers)
        assert config.data == large.data and config.optim == large.optim
