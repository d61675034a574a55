"""Kernels that every plan may need: copying a slot, and adding up the chunks' partial gradients."""

from numbanet.backend.intrinsics import lanes, load, num_threads, ptr_add, store, thread_rank
from numbanet.backend.jit import kernel
from numbanet.plan.columns import (
    CHUNKS,
    N_IN,
    PARAM_COLS,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    W,
    X,
    Y,
    context,
)
from numbanet.plan.op import Op


@kernel
def reduce_chunks(op, params, grads, acts, deltas, lo, hi):
    """grads[W + i] = Σ over chunks, in their order, of their partial gradients, for rows lo … hi"""
    n, w = op[PARAM_COLS], op[W]
    for i in range(lo * n, hi * n):
        grads[w + i] = acts[op[PARTIAL_GRADS] + i]
    for chunk in range(1, context(op, CHUNKS)):
        part = op[PARTIAL_GRADS] + chunk * op[PARTIAL_STRIDE]
        for i in range(lo * n, hi * n):
            grads[w + i] += acts[part + i]


@reduce_chunks.cuda
def reduce_chunks(op, params, grads, acts, deltas, lo, hi):
    chunks = context(op, CHUNKS)
    for i in range(lo * op[PARAM_COLS] + thread_rank(), hi * op[PARAM_COLS], num_threads()):
        total = acts[op[PARTIAL_GRADS] + i]
        for chunk in range(1, chunks):
            total += acts[op[PARTIAL_GRADS] + chunk * op[PARTIAL_STRIDE] + i]
        grads[op[W] + i] = total


@kernel
def copy_forward(op, params, grads, acts, deltas, lo, hi):
    """acts[y] = acts[x]"""
    n, width = op[N_IN], lanes(acts)
    for i in range(lo * n, hi * n, width):
        x = load(ptr_add(acts, op[X] + i), hi * n - i)
        store(ptr_add(acts, op[Y] + i), x, hi * n - i)


@copy_forward.cuda
def copy_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo * op[N_IN] + thread_rank(), hi * op[N_IN], num_threads()):
        acts[op[Y] + i] = acts[op[X] + i]


@kernel
def copy_backward(op, params, grads, acts, deltas, lo, hi):
    """deltas[x] = deltas[y]"""
    n, width = op[N_IN], lanes(deltas)
    for i in range(lo * n, hi * n, width):
        dy = load(ptr_add(deltas, op[Y] + i), hi * n - i)
        store(ptr_add(deltas, op[X] + i), dy, hi * n - i)


@copy_backward.cuda
def copy_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo * op[N_IN] + thread_rank(), hi * op[N_IN], num_threads()):
        deltas[op[X] + i] = deltas[op[Y] + i]


def copy_op(n: int) -> Op:
    """The op that copies a sample of n elements into a slot of its own."""
    return Op("Copy", n, n, copy_forward, copy_backward, linear=True)
