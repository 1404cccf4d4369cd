"""Frozen evaluation: attentive probes on an encoder, the official sweep of rates and weight decays in one run.

    python -m jepa_jax.train --config=configs/probe.py:ssv2 --workdir=runs/ssv2 --config.encoder=models/vitl \
        --config.data.paths="('ssv2_train.csv',)"
    python -m jepa_jax.evaluate probe ssv2_val.csv --model runs/ssv2 --output reports/ssv2

Data: lists in the official format ('path label'), folders of class folders, or labelled shards. Variants: ssv2, diving48,
jester, k400, coin, imagenet (option model: vitl, vith, vitg or vitg384), own (videos of one's own, any encoder of
the released sizes, one device) and demo (small heads and pictures, for encoders of `configs/pretrain.py:demo` and a CPU).
The first six fix frames x step, segments x views, layers, size, sweep, epochs and batch as released; the log says them.
`own` sees a video as ssv2 with vitl does, through probes of depth 1, fewer of them, in smaller batches.
`optim.epochs` decides the length unless `optim.total_steps` is set. Where paper and code differ, the code is followed
(COIN: 16 frames, the paper says 32; ImageNet with vitg384: 18 frames, 384 pixels).

Official configs are released for ViT-L and for ViT-g at 384 pixels only. The paper has numbers for ViT-H and for ViT-g at 256, too; for
these, vith and vitg take everything from vitl but the blocks of multi-level probes: those of ViT-H are the paper's (table 16), those of ViT-g
are of the configs at 384 pixels, whose encoder is as deep.

Source: configs/eval/*; paper tables 4, 15 and 16.
"""

import ml_collections

from configs import common

# By `model`: side of the pictures, and blocks of the encoder that multi-level probes take.
SIZES = {"vitl": 256, "vith": 256, "vitg": 256, "vitg384": 384}
_LEVELS = {"vitl": (17, 19, 21, 23), "vith": (25, 27, 29, 31), "vitg": (24, 29, 34, 39), "vitg384": (24, 29, 34, 39)}
_WIDE = {"lr": (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), "weight_decay": (0.01, 0.1, 0.4, 0.8)}
_NARROW = {"lr": (1e-3, 3e-4, 1e-4), "weight_decay": (0.8,)}
_IMAGES = {"lr": (5e-4, 1e-3, 1.5e-3, 2e-3), "weight_decay": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), "start_lr": 2e-4}
# classes; frames and step by `model`, those of vitl where nothing else was released; segments, views, batch size, epochs.
_TASKS = {
    "ssv2": {"classes": 174, "frames": {"vitl": (16, 4), "vitg384": (64, 2)}, "segments": 2, "views": 3, "batch": 256, "epochs": 20},
    "k400": {"classes": 400, "frames": {"vitl": (16, 4), "vitg384": (16, 4)}, "segments": 8, "views": 3, "batch": 256, "epochs": 20},
    "coin": {"classes": 180, "frames": {"vitl": (16, 4), "vitg384": (16, 4)}, "segments": 8, "views": 3, "batch": 128, "epochs": 20},
    "diving48": {"classes": 48, "frames": {"vitl": (32, 2), "vitg384": (32, 2)}, "segments": 4, "views": 3, "batch": 128, "epochs": 100},
    "jester": {"classes": 27, "frames": {"vitl": (32, 2), "vitg384": (32, 2)}, "segments": 4, "views": 3, "batch": 128, "epochs": 100},
    "imagenet": {"classes": 1000, "frames": {"vitl": (16, 1), "vitg384": (18, 1)}, "segments": 1, "views": 1, "batch": 1024, "epochs": 20},
}


def get_config(argument="ssv2"):
    """Return the config of a variant."""
    name, options = common.parse_argument(argument, (*_TASKS, "own", "demo"), model="vitl")
    if options["model"] not in SIZES:
        raise ValueError(f"model {options['model']!r} is unknown; choose one of {', '.join(SIZES)}")
    config = common.run_config("probe")
    config.encoder = ""  # weights of any format, or a run
    config.protocol = ml_collections.ConfigDict({
        "name": name, "frames": 16, "frame_step": 4, "num_segments": 1, "num_views": 1, "layers": (),
        "use_pos_embed": False,  # add to the tokens when their frames are shown in the video; officially off
    })
    config.model = heads_section()
    config.data = _data_section()
    config.optim = sweep_section()
    config.log.every_steps = 20
    if name == "demo":
        _shrink(config)
    elif name == "own":
        _fit_own(config, options["model"])
    else:
        _fit(config, name, options["model"])
    return config


def _fit(config, name, model):
    task = _TASKS[name]
    frames, step = task["frames"].get(model, task["frames"]["vitl"])
    config.protocol.update({
        "name": f"{name}-{model}", "frames": frames, "frame_step": step, "num_segments": task["segments"], "num_views": task["views"],
        "layers": _LEVELS[model] if name in ("diving48", "jester") else (),
    })
    config.data.update({"num_classes": task["classes"], "batch_size": task["batch"], "size": SIZES[model]})
    sweep = {"imagenet": _IMAGES, "diving48": _NARROW, "jester": _NARROW}.get(name, _WIDE)
    config.optim.update({"epochs": task["epochs"], **sweep})
    if name == "imagenet":
        config.data.update({"flip": 0.5, "still": True})
        # Officially AutoAugment and one more probe with a weight decay that falls to 0; RandAugment stands in here.
        config.optim.warmup_epochs = 5


def _fit_own(config, model):
    """Fit videos of one's own, of which there are hundreds or thousands, and one device; the number of classes is that of the list."""
    task = _TASKS["ssv2"]
    frames, step = task["frames"]["vitl"]
    config.protocol.update({"frames": frames, "frame_step": step, "num_segments": task["segments"], "num_views": task["views"]})
    # Self-attention over 4096 tokens, for every probe, is what takes the memory.
    config.model.depth = 1
    config.data.update({"size": SIZES[model], "batch_size": 16})
    # Of the official rates the lower ones, since the batch is a sixteenth.
    config.optim.update({"lr": (1e-3, 3e-4, 1e-4), "weight_decay": (0.01, 0.4)})


def heads_section():
    """Released attentive probes."""
    return ml_collections.ConfigDict({
        "depth": 4,  # blocks: all but the last of self-attention
        "num_heads": 16,
        "mlp_ratio": 4.0,
        "norm_eps": 1e-5,
        "attention": "auto",
        "remat": "full",
        "dtype": "bfloat16",  # officially float16 with loss scaling
        "param_dtype": "float32",
        "residual_dtype": "float32",
        "encoder_residual_dtype": "bfloat16",
    })


def _data_section():
    return ml_collections.ConfigDict({
        "root": "",  # put before every one of `paths` that is not absolute; paths inside a list count from the working directory
        "paths": ("train.csv",),
        "weights": (1.0,),
        # A folder: every video is encoded once, its tokens are kept there and read in every epoch. For small sets.
        "tokens": "",
        "token_draws": 1,  # windows, crops and augmentations that are kept of every video
        "still": False,  # pictures: one frame goes to the device, where it is repeated
        "num_classes": 0,  # 0: as many as the list has
        "allow_empty_classes": False,
        "batch_size": 256,
        "size": 256,
        "crop_scale": (0.08, 1.0),
        "crop_aspect": (0.75, 4 / 3),
        "flip": 0.0,
        "augment": {"rand_augment": "rand-m7-n4-mstd0.5-inc1", "erase": 0.25},
        "cache_dir": "",
        "cache_gib": 100.0,
        "workers": 8,
        "threads": 2,
        "prefetch": 2,
        "max_bad_fraction": 0.05,  # of the draws of any source: past it, the run saves and stops
    })


def sweep_section():
    """AdamW without warm-up, for a grid of rates and weight decays."""
    unset = ml_collections.config_dict.placeholder
    return ml_collections.ConfigDict({
        "epochs": 20,
        "total_steps": 0,  # 0: what the epochs take
        "lr": _WIDE["lr"],  # a probe is trained for every pair of
        "weight_decay": _WIDE["weight_decay"],  # a rate and a weight decay
        "start_lr": unset(float),  # unset: no warm-up, every probe starts at its own rate
        "final_lr": 0.0,
        "warmup_epochs": 0,
        "warmup_steps": 0,  # 0: what the epochs take
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "accumulate": 1,
    })


def _shrink(config):
    """Shrink everything to minutes on two CPU cores, for small encoders and pictures."""
    config.protocol.update({"frames": 8, "frame_step": 2})
    config.model.update({"depth": 1, "num_heads": 6, "dtype": "float32", "encoder_residual_dtype": "float32", "remat": "none"})
    # What a small set shows would be gone behind noise and strong crops.
    config.data.update({"size": 64, "batch_size": 32, "crop_scale": (0.6, 1.0), "workers": 1, "threads": 1})
    config.data.augment.update({"rand_augment": "", "erase": 0.0})
    config.optim.update({"epochs": 8, "lr": (3e-3, 1e-3, 3e-4), "weight_decay": (0.01, 0.4)})
    config.checkpoint.update({"every_steps": 200, "keep_last": 2, "keep_every": 0})
