"""Action-conditioned post-training (V-JEPA 2-AC): on a frozen encoder, learn what actions do.

    python -m jepa_jax.train --config=configs/world_model.py:droid_vitg --workdir=runs/ac \
        --config.encoder=models/vitg --config.data.paths="('shards/droid',)"

Variants: droid_vitg (the released recipe; the encoder is the one given, any size), small (a predictor
for one GPU: 12 blocks of 512), demo (the table-top of this package, minutes on two CPU cores), demo_fine (the same for
encoders with four times the patches) and demo_gpu (larger, for frames of 128 pixels on one GPU; not run yet).
Option robot: droid (7 numbers, the official algebra), se2 (a robot that drives) or generic (joints
or anything else; names and units as the shards say). Any field of a robot can be set:
--config.robot.action_high="(0.05,0.05,0.05,0,0,0,0.75)".

With --config.mesh.fsdp=-1 the frozen encoder is split over the devices too, like the predictor and its moments; with 1,
every device holds all of it: 4 GB for ViT-g.

Source: configs/train/vitg16/droid-256px-8f.yaml; paper section 3.
"""

import ml_collections

from configs import common

ROBOTS = ("droid", "se2", "generic")


def get_config(argument="droid_vitg"):
    """Return the config of a variant."""
    name, options = common.parse_argument(argument, ("droid_vitg", "small", "demo", "demo_fine", "demo_gpu"), robot="droid")
    if options["robot"] not in ROBOTS:
        raise ValueError(f"robot {options['robot']!r} is unknown; choose one of {', '.join(ROBOTS)}")
    config = common.run_config("world_model")
    config.encoder = ""  # weights of any format, or a run; may be left out where the shards hold features
    config.robot = _robot_section(options["robot"])
    config.model = _model_section()
    config.rollout = ml_collections.ConfigDict({
        "auto_steps": 2,  # frames predicted from predictions in the rollout loss
        "detach": False,  # no gradient from one step of the rollout to the one before
        "integrate_states": False,  # compute the states of the rollout from the actions instead of reading them
        "reduce": "mean",  # mean | sum over the steps of the rollout
        "cached": True,  # keep keys and values instead of computing all frames again; the result is the same
    })
    # A learned distance (`evaluate distance` on the encoder): predictions are compared as a planner will read them, too.
    config.energy = ml_collections.ConfigDict({"distance_head": "", "weight": 0.002})
    config.data = _data_section()
    config.optim = _optim_section()
    if name == "droid_vitg":
        # The paper found that right views, without their extrinsics, do harm.
        config.data.views = ("left",)
    if name == "small":
        config.model.predictor.update({"width": 512, "depth": 12, "num_heads": 8})
    if name in ("demo", "demo_fine", "demo_gpu"):
        _shrink(config)
    if name == "demo_fine":
        config.model.predictor.merge = 2
    if name == "demo_gpu":
        _enlarge(config)
    return config


def _robot_section(preset):
    """A preset and whatever is to differ from it; empty fields stay as they are there."""
    unset = ml_collections.config_dict.placeholder
    return ml_collections.ConfigDict({
        "preset": preset,
        "name": "",
        "state_names": (), "state_units": (), "action_names": (), "action_units": (),
        # Numbers are divided by these before the network sees them: about the largest action, and how far states spread.
        "state_scale": (), "action_scale": (),
        "action_low": (), "action_high": (), "planned": (),  # for planning; without bounds, quantiles of the actions in the data
        "frame": "",  # base | camera | tool
        "mode": "",  # delta | absolute
        "absolute": (),  # names of actions that are absolute though mode is delta, such as a gripper's
        "source": "",  # states (actions are derived from them) | recorded
        "action_layout": "",  # of recorded actions: auto (by names and units) | states (each changes the state at its place) | own
        "rotation": "",  # none | yaw | xyz euler | axis angle | quaternion (x y z w)
        "position": unset(int), "rotation_at": unset(int), "gripper": unset(int),  # places in a state
        "gripper_range": (),  # low, high; generic robots have none where the data state none
    })


def _model_section():
    return ml_collections.ConfigDict({
        "predictor": {
            "width": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4.0,
            "use_extrinsics": False,  # tell the camera's pose in every frame
            "conditioning": "tokens",  # tokens (released weights) | adaln
            "merge": 1,  # squares of so many tokens a side become one inside the predictor: for small patches
            "predicts_change": False,  # of the latents, from none at all: short runs need not learn to copy
        },
        "rope_layout": "tiled",
        "attention": "auto",
        "remat": "full",
        "dtype": "bfloat16",
        "param_dtype": "float32",
        "residual_dtype": "float32",
        "encoder_residual_dtype": "bfloat16",
        "frames_at_once": 8,  # frames of a clip that the encoder works on at once
    })


def _data_section():
    return ml_collections.ConfigDict({
        "root": "",  # put before every path that is not absolute
        "paths": ("shards",),
        "weights": (1.0,),
        "frames": 8,
        "fps": 4.0,  # or less: a step is the next whole number of recorded rows
        "views": (),  # cameras by name, one is drawn per sample; empty: any, wrist cameras too
        "batch_size": 256,
        "size": 256,
        # A crop of 1.777 times the area never fits: what is taken is the largest centered one within
        # the aspects, 1.35 wide for DROID's frames.
        "crop_scale": (1.777, 1.777),
        "crop_aspect": (0.75, 1.35),
        "cache_dir": "",
        "cache_gib": 100.0,
        "workers": 8,
        "threads": 2,
        "prefetch": 2,
        "max_bad_fraction": 0.05,  # of the draws of any source: past it, the run saves and stops
    })


def _optim_section():
    return ml_collections.ConfigDict({
        "total_steps": 94_500,
        "schedule": "warmup_stable_decay",
        "start_lr": 7.5e-5,
        "lr": 4.25e-4,
        "final_lr": 0.0,
        "warmup_steps": 4_500,
        "anneal_steps": 4_500,
        "horizon_scale": 1.0,
        "weight_decay": 0.04,
        "final_weight_decay": 0.04,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "loss_exponent": 1.0,
        "accumulate": 1,  # parts a batch is cut into, for small memories: 256 = 32 parts of 8
    })


def _shrink(config):
    """Shrink everything to minutes on two CPU cores, for the table-top."""
    if config.robot.preset == "droid":
        # The table-top's largest actions, and about how far its states spread: a change of 2 cm is a faint input otherwise.
        config.robot.action_scale = (0.05, 0.05, 0.05, 0.12, 0.12, 0.25, 0.5)
        config.robot.state_scale = (0.2, 0.2, 0.2, 0.5, 0.5, 1.0, 1.0)
    config.model.update({"dtype": "float32", "encoder_residual_dtype": "float32", "remat": "none"})
    config.model.predictor.update({"width": 128, "depth": 4, "num_heads": 4, "conditioning": "adaln", "predicts_change": True})
    # Longer clips: what is asked of a model after more frames than it was trained on is no better than copying.
    config.data.update({"size": 64, "frames": 9, "batch_size": 16, "workers": 1, "threads": 1})
    config.rollout.auto_steps = 4
    # Most patches stand still. Squared errors let those that move lead; absolute ones weigh the noise of all the same.
    config.optim.update({"total_steps": 3000, "start_lr": 3e-4, "lr": 3e-3, "warmup_steps": 100, "anneal_steps": 500, "loss_exponent": 2.0})
    config.checkpoint.update({"every_steps": 100, "keep_last": 2, "keep_every": 0})
    config.log.update({"every_steps": 20, "monitor_tokens": 1024})


def _enlarge(config):
    """Give the demo what two CPU cores have no time for."""
    config.model.update({"dtype": "bfloat16", "encoder_residual_dtype": "bfloat16"})
    config.model.predictor.update({"width": 384, "depth": 8, "num_heads": 6})
    config.data.update({"size": 128, "batch_size": 64, "workers": 8, "threads": 2})
    config.optim.update({"total_steps": 20_000, "start_lr": 1e-4, "lr": 1e-3, "warmup_steps": 500, "anneal_steps": 4000})
    config.checkpoint.every_steps = 500
