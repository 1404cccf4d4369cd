"""Store the features of videos and images: `python -m jepa_jax.embed`."""

import argparse
import contextlib
import dataclasses
import difflib
import hashlib
import json
import os
import re
import shutil
import sys

import av
import cv2
import jax
import numpy as np
import tqdm
from absl import logging

from jepa_jax.commandline import types
from jepa_jax.commandline.skipped import count_reasons, list_reasons, too_many
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import DataError, clips, remote, workers
from jepa_jax.data.copies import local_copy
from jepa_jax.data.listing import ListError
from jepa_jax.data.publish import write_json
from jepa_jax.features import files, naming, output, pooling
from jepa_jax.features.encoding import Encoded, encode_windows
from jepa_jax.features.sources import End, Sampling, Source, read_ahead
from jepa_jax.models import token_grid
from jepa_jax.training.checkpoint import CheckpointError
from jepa_jax.viz.embedding import draw_source
from jepa_jax.weights.bundle import ENCODERS, WeightsError
from jepa_jax.weights.load import load

_EXAMPLES = """examples:
  python -m jepa_jax.embed clip.mp4 --model runs/demo --output features --pca
  python -m jepa_jax.embed ~/videos '/data/*.webm' --model vitl.pt --output features --pool mean
  python -m jepa_jax.embed list.csv --model vitl --output features --format array_record --dtype float16
  python -m jepa_jax.embed long.mp4 --model vitl --output features --fps 8 --stride 32 --layers 17 23

SRC is a folder (searched through), a glob in quotes, a video or image file, or a CSV without
header: 'path label' per line. SRC and DIR may be URLs, such as gs:// or s3://. Run the same command again to finish a run that was stopped.
Read the results with numpy.load, or with jepa_jax.features.files.read_features."""
REPORT = "embed-report.json"
_FPS = 4.0


class _Job:
    """What is asked for, checked against the model.

    Raises:
      ValueError: if it does not fit.
    """

    def __init__(self, args, model):
        encoder, defaults = model.encoder, model.preprocessing
        frames = args.frames or defaults.frames
        size = args.size or defaults.crop_size
        # The default size goes with its own short side; another keeps the official ratio.
        short_side = defaults.short_side if size == defaults.crop_size else clips.resized_side(size)
        token_grid(frames, *(encoder.patch_size if args.whole else size,) * 2, encoder.patch_size, encoder.tubelet_size)
        if size < encoder.patch_size:
            raise ValueError(f"--size {size} is less than one patch of {encoder.patch_size} pixels")
        if args.stride and args.stride > frames:
            raise ValueError(f"--stride {args.stride} is above --frames {frames}: frames between windows would be lost")
        for layer in args.layers:
            if not -encoder.depth <= layer < encoder.depth:
                raise ValueError(f"--layers {layer}: the encoder has layers 0 to {encoder.depth - 1}, or -1 for the last")
        self.layers = tuple(layer % encoder.depth for layer in args.layers)
        self.sampling = Sampling(
            frames, args.stride or frames, None if args.step else args.fps or _FPS, args.step,
            None if args.whole else size, size if args.whole else short_side, encoder.patch_size,
        )
        self.pool, self.dtype, self.pca = args.pool, args.dtype, args.pca
        self.folder, self.batch, self.model, self.name = args.output, args.batch, model, _name(args.model)
        self.sha256 = model.sha256["encoder"]
        self.settings = dataclasses.asdict(self.sampling) | {
            "layers": list(self.layers), "pool": self.pool, "dtype": self.dtype,
            "compute_dtype": jax.numpy.dtype(encoder.dtype).name,
            "preprocessing": json.loads(json.dumps(dataclasses.asdict(defaults))),
        }

    def pictures(self, entry):
        """Return the picture files of an entry, relative to the output folder."""
        if not self.pca:
            return []
        return [entry.name + ending for ending in naming.PICTURE_ENDINGS[: 1 if clips.is_image(entry.path) else 2]]


def main(argv=None):
    """Run the command line.

    Args:
      argv: arguments without the program's name; those of the process if None.

    Returns:
      Exit status: 0; 1 when nothing was written or too much was skipped; 2 when the
      arguments, the weights or the folder are unusable.
    """
    args = _parse(sys.argv[1:] if argv is None else argv)
    # Orbax warns that a folder opened for reading is read-only.
    logging.set_verbosity(logging.ERROR)
    workers.one_thread_per_image()
    try:
        entries = naming.list_entries(args.sources)
        model, params = load(args.model, encoder=args.encoder, networks=("encoder",), verify=True)
        job = _Job(args, model)
        with output.lock_folder(args.output):
            report, earlier = _embed(entries, job, params, args)
            return _finish(report, earlier, args)
    except (ListError, WeightsError, CheckpointError, output.OutputError, DataError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"error: {error}. What is finished is kept; run the same command again to go on\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what is finished is kept, run the same command again to go on\n")
        return 130
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).splitlines()[0]
        sys.stderr.write(f"error: the device has too little memory for this; lower --batch, --frames or --size ({first})\n")
        return 2


def _embed(entries, job, params, args):
    """Embed what is not finished. Returns the report over all files, and how many an earlier run had finished."""
    card = {"version": files.VERSION, "format": args.format, "model_sha256": job.sha256, "settings": job.settings}
    if args.format == "array_record":
        listed = hashlib.sha256(json.dumps([entry[:2] for entry in entries]).encode()).hexdigest()
        card |= {"sources_sha256": listed, "per_shard": args.per_shard, "pca": args.pca}
    versions = {"jax": jax.__version__, "av": av.__version__, "opencv": cv2.__version__}
    info = {"model": os.fspath(args.model), "provenance": job.model.provenance, "versions": versions}
    output.claim_folder(args.output, card, info, args.overwrite)
    if args.format == "array_record":
        results = output.RecordOutput(args.output, entries, args.per_shard)
    else:
        results = output.NpzOutput(args.output, entries, lambda entry: all(
            remote.is_file(os.path.join(args.output, name)) for name in job.pictures(entry)
        ))
    earlier = len(entries) - len(results.todo)
    bar = tqdm.tqdm(total=len(entries), initial=earlier, unit="file", dynamic_ncols=True, smoothing=0.05)
    try:
        with bar, contextlib.closing(results):
            _embed_all(job, params, results, bar)
    finally:
        shutil.rmtree(output.scratch_folder(args.output), ignore_errors=True)
    return results.report, earlier


def _embed_all(job, params, results, bar):
    """Read, encode and store; one file after the other comes out."""
    events = read_ahead([entry.path for entry in results.todo], job.sampling)
    todo = iter(results.todo)
    part, skipped = None, 0
    with contextlib.closing(events):
        for event in encode_windows(job.model, params, events, batch=job.batch, layers=job.layers):
            if isinstance(event, Source):
                part = _Part(job, event)
            elif isinstance(event, Encoded):
                part.put(event)
                bar.set_postfix_str(f"window {event.number + 1}/{len(part.source.windows.starts)}, {skipped} skipped")
            elif isinstance(event, End):
                entry = next(todo)
                try:
                    if event.error:
                        raise event.error
                    bar.set_postfix_str(f"storing {os.path.basename(entry.path)}, {skipped} skipped")
                    part.finish(entry, results)
                except DataError as error:
                    results.skip(entry, error)
                    skipped += 1
                finally:
                    if part is not None:
                        part.remove()
                        part = None
                bar.update()


class _Part:
    """The features of one file, as they come."""

    def __init__(self, job, source):
        self.source, self._job = source, job
        folder, count = output.scratch_folder(job.folder), len(source.windows.starts)
        self._stored = output.WindowFile(os.path.join(folder, "stored.npy"), count, job.dtype)
        self._tokens = output.WindowFile(os.path.join(folder, "tokens.npy"), count, np.float32) if job.pca else None
        self._grid, self._error = None, None

    def put(self, encoded):
        """Add a window."""
        with np.errstate(over="ignore"):
            stored = pooling.pool_tokens(encoded.tokens, encoded.grid, self._job.pool).astype(self._job.dtype)
        if self._error is None and not np.isfinite(stored).all():
            self._error = DataError("not finite", f"{self.source.path}: features of window {encoded.number} are not "
                                    f"finite in {self._job.dtype}")
        self._grid = encoded.grid
        self._stored.append(stored)
        if self._tokens:
            self._tokens.append(encoded.tokens if encoded.tokens.ndim == 2 else encoded.tokens[-1])

    def finish(self, entry, results):
        """Store everything, the features last: where they are, the pictures are."""
        if self._error:
            raise self._error
        job, source = self._job, self.source
        tokens = self._stored.read()
        pictures = job.pictures(entry)
        if pictures:
            scratch = [os.path.join(output.scratch_folder(job.folder), "picture" + ending) for ending in naming.PICTURE_ENDINGS]
            with local_copy(source.path) as copy:
                draw_source(source.at(copy), job.sampling, self._tokens.read(), self._grid, job.name, *scratch)
            for path, name in zip(scratch, pictures):
                output.move_finished(path, job.folder, name)
        label = -1 if entry.label is None else entry.label
        results.add(entry, files.FileFeatures(
            tokens, self._grid, source.windows.frame_indices(), source.times, source.fps, label, entry.path, job.sha256,
            json.dumps(job.settings),
        ), self._stored.path)

    def remove(self):
        """Delete what is no longer needed."""
        self._stored.remove()
        if self._tokens:
            self._tokens.remove()


def _name(model):
    return os.path.basename(os.path.normpath(os.fspath(model)))


def _finish(report, earlier, args):
    """Write the report as text and JSON and judge it."""
    total = report.written + len(report.skips)
    path = os.path.join(args.output, REPORT)
    write_json(path, {
        "written": report.written, "skipped": len(report.skips), "bytes": report.bytes,
        "skips_by_reason": count_reasons(report.skips),
        "skips": [{"path": path, "reason": reason, "message": text} for path, reason, text in report.skips],
    })
    before = f" ({earlier} done before)" if earlier else ""
    lines = [f"{report.written} of {total} files{before} in {args.output}, {report.bytes / 1e6:.1f} MB"]
    lines += list_reasons(report.skips)
    lines.append(f"report: {path}")
    wrong = too_many([message for *_, message in report.skips], total, args.max_skip_fraction, "files",
                     "the rest is complete, raise the limit to accept it")
    if not report.written:
        wrong = ["error: nothing was written; every file was skipped for the reasons above"]
    write_lines(lines + wrong)
    return 1 if wrong else 0


def _parse(argv):
    parser = _parser()
    known = re.findall(r"--[a-z-]+", parser.format_help())
    for name in (word.partition("=")[0] for word in argv if word.startswith("--")):
        # Otherwise argparse would only say which flags are missing.
        if not any(flag.startswith(name) for flag in known):
            close = difflib.get_close_matches(name, known, n=1)
            parser.error(f"unknown flag {name}" + (f"; did you mean {close[0]}?" if close else ""))
    return parser.parse_args(argv)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m jepa_jax.embed", description="Store the features of videos and images.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("sources", nargs="+", metavar="SRC", help="folder, glob, video or image file, or CSV; or a URL of one")
    add("--model", required=True, metavar="PATH", help="converted folder, run, Hugging Face folder or .pt file")
    add("--output", required=True, metavar="DIR", help="folder for the features, or a URL")
    add("--encoder", choices=ENCODERS, help="which weights (default: the EMA target, where there is one)")
    add("--frames", type=types.positive, help="frames per window (default: as the model was trained)")
    add("--size", type=types.positive, help="side of the frames, pixels (default: as the model was trained)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--fps", type=types.positive_float, help=f"sampled frames per second, rounded to whole native frames (default {_FPS:g})")
    rate.add_argument("--step", type=types.positive, help="native frames from one sampled frame to the next")
    add("--stride", type=types.positive, help="sampled frames from one window to the next (default: --frames, so that they abut)")
    add("--layers", type=int, nargs="+", default=(), metavar="N",
        help="0-based blocks to store instead of the output, -1 the last; pictures show the last of them")
    add("--pool", choices=pooling.POOLS, default="tokens", help="all tokens, their mean, or a mean per time step")
    add("--dtype", choices=("float32", "float16"), default="float32", help="of the stored features")
    add("--format", choices=("npz", "array_record"), default="npz", help="a file per source, or shards")
    add("--per-shard", type=types.positive, default=64, help="files per array_record shard (default %(default)s)")
    add("--batch", type=types.positive, default=1, help="windows encoded together (default %(default)s)")
    add("--whole", action="store_true", help="no central crop: --size is the short side, borders are cut to whole patches")
    add("--pca", action="store_true", help="also write the features as colours: a picture, and a movie of videos")
    add("--overwrite", action="store_true", help="remove the features in the folder and begin again")
    add("--max-skip-fraction", default=0.1, type=types.fraction,
        help="exit with status 1 when more of the files are skipped (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
