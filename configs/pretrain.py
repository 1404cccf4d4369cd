"""Masked latent prediction from video, the primary phase: 16 frames, constant learning rate.

    python -m jepa_jax.train --config=configs/pretrain.py:vitl16,mix=released --workdir=runs/vitl16 \
        --config.data.root=/data/shards

Variants: vits16, vitb16, vitl16, vith16, vitg16 (option res, default 256), demo, those for the simulated robot, minutes
on a CPU (tabletop; tabletop_fine, whose smaller patches show what fingers do; tabletop_gpu, larger, for one GPU, not run
yet), and motion for the set of `python -m jepa_jax.data.motion_set`. Option mix: `released` (Kinetics, SSv2, HowTo100M),
`vm22m` (the five sources of the paper, images among them) or `own`, the default: set `data.groups.*.paths` and `.weights`.

The released ViT-L and ViT-H files say 10 epochs of 300 steps with a warm-up of 40 epochs,
which looks like a placeholder; the ViT-g file's 800 x 300 = 240,000 steps serve all sizes
here. Source: configs/train/*/pretrain-256px-16f.yaml; paper section 2.
"""

from configs import common, mixtures


def get_config(argument="vitl16"):
    """Return the config of a variant."""
    name, options = common.parse_argument(argument, (*common.SIZES, "demo", "tabletop", "tabletop_fine", "tabletop_gpu", "motion"), res=256, mix="own")
    config = common.base_config()
    config.data.size = options["res"]
    if name == "demo":
        _shrink(config)
    elif name in ("tabletop", "tabletop_fine", "tabletop_gpu"):
        _shrink(config)
        _fit_tabletop(config)
        if name == "tabletop_fine":
            _refine_tabletop(config)
        if name == "tabletop_gpu":
            _enlarge_tabletop(config)
    elif name == "motion":
        _shrink(config)
        _fit_motion(config)
    else:
        config.model.size = common.SIZES[name]
        config.mesh.fsdp = -1 if name in ("vith16", "vitg16") else 1
    mixtures.set_mixture(config, options["mix"])
    return config


def _shrink(config):
    """Shrink everything to a few minutes on two CPU cores."""
    config.model.update({
        "size": "vit_micro", "remat": "none", "dtype": "float32", "encoder_residual_dtype": "float32",
        # A zero mask token stays zero through the first norm and gives every query the same
        # start; a short run has no time to leave that.
        "predictor": {"width": 96, "depth": 4, "num_heads": 3, "num_mask_tokens": 2, "zero_init_mask_tokens": False},
    })
    config.data.update({"size": 128, "workers": 1, "threads": 1, "prefetch": 2})
    config.data.groups.video.update({"frames": 8, "fps": 8.0, "batch_size": 8})
    config.data.groups.image.frames = 8
    # An 8x8 grid is coarse: the released two large holes would leave an edge strip of it.
    config.masks.update({"group_size": 4, "round_to": 4})
    config.masks.strategies.long_range.spatial_scale = (0.4, 0.4)
    config.masks.strategies.short_range.num_blocks = 5
    config.optim.update({
        "total_steps": 400, "start_lr": 1e-4, "lr": 1e-3, "final_lr": 1e-5, "warmup_steps": 40,
        "horizon_scale": 1.0, "ema": 0.99, "final_ema": 0.999,
    })
    config.checkpoint.update({"every_steps": 25, "keep_last": 2, "keep_every": 0})
    config.log.update({"every_steps": 5, "monitor_tokens": 1024})


def _fit_tabletop(config):
    """Fit the demo to the simulated table-top; what each choice is worth: docs/world_models.md, "What made it learn"."""
    # A world model sees single frames. Latents of one frame each are what it gets; two frames half a second
    # apart show what moves.
    config.model.update({"patch_size": 16, "tubelet_size": 1})
    config.data.update({"size": 64, "crop_scale": (0.6, 1.0), "flip": 0.0})
    config.data.groups.video.update({"frames": 2, "fps": 2.0, "batch_size": 64})
    config.optim.update({"total_steps": 1200, "warmup_steps": 100, "decorrelation": 0.002})
    config.checkpoint.every_steps = 100
    config.log.every_steps = 20


def _refine_tabletop(config):
    """Show what fingers do: four times the patches, in a network of half the width."""
    config.model.update({"size": "vit_nano", "patch_size": 8})
    config.optim.total_steps = 800


def _enlarge_tabletop(config):
    """Give the table-top what two CPU cores have no time for: four times the tokens, a larger network, more clips."""
    config.model.update({"size": "vit_small", "dtype": "bfloat16", "encoder_residual_dtype": "bfloat16",
                         "predictor": {"width": 192, "depth": 6, "num_heads": 6}})
    config.data.update({"size": 128, "workers": 12, "threads": 2})
    config.data.groups.video.batch_size = 256
    config.optim.update({"total_steps": 10_000, "warmup_steps": 500, "ema": 0.996, "final_ema": 0.9999})
    config.checkpoint.every_steps = 500


def _fit_motion(config):
    """Fit the demo to moving digits, whose class and direction probes read."""
    # Two frames a tubelet, as officially: what moves differs between them. Mirrored, a digit is another sign
    # and goes the other way.
    config.model.update({"patch_size": 16, "tubelet_size": 2})
    config.data.update({"size": 64, "crop_scale": (0.6, 1.0), "flip": 0.0})
    config.data.groups.video.update({"frames": 8, "fps": 4.0, "batch_size": 32})
    config.optim.update({"total_steps": 1200, "warmup_steps": 100, "decorrelation": 0.02, "variance": 0.02})
    config.checkpoint.update({"every_steps": 100, "keep_every": 300})
    config.log.every_steps = 20
