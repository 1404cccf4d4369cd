"""Convert weights between the official `.pt`, Hugging Face and our own form: `python -m jepa_jax.convert SRC DST`."""

import argparse
import dataclasses
import sys

from absl import logging

from jepa_jax.commandline.stdout import write_lines
from jepa_jax.models.spec import describe
from jepa_jax.training.checkpoint import CheckpointError
from jepa_jax.weights import released, store
from jepa_jax.weights.bundle import (
    ENCODERS,
    WeightsError,
    choose_encoder,
    combine,
    count_params,
    keep_networks,
    network_sha256,
)
from jepa_jax.weights.hints import Hints
from jepa_jax.weights.settle import check_surroundings

_EXAMPLES = f"""examples:
  python -m jepa_jax.convert vitl.pt                        show and check what is in it, write nothing
  python -m jepa_jax.convert vitl.pt models/vitl            official -> ours
  python -m jepa_jax.convert facebook/vjepa2-vitl-fpc64-256 models/vitl-hf    from the hub by name
  python -m jepa_jax.convert runs/mine mine.pt              a run of ours -> official
  python -m jepa_jax.convert vitl.pt vitl-hf --to huggingface --encoder target_encoder
  python -m jepa_jax.convert ssv2-vitl-16x2x3.pt models/ssv2 --join vitl.pt --labels ssv2_labels.txt

SRC is a .pt file of the official code (pretraining, cooldown, action-conditioned, probe), a Hugging Face
folder or the name of a model on the hub, a folder of ours, or the workdir of a run. DST ending in .pt is
official, any other a folder of ours, unless --to says otherwise. Nothing is ever overwritten.
Released .pt files: {released.URL}NAME, NAME one of {", ".join(released.FILES)}."""


def main(argv=None):
    """Run the command line.

    Args:
      argv: arguments without the program's name; those of the process if None.

    Returns:
      Exit status: 0, or 1 when the weights are not what they should be or cannot be written.
    """
    args = _parser().parse_args(argv)
    # Orbax warns that a folder opened for reading is read-only.
    logging.set_verbosity(logging.ERROR)
    try:
        _convert(args)
    except (WeightsError, CheckpointError, OSError) as error:
        # Foreseen: the message says what to do, and a stack trace would bury it.
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _convert(args):
    hints = _hints(args)
    if args.dst is not None:
        # Before the minutes that large files take.
        store.check_destination(args.dst, args.to)
    bundle = store.read(args.src, dataclasses.replace(hints, config=None) if args.join else hints, verify=True)
    if args.join:
        # What is said of an encoder is meant for the one that joins.
        bundle = combine(bundle, store.read(args.join, _backbone_hints(hints), verify=True))
        check_surroundings(bundle, args.src)
    if args.networks:
        bundle = keep_networks(bundle, args.networks)
    if args.encoder or args.dst and store.choose_format(args.dst, args.to) == "huggingface":
        # Hugging Face has one encoder; the report names the one that is written.
        chosen = choose_encoder(bundle.networks, args.encoder)
        bundle = keep_networks(bundle, [name for name in bundle.networks if name == chosen or name not in ENCODERS])
    write_lines(_report(bundle))
    if args.dst is not None:
        store.write(bundle, args.dst, args.to)
        write_lines([f"wrote {args.dst}"])


def _hints(args):
    labels = _read_labels(args.labels) if args.labels else None
    return Hints(
        size=args.size,
        heads=dict(args.heads),
        positions=args.positions,
        crop_size=args.crop_size,
        frames=args.frames,
        config=args.config,
        protocol=args.protocol,
        labels=labels,
        use_extrinsics=args.use_extrinsics,
        rope_grid=args.rope_grid,
    )


def _backbone_hints(hints):
    """Drop what is about the probe."""
    heads = {name: number for name, number in hints.heads.items() if name != "probe"}
    return dataclasses.replace(hints, heads=heads, protocol=None, labels=None)


def _read_labels(path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            labels = tuple(line.strip() for line in file.read().rstrip().splitlines())
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path} is not UTF-8 text: {error}") from error
    if "" in labels:
        raise WeightsError(
            f"{path}: line {1 + labels.index('')} is empty; one label per line, in the order of the classes"
        )
    return labels


def _report(bundle):
    """List networks, what surrounds them, and what was assumed or left out, as lines of text."""
    lines = []
    width = max(map(len, bundle.networks))
    for name, network in bundle.networks.items():
        spec = describe(network.module)
        sizes = ", ".join(
            f"{key} {spec[key]}" for key in ("width", "depth", "num_heads", "num_mask_tokens", "outputs") if key in spec
        )
        lines.append(
            f"{name:{width}}  {count_params(network.params):>13,} parameters  {sizes}  "
            f"sha256 {(network.sha256 or network_sha256(network.params))[:16]}"
        )
    for name in ("preprocessing", "protocol"):
        record = getattr(bundle, name)
        if record is not None:
            lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(record).items()))
    if bundle.labels:
        lines.append(f"labels: {len(bundle.labels)}, {', '.join(bundle.labels[:3])}, ...")
    return lines + [f"note: {note}" for note in bundle.notes]


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m jepa_jax.convert",
        description="Convert weights, checking every tensor.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("src", metavar="SRC", help="weights in any format")
    parser.add_argument("dst", metavar="DST", nargs="?", help="where to write; nothing is written without it")
    parser.add_argument("--to", choices=store.FORMATS, help="format of DST (default: by its name)")
    parser.add_argument(
        "--encoder",
        choices=ENCODERS,
        help="keep this encoder only: target_encoder (EMA weights, what "
        "evaluation uses; the one that Hugging Face folders get by default) or encoder (student)",
    )
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="keep these networks only")
    parser.add_argument("--join", metavar="SRC2", help="weights whose encoder and predictor join the probe of SRC")
    hints = parser.add_argument_group("what weights do not show", "needed where a .pt file is no released one")
    hints.add_argument(
        "--config", metavar="YAML", help="config of the official training run; also checked against the weights"
    )
    hints.add_argument("--size", help="named size of the encoder, such as vit_large")
    hints.add_argument(
        "--heads",
        nargs="+",
        type=_heads,
        default=[],
        metavar="NETWORK=N",
        help="attention heads of encoder, predictor, action_predictor or probe",
    )
    hints.add_argument("--positions", choices=("rope", "sincos"), help="kind of positions (default rope)")
    hints.add_argument("--crop-size", type=int, metavar="PIXELS", help="side of the input in training")
    hints.add_argument("--frames", type=int, help="frames per clip in training")
    hints.add_argument("--protocol", choices=sorted(released.PROTOCOLS), help="how a probe was trained to see a video")
    hints.add_argument("--labels", metavar="FILE", help="class names of a probe, one per line")
    hints.add_argument(
        "--use-extrinsics", action="store_true", help="the action-conditioned predictor gets camera extrinsics"
    )
    hints.add_argument(
        "--rope-grid",
        choices=("input", "config"),
        default="input",
        help="read rotary positions off the real input, as the official code (default), or off the "
        "configured size, as transformers",
    )
    return parser


def _heads(text):
    name, _, number = text.partition("=")
    if name not in ("encoder", "predictor", "action_predictor", "probe") or not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not NETWORK=N, such as encoder=16 or probe=16")
    return name, int(number)


if __name__ == "__main__":
    sys.exit(main())
