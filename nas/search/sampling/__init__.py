"""Searches that propose architectures, score them one by one, and take the best."""
