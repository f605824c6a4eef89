"""Costs: layers read off a model, models that price them, and their expectation under theta."""
