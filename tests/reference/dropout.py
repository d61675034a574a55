"""Reference implementations of the kernels in layers/dropout.py."""

from numbanet.backend.intrinsics.random import fold_in_python as fold_in
from numbanet.backend.intrinsics.random import uniform_python as uniform
from numbanet.nn.layers.dropout import DROPOUT
from numbanet.plan.columns import EPOCH, FIRST_SAMPLE, INDEX, N_OUT, PERMUTATION, SEED, START, Y


def mask(op, memory, lo, hi):
    n, rate = op[N_OUT], op.float_attr(DROPOUT.rate)
    scale = op.float_attr(DROPOUT.scale)
    for i in range(lo, hi):
        place = op.context(START) + i
        sample = place if op.data[PERMUTATION] is None else int(op.data[PERMUTATION][place])
        sample += op.context(FIRST_SAMPLE)
        key = fold_in(fold_in(fold_in(op.context(SEED), op.context(EPOCH)), sample), op[INDEX])
        for j in range(n):
            kept = uniform(key, j) >= rate
            memory[op[Y] + i * n + j] = memory[op[Y] + i * n + j] * scale if kept else 0


def forward(op, params, grads, acts, deltas, lo, hi):
    mask(op, acts, lo, hi)


def backward(op, params, grads, acts, deltas, lo, hi):
    mask(op, deltas, lo, hi)


def multiply(op, memory, lo, hi):
    for i in range(lo * op[N_OUT], hi * op[N_OUT]):
        memory[op[Y] + i] *= op.float_attr(DROPOUT.scale)


def mean_forward(op, params, grads, acts, deltas, lo, hi):
    multiply(op, acts, lo, hi)


def mean_backward(op, params, grads, acts, deltas, lo, hi):
    multiply(op, deltas, lo, hi)
