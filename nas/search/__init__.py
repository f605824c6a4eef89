"""Searches: how alphas, or architectures, are chosen."""
