"""The cooldown phase: 64 frames, higher resolution, linear decay, from a pretraining run.

    python -m jepa_jax.train --config=configs/cooldown.py:vitl16,res=384 --workdir=runs/vitl16-384 \
        --config.start.checkpoint=runs/vitl16 \
        --config.data.groups.video.paths="('shards/k710',)"

Weights, EMA weights and Adam moments are taken over; steps and schedules start again.

Variants: vits16, vitb16, vitl16, vith16, vitg16 with options res (256 or 384; the paper also
lists 512), mix (as in pretraining; images stay clips of 16 frames) and horizon (1.25, the released
code: the rate ends at 1.058e-4; 1.0, the paper: at 1e-6), and demo. There is no released 384 file for L and H; the released ViT-g 256 file has
4 x 30 steps, which looks like a debugging value, so 40 x 300 = 12,000 steps serve all.
Source: configs/train/*/cooldown-*.yaml; paper table 9.
"""

from configs import common, pretrain


def get_config(argument="vitl16"):
    """Return the config of a variant."""
    name, options = common.parse_argument(argument, (*common.SIZES, "demo"), res=256, horizon=1.25, mix="own")
    config = pretrain.get_config(f"{name},mix={options['mix']}")
    config.start.mode = "cooldown"
    config.optim.update({
        "total_steps": 12_000, "schedule": "linear", "warmup_steps": 0, "final_lr": 1e-6,
        "horizon_scale": options["horizon"],
    })
    if name == "demo":
        config.data.size = 160
        config.data.groups.video.update({"frames": 16, "batch_size": 2})
        config.optim.update({"total_steps": 40})
        return config
    config.data.size = options["res"]
    config.data.groups.video.frames = 64
    # The official batch per process: 6 clips for ViT-g, 12 for the others.
    config.masks.group_size = 6 if name == "vitg16" else 12
    return config
