"""Engines: what runs a plan. `cpu` with its `machines`, and `reference`, slow and obvious, which is its twin as a whole."""
