"""Computation on models: reading, quantizing, measuring and verifying. Knows torch; never HTTP, SQL or Dask."""
