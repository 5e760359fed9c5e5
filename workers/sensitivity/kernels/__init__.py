"""Comparing outputs, compiled. Needs numba; `workers.sensitivity.acceleration` decides when it is used."""
