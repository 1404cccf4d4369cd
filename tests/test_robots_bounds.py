"""Bounds of actions found in recordings."""

import dataclasses

import numpy as np
import pytest

from jepa_jax.data.trajectories import TrajectoryRecord, View
from jepa_jax.planning import make_spec
from jepa_jax.robots.bounds import describe_bounds, find_bounds, step_actions
from jepa_jax.robots.presets import DROID, SE2, generic

LENGTH = 11


def make_record(states, actions=None, **changes):
    states = np.asarray(states, np.float32)
    names = tuple(f"state.{at}" for at in range(states.shape[1]))
    actions = None if actions is None else np.asarray(actions, np.float32)
    drawn = tuple(f"action.{at}" for at in range(0 if actions is None else actions.shape[1]))
    poses = np.tile(np.float32([0, 0, 0, 0, 0, np.pi / 2]), (len(states), 1))
    fields = {
        "views": (View("left", b"video", 48, 64, poses),), "states": states, "actions": actions, "control_rate": 10.0, "header_fps": 10.0,
        "rate": "true", "state_names": names, "state_units": ("",) * len(names), "action_names": drawn, "action_units": ("",) * len(drawn),
        "frame": "unknown", "rotation": "none", "gripper_range": None, "instruction": None, "source_id": "lab/1", "extras": {},
    }  # fmt: skip
    return TrajectoryRecord(**(fields | changes))


class TestStepActions:
    def test_differences_of_states_three_rows_apart(self):
        record = make_record(np.stack([np.arange(LENGTH) ** 2, -np.arange(LENGTH)], 1))
        found = step_actions(generic(("a", "b")), record, record.views[0], 3)
        rows = np.arange(LENGTH - 3)
        assert sorted(found.tolist()) == sorted([(row + 3.0) ** 2 - row**2, -3.0] for row in rows)
        assert len(step_actions(generic(("a", "b")), record, record.views[0], LENGTH)) == 0

    def test_recorded_actions_are_composed_over_the_rows(self):
        record = make_record(np.zeros((LENGTH, 1)), np.stack([np.arange(LENGTH), np.arange(LENGTH)], 1))
        robot = generic(("a",), ("push", "target"), source="recorded", absolute=("target",))
        found = step_actions(robot, record, record.views[0], 2)
        assert sorted(found.tolist()) == [[2.0 * row + 1, row + 1.0] for row in range(LENGTH - 2)]

    def test_as_the_camera_sees_them(self):
        """A camera that is turned by a quarter about the vertical sees a move along x as one along -y."""
        states = np.zeros((LENGTH, 7))
        states[:, 0] = 0.1 * np.arange(LENGTH)
        record = make_record(states)
        found = step_actions(dataclasses.replace(DROID, frame="camera"), record, record.views[0], 1)
        np.testing.assert_allclose(found, np.tile([0, -0.1, 0, 0, 0, 0, 0], (LENGTH - 1, 1)), atol=1e-6)


class TestFindBounds:
    DRAWN = np.random.default_rng(0).uniform(-0.1, 0.3, (5000, 3))

    def test_quantiles_without_single_jumps(self):
        actions = np.concatenate([self.DRAWN, np.full((5, 3), 9.0), np.full((5, 3), np.nan)])
        found = find_bounds(generic(("a", "b", "c")), actions)
        np.testing.assert_allclose(found.action_low, -0.096, atol=4e-3)
        np.testing.assert_allclose(found.action_high, 0.297, atol=4e-3)
        assert describe_bounds(SE2.__class__.from_json(SE2.to_json() | {"action_low": [0, 0, -1], "action_high": [1, 0.5, 1]})) == (
            "forward 0 to 1 m, left 0 to 0.5 m, turn -1 to 1 rad")

    def test_rare_ones_constant_ones_and_standing_still(self):
        """In order: a gripper that closes once, a switch likewise, a constant change, one forward only, a constant target, a target."""
        names = ("gripper", "switch", "drift", "forward", "held", "aim")
        actions = np.zeros((1000, 6))
        actions[:, 0] = 1e-3 * np.sin(np.arange(1000))
        actions[7, 0], actions[3, 1], actions[:, 3] = -0.9, 0.5, 0.2 + self.DRAWN[:1000, 0]
        actions[:, 4], actions[:, 5] = 0.7, 2 + self.DRAWN[:1000, 1]
        robot = generic(names, absolute=("held", "aim"))
        found = find_bounds(robot, actions)
        assert found.action_low[:5] == (-0.9, 0.0, 0.0, 0.0, 0.7) and found.action_low[5] == pytest.approx(1.9, abs=0.02)
        assert found.action_high[1:3] == (0.5, 0.0) and found.action_high[3:] == pytest.approx((0.5, 0.7, 2.3), abs=0.02)
        # What never changes is not searched.
        spec = make_spec(found, "cem")
        assert spec.fixed == ((2, 0.0), (4, 0.7)) and spec.dims == 6
        assert make_spec(found, "cem", fixed=((4, 0.6),)).fixed == ((4, 0.6), (2, 0.0))

    def test_what_is_stated_stays(self):
        assert find_bounds(DROID, np.ones((9, 7))) is DROID
        robot = generic(("a", "b", "c"), planned=("a", "b"))
        assert find_bounds(robot, np.zeros((0, 3))) is robot
        assert find_bounds(robot, self.DRAWN * [1, 1, 0]).action_high[2] == 0.0
        # There is no range in which a number could be planned that is said to be.
        assert find_bounds(robot, self.DRAWN * [1, 0, 1]) is robot
