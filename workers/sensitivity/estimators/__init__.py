"""Estimates of sensitivities: many units and candidates from few passes."""
