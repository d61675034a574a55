"""Engines run a plan: `cpu`, `cuda`, and `reference`, slow and simple, to compare them with."""
