"""State, optimiser, sharding, checkpoints and the one train loop. Knows no model and no data format."""
