"""Datasets: calibration and evaluation files."""
