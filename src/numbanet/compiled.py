"""A network inside the user's own compiled code; see docs/compiled.md.

    model = network.handle(loss="mean_squared_error", optimizer="adam")

All functions are compiled by Numba: `@njit` functions call them, Python too.
"""

from numbanet.network.embedded import (
    begin_sequence,
    categorical,
    check,
    clip_by_norm,
    forward,
    hvp,
    initialize,
    jvp,
    loss_gradient,
    new_key,
    normal,
    pullback,
    state_size,
    step,
    step_state_size,
    step_work_size,
    uniform,
    update,
    vjp,
    work_size,
)

__all__ = [
    "begin_sequence",
    "categorical",
    "check",
    "clip_by_norm",
    "forward",
    "hvp",
    "initialize",
    "jvp",
    "loss_gradient",
    "new_key",
    "normal",
    "pullback",
    "state_size",
    "step",
    "step_state_size",
    "step_work_size",
    "uniform",
    "update",
    "vjp",
    "work_size",
]
