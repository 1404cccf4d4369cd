"""Sections that the configs share, and the parser of their arguments."""

import ml_collections

SIZES = {"vits16": "vit_small", "vitb16": "vit_base", "vitl16": "vit_large", "vith16": "vit_huge",
         "vitg16": "vit_giant_xformers"}


def parse_argument(text, names, **defaults):
    """Split a config argument such as `vitl16,res=384`.

    Args:
      text: what follows the colon of `--config=FILE:...`.
      names: allowed first parts.
      **defaults: allowed keys with their default values, which also set the types.

    Returns:
      (name, dict of options).
    """
    name, *parts = text.split(",")
    if name not in names:
        raise ValueError(f"config variant {name!r} is unknown; choose one of {', '.join(names)}")
    options = dict(defaults)
    for part in parts:
        key, _, value = part.partition("=")
        if key not in defaults or not value:
            raise ValueError(f"config option {part!r} is unknown; {name} takes {', '.join(f'{k}={v}' for k, v in defaults.items())}")
        options[key] = type(defaults[key])(value)
    return name, options


def run_config(task):
    """Return what every task has: seed, update guard, mesh, checkpoints, log, start."""
    config = ml_collections.ConfigDict()
    config.task = task
    config.seed = 239
    config.guard = ml_collections.ConfigDict({
        "max_skips_in_a_row": 10,  # stop after this many refused updates in a row
        # Refuse gradients this many times their running norm; 0 = off. The norm runs over
        # accepted updates, so a lasting rise is refused until the run stops.
        "spike_factor": 0.0,
    })
    config.mesh = ml_collections.ConfigDict({
        "fsdp": 1,  # devices that share one copy of the parameters; -1 = all, where there are several slices all of one
        "sequence": 1,  # devices of a process that share the tokens of each clip, for long clips
        "distributed": False,  # several processes: TPU pods, Slurm, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
    })
    config.checkpoint = ml_collections.ConfigDict({"every_steps": 300, "keep_last": 2, "keep_every": 15000})
    config.log = ml_collections.ConfigDict({
        "every_steps": 10,
        "monitor_tokens": 2048,  # tokens of a batch on which collapse is measured
    })
    config.start = ml_collections.ConfigDict({
        "mode": "scratch",  # scratch | cooldown | weights; a checkpoint in the workdir wins
        "checkpoint": "",
    })
    return config


def base_config():
    """Return the config that pretraining and cooldown start from: the released ViT-L recipe."""
    config = run_config("pretrain")
    config.model = model_section()
    config.data = data_section()
    config.masks = masks_section()
    config.optim = optim_section()
    config.probe = observer_section()
    return config


def observer_section():
    """Classes of held-out clips by nearest neighbours and a linear head, with the EMA encoder as it is: does it learn? Off by default."""
    return ml_collections.ConfigDict({
        "every_steps": 0,  # 0 = off; a multiple of log.every_steps
        "train": "",  # labelled clips: list 'path label', folder of class folders, or labelled shards
        "test": "",
        "samples": 256,  # of each, at most, evenly spread; they stay in the memory of every process
        "frame_step": 4,  # native frames; the number of frames is that of the first group
        "neighbours": 10,
        "batch_size": 16,  # clips encoded together, over all devices
    })


def model_section():
    """Encoder and predictor as released."""
    return ml_collections.ConfigDict({
        "size": "vit_large",
        "patch_size": 16,
        "tubelet_size": 2,
        "positions": "rope",  # rope | sincos
        "rope_layout": "tiled",  # tiled (released weights) | interleaved (corrected)
        "uniform_power": True,
        "activation": "gelu",  # gelu | swiglu | swiglu_wide
        "attention": "auto",  # auto | xla | chunked | cudnn | flash
        "remat": "full",  # none | dots: keep what linear layers make | full: keep what goes into blocks
        "dtype": "bfloat16",
        "param_dtype": "float32",
        "encoder_residual_dtype": "bfloat16",
        "predictor_residual_dtype": "float32",
        "predictor": {
            "width": 384, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0,
            # Ten in the released checkpoints (two masks x five sources); only the first
            # `number of groups` are ever trained.
            "num_mask_tokens": 10,
            "zero_init_mask_tokens": True,
        },
    })


def group_section(kind, frames, batch_size):
    """A sub-batch of one clip shape; a batch size of 0 turns it off."""
    return ml_collections.ConfigDict({
        "kind": kind,
        "frames": frames,
        "fps": 4.0,
        "batch_size": batch_size,  # clips per step over all devices
        # Of this group's mean loss, relative to the other groups; unset: its batch size, so that every clip
        # counts the same.
        "loss_weight": ml_collections.config_dict.placeholder(float),
        "paths": ("shards",),  # shard folders or globs under data.root, one per source
        "weights": (1.0,),  # share of the group's clips per source
    })


def data_section():
    """Crops of the released recipe and its groups: videos, and images as clips of equal frames.

    A step holds a batch of every group, so clips of two lengths can share a run: give `video_long`
    a batch size as well.
    """
    return ml_collections.ConfigDict({
        "size": 256,
        "crop_scale": (0.3, 1.0),
        "crop_aspect": (0.75, 1.35),
        "flip": 0.5,
        "augment": {
            "motion_shift": False,  # the crop moves from one random box to another over a clip
            "rand_augment": "",  # e.g. rand-m7-n4-mstd0.5-inc1, the official policy; empty = off
            "erase": 0.0,  # probability that a box of a clip becomes noise; officially 0.25 for probes
        },
        "root": "",  # put before every path that is not absolute; a folder or gs://, s3://, ...
        "cache_dir": "",  # where remote shards are kept on this host; empty = ~/.cache/jepa_jax/shards
        "cache_gib": 100.0,  # the least recently used ones go when there is more
        "groups": {
            "video": group_section("video", 16, 3072),
            "video_long": group_section("video", 64, 0),
            "image": group_section("image", 16, 0),
        },
        "workers": 8,  # processes per host
        "threads": 2,  # per process
        "prefetch": 2,  # batches per worker
        "max_bad_fraction": 0.05,  # of the draws of any source: past it, the run saves and stops
    })


def masks_section():
    """The two released strategies: many small holes, and two large ones."""
    def strategy(spatial_scale, num_blocks):
        return {
            "spatial_scale": (spatial_scale, spatial_scale),
            "temporal_scale": (1.0, 1.0),
            "aspect_ratio": (0.75, 1.5),
            "num_blocks": num_blocks,
            "max_temporal_keep": 1.0,
            "max_keep": ml_collections.config_dict.placeholder(int),
            "full_complement": False,
            "pred_full_complement": False,
            "inv_block": False,
            "num_context": ml_collections.config_dict.placeholder(int),
            "num_target": ml_collections.config_dict.placeholder(int),
        }

    return ml_collections.ConfigDict({
        "strategies": {"short_range": strategy(0.15, 8), "long_range": strategy(0.7, 2)},
        "group_size": 24,  # the official batch per process, whose shortest list sets the length
        "round_to": 16,  # lengths become multiples of this
    })


def optim_section():
    """AdamW of the primary phase: warm-up, then constant."""
    return ml_collections.ConfigDict({
        "total_steps": 240_000,
        "schedule": "warmup_cosine",  # warmup_cosine | linear | warmup_stable_decay
        "start_lr": 1e-4,
        "lr": 5.25e-4,
        "final_lr": 5.25e-4,
        "warmup_steps": 12_000,
        "anneal_steps": 0,
        "horizon_scale": 1.25,
        "weight_decay": 0.04,
        "final_weight_decay": 0.04,
        "ema": 0.99925,
        "final_ema": 0.99925,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "loss_exponent": 1.0,
        # Ours: weight of a loss that keeps latents from collapsing to a few directions, which short runs on
        # few scenes do; see `correlation_loss`. Officially there is none.
        "decorrelation": 0.0,
        # Ours, too: of one that leads back where all latents have become alike; see `variance_loss`.
        "variance": 0.0,
        "accumulate": 1,  # parts a batch is cut into, one after the other
    })
