"""Sensitivities: what a job has measured so far."""
