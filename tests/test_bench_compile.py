"""`bench compile`: what it reads from compiled programs, its tables, its refusals, and one real TPU topology."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jepa_jax import cli
from jepa_jax.bench import __main__ as bench
from jepa_jax.bench import compile as bench_compile
from jepa_jax.bench import compile_command, hlo, lowerable, roofline, topology
from jepa_jax.bench.host_input import host_input
from jepa_jax.models import VideoEncoder
from jepa_jax.models.flops import Pass, recomputed_flops, total_flops
from jepa_jax.training import chips, sharding

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason="compiling for TPUs needs libtpu: pip install 'jepa_jax[tpu]'")
if HAS_LIBTPU:
    # Before anything loads libtpu, which otherwise refuses while another process compiles.
    topology.prepare()
_CONFIG = '''
from configs import pretrain

def get_config(argument=""):
    config = pretrain.get_config("demo")
    config.mesh.fsdp = -1
    config.model.update({"size": "vit_micro", "dtype": "bfloat16", "encoder_residual_dtype": "bfloat16", "remat": "full"})
    config.model.predictor.update({"width": 64, "depth": 1, "num_heads": 1})
    config.masks.strategies = {"short_range": config.masks.strategies["short_range"].to_dict()}
    config.masks.strategies.short_range.num_blocks = 1
    config.data.size = 64
    config.data.groups.video.update({"frames": 4, "batch_size": 8})
    return config
'''
# Floats of one device's part.
SIZE = 64


@pytest.fixture(name="config")
def _config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(_CONFIG)
    return str(path)


def _compiled_text(body, axes):
    """Compile a function of one device's part over a mesh of 2 x 4; returns its text."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    spec = PartitionSpec(("a", "b"))
    part = jax.shard_map(functools.partial(body, axes), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((8 * SIZE,), jnp.float32, sharding=NamedSharding(mesh, spec))
    return jax.jit(part).lower(x).compile().as_text()


def _all_reduce(axes, x):
    return jax.lax.psum(x, axes) * 0.5


def _all_gather(axes, x):
    return jax.lax.all_gather(x, axes).sum(0)


def _reduce_scatter(axes, x):
    parts = jnp.tile(x, (jax.lax.axis_size(axes), 1))
    return jax.lax.psum_scatter(jnp.sin(parts), axes).reshape(-1)


def _all_to_all(axes, x):
    return jax.lax.all_to_all(x.reshape(-1, 4), axes[-1:], 1, 1).reshape(-1)


def _permute(axes, x):
    return jax.lax.ppermute(x, axes[-1], [(i, (i + 1) % 4) for i in range(4)])


# Bytes that a device sends by the ring algorithm, of a part of 4 * SIZE bytes in groups of n.
_BYTES = {
    _all_reduce: ("all-reduce", lambda n: 2 * 4 * SIZE * (n - 1) / n),
    _all_gather: ("all-gather", lambda n: 4 * SIZE * (n - 1)),
    _reduce_scatter: ("reduce-scatter", lambda n: 4 * SIZE * (n - 1)),
    _all_to_all: ("all-to-all", lambda n: 4 * SIZE * (n - 1) / n),
    _permute: ("collective-permute", lambda n: 4 * SIZE),
}
_CASES = [(body, axes) for body in (_all_reduce, _all_gather, _reduce_scatter) for axes in (("a", "b"), ("b",), ("a",))]


@pytest.mark.parametrize("body, axes", [*_CASES, (_all_to_all, ("b",)), (_permute, ("b",))])
def test_bytes_of_collectives(body, axes):
    kind, expected = _BYTES[body]
    loops, inner = 5, 3

    def looped(axes, x):
        once = body(axes, x)
        nested = lambda x, _: (jax.lax.scan(lambda x, _: (body(axes, x), None), x, None, inner)[0], None)
        return jax.lax.scan(nested, once, None, loops)[0]

    found = hlo.collectives(_compiled_text(looped, axes))
    size = {("a", "b"): 8, ("b",): 4, ("a",): 2}[axes]
    # XLA's pass on CPU may split a reduce-scatter into an all-reduce, which sends twice as much.
    kinds = hlo.summarize(found)
    if body is _reduce_scatter and kind not in kinds:
        kind, expected = "all-reduce", lambda n: 2 * 4 * SIZE * (n - 1)
    assert set(kinds) == {kind}
    assert kinds[kind]["executions"] == 1 + loops * inner
    assert kinds[kind]["ici_bytes"] == pytest.approx((1 + loops * inner) * expected(size))
    assert kinds[kind]["dcn_bytes"] == 0
    assert {one.group_size for one in found} == {2 if kind == "collective-permute" else size}


@pytest.mark.parametrize("axes, crosses", [(("a",), True), (("b",), False), (("a", "b"), True)])
def test_what_crosses_slices(axes, crosses):
    found = hlo.summarize(hlo.collectives(_compiled_text(_all_reduce, axes), lambda device: device // 4))
    assert bool(found["all-reduce"]["dcn_bytes"]) == crosses and bool(found["all-reduce"]["ici_bytes"]) != crosses


def test_sharded_step_of_matrices():
    """A product over a split inner axis sums over devices: XLA's own choice, not ours."""
    mesh = jax.make_mesh((8,), ("b",), axis_types=(AxisType.Auto,))
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
    args = [jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=place(None, "b")),
            jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=place("b"))]
    text = jax.jit(jnp.matmul, out_shardings=place()).lower(*args).compile().as_text()
    assert hlo.summarize(hlo.collectives(text))["all-reduce"]["ici_bytes"] == 2 * 4 * 32 * 16 * 7 / 8


def test_loop_of_unknown_length():
    text = _compiled_text(lambda axes, x: jax.lax.while_loop(
        lambda x: jnp.sum(x) < 3.0, functools.partial(_all_reduce, axes), x), ("b",))
    with pytest.raises(ValueError, match="how often it runs cannot be told"):
        hlo.collectives(text)


@pytest.mark.parametrize("text, groups", [
    ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['x'=2,'y'=2] {'x'}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['x'=2,'y'=2] {'x','y'}", [[0, 1, 2, 3]]),
    ("replica_groups=mesh['x'=2,'y'=1,'z'=3], device_ids=([3,2]T(1,0)) {'x'}", [[0, 1], [2, 3], [4, 5]]),
    ("replica_groups=mesh['x'=2,'y'=4] {'x','y':(2)2}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
])
def test_groups(text, groups):
    assert hlo._groups(hlo._Instruction("x", "f32[]", "all-reduce", (), f", channel_id=1, {text}, more=1"), 4) == groups


def test_groups_written_in_another_way():
    with pytest.raises(ValueError, match="unknown way: replica_groups=new"):
        hlo._groups(hlo._Instruction("x", "f32[]", "all-reduce", (), "replica_groups=new"), 4)


@pytest.mark.parametrize("text, size", [
    ("f32[8,128]{1,0:T(8,128)S(1)}", 4096), ("(bf16[3,5], /*index=1*/u8[2]{0}, f32[])", 36), ("s4[3]", 1.5), ("pred[7]", 7),
])
def test_array_bytes(text, size):
    assert hlo.array_bytes(text) == size


def test_chip_table():
    for chip in chips.CHIPS.values():
        assert chip.source.startswith("https://")
    found = {kind: chips.find_chip(kind) for kind in ("TPU v5 lite", "TPU v5", "TPU v4", "TPU v6 lite", "TPU7x")}
    assert [found[kind] for kind in found] == [chips.CHIPS[name] for name in ("v5e", "v5p", "v4", "v6e", "tpu7x")]
    assert chips.find_chip("NVIDIA H100 80GB HBM3").peak_flops == 989e12
    assert chips.find_chip("cpu") is None and chips.peak_flops(jax.devices()[0]) is None


@pytest.mark.parametrize("text", ["v5p", "v5p:4", "v9:2x2", "h100:2x2", "v5e:0x2", "v5e:2x2x", "v5e:2x2x2", "v5p:2x2", "v6e:16x32"])
def test_wrong_topology(text, capsys):
    assert bench.main(["compile", "--topology", text]) == 2
    assert repr(text) in capsys.readouterr().err


@pytest.mark.parametrize("argv, words", [
    (["--peak-fraction", "0"], "--peak-fraction is 0"), (["--slices", "0"], "--slices is 0"),
    (["--topology", "v5e:2x2", "v5e:4x4", "--output", "x.json"], "leave it out"),
    (["--topology", "v5e:2x2", "--remat", "dots", "full", "--output", "x.json"], "leave it out"),
    (["--plan", "1", "--remat", "dots"], "--remat is for the train step"),
])
def test_wrong_arguments(argv, words, capsys):
    assert bench.main(["compile", *argv]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is there")
def test_missing_libtpu(capsys):
    assert bench.main(["compile", "--topology", "v5e:2x2"]) == 2
    assert "jepa_jax[tpu]" in capsys.readouterr().err


def test_fields_are_only_for_compiling():
    with pytest.raises(SystemExit):
        bench.main(["step", "--config.model.size=vit_micro"])


def test_override(config):
    made = cli.load_config(config)
    cli.override(made, ["--config.data.groups.video.batch_size=16", "--config.optim.lr=0.5"])
    assert made.data.groups.video.batch_size == 16 and made.optim.lr == 0.5
    for wrong in ("--config.data.nothing=1", "--config.seed=many", "left"):
        with pytest.raises(ValueError, match=wrong.split("=")[0].removeprefix("--config.").split(".")[-1]):
            cli.override(made, [wrong])


def _passes(remat):
    module = VideoEncoder(width=64, depth=2, num_heads=2, remat=remat, dtype=jnp.bfloat16)
    return [Pass("encoder", module, samples=4, tokens=10, flops=100.0, attention_flops=20.0, trained=True),
            Pass("target_encoder", module, samples=4, tokens=10, flops=100.0, attention_flops=20.0, trained=False)]


@pytest.mark.parametrize("remat, again, dense, attention", [
    ("none", 0, 4 * 80 * (3 + 1), 4 * 20 * (1 + 3.5 + 1)), ("full", 4 * 100, 4 * 80 * (4 + 1), 4 * 20 * (1 + 4.5 + 1)),
    ("dots", 4 * 20, 4 * 80 * (3 + 1), 4 * 20 * (1 + 4.5 + 1)),
])
def test_executed_operations(remat, again, dense, attention):
    passes = _passes(remat)
    assert total_flops(passes) == 4 * 100 * (3 + 1) and recomputed_flops(passes) == again
    assert roofline.executed_flops(passes) == (dense, {32: attention})


def test_bound_is_named():
    where = topology.parse("v5e:2x2")
    predict = lambda moved, network: roofline.predict(_passes("none"), 1600.0, 4, moved, network, where, roofline.Assumptions())
    assert predict({"weights": 0.0}, (0.0, 0.0))["bound"] == "compute"
    assert predict({"weights": 1e9}, (0.0, 0.0))["bound"] == "hbm"
    slow = predict({"weights": 1e9}, (0.0, 1e9))
    assert slow["bound"] == "network" and slow["step_s"] == pytest.approx(1e9 / (3.125e9 * 0.5))
    assert predict({"weights": 1.0}, None)["network_over_compute"] is None


def test_host_input(tmp_path):
    record = {"clip": {"frames": 16, "size": 256}, "machine": {"processor": "x"}, "pipeline_clips_per_s_per_core": 20.0,
              "source": {"bytes_per_record": 1e6}}
    (tmp_path / "data-16x256.json").write_text(json.dumps(record))
    where = topology.parse("v5p:4x4x4")
    said = host_input(where, 3200, 2.0, frames=16, size=256, results=str(tmp_path))
    assert said["hosts"] == 16 and said["clips_per_s_per_host"] == 100 and said["cores_needed_per_host"] == 5
    assert said["stored_bytes_per_s_per_host"] == 1e8 and said["decoding"]["scaled_by_frames"] is None
    longer = host_input(where, 3200, 2.0, frames=64, size=256, results=str(tmp_path))
    assert longer["cores_needed_per_host"] == 20 and longer["decoding"]["scaled_by_frames"] == 0.25
    assert host_input(where, 3200, 2.0, frames=16, size=256, results=str(tmp_path / "none"))["decoding"] is None


def test_scaling_table(tmp_path, capsys):
    paths = []
    for chips_there, clips, seconds, name in ((512, 1024, 2.5, "large"), (64, 128, 2.0, "small"), (128, 128, 2.0, "unequal")):
        record = {
            "benchmark": "compile", "command": {"config": "configs/pretrain.py:vitg16"}, "chip": {"kinds": ["TPU v5p"]}, "items": clips,
            "config": {"data": {"frames": 16, "size": 256}}, "network": {"ici_bytes": 3e9, "dcn_bytes": 0},
            "topology": {"name": "v5p:4x4x4", "slices": chips_there // 64, "chips": chips_there, "mesh": {"data": 1, "fsdp": 64}},
            "roofline": {"step_s": seconds, "step_s_without_overlap": 2 * seconds},
        }
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(record))
    large, small, unequal = map(str, paths)
    assert bench.main(["compile", "--scaling", large, small]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows == ["| v5p:4x4x4 | 64 | fsdp 64 | 128 | 3.00 | 0.00 | 2 | 100.0% | 4 | 100.0% |",
                    "| v5p:4x4x4 x 8 | 512 | fsdp 64 | 1024 | 3.00 | 0.00 | 2.5 | 80.0% | 5 | 80.0% |"]
    assert bench.main(["compile", "--scaling", small, unequal]) == 2
    assert "clips per chip are 1, 2; they must be the same" in capsys.readouterr().err
    paths[1].write_text(paths[1].read_text().replace("vitg16", "vitl16"))
    assert bench.main(["compile", "--scaling", large, small]) == 2
    assert "vitg16 at 16x256 on TPU v5p; configs/pretrain.py:vitl16" in capsys.readouterr().err


def test_advice_on_remat():
    record = lambda remat, free, seconds: {
        "config": {"model": {"remat": remat}}, "memory": {"free": free}, "roofline": {"step_s": seconds}}
    full, dots, none = record("full", 0.5, 3.0), record("dots", 0.2, 2.0), record("none", 0.05, 1.0)
    assert "--config.model.remat=dots: predicted 2 s per step, 20% free" in compile_command._advice([none, dots, full])
    assert "--config.model.remat=full" in compile_command._advice([full, record("dots", -0.5, 2.0)])
    assert "none of those compiled leaves 10% of HBM free" in compile_command._advice([none])


@pytest.mark.parametrize("option", ["--table", "--scaling"])
@pytest.mark.parametrize("text, words", [(None, "cannot be read"), ("{", "cannot be read"), ('{"benchmark": "plan"}', "no record of bench compile")])
def test_tables_of_other_files(tmp_path, capsys, option, text, words):
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    assert bench.main(["compile", option, str(path)]) == 2
    assert f"{path}" in (error := capsys.readouterr().err) and words in error


def test_world_model_and_planner_need_no_data():
    """Lowered for the devices at hand; for TPUs the same is compiled."""
    config = cli.load_config("configs/world_model.py:demo")
    mesh = sharding.make_mesh(-1)
    step = lowerable.train_step(config, mesh, "vit_micro")
    assert step.items == 16 and step.clip == (9, 64) and set(step.weights) == {"action_predictor", "encoder"}
    # Split over the eight devices like everything that is trained.
    assert not jax.tree.leaves(step.held["frozen"])[-1].sharding.is_fully_replicated
    plan = lowerable.planner(config, mesh, "vit_micro", 2, 2**34)
    # Every iteration computes one frame after the other.
    assert len(plan.passes) == 2 * plan.settings["iterations"] and plan.weights["action_predictor"] == step.weights["action_predictor"]
    for program in (step, plan):
        with sharding.use_mesh(mesh):
            assert "sharding" in program.lower().as_text()
    with pytest.raises(ValueError, match="task 'pretrain' has no planner"):
        lowerable.planner(cli.load_config("configs/pretrain.py:demo"), mesh, "vit_micro", 1, 2**34)


def test_task_that_needs_its_data():
    with pytest.raises(ValueError, match="task 'probe' cannot be compiled without its data"):
        lowerable.train_step(cli.load_config("configs/probe.py:ssv2"), sharding.make_mesh(1), "vit_micro")


def test_tensors_that_cannot_be_split_are_named():
    tree = {"a": jax.ShapeDtypeStruct((3, 8192), jnp.float32), "b": jax.ShapeDtypeStruct((129, 129), jnp.float32),
            "small": jax.ShapeDtypeStruct((3, 3), jnp.float32), "layers": jax.ShapeDtypeStruct((64, 131, 129), jnp.float32)}
    mesh = sharding.make_mesh(8)
    # The depth axis of stacked blocks, 64, divides, but is never split.
    assert sharding.unsplit(tree, mesh) == [("b", (129, 129)), ("layers", (64, 131, 129))]
    assert sharding.unsplit(tree, sharding.make_mesh(1)) == []
    specs = {name: own.spec for name, own in sharding.state_sharding(tree, mesh).items()}
    assert [name for name, spec in specs.items() if spec] == ["a"] and specs["a"] == jax.sharding.PartitionSpec(None, "fsdp")


@needs_libtpu
def test_slices_split_the_batch_and_not_the_parameters():
    mesh = sharding.make_mesh(-1, topology.devices(topology.parse("v5e:2x2", slices=2)))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "sequence": 1}
    numbers = np.vectorize(sharding.slice_of)(mesh.devices)
    # Each row of the mesh is one slice.
    np.testing.assert_array_equal(numbers[..., 0], [[0] * 4, [1] * 4])
    with pytest.raises(ValueError, match="mesh.fsdp 8 does not divide the 4 devices of a slice"):
        sharding.make_mesh(8, topology.devices(topology.parse("v5e:2x2", slices=2)))


@needs_libtpu
@pytest.mark.parametrize("place", ["v5e:16x16", "v6e:16x16", "v5p:4x8x8"])
@pytest.mark.parametrize("fsdp", [8, 64])
def test_any_part_of_the_devices_shares_parameters(place, fsdp):
    mesh = sharding.make_mesh(fsdp, topology.devices(topology.parse(place)))
    assert dict(mesh.shape) == {"data": 256 // fsdp, "fsdp": fsdp, "sequence": 1}
    assert len({device.id for device in mesh.devices.flat}) == 256


@needs_libtpu
def test_topology_that_does_not_exist():
    with pytest.raises(ValueError, match="topology v5p:3x3x3 does not exist"):
        topology.devices(topology.parse("v5p:3x3x3"))


@needs_libtpu
def test_program_that_does_not_fit():
    mesh = sharding.make_mesh(1, topology.devices(topology.parse("v5e:2x2")))
    x = jax.ShapeDtypeStruct((2**17, 2**20), jnp.int8, sharding=sharding.replicated(mesh))
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(lambda x: x + 1).lower(x).compile()
    said = bench_compile._overflow(error.value)
    assert said.used >= 2 * 2**37 and said.available == chips.CHIPS["v5e"].hbm_bytes


@needs_libtpu
def test_compile_record(tmp_path, config, capsys):
    path = tmp_path / "record.json"
    assert bench.main(["compile", "--config", config, "--topology", "v5e:2x2", "--slices", "2", "--output", str(path),
                       "--config.mesh.fsdp=2", "--config.mesh.sequence=2", "--config.optim.lr=0.001"]) == 0
    record = json.loads(path.read_text())
    memory, sent = record["memory"], record["network"]
    assert memory["fits"] and memory["peak"] < memory["limit"] == chips.CHIPS["v5e"].hbm_bytes
    kinds = memory["by_kind"]
    # Both moments of every parameter, and the step counter of Adam.
    assert kinds["optimizer"] == 2 * kinds["parameters"] + 4
    assert kinds["ema"] == pytest.approx(kinds["parameters"], rel=0.1)
    # 8 clips over 4 pairs of devices, which share tokens but not pixels: pixels, and ids of both sides.
    assert kinds["batch"] > 8 / 4 * 4 * 64 * 64 * 3 and kinds["frozen"] == 0
    # Parameters are split in two and gathered, within a slice, for the forward pass at least; between
    # the slices travel their float32 gradients, of which each of the four devices may send a quarter.
    assert sent["ici_bytes"] > 1 / 2 * 2 * record["parameters"]["encoder"]
    assert sent["dcn_bytes"] >= record["parameters"]["encoder"] * 4 / 4
    assert record["config"]["model"]["attention"] == "flash" and record["config"]["optim"]["lr"] == 0.001
    assert record["roofline"]["bound"] in ("compute", "hbm", "network")
    capsys.readouterr()
    assert bench.main(["compile", "--table", str(path)]) == 0
    assert "| v5e:2x2 x 2 | yes |" in capsys.readouterr().out
