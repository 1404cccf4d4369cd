"""The command `evaluate anticipate`: how often trained or converted probes foresee actions, by both protocols."""

import dataclasses
import os

from tqdm import tqdm

from jepa_jax.commandline import types
from jepa_jax.commandline.skipped import too_many
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data.actions import LAYOUT, ORDERS, OUTPUTS, ActionSource, check_videos, make_classes, read_annotations
from jepa_jax.data.anticipation import ANCHORS
from jepa_jax.data.publish import check_folder, write_json
from jepa_jax.evals import anticipation
from jepa_jax.evaluate_probe import add_dtype, describe_broken, describe_run, probe_settings
from jepa_jax.tasks.anticipate import TOP
from jepa_jax.weights import store
from jepa_jax.weights.anticipation import Anticipation, from_json
from jepa_jax.weights.bundle import WeightsError, choose_networks, keep_networks
from jepa_jax.weights.load import compute_in

DESCRIPTION = """Anticipate the actions of a list with every probe of a run of configs/anticipate.py, or of converted official
weights joined to their encoder and predictor. Protocols: 'released' ends a clip --seconds before the action's last frame, as the
released code does, so that it usually shows a part of the action; 'standard' before its first frame, as the benchmark asks for.
DIR gets anticipation.json. Exit status: 0; 1 if too many segments could not be read; 2 if nothing was judged."""
EXAMPLES = """examples:
  python -m jepa_jax.evaluate anticipate EPIC_100_validation.csv --videos /data/EPIC-KITCHENS --model runs/ek100 --output reports/ek100
  python -m jepa_jax.evaluate anticipate EPIC_100_validation.csv --videos /data/EPIC-KITCHENS --model models/ek100 \\
      --train EPIC_100_train.csv --class-order set --output reports/released"""
REPORT = "anticipation.json"
_NAMED = 100


def add_arguments(parser):
    """Add the options to the parser of the command."""
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("annotations", metavar="CSV", help="segments in the format of EPIC-KITCHENS-100, not seen in training")
    add("--videos", required=True, metavar="DIR", help="folder of the videos, or a URL")
    add("--model", required=True, metavar="PATH", help="run of configs/anticipate.py, or weights of encoder, predictor and probes")
    add("--output", required=True, metavar="DIR", help="folder for the report, or a URL")
    add("--layout", default=LAYOUT, help="where a video lies in --videos (default %(default)s)")
    add("--protocol", choices=(*ANCHORS, "both"), default="both", help="which end of an action clips keep their distance from (default %(default)s)")
    add("--seconds", type=types.non_negative_float, default=1.0, help="that distance (default %(default)s)")
    add("--train", metavar="CSV", help="training list, whose actions are the classes of probes that do not say theirs")
    add("--class-order", choices=ORDERS, help="how those classes are numbered; those of released probes: set")
    add("--samples", type=types.positive, help="segments at most, evenly spread (default: all)")
    add("--batch", type=types.positive, default=4, help="segments computed together (default %(default)s)")
    add_dtype(parser)
    add("--max-skip-fraction", type=types.fraction, default=0.01,
        help="exit with status 1 when more of the segments cannot be read (default %(default)s)")


def run(args):
    """Judge probes; returns the exit status."""
    check_folder(args.output)
    bundle, seeing, classes = _read_bundle(args)
    source = ActionSource(args.annotations, read_annotations(args.annotations), classes, args.videos, args.layout)
    check_videos(source, args.videos, what="--videos")
    total = min(len(source), args.samples or len(source))
    bundle = compute_in(bundle, args.dtype)
    scorer = anticipation.make_scorer(bundle, seeing, args.seconds)
    reports, skipped = {}, {}
    for anchor in ANCHORS if args.protocol == "both" else (args.protocol,):
        with tqdm(total=total, desc=f"{anchor} (compiles first)", unit=" segments", dynamic_ncols=True) as bar:
            foreseen = anticipation.foresee(scorer, seeing, source, classes, anchor=anchor, seconds=args.seconds, batch_size=args.batch,
                                            limit=args.samples, on_segments=bar.update)
        reports[anchor] = anticipation.summarize(foreseen, probe_settings(bundle))
        skipped[anchor] = foreseen.skipped
    write_json(os.path.join(args.output, REPORT), _record(reports, skipped, source, bundle, seeing, args))
    wrong = too_many([skip.message for skip in max(skipped.values(), key=len)], total, args.max_skip_fraction, "segments")
    write_lines(_describe(reports, source, seeing, args) + wrong)
    return 1 if wrong else 0


def _read_bundle(args):
    """Return (`Bundle` of what is needed, `Anticipation`, classes)."""
    bundle = store.read(args.model)
    probes = bundle.probes()
    if not probes:
        raise WeightsError(f"{args.model} has no probe; it holds {', '.join(bundle.networks)}. Train one: configs/anticipate.py")
    outputs = bundle.networks[probes[0]].module.outputs
    if tuple(name for name, _ in outputs) != OUTPUTS:
        raise WeightsError(f"the probes of {args.model} say {', '.join(name for name, _ in outputs)}; needed are {', '.join(OUTPUTS)}")
    seeing, classes = _find_classes(bundle, args)
    wrong = [f"{len(classes[name])} {name}s in training, {count} in the probes" for name, count in outputs if len(classes[name]) != count]
    if wrong:
        raise WeightsError(f"the classes are not those of the probes of {args.model}: {'; '.join(wrong)}")
    chosen = choose_networks(bundle.networks, roles=seeing.roles())
    width = bundle.networks[chosen["encoder"]].module.width
    if bad := [name for name in probes if bundle.networks[name].module.width != width]:
        raise WeightsError(f"{bad[0]} takes tokens of width {bundle.networks[bad[0]].module.width}, the encoder gives {width}")
    return keep_networks(bundle, [*chosen.values(), *probes]), seeing, classes


def _find_classes(bundle, args):
    """Return what probes see and tell apart: as stored with them, or as released probes and the training list."""
    if bundle.anticipation is not None:
        if args.train or args.class_order:
            raise ValueError(f"{args.model} says which classes its probes have; leave out --train and --class-order")
        return from_json(bundle.anticipation, args.model)
    if not args.train or not args.class_order:
        raise WeightsError(f"{args.model} does not say which classes its probes have; give --train EPIC_100_train.csv and --class-order")
    seeing = Anticipation()
    if bundle.preprocessing:
        seeing = dataclasses.replace(seeing, crop_size=bundle.preprocessing.crop_size)
    return seeing, make_classes(read_annotations(args.train), args.class_order)


def _record(reports, skipped, source, bundle, seeing, args):
    left_out = {anchor: [skip._asdict() for skip in found[:_NAMED]] for anchor, found in skipped.items()}
    return {"metric": f"class-mean recall@{TOP}", "seeing": dataclasses.asdict(seeing), "seconds": args.seconds, "protocols": reports,
            "segments": {"of_training_actions": len(source), "of_other_actions": source.foreign}, **describe_run(bundle, args),
            "left_out": left_out}


def _describe(reports, source, seeing, args):
    lines = [f"protocol {seeing.describe()}, {args.seconds:g} s before the action"]
    if source.foreign:
        lines.append(f"{source.foreign} segments are of actions that training does not have; they do not count, as officially")
    for anchor, report in reports.items():
        end = {"released": "its last frame (a part of it is usually seen)", "standard": "its first frame"}[anchor]
        lines += ["", f"{anchor}, counted from {end}: {report['n']} segments; class-mean recall@{TOP} in %"]
        if report["skipped"]:
            lines.append(f"{report['skipped']} segments could not be read and do not count; {REPORT} names them")
        lines.append(f"{'probe':<10}{'lr':>9}{'decay':>9}" + "".join(f"{output:>12}" for output in OUTPUTS))
        for number, row in enumerate(report["probes"]):
            setting = [f"{row['setting'][key]:>9g}" if row["setting"] else f"{'-':>9}" for key in ("lr", "weight_decay")]
            values = [f"{row[output][f'recall{TOP}']:>11.2f}{'*' if report['best'][output] == number else ' '}" for output in OUTPUTS]
            lines.append(f"{number:<10}{''.join(setting)}{''.join(values)}")
        lines += describe_broken(report["probes"])
    if any(len(report["probes"]) > 1 for report in reports.values()):
        lines.append("(* the best of several, chosen on these segments and for each column by itself, as officially)")
    return [*lines, "", f"wrote {os.path.join(args.output, REPORT)}"]
