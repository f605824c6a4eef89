"""Candidate operations and the names they are built from."""
