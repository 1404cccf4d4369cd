"""Lists of numbers on command lines: values, also where they begin with a minus."""

import argparse

import numpy as np
import pytest

from jepa_jax import evaluate, plan
from jepa_jax.commandline import types
from jepa_jax.commandline.parsing import Parser
from jepa_jax.prepare import arguments as prepare
from jepa_jax.viz import __main__ as viz


def make_parser():
    parser = Parser(exit_on_error=False)
    sub = parser.add_subparsers(dest="kind", required=True).add_parser("go", exit_on_error=False)
    sub.add_argument("shards", nargs="*")
    sub.add_argument("--bounds", type=types.ranges)
    sub.add_argument("--state")
    sub.add_argument("--range", type=types.pair)
    sub.add_argument("--steps", type=float, nargs="+")
    sub.add_argument("--reverse", action="store_true")
    return parser


@pytest.mark.parametrize("arguments, name, expected", [
    (["--bounds", "-0.05:0.05,0:1"], "bounds", ((-0.05, 0.05), (0.0, 1.0))),
    (["--bounds=-1:1"], "bounds", ((-1.0, 1.0),)),
    (["--state", "-.3,0,-1e-3"], "state", "-.3,0,-1e-3"),
    (["--state", "-1e-3"], "state", "-1e-3"),
    (["--range", "-1,1", "--reverse"], "range", (-1.0, 1.0)),
    (["--steps", "-1", "-2.5", "3"], "steps", [-1.0, -2.5, 3.0]),
    (["--reverse", "--", "-1,2"], "shards", ["-1,2"]),
])
def test_numbers_that_begin_with_a_minus(arguments, name, expected):
    assert getattr(make_parser().parse_args(["go", *arguments]), name) == expected


@pytest.mark.parametrize("arguments", [["--bounds", "--reverse"], ["--bounds", "-x:1"], ["-1,2"], ["--reverse", "-1,2"]])
def test_what_is_no_value_stays_none(arguments):
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        make_parser().parse_args(["go", *arguments])


_SEEN = ["--model", "m", "--observation", "a", "--goal", "b", "--state", "-0.3,0"]


@pytest.mark.parametrize("make, arguments, expected", [
    (plan._parser, [*_SEEN, "--bounds", "-0.05:0.05,-1:1"], {"state": "-0.3,0", "bounds": ((-0.05, 0.05), (-1.0, 1.0))}),
    (plan._parser, [*_SEEN, "--extrinsics", "-0.1,0,0,0,0,0"], {"extrinsics": np.float32([-0.1, 0, 0, 0, 0, 0])}),
    (viz._parser, ["energy", *_SEEN, "--bounds", "-1:1", "--goal-state", "-1,0"], {"bounds": ((-1.0, 1.0),), "goal_state": "-1,0"}),
    (prepare.parser, ["lerobot", "in", "--output", "out", "--gripper-range", "-1,1"], {"gripper_range": (-1.0, 1.0)}),
    (evaluate._parser, ["robot", "--output", "out", "--layers", "-1,3"], {"layers": (-1, 3)}),
])
def test_commands_that_take_such_lists(make, arguments, expected):
    found = vars(make().parse_args(arguments))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("text", ["", "1", "1:2:3", "1,2", "0:1,", "a:b", "0:nan", "-inf:0"])
def test_no_ranges(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not LOW:HIGH,LOW:HIGH"):
        types.ranges(text)
