"""Parity with the official numbers: `pytest tests/test_parity.py --golden DIR` runs all of it."""

from parity.action_predictor import *  # noqa: F403
from parity.aggregation import *  # noqa: F403
from parity.anticipation import *  # noqa: F403
from parity.checkpoints import *  # noqa: F403
from parity.data import *  # noqa: F403
from parity.lockstep import *  # noqa: F403
from parity.masks import *  # noqa: F403
from parity.networks import *  # noqa: F403
from parity.planning import *  # noqa: F403
from parity.poses import *  # noqa: F403
from parity.probe_lockstep import *  # noqa: F403
from parity.probes import *  # noqa: F403
from parity.schedules import *  # noqa: F403
from parity.world_model import *  # noqa: F403
