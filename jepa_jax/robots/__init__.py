"""Robots as data: what the numbers of states and actions mean, and the arithmetic that follows from it.

`spec` describes a robot, `presets` names some, `rotations` and `algebra` compute on NumPy
or JAX arrays, `checks` compares data with a description.
"""
