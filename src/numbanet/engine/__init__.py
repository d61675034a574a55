"""Engines, which run a plan: `cpu`, `cuda`, and `reference`, slow and obvious, to compare them with."""
