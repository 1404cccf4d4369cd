"""Run `python -m jepa_jax.prepare`."""

import sys

from jepa_jax.prepare.command import main

if __name__ == "__main__":
    sys.exit(main())
