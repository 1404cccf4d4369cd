"""Closed loop: policies act in a simulator until the episodes end, and what they got done is counted.

An environment (`episodes.Environment`) runs N episodes side by side; a policy (`episodes.Policy`) is two pure functions.
`episodes.Runner` brings them together: one compiled program where the simulator is written in JAX (`tabletop`), a
Python loop around a compiled policy where it is not. `report` counts successes.
"""
