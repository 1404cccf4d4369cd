"""Measurements of the train step and of the data path, written as JSON."""
