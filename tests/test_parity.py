"""Parity with the official numbers: `pytest tests/test_parity.py --golden DIR` runs all of it."""

from parity.data import *  # noqa: F403
from parity.lockstep import *  # noqa: F403
from parity.masks import *  # noqa: F403
from parity.networks import *  # noqa: F403
from parity.schedules import *  # noqa: F403
