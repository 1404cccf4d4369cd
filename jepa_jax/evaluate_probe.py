"""The command `evaluate probe`: accuracies of trained or converted probes on labelled videos, with pictures."""

import dataclasses
import os

import flax
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jepa_jax
from jepa_jax.commandline import types
from jepa_jax.commandline.skipped import too_many
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data.errors import DataError
from jepa_jax.data.labelled import ListSource, check_labels, open_labelled
from jepa_jax.data.publish import check_folder, new_file, write_json
from jepa_jax.data.reading import spread
from jepa_jax.data.segments import read_views
from jepa_jax.evals import classification
from jepa_jax.models.spec import describe
from jepa_jax.viz import canvas
from jepa_jax.viz import classification as pictures
from jepa_jax.weights import released, settle, store
from jepa_jax.weights.bundle import WeightsError, choose_encoder, keep_networks, network_sha256
from jepa_jax.weights.load import compute_in

DESCRIPTION = """Classify labelled videos with every probe of a run of configs/probe.py, or of converted official weights,
exactly as the protocol says. DIR gets probe.json (protocol, accuracies of all probes, weights' sha256, what was left out),
confusion.png, worst.png and attention.png of the best probe. Exit status: 0; 1 if too many videos could not be read; 2 if nothing was judged."""
EXAMPLES = """examples:
  python -m jepa_jax.evaluate probe val.csv --model runs/ssv2 --output reports/ssv2
  python -m jepa_jax.evaluate probe val.csv --model models/ssv2 --protocol ssv2-vitl --output reports/released"""
REPORT, CONFUSION, WORST, ATTENTION = "probe.json", "confusion.png", "worst.png", "attention.png"
_NAMED, _FRAMES, _EXAMPLES, _LOOKED_AT = 100, 4, 16, 8


def add_arguments(parser):
    """Add the options to the parser of the command."""
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("data", metavar="DATA", help="list 'path label', folder of class folders, or labelled shards; not seen in training")
    add("--model", required=True, metavar="PATH", help="run of configs/probe.py, or weights of an encoder with probes")
    add("--output", required=True, metavar="DIR", help="folder for report and pictures, or a URL")
    add("--protocol", choices=sorted(released.PROTOCOLS), help="how videos are seen (default: as the probes were trained)")
    add("--labels", metavar="FILE", help="names of the classes, one per line (default: as the weights say)")
    add("--samples", type=types.positive, help="videos at most, evenly spread (default: all)")
    add("--batch", type=types.positive, default=4, help="videos computed together (default %(default)s)")
    add("--seed", type=types.count, default=0, help="of the windows in time, which the official code draws too (default %(default)s)")
    add_dtype(parser)
    add("--max-skip-fraction", type=types.fraction, default=0.01,
        help="exit with status 1 when more of the videos cannot be read (default %(default)s)")


def add_dtype(parser):
    """Add the option that says how networks compute."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="how networks compute (default: float32 on CPU, else bfloat16)")


def run(args):
    """Judge probes; returns the exit status."""
    check_folder(args.output)
    bundle = compute_in(_read_bundle(args), args.dtype)
    source = open_labelled(args.data)
    classes = bundle.networks[bundle.probes()[0]].module.outputs[0][1]
    names = _class_names(args, bundle, source, classes)
    if isinstance(source, ListSource):
        source.number_as(names)
        check_labels(source, classes, what=args.data)
    total = min(len(source), args.samples or len(source))
    with tqdm(total=total, desc="classifying (compiles first)", unit=" videos", dynamic_ncols=True) as bar:
        judged = classification.judge(bundle, source, batch_size=args.batch, seed=args.seed, limit=args.samples, on_videos=bar.update)
    report = classification.summarize(judged, probe_settings(bundle))
    skipped = [skip._asdict() for skip in judged.skipped[:_NAMED]]
    write_json(os.path.join(args.output, REPORT), {"metric": "top-1", "protocol": bundle.protocol.to_json(), **report,
                                                   **describe_run(bundle, args), "left_out": skipped})
    _draw(report, judged, bundle, source, names, args)
    wrong = too_many([skip.message for skip in judged.skipped], total, args.max_skip_fraction, "videos")
    write_lines(_describe(report, bundle, args) + wrong)
    return 1 if wrong else 0


def _read_bundle(args):
    bundle = store.read(args.model)
    probes = bundle.probes()
    if not probes:
        raise WeightsError(f"{args.model} has no probe; it holds {', '.join(bundle.networks)}. Train one: configs/probe.py")
    if any(len(bundle.networks[name].module.outputs) != 1 for name in probes):
        raise WeightsError(f"the probes of {args.model} anticipate actions; they do not classify clips: evaluate anticipate judges them")
    protocol = released.find_protocol(args.protocol) if args.protocol else bundle.protocol
    if protocol is None:
        raise WeightsError(f"{args.model} does not say how its probes see a video; say it with --protocol")
    if args.protocol and bundle.protocol and protocol != bundle.protocol:
        raise WeightsError(f"--protocol is {protocol.describe()}, but the probes were trained as {bundle.protocol.describe()}")
    encoder = choose_encoder(bundle.networks)
    width = bundle.networks[encoder].module.width
    if wrong := [name for name in probes if bundle.networks[name].module.width != width]:
        raise WeightsError(f"{wrong[0]} takes tokens of width {bundle.networks[wrong[0]].module.width}, the encoder gives {width}")
    notes = (*bundle.notes, *settle.note_levels(protocol, bundle.networks[encoder].module))
    bundle = dataclasses.replace(keep_networks(bundle, [encoder, *probes]), protocol=protocol, notes=notes)
    settle.check_surroundings(bundle, args.model)
    return bundle


def _class_names(args, bundle, source, classes):
    names = bundle.labels or getattr(source, "class_names", None)
    if args.labels:
        with open(args.labels, encoding="utf-8") as file:
            names = [line.strip() for line in file if line.strip()]
    names = names or [str(number) for number in range(classes)]
    if len(names) != classes:
        raise ValueError(f"there are {len(names)} names of classes, but the probes have {classes} (--labels)")
    return list(names)


def _training_config(bundle):
    """Return the config of the run that trained the probes; empty where it is not known."""
    # Probes that were joined to an encoder keep their own provenance under a name of its own.
    config = bundle.provenance.get("probe", bundle.provenance).get("config", {})
    # Those of the official code name no task, and those of an encoder's own training name another one.
    return config if "task" in config and config["task"] in ("anticipate", "probe") else {}


def probe_settings(bundle):
    """Say how every probe was trained, where that is known."""
    section = _training_config(bundle).get("optim", {})
    pairs = [(lr, decay) for lr in section.get("lr", ()) for decay in section.get("weight_decay", ())]
    if len(pairs) != len(bundle.probes()):
        return [{} for _ in bundle.probes()]
    return [{"lr": lr, "weight_decay": decay} for lr, decay in pairs]


def describe_run(bundle, args):
    """Say with which weights, settings and versions probes were judged: a JSON-able dict.

    `encoder_sha256` is that of the encoder that was used, whatever its name in `sha256`; `training_seed` is None where it is not known.
    """
    hashes = {name: network.sha256 or network_sha256(network.params) for name, network in bundle.networks.items()}
    settings = {name: value for name, value in vars(args).items() if name not in ("run", "command")}
    head = bundle.networks[bundle.probes()[0]].module
    return {"sha256": hashes, "encoder_sha256": hashes[choose_encoder(bundle.networks)], "architecture": describe(head),
            "training_seed": _training_config(bundle).get("seed"), "provenance": bundle.provenance, "notes": list(bundle.notes),
            "settings": settings, "versions": _versions() | {"backend": jax.default_backend(), "compute_dtype": jnp.dtype(head.dtype).name}}


def _versions():
    return {package.__name__: package.__version__ for package in (jepa_jax, jax, flax, np)}


def describe_broken(probes):
    """Name the probes whose answers were not all numbers, a line each; `probes` as in reports."""
    return [f"probe {number} gave no numbers in {row['not_finite']} cases, which count as wrong: its training diverged, or the dtype is too narrow"
            for number, row in enumerate(probes) if row["not_finite"]]


def _describe(report, bundle, args):
    lines = [f"protocol {bundle.protocol.describe()}", *(f"note: {note}" for note in bundle.notes),
             f"{report['n']} videos, {report['classes']} classes"]
    if report["skipped"]:
        lines.append(f"{report['skipped']} videos could not be read and do not count; {REPORT} names them")
    lines += ["", f"{'probe':<10}{'lr':>9}{'decay':>9}{'top-1, %':>10}  {'95 %':<14}{'top-5, %':>9}{'class mean, %':>15}"]
    for number, row in enumerate(report["probes"]):
        low, high = row["top1_interval"]
        setting = [f"{row['setting'][key]:>9g}" if row["setting"] else f"{'-':>9}" for key in ("lr", "weight_decay")]
        lines.append(f"{number:<10}{''.join(setting)}{row['top1']:>10.2f}  {f'{low:.1f} to {high:.1f}':<14}{row['top5']:>9.2f}{row['class_mean']:>15.2f}"
                     f"{'  best' if number == report['best'] and len(report['probes']) > 1 else ''}")
    lines += describe_broken(report["probes"])
    if len(report["probes"]) > 1:
        lines.append("(the best of several is chosen on these videos, as officially; on others it will be a little worse)")
    return [*lines, "", *(f"wrote {os.path.join(args.output, name)}" for name in (REPORT, CONFUSION, WORST, ATTENTION))]


def _draw(report, judged, bundle, source, names, args):
    best, row = judged.probabilities[report["best"]], report["probes"][report["best"]]
    title = f"{os.path.basename(os.path.normpath(args.model))} on {os.path.basename(os.path.normpath(args.data))}"
    subtitle = f"{report['n']} videos; top-1 {row['top1']:.1f} %, mean over classes {row['class_mean']:.1f} %; {bundle.protocol.describe()}"
    figure = pictures.draw_confusion(classification.confusion(best, judged.labels), classification.class_recall(best, judged.labels),
                                     names, title, subtitle)
    _save(figure, args.output, CONFUSION)
    _draw_worst(best, judged, bundle, source, names, title, args)
    _draw_attention(report["best"], judged, bundle, source, names, title, args)


def _draw_worst(best, judged, bundle, source, names, title, args):
    strips, captions = [], []
    for place in classification.worst(best, judged.labels, _EXAMPLES):
        found = _read_clips(source, bundle.protocol, judged.numbers[place], args.seed)
        if found is not None:
            clips, guess = found[0], int(best[place].argmax())
            strips.append(clips[0, _shown(clips.shape[1])])
            captions.append(f"{names[judged.labels[place]]}, taken for {names[guess]} ({best[place][guess]:.0%})")
    figure = pictures.draw_worst(strips, captions, f"{title}: wrong with most confidence", "frames of the first segment, in order")
    _save(figure, args.output, WORST)


def _draw_attention(number, judged, bundle, source, names, title, args):
    best, clips, captions = judged.probabilities[number], [], []
    for place in spread(len(judged.labels), _LOOKED_AT):
        found = _read_clips(source, bundle.protocol, judged.numbers[place], args.seed)
        if found is not None:
            clips.append(found)
            guess, label = int(best[place].argmax()), judged.labels[place]
            captions.append(names[guess] if guess == label else f"{names[guess]}, but it is {names[label]}")
    strips, maps = [], []
    clips, indices = zip(*clips) if clips else ((), ())
    for clip, shares in zip(clips, classification.locate(bundle, bundle.probes()[number], clips, indices)):
        shown = _shown(clip.shape[1])
        strips.append(clip[0, shown])
        maps.append(shares.size * shares[0, shown * shares.shape[1] // clip.shape[1]])
    subtitle = "frames of the first segment above, below what the query takes of them; 1 is an even share of all tokens"
    _save(pictures.draw_attention(strips, maps, captions, f"{title}: where the probe looks", subtitle), args.output, ATTENTION)


def _save(figure, folder, name):
    with new_file(os.path.join(folder, name)) as local:
        canvas.save_figure(figure, local)


def _shown(frames):
    """Choose the frames of a clip that a picture shows."""
    return np.linspace(0, frames - 1, min(_FRAMES, frames)).astype(int)


def _read_clips(source, protocol, number, seed):
    """Read the middle view of a video as the probe saw it: (uint8 `[S, T, H, W, 3]`, int32 `[S, T]`); None if it cannot be read any more."""
    uniforms = np.random.default_rng((seed, int(number))).random(protocol.num_segments)
    try:
        views, indices = read_views(source[int(number)], protocol, uniforms)
    except DataError:
        # It could be read a minute ago; a picture is not worth the report.
        return None
    return views[:, views.shape[1] // 2], indices
