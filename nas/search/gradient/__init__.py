"""Searches that move alphas while weights are trained."""
