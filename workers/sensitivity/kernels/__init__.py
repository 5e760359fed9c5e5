"""Comparing outputs, compiled. Needs numba; `workers.sensitivity.compiled` decides when it is used."""
