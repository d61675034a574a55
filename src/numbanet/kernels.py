"""What a kernel of one's own needs: the decorator, the columns of the plan, and a few helpers. See docs/extending.md."""

from numbanet.backend.intrinsics import at, lanes, like, load, multiply, quotient, real, stack, store, sync, thread, threads
from numbanet.backend.jit import inline, kernel
from numbanet.plan.columns import EPOCH, N_X, N_Y, OTHER, OWN, SAMPLES, SCRATCH, SEED, START, STEP, UNIT, WEIGHTS, W, X, Y, clock

__all__ = [
    "EPOCH",
    "N_X",
    "N_Y",
    "OTHER",
    "OWN",
    "SAMPLES",
    "SCRATCH",
    "SEED",
    "START",
    "STEP",
    "UNIT",
    "WEIGHTS",
    "W",
    "X",
    "Y",
    "at",
    "clock",
    "inline",
    "kernel",
    "lanes",
    "like",
    "load",
    "multiply",
    "quotient",
    "real",
    "stack",
    "store",
    "sync",
    "thread",
    "threads",
]
