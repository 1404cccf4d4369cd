"""Comparisons with golden arrays, collected by `tests/test_parity.py`."""
