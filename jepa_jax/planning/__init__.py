"""Planning: search the actions that lead from what is seen to a goal, in one compiled program."""

from jepa_jax.planning.calibration import Calibration, calibrate, exploratory_moves, watch
from jepa_jax.planning.energy import Energy
from jepa_jax.planning.goals import Progress, next_goal, start_goals
from jepa_jax.planning.latent import LatentState, Planner, bind, full_actions, gripper_effort, make_root
from jepa_jax.planning.memory import fit_memory
from jepa_jax.planning.observations import Scene, read_picture, see
from jepa_jax.planning.presets import PRESETS, make_spec
from jepa_jax.planning.search import plan, warm_start
from jepa_jax.planning.spec import PlanOutput, PlanSpec, Root, Trace
from jepa_jax.weights.learned_energy import LearnedEnergy, load_learned, save_learned

__all__ = [
    "PRESETS", "Calibration", "Energy", "LatentState", "LearnedEnergy", "PlanOutput", "PlanSpec", "Planner", "Progress", "Root", "Scene",
    "Trace", "bind", "calibrate", "exploratory_moves", "fit_memory", "full_actions", "gripper_effort", "load_learned", "make_root", "make_spec", "next_goal",
    "plan", "read_picture", "save_learned", "see", "start_goals", "warm_start", "watch",
]
