"""Every config variant builds its models and its first state without touching data or a device."""

import math
from types import SimpleNamespace

import jax
import pytest

from configs import common, cooldown, pretrain, world_model
from jepa_jax.data.masks import MaskSpec, mask_lengths
from jepa_jax.models import token_grid
from jepa_jax.robots.presets import DROID
from jepa_jax.tasks import pretrain as task
from jepa_jax.tasks.step import make_schedules
from jepa_jax.tasks.world_model import make_predictor

RELEASED = {"vitl16": 303_885_312, "vith16": 631_648_000, "vitg16": 1_012_173_952}
VARIANTS = [(module, name) for module in (pretrain, cooldown) for name in (*common.SIZES, "demo")] + [
    (pretrain, "tabletop"), (pretrain, "tabletop_fine"), (pretrain, "tabletop_gpu"), (pretrain, "motion"),
]


@pytest.mark.parametrize("module, name", VARIANTS, ids=lambda value: getattr(value, "__name__", value))
def test_variant_builds(module, name):
    config = module.get_config(name).lock()
    video = config.data.groups.video
    grid = token_grid(video.frames, config.data.size, config.data.size, config.model.patch_size, config.model.tubelet_size)
    encoder, predictor = task.make_models(config.model, grid)
    params = jax.eval_shape(lambda: task.init_params(encoder, predictor, jax.random.key(0)))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params["encoder"]))
    assert count == RELEASED.get(name, count)
    task.make_optimizer(config.optim, params, 1)
    make_schedules(config.optim)
    for strategy in config.masks.strategies.values():
        num_context, num_target = mask_lengths(
            MaskSpec(**strategy.to_dict()), grid, config.masks.group_size, config.masks.round_to
        )
        assert 0 < num_context < num_context + num_target <= math.prod(grid)


def test_primary_phase_is_the_released_recipe():
    config = pretrain.get_config("vitl16")
    schedules = make_schedules(config.optim)
    assert float(schedules.learning_rate(1)) == pytest.approx(1.000354e-4, rel=1e-6)
    assert float(schedules.learning_rate(6000)) == pytest.approx(3.125e-4, rel=1e-6)
    assert float(schedules.learning_rate(200_000)) == pytest.approx(5.25e-4, rel=1e-6)
    assert float(schedules.ema_rate(1)) == pytest.approx(0.00075, rel=1e-6)
    assert config.data.groups.video.batch_size == 3072


@pytest.mark.parametrize("argument, last", [("vitl16", 1.058e-4), ("vitg16,res=384,horizon=1.0", 1e-6)])
def test_cooldown_ends_where_code_and_paper_say(argument, last):
    config = cooldown.get_config(argument)
    schedules = make_schedules(config.optim)
    assert float(schedules.learning_rate(12_000)) == pytest.approx(last, rel=1e-3)
    assert config.data.groups.video.frames == 64 and config.start.mode == "cooldown"


@pytest.mark.parametrize("argument, message", [
    ("vitx16", "choose one of"), ("vitl16,rse=3", "takes res=256"), ("vitl16,res", "takes res=256"),
])
def test_bad_arguments(argument, message):
    with pytest.raises(ValueError, match=message):
        pretrain.get_config(argument)


def test_configs_are_locked_against_new_fields():
    config = pretrain.get_config().lock()
    with pytest.raises(AttributeError):
        config.optim.learning_rate = 1.0
    with pytest.raises(TypeError):
        config.optim.lr = "fast"


def test_small_patches_cost_the_world_model_no_tokens():
    def count(encoder, name):
        config = world_model.get_config(name)
        grid = (config.data.size // pretrain.get_config(encoder).model.patch_size,) * 2
        return make_predictor(config.model, SimpleNamespace(width=128, grid=grid), DROID).tokens_per_frame(math.prod(grid))

    assert count("tabletop_fine", "demo_fine") == count("tabletop", "demo") < count("tabletop_fine", "demo")
