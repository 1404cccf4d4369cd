"""The command `bench compile`: arguments, what it prints, and its records as a table."""

import json
import os
import sys

from jepa_jax import cli
from jepa_jax.bench import report, topology
from jepa_jax.bench.roofline import Assumptions
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.models.layers import REMAT_POLICIES

_GIB = 2**30
# Of HBM, beyond the step's peak: the next batches, which are put on the devices while it runs, and what validation adds.
_MARGIN = 0.1


def add(kinds):
    """Add the command to the subparsers."""
    parser = kinds.add_parser(
        "compile", help="compile the train step for TPU pods with no TPU: memory, networks, predicted speed",
        epilog="Fields of the config are set with --config.section.field=value. A topology that fails does not keep the others from "
               "being compiled.",
    )
    add = parser.add_argument
    add("--config", nargs="+", default=["configs/pretrain.py:vitl16"], help="files and variants (default %(default)s)")
    add("--topology", nargs="+", default=["v5e:16x16"], metavar="GENERATION:GRID",
        help="such as v4:4x4x4, v5e:16x16, v5p:8x8x8, v6e:16x16, tpu7x:2x2x1 (default %(default)s)")
    add("--slices", type=int, default=1, help="slices of that topology, joined by the data centre's network (default %(default)s)")
    add("--encoder", default="vit_giant_xformers", help="named size of the frozen encoder of a world model (default %(default)s)")
    add("--plan", type=int, metavar="HORIZON", help="compile the planner of a world model, so many steps ahead, instead of the train step")
    add("--remat", nargs="+", choices=("none", *REMAT_POLICIES), help="compile with each of these policies, and say which one of them "
        f"is the fastest that leaves {_MARGIN:.0%}% of HBM free (default: that of the config)")
    add("--largest-batch", action="store_true", help="compile once more, for half the batch, and tell the largest that fits")
    for name, value in Assumptions()._asdict().items():
        add(f"--{name.replace('_', '-')}", type=float, default=value, help="see the printed assumptions (default %(default)s)")
    add("--table", nargs="+", metavar="RECORD", help="print records of this command as a table in Markdown, and do nothing else")
    add("--scaling", nargs="+", metavar="RECORD", help="print records that differ in the number of chips as a table of predicted weak "
        "scaling, and do nothing else")


def run(args, fields):
    """Compile all configs for all topologies, or print a table.

    Args:
      args: parsed.
      fields: list of `--config.section.field=value`.

    Returns:
      Exit status: 0, or 2 when one of them is unusable.
    """
    if args.table or args.scaling:
        try:
            write_lines([*table(args.table)] if args.table else [*scaling(args.scaling)])
        except ValueError as error:
            return _refuse(error)
        return 0
    pairs = [(config, name) for config in args.config for name in args.topology]
    policies = args.remat or [None]
    if args.remat and args.plan:
        return _refuse("--remat is for the train step; leave it out beside --plan")
    if args.output and len(pairs) * len(policies) > 1:
        return _refuse("--output is one file, but there are several records; leave it out")
    try:
        assumptions = _assumptions(args)
        places = {name: topology.parse(name, args.slices) for name in args.topology}
        topology.prepare()
    except (ValueError, ImportError) as error:
        return _refuse(error)
    status = 0
    for config, name in pairs:
        records = []
        for remat in policies:
            chosen = fields + ([f"--config.model.remat={remat}"] if remat else [])
            try:
                record = _measure(config, chosen, places[name], args, assumptions)
            # Errors of the compiler are RuntimeErrors.
            except (ValueError, OSError, RuntimeError) as error:
                status = _refuse(f"{config} on {name}: {error}")
                continue
            path = report.write(record, args.output, _name(record))
            write_lines([*lines(record), f"record: {path}", ""])
            records.append(record)
        if args.remat:
            write_lines([_advice(records), ""])
    return status


def _refuse(error):
    sys.stderr.write(f"error: {error}\n")
    return 2


def _assumptions(args):
    chosen = Assumptions(args.peak_fraction, args.hbm_fraction, args.network_fraction)
    for name, value in chosen._asdict().items():
        if not 0 < value <= 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value:g}; it must be above 0 and at most 1")
    for name in ("slices", "plan"):
        if (number := getattr(args, name)) is not None and number < 1:
            raise ValueError(f"--{name} is {number}; it must be at least 1")
    return chosen


def _measure(name, fields, where, args, assumptions):
    from jepa_jax.bench.compile import measure_compile

    config = cli.load_config(name)
    cli.override(config, fields)
    record = measure_compile(config, where, encoder=args.encoder, assumptions=assumptions, largest_batch=args.largest_batch,
                             horizon=args.plan, results=report.DEFAULT_FOLDER)
    return record | {"command": {"config": name, "fields": fields}}


def _name(record):
    """Name a record by all that usually differs: config, clip, batch, remat, topology."""
    where, clip = record["topology"], _clip(record)
    config = os.path.basename(record["command"]["config"]).replace(".py", "")
    slices = f"-x{where['slices']}" if where["slices"] > 1 else ""
    parts = f"x{parts}" if (parts := _parts(record)) > 1 else ""
    work = f"plan-h{record['planner']['horizon']}" if record["planner"] else f"{clip}-b{record['items']}{parts}-{_remat(record)}"
    return f"compile-{config}-{work}-{where['name']}{slices}"


def _clip(record):
    data = record["config"]["data"]
    if "groups" not in data:
        return f"{data['frames']}x{data['size']}"
    return f"{max(group['frames'] for group in data['groups'].values() if group['batch_size'])}x{data['size']}"


def _batch(record):
    return f"{record['items']}{f' in {parts} parts' if (parts := _parts(record)) > 1 else ''}"


def _parts(record):
    return record["config"]["optim"]["accumulate"]


def _remat(record):
    return record["config"]["model"]["remat"]


def _advice(records):
    """Say which policy to take, of records that differ in nothing else."""
    roomy = [record for record in records if record["memory"]["free"] >= _MARGIN]
    if not roomy:
        return f"remat: none of those compiled leaves {_MARGIN:.0%} of HBM free; take a smaller batch or more chips"
    best = min(roomy, key=lambda record: record["roofline"]["step_s"])
    return (f"remat: the fastest that leaves {_MARGIN:.0%} of HBM free is --config.model.remat={_remat(best)}: predicted "
            f"{best['roofline']['step_s']:.3g} s per step, {best['memory']['free']:.0%} free")


def _work(record):
    """Say what one execution does."""
    if not (planner := record["planner"]):
        return f"{_batch(record)} clips of {_clip(record)}, remat {_remat(record)}"
    return (f"plan of horizon {planner['horizon']}, {planner['samples']} candidates x {planner['iterations']} iterations, "
            f"{planner['chunk'] or 'all'} at once")


def lines(record):
    """Say what a record holds, for people."""
    where, memory, predicted, hosts = record["topology"], record["memory"], record["roofline"], record["host_input"]
    mesh = ", ".join(f"{name} {size}" for name, size in where["mesh"].items())
    yield (f"{where['name']}{f' x {where_slices}' if (where_slices := where['slices']) > 1 else ''}: {where['chips']} chips, mesh {mesh}; "
           f"{_work(record)}; compiled in {record['compile_s']:.0f} s "
           f"({record['compile_cpu_s']:.0f} s of processor time)")
    yield from (f"not split over fsdp, no axis divides: {name}" for name in record["not_split"])
    kinds = ", ".join(f"{name} {size / _GIB:.3g}" for name, size in memory["by_kind"].items() if size)
    verdict = f"fits, {memory['free']:.0%} free" if memory["fits"] else f"DOES NOT FIT ({memory['compiler_says']})"
    extra = f", temporaries {memory['temporaries'] / _GIB:.3g}, code {memory['generated_code'] / _GIB:.3g}" if "temporaries" in memory else ""
    heap = f" (heap by the compiler's plan: {memory['heap_peak'] / _GIB:.3g})" if memory.get("heap_peak") else ""
    yield f"memory per device, GiB: {kinds}{extra}; peak {memory['peak'] / _GIB:.3g}{heap} of {memory['limit'] / _GIB:.3g}: {verdict}"
    yield (f"{record['model_tflop_per_step']:.4g} TFLOP per step, and {record['recomputed_tflop_per_step']:.4g} computed again for remat; "
           f"{predicted['executed_tflop']:.4g} executed, {predicted['attention_tflop'] / predicted['executed_tflop']:.0%} of them attention")
    yield from _network_lines(record["network"], record["network_unknown"])
    times = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in predicted["seconds"].items())
    over = predicted["network_over_compute"]
    yield (f"predicted: {times}; bound by {predicted['bound']}: step {predicted['step_s']:.3g} s "
           f"({predicted['step_s_without_overlap']:.3g} s without overlap), {predicted['items_per_s']:.4g} {'plans' if record['planner'] else 'clips'}/s, utilisation "
           f"{predicted['utilisation']:.1%}" + (f"; network is {over:.1%} of compute" if over is not None else ""))
    yield from (f"  assumed: {line}" for line in predicted["assumptions"])
    if hosts:
        yield from _host_lines(hosts)
    if largest := record.get("largest_batch"):
        yield (f"largest batch that fits: {largest['clips']} clips, predicted: {largest['method']}" if largest["clips"] else
               f"largest batch that fits: not told, {largest.get('why', 'memory does not grow with the batch')}")


def _network_lines(network, unknown):
    if network is None:
        yield f"network: not known: {unknown}"
        return
    for name, key in (("ICI", "ici_bytes"), ("DCN", "dcn_bytes")):
        kinds = ", ".join(f"{kind} {sent[key] / 1e6:.4g}" for kind, sent in network["by_kind"].items() if sent[key])
        yield f"{name}, MB that a device sends per step: {kinds or 'nothing'}; together {network[key] / 1e6:.4g}"


def _host_lines(hosts):
    line = (f"input: each of {hosts['hosts']} hosts must deliver {hosts['clips_per_s_per_host']:.4g} clips/s, "
            f"{hosts['pixel_bytes_per_s_per_host'] / 1e6:.4g} MB/s of pixels")
    if (decoding := hosts["decoding"]) is None:
        yield line + "; no record of `bench data` says what a core decodes"
        return
    scaled = f", scaled by frames from {decoding['measured_clip']}" if decoding["scaled_by_frames"] else ""
    yield (line + f" from {hosts['stored_bytes_per_s_per_host'] / 1e6:.4g} MB/s of shards; at {decoding['clips_per_s_per_core']:.3g} clips/s "
           f"per core (measured on {decoding['processor']}{scaled}) that takes {hosts['cores_needed_per_host']:.3g} cores of "
           f"{hosts['cores_per_host']}")


def table(paths):
    """Return the rows of a table of records in Markdown."""
    yield ("| config | clip | batch | remat | topology | fits | peak, GiB | HBM free | ICI, GB | DCN, GB | bound | step, s | clips/s or plans/s | "
           "utilisation | network / compute | cores per host | compile, CPU s |")
    yield "|" + "---|" * 17
    for record in map(_read, paths):
        memory, predicted, network, where = (record[key] for key in ("memory", "roofline", "network", "topology"))
        hosts = record["host_input"] or {"decoding": None}
        over = predicted["network_over_compute"]
        cells = [
            os.path.basename(record["command"]["config"]), _clip_or_plan(record), 1 if record["planner"] else _batch(record),
            "" if record["planner"] else _remat(record), _place(where), "yes" if memory["fits"] else "**no**",
            f"{memory['peak'] / _GIB:.1f}", f"{memory['free']:.0%}", f"{network['ici_bytes'] / 1e9:.2f}" if network else "",
            f"{network['dcn_bytes'] / 1e9:.2f}" if network else "", predicted["bound"], f"{predicted['step_s']:.3g}",
            f"{predicted['items_per_s']:.3g}", f"{predicted['utilisation']:.0%}", f"{over:.1%}" if over is not None else "",
            f"{hosts['cores_needed_per_host']:.1f}" if hosts["decoding"] else "", f"{record['compile_cpu_s']:.0f}",
        ]
        yield "| " + " | ".join(map(str, cells)) + " |"


def _clip_or_plan(record):
    return f"plan, horizon {record['planner']['horizon']}" if record["planner"] else _clip(record)


def scaling(paths):
    """Compare records of one program on more and more chips, with the same work for each chip.

    Args:
      paths: of records.

    Returns:
      Iterator of lines of a table in Markdown. Efficiency is what a chip does in a second, in parts of what it does in the record of
      the fewest chips.

    Raises:
      ValueError: if they are not of one program, or if a chip has more to do in one than in another.
    """
    records = sorted(map(_read, paths), key=lambda record: record["topology"]["chips"])
    programs = {f"{record['command']['config']} at {_clip(record)} on {record['chip']['kinds'][0]}" for record in records}
    if len(programs) > 1:
        raise ValueError(f"records of several programs cannot be compared: {'; '.join(sorted(programs))}")
    if len(loads := {record["items"] / record["topology"]["chips"] for record in records}) > 1:
        raise ValueError(f"clips per chip are {', '.join(f'{load:g}' for load in sorted(loads))}; they must be the same in all records")
    yield "| topology | chips | mesh | batch | ICI, GB | DCN, GB | step, s | efficiency | step without overlap, s | efficiency |"
    yield "|" + "---|" * 10
    for record in records:
        where, network, predicted, first = record["topology"], record["network"], record["roofline"], records[0]["roofline"]
        sent = [f"{network[key] / 1e9:.2f}" if network else "" for key in ("ici_bytes", "dcn_bytes")]
        times = [cell for name in ("step_s", "step_s_without_overlap")
                 for cell in (f"{predicted[name]:.3g}", f"{first[name] / predicted[name]:.1%}")]
        mesh = ", ".join(f"{name} {size}" for name, size in where["mesh"].items() if size > 1)
        yield "| " + " | ".join(map(str, [_place(where), where["chips"], mesh, record["items"], *sent, *times])) + " |"


def _place(where):
    return where["name"] + (f" x {where['slices']}" if where["slices"] > 1 else "")


def _read(path):
    """Read a record of this command; raises ValueError for anything else."""
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("benchmark") != "compile":
        raise ValueError(f"{path} is no record of bench compile")
    return record
