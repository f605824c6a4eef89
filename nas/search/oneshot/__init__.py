"""Searches that train one supernet for all its networks, then rank these."""
