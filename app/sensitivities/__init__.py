"""Sensitivities: what a job has estimated and measured so far."""
