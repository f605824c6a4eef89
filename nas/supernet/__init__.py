"""Supernets: choice blocks, the relaxations of their choice, and temperature schedules."""
