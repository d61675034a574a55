"""Measurements: what numbanet is compared with, and with itself over time."""
