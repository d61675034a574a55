"""Suites for airspeed velocity: `asv run`, `asv continuous main HEAD`.

All is warmed up in setup; threads are a parameter.
"""
