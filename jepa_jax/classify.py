"""Name what happens in videos: `python -m jepa_jax.classify VIDEO --model CLASSIFIER`."""

import argparse
import json
import sys

import numpy as np

from jepa_jax.commandline import interrupt, types
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import DataError
from jepa_jax.data.copies import local_copy
from jepa_jax.data.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES, list_items
from jepa_jax.features.views import read_single_view, read_views
from jepa_jax.training.checkpoint import CheckpointError
from jepa_jax.weights import released
from jepa_jax.weights.bundle import ENCODERS
from jepa_jax.weights.hints import Hints
from jepa_jax.weights.load import load

_EXAMPLES = """examples:
  python -m jepa_jax.classify holiday.mp4 --model facebook/vjepa2-vitl-fpc16-256-ssv2
  python -m jepa_jax.classify videos/ --model models/ssv2 --top 3
  python -m jepa_jax.classify clip.mp4 --model models/ssv2 --json

A classifier is a Hugging Face one, or a probe of the official code joined with its encoder:
  python -m jepa_jax.convert ssv2-vitl-16x2x3.pt models/ssv2 --join vitl.pt --labels labels.txt"""


def main(argv=None):
    """Run the command line.

    Args:
      argv: arguments without the program's name; those of the process if None.

    Returns:
      Exit status: 0; 1 when no file could be read; 2 when the model or the list of files is unusable.
    """
    args = _parser().parse_args(argv)
    try:
        items = list_items(args.sources, VIDEO_SUFFIXES + IMAGE_SUFFIXES)
        hints = Hints(protocol=args.protocol)
        model, params = load(
            args.model, encoder=args.encoder, networks=("encoder", "probe"), probe=args.probe, hints=hints
        )
        model.check_classifier()
        sys.stderr.writelines(f"{line}\n" for line in (*model.notes, f"protocol {_describe_protocol(model)}"))
        read = 0
        for item in items:
            try:
                with local_copy(item.path) as path:
                    views, indices = _read(path, model)
            except DataError as error:
                sys.stderr.write(f"skipped, {error.reason}: {error}\n")
                continue
            read += 1
            _write(item.path, _rank(model, np.asarray(model.classify(params, views, indices)), args.top), args.json)
    except (ValueError, DataError, CheckpointError, OSError) as error:
        # Foreseen: the message says what to do, and a stack trace would bury it.
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return interrupt.stop("stopped")
    return 0 if read else 1


def _describe_protocol(model):
    p = model.protocol
    if p is None:
        return (
            f"one clip of {model.preprocessing.frames} frames spread over the whole video, central crop; the weights "
            "name no protocol (--protocol sets one)"
        )
    return p.describe()


def _read(path, model):
    if model.protocol is None:
        return read_single_view(path, model.preprocessing), None
    return read_views(path, model.protocol)


def _rank(model, probabilities, top):
    """List the most probable classes as dicts with class, label and probability."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    labels = model.labels or [f"class {i}" for i in range(len(probabilities))]
    return [{"class": int(i), "label": labels[i], "probability": float(probabilities[i])} for i in best]


def _write(path, ranking, as_json):
    if as_json:
        write_lines([json.dumps({"video": path, "top": ranking})])
    else:
        lines = [f"  {entry['probability']:7.2%}  {entry['label']}" for entry in ranking]
        write_lines([path, *lines])


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m jepa_jax.classify",
        description="Print the most probable classes of videos.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", metavar="VIDEO", help="file, folder, glob or CSV")
    parser.add_argument(
        "--model", required=True, metavar="CLASSIFIER", help="weights with a probe: a path, or a name on the hub"
    )
    parser.add_argument(
        "--protocol", choices=sorted(released.PROTOCOLS), help="how the video is seen (default: as the weights say)"
    )
    parser.add_argument("--top", type=types.positive, default=5, help="classes to print (default %(default)s)")
    parser.add_argument(
        "--probe", type=int, default=0, help="which probe, for files with several (default %(default)s)"
    )
    parser.add_argument("--encoder", choices=ENCODERS, help="which encoder (default: the one that evaluation uses)")
    parser.add_argument("--json", action="store_true", help="one JSON object per video")
    return parser


if __name__ == "__main__":
    sys.exit(main())
