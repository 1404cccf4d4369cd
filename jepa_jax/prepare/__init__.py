"""Make shards from what people have on disk: `python -m jepa_jax.prepare KIND SRC... --output DIR`."""

from jepa_jax.prepare.command import main

__all__ = ["main"]
