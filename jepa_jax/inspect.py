"""Say and show what is in shards, and whether all of it can be read: `python -m jepa_jax.inspect SHARDS`."""

import argparse
import itertools
import os
import sys

import numpy as np
import tqdm

from jepa_jax.commandline import interrupt, types
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import DataError, ShardSource, publish, remote, resolve_shards
from jepa_jax.data.conversion import convert_all
from jepa_jax.data.survey import Facts, Span, SurveySpec
from jepa_jax.data.tally import Tally
from jepa_jax.data.trajectories import KIND
from jepa_jax.data.wording import duration
from jepa_jax.data.workers import usable_cores
from jepa_jax.viz import canvas, shards, trajectories

_EXAMPLES = """examples:
  python -m jepa_jax.inspect data/mine
  python -m jepa_jax.inspect data/mine --output pictures
  python -m jepa_jax.inspect 'data/droid/*.array_record' --output pictures --sample 200

Every frame of every record is decoded, unless --sample is given. With --output the folder gets
inspect.json, contact_sheet.png and, for robot trajectories, dimensions.png and paths.png. Gaps are
steps of the state far longer than the others of their trajectory, as missing rows leave; time stamps are
not stored, so holes in which nothing moved cannot be seen here. Of features stored without frames,
paths.png shows principal components. The lists and counts of all records are held in memory.
Exit status: 0; 1 if anything is damaged; 2 if there is nothing to inspect."""
REPORT, SHEET, DIMENSIONS, PATHS = "inspect.json", "contact_sheet.png", "dimensions.png", "paths.png"
_RECORDS_PER_SPAN = 8
_SHOWN = 8
_NAMES_SHOWN = 5
_TRAJECTORIES_DRAWN = 4


def main(argv=None):
    """Run the command line.

    Args:
      argv: arguments without the program's name; those of the process if None.

    Returns:
      Exit status: 0; 1 if something is damaged; 2 if there is nothing to inspect or no
      place for the results.
    """
    args = _parser().parse_args(argv)
    try:
        if args.output:
            publish.check_folder(args.output)
        tally, facts = survey(args.shards, args.sample, args.workers, args.clips if args.output else 0)
        write_lines(describe(tally))
        if args.output:
            for line in _write(tally, facts, args):
                write_lines([line])
    except (FileNotFoundError, DataError, canvas.PictureError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return interrupt.stop("stopped")
    return 1 if tally.damage else 0


def survey(paths, sample=None, workers=0, pictures=0):
    """Look at records of shards.

    Args:
      paths: as in `data.resolve_shards`.
      sample: how many records, drawn evenly at random but the same each time; all if None.
      workers: processes; 0 looks in this one.
      pictures: how many records to show, evenly spaced.

    Returns:
      (tally, facts): a `Tally`, and the `Facts` of those records: clips with their picture, and trajectories,
      which may have features in place of frames.

    Raises:
      FileNotFoundError: if there are no shards, or some of a set are missing.
    """
    files = resolve_shards(paths)
    tally = Tally(shards=len(files), shard_bytes=sum(remote.size(file) or 0 for file in files))
    counts = {}
    for file in files:
        try:
            counts[file] = len(ShardSource([file], "any"))
        except DataError as error:
            tally.damage.append((file, error.reason, str(error)))
    tally.total = sum(counts.values())
    chosen = [(file, index) for file, count in counts.items() for index in range(count)]
    if sample is not None and sample < len(chosen):
        picked = np.random.default_rng(0).choice(len(chosen), sample, replace=False)
        chosen = [chosen[number] for number in sorted(picked)]
    shown = {chosen[n] for n in np.unique(np.linspace(0, len(chosen) - 1, min(pictures, len(chosen))).astype(int))}
    shown_places, kept = {f"{file}#{index}" for file, index in shown}, []
    with tqdm.tqdm(total=len(chosen), unit=" records", dynamic_ncols=True, smoothing=0.05) as bar:
        for fact in _facts(_spans(chosen, shown), workers, bar):
            tally.add(fact)
            if fact.picture is not None or (fact.kind == KIND and fact.location in shown_places):
                kept.append(fact)
            if fact.damage:
                bar.set_postfix_str(f"{len(tally.damage)} damaged", refresh=False)
    return tally, kept


def _spans(chosen, shown):
    for file, group in itertools.groupby(chosen, key=lambda place: place[0]):
        for part in _batched(group):
            yield Span(file, tuple(i for _, i in part), tuple(place[1] for place in part if place in shown))


def _batched(group):
    # itertools.batched is not in Python 3.11.
    group = iter(group)
    while part := tuple(itertools.islice(group, _RECORDS_PER_SPAN)):
        yield part


def _facts(spans, workers, bar):
    """Yield the facts of all records; those of a span that crashed its process one by one, at the end."""
    crashed = []
    for span, result in convert_all(list(spans), SurveySpec(), workers):
        if isinstance(result, DataError):
            crashed += [Span(span.path, (index,)) for index in span.indices]
            continue
        yield from result
        bar.update(len(result))
    for span, result in convert_all(crashed, SurveySpec(), workers):
        failed = isinstance(result, DataError)
        yield from [Facts(f"{span.path}#{span.indices[0]}", (result.reason, str(result)))] if failed else result
        bar.update()


def describe(tally):
    """Say what a tally holds.

    Args:
      tally: `Tally`.

    Returns:
      list of lines.
    """
    found = tally.summary()
    drawn = f"{tally.records} of {tally.total}" if tally.records < tally.total else str(tally.records)
    lines = [f"{tally.shards} shards, {tally.shard_bytes / 1e6:.1f} MB, {drawn} records looked at"]
    lines.append(f"kinds: {_listed(tally.kinds)}; {duration(sum(tally.seconds))}, {tally.frames} frames")
    if tally.num_bytes:
        sizes = {name: f"{value / 1e3:.1f}" for name, value in found["bytes_per_record"].items()}
        lines.append(f"kB per record: mean {found['mean_bytes_per_record'] / 1e3:.1f}, {_spread(sizes)}")
    if tally.seconds:
        lines.append(f"seconds per record: {_spread({k: f'{v:.2f}' for k, v in found['seconds_per_record'].items()})}")
        rate = sum(tally.num_bytes) * 8 / max(sum(tally.seconds), 1e-9) / 1e6
        lines.append(
            f"frames/s: {_listed(tally.rates)}" + (f"; {rate:.2f} Mbit/s" if "image" not in tally.kinds else "")
        )
    lines.append(f"sizes, height x width: {_listed({f'{h}x{w}': count for (h, w), count in tally.sizes.items()})}")
    classes = {label: count for label, count in tally.labels.items() if label is not None}
    lines.append(
        f"labels: {len(classes)} classes ({_listed(classes)}), {tally.labels[None]} records without"
        if classes
        else "labels: none"
    )
    sources = found["sources"]
    lines.append(
        f"sources: {sources['distinct']} distinct, below {sources['folder']!r}, such as {', '.join(tally.examples)}"
    )
    if tally.duplicates:
        names = [name for name, _ in tally.duplicates]
        lines.append(f"duplicates: {len(names)} records repeat a source: {_named(names)}")
    lines += [f"note: {note}: {count} records" for note, count in sorted(tally.notes.items())]
    for origin, part in zip(tally.features, found["features"]):
        lines.append(
            f"features instead of frames: {origin}; {part['frames']} frames of {part['trajectories']} trajectories, "
            f"{part['bytes'] / 1e6:.3g} MB"
        )
    for part in found["trajectories"]:
        lines += _describe_motion(part)
    return lines + _describe_damage(tally)


def _describe_damage(tally):
    if not tally.damage:
        return ["integrity: every record that was looked at decodes, and is as long and as large as it says"]
    lines = []
    for reason, count in tally.damage_counts().items():
        messages = [message for _, other, message in tally.damage if other == reason]
        lines.append(f"damaged, {reason}: {count}: {_named(messages)}")
    files = list(dict.fromkeys(place.rpartition("#")[0] or place for place, *_ in tally.damage))
    lines.append(
        f"repair: delete {_named(files)}; then run the `prepare` command again that made them, which makes the "
        "missing ones only"
    )
    return lines


def _describe_motion(part):
    lines = [
        f"{part['trajectories']} trajectories in frame {part['frame']!r}, rotation {part['rotation']!r}",
        f"  control rate, Hz: {_listed(part['control_rate_hz'])}; in video headers: {_listed(part['header_fps'])}",
        f"  views: {_listed(part['views'])}; with extrinsics: {_listed(part['views_with_extrinsics'])}",
        f"  gaps: {_steps(part['gaps'])} (by {part['gaps']['measured_by']}); angle wraps: "
        + (_steps(part["angle_wraps"]) if part["angle_wraps"] else "not measured, no number of the state is an angle"),
        f"  idle: {part['idle_share']:.1%} of steps",
    ]
    if part["fastest_turn_rad_per_s"]:
        turns = {name: f"{value:.2f}" for name, value in part["fastest_turn_rad_per_s"].items()}
        lines.append(f"  fastest turn per trajectory, rad/s: {_spread(turns)}")
    for kind in ("states", "actions", "extras"):
        if isinstance(part[kind], str):
            lines.append(f"  {kind}: {part[kind]}")
            continue
        lines += [
            f"  {kind[:-1]} {one['name']}{_unit(one['unit'])}: {one['min']:.4g} to {one['max']:.4g}, "
            f"mean {one['mean']:.4g}, std {one['std']:.4g}"
            for one in part[kind]
        ]
    return lines


def _unit(unit):
    return f" ({unit})" if unit else ""


def _steps(counts):
    return f"{counts['steps']} steps in {counts['trajectories']} trajectories"


def _listed(counts):
    """List the most frequent keys of a dict with their counts."""
    common = sorted(counts.items(), key=lambda pair: -pair[1])
    more = len(common) - _SHOWN
    return (
        ", ".join(f"{key} ({count})" for key, count in common[:_SHOWN]) + (f", {more} others" if more > 0 else "")
        or "none"
    )


def _spread(texts):
    return f"median {texts['median']}, 5-95 % {texts['p05']}..{texts['p95']}, all {texts['min']}..{texts['max']}"


def _named(names):
    return "; ".join(names[:_NAMES_SHOWN]) + (
        f"; and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    )


def _write(tally, facts, args):
    """Write the report and the pictures; yields a line about each."""
    path = os.path.join(args.output, REPORT)
    publish.write_json(path, tally.summary())
    yield f"wrote {path}"
    name = ", ".join(os.path.basename(os.path.normpath(path)) for path in args.shards[:3])
    if pictured := [fact for fact in facts if fact.picture is not None]:
        subtitle = f"{len(pictured)} of {tally.total} records; {duration(sum(tally.seconds))} looked at"
        yield _save(shards.draw_contact_sheet(pictured, f"Records of {name}", subtitle), args.output, SHEET)
    elif facts:
        yield f"no contact sheet: none of the {len(facts)} records chosen for it could be shown as a frame"
    for number, (layout, motions) in enumerate(tally.motions.items()):
        # One picture per kind of robot; most shards have one.
        ending = f"-{number}" if number else ""
        yield _save(shards.draw_dimensions(layout, motions, name), args.output, DIMENSIONS.replace(".", f"{ending}."))
    moving = [fact for fact in facts if fact.kind == KIND and not fact.damage]
    if moving:
        places = np.unique(np.linspace(0, len(moving) - 1, min(_TRAJECTORIES_DRAWN, len(moving))).astype(int))
        records = [_read(moving[place].location) for place in places]
        yield _save(trajectories.draw_trajectories(records, name, args.field_of_view), args.output, PATHS)


def _read(location):
    file, _, index = location.rpartition("#")
    return ShardSource([file], KIND)[int(index)]


def _save(figure, folder, name):
    path = os.path.join(folder, name)
    with publish.new_file(path) as partial:
        canvas.save_figure(figure, partial)
    return f"wrote {path}"


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m jepa_jax.inspect",
        description="Say and show what is in shards, and whether all of it can be read.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARDS", help="folder of shards, glob or file, or a URL of one")
    add("--output", metavar="DIR", help="folder or URL for the report and the pictures (default: text only)")
    add("--sample", type=types.positive, metavar="N", help="look at N records only, drawn at random")
    add("--workers", type=types.count, default=usable_cores(), help="processes; 0 for none (default: one per core)")
    add("--clips", type=types.positive, default=24, metavar="N", help="records on the contact sheet (default %(default)s)")
    add(
        "--field-of-view",
        type=_degrees,
        default=trajectories.FIELD_OF_VIEW,
        metavar="DEG",
        help="of the robot's cameras, across the frame, for paths drawn into frames (default %(default)g)",
    )
    return parser


def _degrees(text):
    if not 0 < (number := float(text)) < 180:
        raise argparse.ArgumentTypeError(f"{number} is not between 0 and 180 degrees")
    return number


if __name__ == "__main__":
    sys.exit(main())
