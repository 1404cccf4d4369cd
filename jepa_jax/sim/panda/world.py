"""One simulated Panda at its table: it is put into a state of the table-top's kind, acts, and tells its state."""

import numpy as np

from jepa_jax.data import poses
from jepa_jax.sim import bodies, cameras
from jepa_jax.sim.panda import control
from jepa_jax.sim.panda.installed import load_mujoco
from jepa_jax.sim.panda.model import PADS, TIMESTEP, build_model
from jepa_jax.sim.world import CONTROL_RATE, HIGH, LOW, NOTHING, RELEASE, State

_STEP_SECONDS = 1 / CONTROL_RATE
_GRIPPER, _DRIVER = "fingers_actuator", "right_driver_joint"
# Angle of the closed gripper's joints, rad, and what the actuator is told then.
_CLOSED, _CLOSED_COMMAND = 0.8, 255.0
# The fingers' command is never farther from where they are: enough for their full force, and they let go at once.
_SQUEEZE = 0.12
# After a reset objects come to rest, and fingers close on what they hold: s.
_REST_SECONDS, _CLOSE_SECONDS = 0.3, 0.7
# Cosine between a finger's push on something that it holds and the line between the fingers.
_SIDEWAYS = 0.7
# Things are put down this far above what they stand on, m.
_GAP = 5e-4


class PandaWorld:
    """Simulate one robot. The same states and actions give the same states in every process.

    Raises:
        MissingSimulatorError: something is not installed.
    """

    def __init__(self):
        self._mujoco, self._model = load_mujoco(), build_model()
        self.data = self._mujoco.MjData(self._model)
        self._arm = control.Arm(self._model)
        model = self._model
        self._gripper, self._driver = model.actuator(_GRIPPER).id, model.joint(_DRIVER).qposadr[0]
        self._bodies = [model.body(name).id for name in bodies.OBJECTS]
        first = [model.body_jntadr[body] for body in self._bodies]
        self._places, self._speeds = model.jnt_qposadr[first], model.jnt_dofadr[first]
        self._plate = model.body_mocapid[model.body("plate").id]
        self._fingers = [{model.geom(name).id for name in names} for names in PADS]
        self._kept = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._state_size = self._mujoco.mj_stateSize(model, self._kept)

    def place(self, state):
        """Put everything where a state says, at rest; what is held is between the fingers then.

        Args:
            state: `sim.State` of NumPy arrays, upright objects; a held one may be gripped a little differently.
        """
        data = self.data
        self._mujoco.mj_resetData(self._model, data)
        data.mocap_pos[self._plate] = [*state.plate, 0.0]
        place, turn = control.pose_matrix(state.pose)
        self._arm.put(data, place, turn)
        for number in range(bodies.NUM_OBJECTS):
            self._put_object(number, state.objects[number])
        held = int(state.held)
        if held == NOTHING:
            self._settle(place, turn, float(state.pose[6]), _REST_SECONDS)
        else:
            self._settle(place, turn, 1.0, _CLOSE_SECONDS, {held: state.objects[held]})
            self._settle(place, turn, self._closedness() + _SQUEEZE, _REST_SECONDS)

    def step(self, action):
        """Act for one step of 1 / CONTROL_RATE seconds.

        Args:
            action: `[7]`, as in `sim.step`; the tool does less at the edge of its workspace, and where something is in its way.
        """
        pose = self.pose()
        target = np.clip(poses.apply_action(pose, np.float64(action)), LOW, HIGH)
        change = float(action[6])
        if self._held() != NOTHING and change > -RELEASE:
            # As the gears of the gripper do: what it has hold of it holds until it is told to open.
            change = max(change, _SQUEEZE)
        self._command(self._command_of_fingers() + change)
        self._arm.move(self.data, *control.pose_matrix(target), _STEP_SECONDS)

    def pose(self):
        """Return what the robot reports, float64 `[7]`."""
        place, turn = self._arm.tool(self.data)
        return np.concatenate([place, poses.matrix_to_euler(turn), [self._closedness()]])

    def state(self):
        """Return the `sim.State` in float32."""
        pose, objects, held = self.pose(), self._objects(), self._held()
        grip = np.zeros(6)
        if held != NOTHING:
            seen = poses.to_camera_frame(np.append(objects[held], 0.0), pose[:6])
            grip = seen[:6]
        plate = self.data.mocap_pos[self._plate, :2].copy()
        return State(np.float32(pose), np.float32(objects), np.int32(held), np.float32(grip), np.float32(plate))

    def draw(self, pictures, camera, scene):
        """Draw what a camera sees: uint8 `[H, W, 3]`.

        Args:
            pictures: `rendering.Pictures`.
            camera: one of `cameras.CAMERAS`.
            scene: `nuisance.Scene` of NumPy arrays.
        """
        return pictures.draw(self.data, self.extrinsics(camera, scene), scene)

    def extrinsics(self, camera, scene, pose=None):
        """Return where a camera is, float32 `[6]`, with the tool at a pose `[7]`, or where it is."""
        return np.float32(cameras.extrinsics(camera, self.pose() if pose is None else pose, scene.camera, np))

    def save(self):
        """Return all that the future depends on, float64 `[S]`."""
        vector = np.empty(self._state_size)
        self._mujoco.mj_getState(self._model, self.data, vector, self._kept)
        return vector

    def load(self, vector):
        """Go back to what `save` returned."""
        self._mujoco.mj_setState(self._model, self.data, np.float64(vector), self._kept)
        self._mujoco.mj_forward(self._model, self.data)

    def _put_object(self, number, body):
        place, turn = control.pose_matrix(body)
        quaternion = np.zeros(4)
        self._mujoco.mju_mat2Quat(quaternion, turn.reshape(-1))
        first, speed = self._places[number], self._speeds[number]
        self.data.qpos[first : first + 7] = [*place[:2], place[2] + _GAP, *quaternion]
        self.data.qvel[speed : speed + 6] = 0

    def _settle(self, place, turn, closedness, seconds, pinned=()):
        """Let time pass while the tool stays where it is, and pinned objects, number to pose, as well."""
        self._command(closedness)
        for _ in range(round(seconds / (control.HOLD * TIMESTEP))):
            self._arm.push(self.data, place, turn)
            for number in pinned:
                self._put_object(number, pinned[number])
        self._mujoco.mj_forward(self._model, self.data)

    def _command(self, closedness):
        self.data.ctrl[self._gripper] = _CLOSED_COMMAND * np.clip(closedness, 0.0, 1.0)

    def _command_of_fingers(self):
        """Return the fingers' last command, as near to where they are as it takes to hold something."""
        now = self._closedness()
        return np.clip(self.data.ctrl[self._gripper] / _CLOSED_COMMAND, now - _SQUEEZE, now + _SQUEEZE)

    def _closedness(self):
        return float(np.clip(self.data.qpos[self._driver] / _CLOSED, 0.0, 1.0))

    def _objects(self):
        places = self.data.xpos[self._bodies]
        return np.concatenate([places, poses.matrix_to_euler(self.data.xmat[self._bodies].reshape(-1, 3, 3))], 1)

    def _held(self):
        """Return the number of the object that is between the fingers: both press on its sides; or NOTHING."""
        contacts = self.data.contact
        # Fingers that stand on an object press on it from above.
        aside = np.abs(contacts.frame[:, :3] @ self._arm.tool(self.data)[1][:, 1]) > _SIDEWAYS
        pairs = contacts.geom[aside]
        owners = self._model.geom_bodyid[pairs]
        for number, body in enumerate(self._bodies):
            touching = {int(geom) for pair, owner in zip(pairs, owners) if body in owner for geom in pair}
            if all(touching & finger for finger in self._fingers):
                return number
        return NOTHING
