"""Training tasks: model, data and loss put together from a config."""
