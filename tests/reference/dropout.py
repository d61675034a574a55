"""Twins of the kernels in layers/dropout.py. The random numbers are written out with Python's whole numbers."""

from numbanet.plan.columns import ATTRS, EPOCH, INDEX, N_OUT, PERMUTATION, SEED, START, Y


def mixed(a, b):
    """SplitMix64's finaliser of a + (b + 1) times the golden ratio."""
    z = (a + (b + 1) * 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ z >> shift) * factor % 2**64
    return z ^ z >> 31


def scrambled(z):
    """The finaliser of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        z = (z ^ z >> shift) * factor % 2**32
    return z ^ z >> 16


def uniform(key, counter):
    """A number in [0, 1) for each counter."""
    low, high = key % 2**32, key >> 32
    z = scrambled((counter * 0x9E3779B9 % 2**32) ^ low)
    return (scrambled((z + high) % 2**32) >> 8) / 2**24


def mask(op, memory, lo, hi):
    n, rate = op[N_OUT], op.float_attr(ATTRS)
    for i in range(lo, hi):
        place = op.context(START) + i
        sample = place if op.data[PERMUTATION] is None else int(op.data[PERMUTATION][place])
        key = mixed(mixed(mixed(op.context(SEED), op.context(EPOCH)), sample), op[INDEX])
        for j in range(n):
            kept = uniform(key, j) >= rate
            memory[op[Y] + i * n + j] = memory[op[Y] + i * n + j] / (1 - rate) if kept else 0


def forward(op, params, grads, acts, deltas, lo, hi):
    mask(op, acts, lo, hi)


def backward(op, params, grads, acts, deltas, lo, hi):
    mask(op, deltas, lo, hi)
