"""`prepare curate`: choose scenes of a large pool of videos that are like those of target sets."""

from __future__ import annotations

import argparse
import os
import sys

import tqdm

from jepa_jax.commandline import types
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.curation import cuts, retrieval
from jepa_jax.data import listing, manifest, publish, remote
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import Rejected
from jepa_jax.data.wording import duration
from jepa_jax.data.workers import usable_cores

_DETAIL = """SRC are the videos to choose from: folders, globs, files, CSVs or manifests, as for `prepare videos`.
They are cut into scenes, every scene and every target video becomes one vector, the scenes are
clustered, and the scenes of clusters that hold target videos are listed in DIR/scenes.csv. Then:
  python -m jepa_jax.prepare videos DIR/scenes.csv --output SHARDS
SRC and DIR may be URLs. Remote videos are read more than once, so copies are kept in ~/.cache/jepa_jax;
with a remote DIR, vectors and clusters stay in --work and the manifest and the report are put in DIR.
A cluster's weight is the sum over target sets of weight x (its samples of the set / samples of the
set). With --scenes N, scenes are drawn in proportion to their cluster's weight, each once, so what small
clusters lack is taken from the others; the report says which share of the target sets was asked for and
which was written. Without --scenes every scene of every cluster with a target sample is written, and
weights decide nothing: the column `weight` in scenes.csv is for samplers of your own, `prepare videos` and
training do not read it.
Cuts are those of PySceneDetect's adaptive detector: of two cuts less than 0.6 s apart it keeps the first,
so a scene may hold another cut shortly after its start. Lists of files are held in memory, about 0.5 GB
for a million.
Run the same command again to go on after a stop. On several machines with one file system, start it with
--part 0/4, --part 1/4 and so on, then once without."""


def add(kinds) -> None:
    """Add the subcommand, which sets `run`."""
    sub = kinds.add_parser(
        "curate", help="choose scenes of many videos that are like target sets", description=_DETAIL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    known = ", ".join(f"{name} {weight:g}" for name, weight in retrieval.PAPER_WEIGHTS.items())
    arg = sub.add_argument
    arg("sources", nargs="+", metavar="SRC", help="videos to choose from")
    arg("--target", action="append", required=True, type=_target, metavar="NAME[:WEIGHT]=SRC",
        help=f"a target set, and its weight unless it is one of the paper's ({known}); again for each, and for "
        "more sources of one")  # fmt: skip
    arg("--model", required=True, metavar="PATH", help="encoder: any weights that `embed` takes")
    arg("--output", required=True, metavar="DIR", help="folder for the manifest and the report, or a URL")
    arg("--work", metavar="DIR",
        help="folder of this host for scenes, vectors and clusters (default: --output, if no URL)")  # fmt: skip
    arg("--exclude", action="append", default=[], metavar="FILE",
        help="videos to leave out, such as validation sets: a path or name a line, or 'path label'")  # fmt: skip
    arg(
        "--scenes",
        type=types.positive,
        metavar="N",
        help="draw N scenes by cluster weight (default: all of the clusters)",
    )
    arg(
        "--clusters",
        type=types.positive,
        default=1000,
        metavar="K",
        help="default %(default)s; the paper has 1.5 million",
    )
    arg("--passes", type=types.positive, default=20, help="of k-means, at most (default %(default)s)")
    arg("--seed", type=types.count, default=0, help="of clustering and drawing (default 0)")
    arg("--min-seconds", type=types.positive_float, default=4.0, help="drop shorter scenes (default %(default)g)")
    arg("--threshold", type=types.positive_float, default=3.0,
        help="a cut is so many times the change around it (default %(default)g)")  # fmt: skip
    arg("--frames", type=types.positive, default=1, help="frames embedded of a scene: 1 for its middle (default 1)")
    arg("--fps", type=types.positive_float, default=4.0, help="rate of those frames (default 4)")
    arg("--size", type=types.positive, help="side of those frames, pixels (default: as the model was trained)")
    arg("--batch", type=types.positive, default=32, help="scenes encoded together (default %(default)s)")
    arg("--workers", type=types.count, default=usable_cores(), help="processes; 0 for none (default: one per core)")
    arg("--per-chunk", type=types.positive, default=256, help="videos per file of results (default %(default)s)")
    arg("--part", type=_part, default=(0, 1), metavar="I/N", help="cut and embed only this share of the videos")
    arg("--distributed", action="store_true",
        help="one process per host of a pod: each cuts and embeds a share, and all devices cluster")  # fmt: skip
    arg("--overwrite", action="store_true", help="remove what is in the folder and begin again")
    sub.set_defaults(run=run)


def _target(text: str) -> tuple[str, float, str]:
    label, sign, source = text.partition("=")
    name, _, weight = label.partition(":")
    if not (name and sign and source):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SRC or NAME:WEIGHT=SRC")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise argparse.ArgumentTypeError(f"{name!r} becomes part of a file name: letters, digits, - and _ only")
    if not weight and name not in retrieval.PAPER_WEIGHTS:
        raise argparse.ArgumentTypeError(
            f"{name!r} is not one of {', '.join(retrieval.PAPER_WEIGHTS)}, so it needs a weight: {name}:0.5={source}"
        )
    return name, types.positive_float(weight) if weight else retrieval.PAPER_WEIGHTS[name], source


def _part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(index), int(count)


def run(args: argparse.Namespace) -> int:
    """Curate.

    Returns:
        Exit status: 0; 1 when no scene is like the target sets; 2 when arguments, lists, weights or
        the folder are unusable.
    """
    # Here, so that the other subcommands and their worker processes start without JAX.
    from jepa_jax.curation import kmeans, pipeline
    from jepa_jax.training import processes
    from jepa_jax.training.checkpoint import CheckpointError
    from jepa_jax.weights.bundle import WeightsError

    try:
        cuts.check_library()
        work = _work_folder(args)
        part, parts = processes.join_processes() if args.distributed else args.part
        targets, weights = _targets(args.target)
        pool = cuts.exclude(_list_videos(args.sources), _excluded(args.exclude))
        job = pipeline.Curation(
            folder=work, pool=pool, targets=targets, weights=weights, model=args.model,
            cuts=cuts.CutSpec(args.min_seconds, args.threshold), frames=args.frames, fps=args.fps, size=args.size,
            clustering=kmeans.KMeansSpec(args.clusters, passes=args.passes, seed=args.seed), scenes=args.scenes,
            per_chunk=args.per_chunk, batch=args.batch, workers=args.workers, part=part, parts=parts,
        )  # fmt: skip
        with _Bars() as bars:
            report = pipeline.run(job, bars.start, args.overwrite)
        if report is not None and work != args.output and not part:
            for name in (pipeline.MANIFEST, pipeline.REPORT):
                publish.copy(os.path.join(work, name), os.path.join(args.output, name))
    except (
        cuts.MissingLibraryError,
        pipeline.CurationError,
        WeightsError,
        CheckpointError,
        DataError,
        ValueError,
        OSError,
    ) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    write_lines(_lines(report, args))
    return 0 if report is None or report["written"] else 1


def _targets(given: list[tuple[str, float, str]]) -> tuple[dict, dict]:
    sources: dict[str, list[str]] = {}
    weights: dict[str, float] = {}
    for name, weight, source in given:
        sources.setdefault(name, []).append(source)
        if weights.setdefault(name, weight) != weight:
            raise ValueError(f"target set {name!r} is given with weights {weights[name]:g} and {weight:g}")
    return {name: _list_videos(found) for name, found in sources.items()}, weights


def _list_videos(sources: list[str]) -> list:
    """List videos by absolute paths, so that the manifest can be read from anywhere."""
    return [item if isinstance(item, Rejected) else _placed(item) for item in manifest.list_videos(sources)]


def _placed(item: listing.Item | listing.Scene) -> listing.Item | listing.Scene | Rejected:
    try:
        item.path.encode()
    except UnicodeEncodeError:
        return Rejected(item.name, "name is not UTF-8", f"{item.name}: no manifest can hold this name; rename the file")
    return item._replace(path=remote.absolute(item.path))


def _work_folder(args: argparse.Namespace) -> str:
    """Say where the results of the stages go, and find out whether --output can be written to."""
    if remote.is_remote(args.work or args.output):
        raise ValueError(f"{args.work or args.output} is remote: give --work, a folder of this host for vectors")
    publish.check_folder(args.output)
    return args.work or args.output


def _excluded(paths: list[str]) -> list[str]:
    names = []
    for path in paths:
        for line in listing.read_list(path).splitlines():
            # A label after the path, as in the official lists, is no part of the name.
            name, _, label = line.strip().rpartition("::" if "::" in line else " ")
            names.append(name if name and label.isdigit() else line.strip())
    return names


class _Bars:
    """Show one progress bar after the other."""

    def __init__(self):
        self._bar = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()

    def _close(self):
        if self._bar is not None:
            self._bar.close()

    def start(self, stage: str, total: int):
        """Begin a stage; returns what to call with (items, failed)."""
        self._close()
        bar = self._bar = tqdm.tqdm(total=total, desc=stage, dynamic_ncols=True, smoothing=0.05)
        failures = 0

        def advance(count: int, failed: bool) -> None:
            nonlocal failures
            failures += failed
            if failed:
                bar.set_postfix_str(f"{failures} failed", refresh=False)
            bar.update(count)

        return advance


def _hours(hours: float) -> str:
    return duration(3600 * hours)


def _lines(report: dict | None, args: argparse.Namespace) -> list[str]:
    if report is None:
        return ["this part is done; run the command once without --part when all parts are"]
    pool = report["pool"]
    lines = [
        (
            f"{pool['scenes']} scenes of {pool['videos']} videos, {_hours(pool['hours'])}; "
            f"{pool['short_scenes_dropped']} "
            f"scenes shorter than {args.min_seconds:g} s dropped ({_hours(pool['short_hours_dropped'])})"
        ),
        (
            f"{report['clusters']} clusters, {report['empty_clusters']} of them empty; mean squared distance "
            f"{report['mean_squared_distance'][-1]:.4f}"
        ),
    ]
    lines += [
        f"{name}: {part['samples']} samples in {part['clusters']} clusters, which hold {part['scenes']} scenes; "
        f"share asked {part['share_asked']:.1%}, written {part['share_written']:.1%}"
        for name, part in report["targets"].items()
    ]
    if report["clusters"] < args.clusters:
        lines.append(f"note: only {report['clusters']} scenes could be embedded, fewer than --clusters {args.clusters}")
    lines += [f"skipped, {reason}: {count}" for reason, count in report["skips_by_reason"].items()]
    lines.append(
        f"{report['written']} of {report['scenes_in_kept_clusters']} scenes in {report['kept_clusters']} clusters "
        "with target "
        f"samples, {_hours(report['hours'])}: {os.path.join(args.output, 'scenes.csv')}"
    )
    if not report["written"]:
        lines.append("error: no scene of the pool shares a cluster with a target sample; try fewer --clusters")
    return lines
