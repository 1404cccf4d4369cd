"""Action anticipation: attentive probes on a frozen encoder and what its predictor expects, the official sweep in one run.

    python -m jepa_jax.train --config=configs/anticipate.py:ek100 --workdir=runs/ek100 --config.encoder=models/vitl \
        --config.data.annotations=EPIC_100_train.csv --config.data.videos=/data/EPIC-KITCHENS
    python -m jepa_jax.evaluate anticipate EPIC_100_validation.csv --videos /data/EPIC-KITCHENS --model runs/ek100 --output reports/ek100

Data: a list in the format of EPIC-KITCHENS-100 and the videos that it names (`data.layout` says where they lie). Variants: ek100
(option model: vitl, vith, vitg or vitg384; official configs are released for vitl and vitg384, the others take vitl's) and demo (small
heads and pictures, for a CPU). The encoder's weights must hold its predictor.
`optim.epochs` decides the length unless `optim.total_steps` is set.

`data.anchor` is 'released' by default, since that is what released probes are trained with: the distance is kept from the end
of the action, so clips usually show a part of it. 'standard' keeps it from the beginning, as the benchmark asks for.

Source: configs/eval/*/ek100.yaml; paper table 5.
"""

import ml_collections

from configs import common, probe


def get_config(argument="ek100"):
    """Return the config of a variant."""
    name, options = common.parse_argument(argument, ("ek100", "demo"), model="vitl")
    if options["model"] not in probe.SIZES:
        raise ValueError(f"model {options['model']!r} is unknown; choose one of {', '.join(probe.SIZES)}")
    config = common.run_config("anticipate")
    config.encoder = ""  # weights of any format, or a run; with the predictor
    config.protocol = ml_collections.ConfigDict({
        "name": f"{name}-{options['model']}" if name == "ek100" else name,
        "frames": 32,
        "fps": 8.0,
        "output_frames": 2,
        "num_steps": 1,
        "use_encoder": True,
        "use_predictor": True,
        "mask_index": 1,  # as released; runs of one clip group train mask token 0
    })
    config.model = probe.heads_section()
    config.data = _data_section(probe.SIZES[options["model"]])
    config.optim = probe.sweep_section()
    config.optim.weight_decay = (1e-4, 1e-3, 1e-2, 1e-1)
    config.optim.alpha, config.optim.gamma = 0.25, 2.0  # of the focal loss
    config.log.every_steps = 20
    if name == "demo":
        _shrink(config)
    return config


def _data_section(size):
    return ml_collections.ConfigDict({
        "annotations": "EPIC_100_train.csv",
        "videos": "",  # folder or URL
        "layout": "{participant}/videos/{video}.MP4",
        "class_order": "sorted",  # sorted | set (as released probes number them)
        "anchor": "released",  # released | standard
        "seconds": (0.25, 1.75),  # from the end of a clip to the moment that is anticipated
        "points": (0.0, 0.25),  # of that moment in the segment, from the anchor
        "batch_size": 128,
        "size": size,
        "crop_scale": (0.08, 1.0),
        "crop_aspect": (0.75, 4 / 3),
        "flip": 0.5,
        "augment": {"rand_augment": "rand-m7-n4-mstd0.5-inc1", "erase": 0.25},
        "workers": 8,
        "threads": 2,
        "prefetch": 2,
        "max_bad_fraction": 0.05,  # of the draws: past it, the run saves and stops
    })


def _shrink(config):
    """Shrink everything to minutes on two CPU cores, for small encoders and pictures."""
    config.protocol.update({"frames": 8, "fps": 4.0, "mask_index": 0})
    config.model.update({"depth": 1, "num_heads": 6, "dtype": "float32", "encoder_residual_dtype": "float32", "remat": "none"})
    config.data.update({"size": 64, "batch_size": 32, "crop_scale": (0.6, 1.0), "workers": 1, "threads": 1})
    config.data.augment.update({"rand_augment": "", "erase": 0.0})
    config.optim.update({"epochs": 8, "lr": (3e-3, 1e-3, 3e-4), "weight_decay": (1e-3, 1e-1)})
    config.checkpoint.update({"every_steps": 200, "keep_last": 2, "keep_every": 0})
