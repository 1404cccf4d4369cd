"""Control of the arm: the tool goes to a pose within one step, by damped least squares and torques that heed inertia."""

import numpy as np

from jepa_jax.data import poses
from jepa_jax.sim.panda.installed import load_mujoco
from jepa_jax.sim.panda.model import TIMESTEP, TOOL

NUM_JOINTS = 7
# Joints of the arm with the tool pointing down in the middle of the workspace, rad; the arm stays as near to it as it can.
HOME = np.array([0.0, -0.2, 0.0, -2.4, 0.0, 2.2, np.pi / 4])
# Steps of the simulator between two decisions, and the part of a motion's time after which the target stands still.
HOLD, _MOVING = 5, 0.7
# Stiffness and damping per inertia: critically damped, 1/s^2 and 1/s.
_STIFFNESS = 2500.0
_DAMPING = 2 * np.sqrt(_STIFFNESS)
# Of the inverse of the Jacobian; and how strongly joints are drawn home where the tool does not mind.
_REGULARIZATION, _HOMING = 1e-5, 0.015
_LARGEST_ERROR = 0.3
_IK_STEPS, _IK_CLOSE = 200, 1e-6
_IK_TURN = 0.4


class Arm:
    """Move the arm of one simulated robot.

    Args:
        model: `mujoco.MjModel`.
    """

    def __init__(self, model):
        self._mujoco, self._model = load_mujoco(), model
        self._site = model.site(TOOL).id
        names = [f"joint{number + 1}" for number in range(NUM_JOINTS)]
        self.places = np.array([model.joint(name).qposadr[0] for name in names])
        self.speeds = np.array([model.joint(name).dofadr[0] for name in names])
        self._limits = model.jnt_range[[model.joint(name).id for name in names]].T
        self._torques = model.actuator_ctrlrange[:NUM_JOINTS].T
        self._jacobian, self._inertia = np.zeros((6, model.nv)), np.zeros((model.nv, model.nv))

    def tool(self, data):
        """Return place `[3]` and rotation `[3, 3]` of the tool in the base frame."""
        return data.site_xpos[self._site].copy(), data.site_xmat[self._site].reshape(3, 3).copy()

    def put(self, data, place, turn):
        """Set joints so that the tool is at a place, as if it had always been there.

        Args:
            data: `mujoco.MjData`, changed.
            place: `[3]`, m.
            turn: `[3, 3]`.
        """
        mujoco = self._mujoco
        data.qpos[self.places] = HOME
        for _ in range(_IK_STEPS):
            mujoco.mj_kinematics(self._model, data)
            mujoco.mj_comPos(self._model, data)
            error = self._error(data, place, turn)
            if np.abs(error).max() < _IK_CLOSE:
                break
            change = np.clip(self._change(data, error), -_IK_TURN, _IK_TURN)
            data.qpos[self.places] = np.clip(data.qpos[self.places] + change, *self._limits)

    def move(self, data, place, turn, seconds):
        """Move the tool to a pose while time passes.

        Args:
            data: `mujoco.MjData`, changed.
            place: `[3]`, m.
            turn: `[3, 3]`.
            seconds: how long it takes; the last part of it the target stands still.
        """
        start, first = self.tool(data)
        way = rotation_vector(turn @ first.T)
        steps = round(seconds / TIMESTEP)
        for step in range(HOLD, steps + 1, HOLD):
            part = min(1.0, step / (_MOVING * steps))
            part = part * part * (3 - 2 * part)
            self.push(data, start + part * (place - start), rotation_matrix(part * way) @ first)
        self._mujoco.mj_forward(self._model, data)

    def push(self, data, place, turn):
        """Take one decision toward a pose, and let the simulator act on it."""
        change = self._change(data, self._error(data, place, turn))
        self._mujoco.mj_fullM(self._model, self._inertia, data.qM)
        inertia = self._inertia[np.ix_(self.speeds, self.speeds)]
        wanted = _STIFFNESS * np.clip(change, -_LARGEST_ERROR, _LARGEST_ERROR) - _DAMPING * data.qvel[self.speeds]
        torques = inertia @ wanted + data.qfrc_bias[self.speeds] - data.qfrc_passive[self.speeds]
        data.ctrl[:NUM_JOINTS] = np.clip(torques, *self._torques)
        self._mujoco.mj_step(self._model, data, HOLD)

    def _error(self, data, place, turn):
        now, rotation = self.tool(data)
        return np.concatenate([place - now, rotation_vector(turn @ rotation.T)])

    def _change(self, data, error):
        """Return the change of the joints that undoes an error of the tool, and leads home as far as it is free to.

        Joints that would leave their limits go there, and the others do the rest: to count on more of one than it has turns the arm over.
        """
        self._mujoco.mj_jacSite(self._model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        now, free, pinned = data.qpos[self.places], np.ones(NUM_JOINTS, bool), np.zeros(NUM_JOINTS)
        home = HOME - now
        while True:
            jacobian = self._jacobian[:, self.speeds] * free
            weights = jacobian @ jacobian.T + _REGULARIZATION * np.eye(6)
            rest = error - self._jacobian[:, self.speeds] @ pinned
            toward, lost = np.linalg.solve(weights, np.stack([rest, jacobian @ home], 1)).T
            change = jacobian.T @ toward + _HOMING * (home * free - jacobian.T @ lost) + pinned
            beyond = free & ((now + change < self._limits[0]) | (now + change > self._limits[1]))
            if not beyond.any():
                return change
            pinned = np.where(beyond, np.clip(now + change, *self._limits) - now, pinned)
            free &= ~beyond


def rotation_vector(matrix):
    """Return axis times angle, `[3]`, of a rotation matrix."""
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco = load_mujoco()
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(matrix).reshape(-1))
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def rotation_matrix(vector):
    """Return the rotation matrix of axis times angle `[3]`."""
    angle = np.linalg.norm(vector)
    quaternion, matrix = np.zeros(4), np.zeros(9)
    mujoco = load_mujoco()
    mujoco.mju_axisAngle2Quat(quaternion, vector / max(angle, 1e-12), angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def pose_matrix(pose):
    """Return place `[3]` and rotation `[3, 3]` of a pose `[6]` or `[7]`."""
    return np.float64(pose[:3]), poses.euler_to_matrix(np.float64(pose[3:6]))
