"""Latency of a device: what a layer is made of, models fitted to measurements, and their check."""
