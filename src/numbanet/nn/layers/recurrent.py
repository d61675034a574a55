"""Recurrent layers: a cell that reads a sequence step by step and keeps a state.

    RNN    h = f(z),  z = x W + b + h' U                          f is tanh or ReLU
    LSTM   i, f, o = σ(z_i), σ(z_f), σ(z_o)    g = tanh z_g       z = x W + b + h' U
           c = f ∘ c' + i ∘ g                  h = o ∘ tanh c
    GRU    r, u = σ(z_r), σ(z_u)               z = x W + b, and h' U in z_r and z_u
           n = tanh(z_n + r ∘ q)               q = h' U_n + b_n
           h = (1 − u) ∘ n + u ∘ h'

    x (steps, n_in) · W (n_in, gates · units) · U (units, gates · units) · b (gates · units)
    h, c of the step before: h', c', zero at first · h (steps, units)

Gates stand in the order of PyTorch: i f g o and r u n. A layer lowers to

    Dense         z = x W + b for all steps at once
    Recurrence    in place: a loop over time with h' U for all samples of a micro-batch, and the
                  cell; for Bidirectional a second one that begins at the end
    States        the states of all steps, or that of the last one

and where the state before the first step is not zero

    InitialState  beside them, before the Recurrence: rows with what was there before the first step
    CarriedState  behind it: the state after the last step, for the next batch (`stateful`)

The slot of the first two has a row for each step, with the columns

    z or gates (gates · units) · c or q (units, LSTM and GRU) · h (units)

each for one direction after the other; an RNN has only h, in the place of z. So all that a backward
pass needs is kept, and the deltas have the same columns: those of h are replaced by the sum over
what follows, those of the gates become dz. dW and db are the gradient of the Dense op, dU one
product over all samples and steps.

Beyond the end of a sequence that is shorter than the input (LENGTHS in the context) gates, cells
and states are zero, and so are their deltas: nothing is learned there.

What a step hands to the next one, c (LSTM) and h, are its last columns, the *carried* ones. A row
of InitialState has these alone: parameters, or the state of the batch before (STATE).

A cell is three functions of one step, on vector registers or scalars: `gates` and then `state` make
the value, `vjp` its derivative; the kernels are made from them. The value is in two parts because
each of them is a shorter chain of operations that wait for one another. For derivatives along a
direction it has `tangent` and `second`, the derivatives of the value and of `vjp`. A product U
along a direction is ḣ' U + h' U̇: tangents run over time too.

Source   Elman 1990; Hochreiter, Schmidhuber 1997, Gers et al. 2000 (LSTM); Cho et al. 2014 (GRU, in
         the form of cuDNN: reset after the product)
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from numbanet.backend.elementary import sigmoid, tanh
from numbanet.backend.intrinsics import (
    address,
    as_pointer,
    brgemm_tn,
    const_like,
    div_u32,
    gemm,
    gemm_bias,
    gemm_nt,
    gemm_tn,
    lanes,
    load,
    num_threads,
    ptr_add,
    store,
    thread_rank,
    transpose,
    where_greater,
)
from numbanet.backend.intrinsics.gemm import NR_GEMV
from numbanet.backend.intrinsics.target import MR, VECTOR_BYTES
from numbanet.backend.jit import Kernel, inline, kernel, specialize
from numbanet.io.fields import By, Choice, Count, Flag, shown
from numbanet.nn.initializers import INITIALIZER, Columns, Zeros
from numbanet.nn.layers.base import Layer, Shape
from numbanet.nn.layers.dense import add_rows, dense_op
from numbanet.nn.regularizers import PENALTY
from numbanet.plan.columns import (
    AUX,
    N_OUT,
    N_WEIGHTS,
    SCRATCH,
    STATE,
    STATE_OFFSET,
    STATE_SIZE,
    TANGENTS,
    Attrs,
    W,
    X,
    Y,
    context,
    sequence_length,
)
from numbanet.plan.op import Op

CELL = Attrs("units steps columns gates kept state width summed reverse carried initial")
"""
units, steps          of the layer and of a sample
columns               elements of a step in the slot
gates, kept, state    the first column of z, of c or q, and of h, for this direction
width, summed         columns of U, and how many of them are added to z; the others give q
reverse               1 where the last step comes first
carried               the first column of what a step hands to the next one
initial               1 where a row at AUX stands before the first step, else zeros do
"""
CARRY = Attrs("steps columns carried count")
"""As in CELL; `count` is the number of carried columns, of all directions."""
FORGET_GATE = 1
"""Its place among the gates of an LSTM."""
BOTH = ("", "reverse_")
"""What stands in front of the names of the recurrent parameters, for each direction."""
STATES = Attrs("units steps columns state read directions reverse sequences")
"""As in CELL; `sequences` is 1 where the states of all steps are wanted, `read` the first column of
a step whose deltas a cell adds to or reads: those of the gates are overwritten."""
PACKED_STEPS = 8
"""Steps from which a copy of U as panels is faster for a single sample."""
L1_BYTES = 32768
"""A level-1 cache, of which a U may leave nothing to the next step."""


# --- cells: one step of one sample --------------------------------------------------------------

get: Any = None
"""In the templates: get(p, k, n), the first n elements from p[k] on, zeros if n ≤ 0."""
put: Any = None
"""In the templates: put(p, k, value, n), the way back."""


@inline
def _get(p, k, n):
    return load(ptr_add(p, k), n)


@inline
def _put(p, k, value, n):
    store(ptr_add(p, k), value, n)


@inline
def _get_scalar(p, k, n):
    return p[k] if n > 0 else const_like(p, 0)


@inline
def _put_scalar(p, k, value, n):
    if n > 0:
        p[k] = value


# In all of them `y` is the row of this step and `before` that of the step before, of which only the
# first `m` elements count (none at first). The elements are j … j + n of each gate.


@inline
def _no_gates(op, y, before, j, n, m):
    """Of an RNN, whose state is all that it has."""


def _tanh_state(op, y, before, j, n, m):
    put(y, op[CELL.state] + j, tanh(get(y, op[CELL.gates] + j, n)), n)


def _tanh_vjp(op, y, before, dy, dbefore, j, n, m):
    h, dh = get(y, op[CELL.state] + j, n), get(dy, op[CELL.state] + j, n)
    put(dy, op[CELL.gates] + j, dh * (const_like(h, 1) - h * h), n)


def _relu_state(op, y, before, j, n, m):
    z = get(y, op[CELL.gates] + j, n)
    zero = const_like(z, 0)
    put(y, op[CELL.state] + j, where_greater(zero, z, zero, z), n)


def _relu_vjp(op, y, before, dy, dbefore, j, n, m):
    h, dh = get(y, op[CELL.state] + j, n), get(dy, op[CELL.state] + j, n)
    zero = const_like(h, 0)
    put(dy, op[CELL.gates] + j, where_greater(h, zero, dh, zero), n)


def _lstm_gates(op, y, before, j, n, m):
    units, z, c = op[CELL.units], op[CELL.gates] + j, op[CELL.kept] + j
    i, f = sigmoid(get(y, z, n)), sigmoid(get(y, z + units, n))
    g, o = tanh(get(y, z + 2 * units, n)), sigmoid(get(y, z + 3 * units, n))
    put(y, z, i, n)
    put(y, z + units, f, n)
    put(y, z + 2 * units, g, n)
    put(y, z + 3 * units, o, n)
    put(y, c, f * get(before, c, m) + i * g, n)


def _lstm_state(op, y, before, j, n, m):
    o, c = get(y, op[CELL.gates] + 3 * op[CELL.units] + j, n), get(y, op[CELL.kept] + j, n)
    put(y, op[CELL.state] + j, o * tanh(c), n)


def _lstm_vjp(op, y, before, dy, dbefore, j, n, m):
    units, z, c = op[CELL.units], op[CELL.gates] + j, op[CELL.kept] + j
    i, f = get(y, z, n), get(y, z + units, n)
    g, o = get(y, z + 2 * units, n), get(y, z + 3 * units, n)
    one, cell_tanh, dh = const_like(i, 1), tanh(get(y, c, n)), get(dy, op[CELL.state] + j, n)
    dc = get(dy, c, n) + dh * o * (one - cell_tanh * cell_tanh)
    put(dy, z, dc * g * i * (one - i), n)
    put(dy, z + units, dc * get(before, c, m) * f * (one - f), n)
    put(dy, z + 2 * units, dc * i * (one - g * g), n)
    put(dy, z + 3 * units, dh * cell_tanh * o * (one - o), n)
    put(dbefore, c, get(dbefore, c, m) + dc * f, m)


def _gru_gates(op, y, before, j, n, m):
    units, z = op[CELL.units], op[CELL.gates] + j
    put(y, z, sigmoid(get(y, z, n)), n)
    put(y, z + units, sigmoid(get(y, z + units, n)), n)


def _gru_state(op, y, before, j, n, m):
    units, z, h = op[CELL.units], op[CELL.gates] + j, op[CELL.state] + j
    r, u = get(y, z, n), get(y, z + units, n)
    new = tanh(get(y, z + 2 * units, n) + r * get(y, op[CELL.kept] + j, n))
    put(y, z + 2 * units, new, n)
    put(y, h, new + u * (get(before, h, m) - new), n)


def _gru_vjp(op, y, before, dy, dbefore, j, n, m):
    units, z, h = op[CELL.units], op[CELL.gates] + j, op[CELL.state] + j
    r, u, new = get(y, z, n), get(y, z + units, n), get(y, z + 2 * units, n)
    one, dh = const_like(r, 1), get(dy, h, n)
    dz_new = dh * (one - u) * (one - new * new)
    put(dy, z, dz_new * get(y, op[CELL.kept] + j, n) * r * (one - r), n)
    put(dy, z + units, dh * (get(before, h, m) - new) * u * (one - u), n)
    put(dy, z + 2 * units, dz_new, n)
    put(dy, op[CELL.kept] + j, dz_new * r, n)
    put(dbefore, h, get(dbefore, h, m) + dh * u, m)


# --- a cell over time ---------------------------------------------------------------------------

gates: Any = None
state: Any = None
vjp: Any = None


@inline
def _steps(op, s):
    """The step that comes as number s, and the one before it."""
    last = op[CELL.steps] - 1
    t, before = s, max(s - 1, 0)
    if op[CELL.reverse]:
        t, before = last - t, last - before
    return t, before


@inline
def _known(op, s):
    """How many states there are before step number s: `units`, or none."""
    return op[CELL.units] if s or op[CELL.initial] else 0


@inline
def _initial_row(op, memory, i):
    """What stands before the first step of sample i, seen as a row that has all columns."""
    size = op[CELL.columns] - op[CELL.carried]
    return ptr_add(memory, op[AUX] + i * size - op[CELL.carried])


@inline
def _clear_carried(op, row):
    """Set to zero what this direction hands on in a row."""
    for j in range(op[CELL.units]):
        row[op[CELL.state] + j] = const_like(row, 0)
        if op[CELL.carried] <= op[CELL.kept] < op[CELL.state]:
            row[op[CELL.kept] + j] = const_like(row, 0)


@inline
def _clear(op, row):
    """Set to zero what a step beyond the end of a sequence has in this direction."""
    units, zero = op[CELL.units], const_like(row, 0)
    for c in range(op[CELL.width]):
        row[op[CELL.gates] + c] = zero
    for j in range(units):
        row[op[CELL.state] + j] = zero
        if op[CELL.width] > units:
            row[op[CELL.kept] + j] = zero


@inline
def _products(op, params, m, known, before, n_before, y, n):
    """z += h' U and q = h' U_n + b_n, for m rows n_before and n elements apart

    before, y   the step before, with `known` states, and this one
    """
    width, summed, u = op[CELL.width], op[CELL.summed], ptr_add(params, op[W])
    h = ptr_add(before, op[CELL.state])
    gemm(m, summed, known, h, n_before, u, width, 1, ptr_add(y, op[CELL.gates]), n)
    if width > summed:
        q, u_q, bias = ptr_add(y, op[CELL.kept]), ptr_add(u, summed), ptr_add(u, op[N_WEIGHTS])
        gemm_bias(m, width - summed, known, h, n_before, u_q, width, bias, 1, q, n)


@inline
def _worth_packing(op, acts):
    """Whether a single sample is faster with U as panels: many steps, and U larger than level 1."""
    elements = op[CELL.units] * op[CELL.width]
    return op[CELL.steps] >= PACKED_STEPS and elements * VECTOR_BYTES > L1_BYTES * lanes(acts)


@inline
def _panel(op, acts, k):
    """The first column of panel k of U, and how many it has: those of z, or those of q."""
    summed, at_once = op[CELL.summed], NR_GEMV * lanes(acts)
    of_z = (summed + at_once - 1) // at_once
    if k < of_z:
        return k * at_once, min(at_once, summed - k * at_once)
    c = summed + (k - of_z) * at_once
    return c, min(at_once, op[CELL.width] - c)


@inline
def _panels(op, acts):
    """How many panels U has."""
    summed, at_once = op[CELL.summed], NR_GEMV * lanes(acts)
    return (summed + at_once - 1) // at_once + (op[CELL.width] - summed + at_once - 1) // at_once


@inline
def _pack(op, params, acts):
    """Copy U into scratch memory, panel by panel, each of them contiguous."""
    units, width, u = op[CELL.units], op[CELL.width], ptr_add(params, op[W])
    for k in range(_panels(op, acts)):
        c, n = _panel(op, acts, k)
        panel = ptr_add(acts, op[SCRATCH] + c * units)
        for row in range(units):
            for j in range(n):
                panel[row * n + j] = u[row * width + c + j]


@inline
def _packed_products(op, params, acts, known, before, y, s):
    """`_products` of a single sample, with U as panels.

    Every other step takes them from the last one to the first, so that half of them are still in
    level 1. Sums do not change: a column of U is in one panel.
    """
    units, summed, panels = op[CELL.units], op[CELL.summed], _panels(op, acts)
    bias, h = ptr_add(params, op[W] + op[N_WEIGHTS] - summed), ptr_add(before, op[CELL.state])
    for i in range(panels):
        c, n = _panel(op, acts, panels - 1 - i if s % 2 else i)
        panel, out = ptr_add(acts, op[SCRATCH] + c * units), ptr_add(y, _u_column(op, c))
        if c < summed:
            gemm(1, n, known, h, 0, panel, n, 1, out, 0)
        else:
            gemm_bias(1, n, known, h, 0, panel, n, ptr_add(bias, c), 1, out, 0)


def _forward(op, params, grads, acts, deltas, lo, hi):
    """Run the cell over the steps of samples lo ≤ i < hi        acts[y]   z becomes gates and h"""
    units, steps, columns, n = op[CELL.units], op[CELL.steps], op[CELL.columns], op[N_OUT]
    block = ptr_add(acts, op[Y] + lo * n)
    packed = hi - lo == 1 and _worth_packing(op, acts)
    if packed:
        _pack(op, params, acts)
    for s in range(steps):
        t, t_before = _steps(op, s)
        y, y_before = ptr_add(block, t * columns), ptr_add(block, t_before * columns)
        known, n_before = _known(op, s), n
        if s == 0 and known:
            y_before, n_before = _initial_row(op, acts, lo), columns - op[CELL.carried]
        for first in range(0, hi - lo, MR):
            last = min(first + MR, hi - lo)
            rows, before = ptr_add(y, first * n), ptr_add(y_before, first * n_before)
            if packed:
                _packed_products(op, params, acts, known, before, rows, s)
            else:
                _products(op, params, last - first, known, before, n_before, rows, n)
            for i in range(first, last):
                row, row_before = ptr_add(y, i * n), ptr_add(y_before, i * n_before)
                if t < sequence_length(op, lo + i, steps):
                    for j in range(0, units, lanes(acts)):
                        gates(op, row, row_before, j, units - j, known - j)
                else:
                    _clear(op, row)
            for i in range(first, last):
                row, row_before = ptr_add(y, i * n), ptr_add(y_before, i * n_before)
                if t < sequence_length(op, lo + i, steps):
                    for j in range(0, units, lanes(acts)):
                        state(op, row, row_before, j, units - j, known - j)


def _backward(op, params, grads, acts, deltas, lo, hi):
    """Carry the error back through time, for samples lo ≤ i < hi

    deltas[y]   dh becomes the sum over all that follows, and the columns of the gates dz
    """
    units, width, summed = op[CELL.units], op[CELL.width], op[CELL.summed]
    steps, columns = op[CELL.steps], op[CELL.columns]
    n, u_t = op[N_OUT], ptr_add(acts, op[SCRATCH])
    u_q = ptr_add(u_t, summed * units)
    transpose(units, width, ptr_add(params, op[W]), width, u_t, units)
    block, d_block = ptr_add(acts, op[Y] + lo * n), ptr_add(deltas, op[Y] + lo * n)
    for s in range(steps - 1, -1, -1):
        t, t_before = _steps(op, s)
        y, y_before = ptr_add(block, t * columns), ptr_add(block, t_before * columns)
        dy, d_before = ptr_add(d_block, t * columns), ptr_add(d_block, t_before * columns)
        known, n_before = _known(op, s), n
        if s == 0 and known:
            y_before, n_before = _initial_row(op, acts, lo), columns - op[CELL.carried]
            d_before = _initial_row(op, deltas, lo)
        for i in range(hi - lo):
            row, row_before = ptr_add(y, i * n), ptr_add(y_before, i * n_before)
            d_row, d_row_before = ptr_add(dy, i * n), ptr_add(d_before, i * n_before)
            if s == 0 and known:
                _clear_carried(op, d_row_before)
            if t < sequence_length(op, lo + i, steps):
                for j in range(0, units, lanes(acts)):
                    vjp(op, row, row_before, d_row, d_row_before, j, units - j, known - j)
            else:
                _clear(op, d_row)
        dz, dq = ptr_add(dy, op[CELL.gates]), ptr_add(dy, op[CELL.kept])
        dh = ptr_add(d_before, op[CELL.state])
        gemm(hi - lo, known, summed, dz, n, u_t, units, 1, dh, n_before)
        if width > summed:
            gemm(hi - lo, known, width - summed, dq, n, u_q, units, 1, dh, n_before)


def _step(op, params, grads, acts, deltas, lo, hi):
    """Take one step with samples lo ≤ i < hi, in the user's compiled code

    The state stands in the place of grads and becomes that after the step.
    acts[x]   z becomes gates and h        acts[y] = h
    """
    units, carried = op[CELL.units], op[CELL.carried]
    columns, size = op[CELL.columns], context(op, STATE_SIZE)
    x, before = ptr_add(acts, op[X] + lo * columns), _state_rows(op, grads, lo)
    _products(op, params, hi - lo, units, before, size, x, columns)
    for i in range(hi - lo):
        row, row_before = ptr_add(x, i * columns), ptr_add(before, i * size)
        for j in range(0, units, lanes(acts)):
            gates(op, row, row_before, j, units - j, units - j)
            state(op, row, row_before, j, units - j, units - j)
        for j in range(carried, columns):
            row_before[j] = row[j]
        for j in range(units):
            acts[op[Y] + (lo + i) * units + j] = row[op[CELL.state] + j]


@inline
def _state_rows(op, state, lo):
    """The state of sample lo, seen as the row of a step that has the columns of the slot."""
    return ptr_add(state, lo * context(op, STATE_SIZE) + op[STATE_OFFSET] - op[CELL.carried])


def _step_cuda(op, params, grads, acts, deltas, lo, hi):
    units = op[CELL.units]
    for i in range(lo + thread_rank(), hi, num_threads()):
        row, before = ptr_add(acts, op[X] + i * op[CELL.columns]), _state_rows(op, grads, i)
        _products_cuda(op, params, units, before, row)
        for j in range(units):
            gates(op, row, before, j, units - j, units - j)
            state(op, row, before, j, units - j, units - j)
        for j in range(op[CELL.carried], op[CELL.columns]):
            before[j] = row[j]
        for j in range(units):
            acts[op[Y] + i * units + j] = row[op[CELL.state] + j]


@inline
def _u_column(op, c):
    """The column of the slot that column c of U gives."""
    summed = op[CELL.summed]
    return op[CELL.gates] + c if c < summed else op[CELL.kept] + c - summed


@inline
def _products_cuda(op, params, known, before, y):
    """z += h' U and q = h' U_n + b_n, for one row; see `_products`."""
    width, summed, u = op[CELL.width], op[CELL.summed], ptr_add(params, op[W])
    for c in range(width):
        total = y[_u_column(op, c)] if c < summed else u[op[N_WEIGHTS] + c - summed]
        for k in range(known):
            total += before[op[CELL.state] + k] * u[k * width + c]
        y[_u_column(op, c)] = total


def _forward_cuda(op, params, grads, acts, deltas, lo, hi):
    units, steps, columns = op[CELL.units], op[CELL.steps], op[CELL.columns]
    for i in range(lo + thread_rank(), hi, num_threads()):
        block = ptr_add(acts, op[Y] + i * op[N_OUT])
        for s in range(steps):
            t, t_before = _steps(op, s)
            y, y_before = ptr_add(block, t * columns), ptr_add(block, t_before * columns)
            known = _known(op, s)
            if s == 0 and known:
                y_before = _initial_row(op, acts, i)
            _products_cuda(op, params, known, y_before, y)
            if t < sequence_length(op, i, steps):
                for j in range(units):
                    gates(op, y, y_before, j, units - j, known - j)
                    state(op, y, y_before, j, units - j, known - j)
            else:
                _clear(op, y)


def _backward_cuda(op, params, grads, acts, deltas, lo, hi):
    units, width, steps, columns = (
        op[CELL.units],
        op[CELL.width],
        op[CELL.steps],
        op[CELL.columns],
    )
    for i in range(lo + thread_rank(), hi, num_threads()):
        block = ptr_add(acts, op[Y] + i * op[N_OUT])
        d_block = ptr_add(deltas, op[Y] + i * op[N_OUT])
        for s in range(steps - 1, -1, -1):
            t, t_before = _steps(op, s)
            y, y_before = ptr_add(block, t * columns), ptr_add(block, t_before * columns)
            dy, d_before = ptr_add(d_block, t * columns), ptr_add(d_block, t_before * columns)
            known = _known(op, s)
            if s == 0 and known:
                y_before = _initial_row(op, acts, i)
                d_before = _initial_row(op, deltas, i)
                _clear_carried(op, d_before)
            if t < sequence_length(op, i, steps):
                for j in range(units):
                    vjp(op, y, y_before, dy, d_before, j, units - j, known - j)
            else:
                _clear(op, dy)
            for k in range(known):
                total = d_before[op[CELL.state] + k]
                for c in range(width):
                    total += dy[_u_column(op, c)] * params[op[W] + k * width + c]
                d_before[op[CELL.state] + k] = total


def _make_kernels(name, gates, state, vjp) -> tuple[Kernel, Kernel, Kernel]:
    """The kernels `name_forward`, `name_backward` and `name_step` of a cell, for CPU and GPU."""
    made = []
    value = {"gates": gates, "state": state}
    for verb, cells, cpu, cuda in (
        ("forward", value, _forward, _forward_cuda),
        ("backward", {"vjp": vjp}, _backward, _backward_cuda),
        ("step", value, _step, _step_cuda),
    ):
        vectors, scalars = (
            {
                what: inline(specialize(cell, f"{name}_{what}{kind}", get=get, put=put))
                if cell is not _no_gates
                else cell
                for what, cell in cells.items()
            }
            for kind, get, put in (("", _get, _put), ("_scalar", _get_scalar, _put_scalar))
        )
        one = kernel(specialize(cpu, f"{name}_{verb}", **vectors))
        made.append(one.cuda(specialize(cuda, f"{name}_{verb}", **scalars)))
    return made[0], made[1], made[2]


tanh_forward, tanh_backward, tanh_step = _make_kernels("tanh", _no_gates, _tanh_state, _tanh_vjp)
relu_forward, relu_backward, relu_step = _make_kernels("relu", _no_gates, _relu_state, _relu_vjp)
lstm_forward, lstm_backward, lstm_step = _make_kernels("lstm", _lstm_gates, _lstm_state, _lstm_vjp)
gru_forward, gru_backward, gru_step = _make_kernels("gru", _gru_gates, _gru_state, _gru_vjp)


@inline
def _pairs(op):
    """Where the first row of h' begins, and the first row that it is multiplied into."""
    if op[CELL.reverse]:
        return op[CELL.columns], 0
    return 0, op[CELL.columns]


@inline
def _first_row(op, i):
    """Where the row of the first step of sample i begins."""
    first = op[CELL.steps] - 1 if op[CELL.reverse] else 0
    return op[Y] + i * op[N_OUT] + first * op[CELL.columns]


@inline
def _accumulate_first(op, acts, deltas, lo, hi, du):
    """dU += Σ h'ᵀ dz of the first step, where h' is the initial state."""
    units, width, summed, n = op[CELL.units], op[CELL.width], op[CELL.summed], op[N_OUT]
    size, dy = op[CELL.columns] - op[CELL.carried], ptr_add(deltas, _first_row(op, lo))
    h, dz = ptr_add(_initial_row(op, acts, lo), op[CELL.state]), ptr_add(dy, op[CELL.gates])
    gemm_tn(units, summed, hi - lo, h, size, dz, n, 1, du, width)
    if width > summed:
        dq, du_q = ptr_add(dy, op[CELL.kept]), ptr_add(du, summed)
        gemm_tn(units, width - summed, hi - lo, h, size, dq, n, 1, du_q, width)


@kernel
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """dU += Σ h'ᵀ dz over samples lo ≤ i < hi and all steps that have an h'; db_n += Σ dq

    grads[W] added to
    """
    units, width, summed, n = op[CELL.units], op[CELL.width], op[CELL.summed], op[N_OUT]
    columns, steps, du = op[CELL.columns], op[CELL.steps], ptr_add(grads, op[W])
    from_row, to_row = _pairs(op)
    h = ptr_add(acts, op[Y] + lo * n + from_row + op[CELL.state])
    dy = ptr_add(deltas, op[Y] + lo * n + to_row)
    dz = ptr_add(dy, op[CELL.gates])
    brgemm_tn(units, summed, steps - 1, hi - lo, h, columns, n, dz, columns, n, 1, du, width)
    if op[CELL.initial]:
        _accumulate_first(op, acts, deltas, lo, hi, du)
    if width > summed:
        rest, dq, du_q = width - summed, ptr_add(dy, op[CELL.kept]), ptr_add(du, summed)
        brgemm_tn(units, rest, steps - 1, hi - lo, h, columns, n, dq, columns, n, 1, du_q, width)
        db = ptr_add(du, op[N_WEIGHTS])
        all_dq = ptr_add(deltas, op[Y] + lo * n + op[CELL.kept])
        add_rows((hi - lo) * steps, rest, all_dq, columns, 1, db)


@accumulate_gradient.cuda
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    units, width, summed = op[CELL.units], op[CELL.width], op[CELL.summed]
    columns, steps, n = op[CELL.columns], op[CELL.steps], op[N_OUT]
    from_row, to_row = _pairs(op)
    for e in range(thread_rank(), units * width + width - summed, num_threads()):
        k = div_u32(e, width)
        c, total = e - k * width, const_like(grads, 0)
        for i in range(op[Y] + lo * n, op[Y] + hi * n, n):
            if k < units:
                h, dz = i + from_row + op[CELL.state] + k, i + to_row + _u_column(op, c)
                for t in range(0, (steps - 1) * columns, columns):
                    total += acts[h + t] * deltas[dz + t]
                if op[CELL.initial]:
                    sample = lo + div_u32(i - op[Y] - lo * n, n)
                    h = _initial_row(op, acts, sample)[op[CELL.state] + k]
                    total += h * deltas[_first_row(op, sample) + _u_column(op, c)]
            else:
                for t in range(0, steps * columns, columns):
                    total += deltas[i + t + op[CELL.kept] + c]
        grads[op[W] + e] += total


# --- derivatives along a direction --------------------------------------------------------------

# In what follows `ty` and `tbefore` hold the tangents of y and before, `tdy` and `tdbefore` those
# of dy and dbefore. `tangent` puts the tangents of the gates in the place of those of z. `second`
# comes before `vjp`, which may overwrite what it reads.


def _tanh_tangent(op, y, before, ty, tbefore, j, n, m):
    h = get(y, op[CELL.state] + j, n)
    put(ty, op[CELL.state] + j, get(ty, op[CELL.gates] + j, n) * (const_like(h, 1) - h * h), n)


def _tanh_second(op, y, before, ty, tbefore, dy, tdy, tdbefore, j, n, m):
    k = op[CELL.state] + j
    h, dh = get(y, k, n), get(dy, k, n)
    dz_dot = get(tdy, k, n) * (const_like(h, 1) - h * h) - const_like(h, 2) * h * get(ty, k, n) * dh
    put(tdy, op[CELL.gates] + j, dz_dot, n)


def _relu_tangent(op, y, before, ty, tbefore, j, n, m):
    h, z = get(y, op[CELL.state] + j, n), get(ty, op[CELL.gates] + j, n)
    zero = const_like(h, 0)
    put(ty, op[CELL.state] + j, where_greater(h, zero, z, zero), n)


def _lstm_tangent(op, y, before, ty, tbefore, j, n, m):
    units, z, c = op[CELL.units], op[CELL.gates] + j, op[CELL.kept] + j
    i, f = get(y, z, n), get(y, z + units, n)
    g, o = get(y, z + 2 * units, n), get(y, z + 3 * units, n)
    one, cell_tanh = const_like(i, 1), tanh(get(y, c, n))
    i_dot = get(ty, z, n) * i * (one - i)
    f_dot = get(ty, z + units, n) * f * (one - f)
    g_dot = get(ty, z + 2 * units, n) * (one - g * g)
    o_dot = get(ty, z + 3 * units, n) * o * (one - o)
    cell_dot = f_dot * get(before, c, m) + f * get(tbefore, c, m) + i_dot * g + i * g_dot
    put(ty, z, i_dot, n)
    put(ty, z + units, f_dot, n)
    put(ty, z + 2 * units, g_dot, n)
    put(ty, z + 3 * units, o_dot, n)
    put(ty, c, cell_dot, n)
    h_dot = o_dot * cell_tanh + o * (one - cell_tanh * cell_tanh) * cell_dot
    put(ty, op[CELL.state] + j, h_dot, n)


def _lstm_second(op, y, before, ty, tbefore, dy, tdy, tdbefore, j, n, m):
    units, z, c, h = op[CELL.units], op[CELL.gates] + j, op[CELL.kept] + j, op[CELL.state] + j
    i, f = get(y, z, n), get(y, z + units, n)
    g, o = get(y, z + 2 * units, n), get(y, z + 3 * units, n)
    i_dot, f_dot = get(ty, z, n), get(ty, z + units, n)
    g_dot, o_dot = get(ty, z + 2 * units, n), get(ty, z + 3 * units, n)
    one, two, cell_tanh = const_like(i, 1), const_like(i, 2), tanh(get(y, c, n))
    slope = one - cell_tanh * cell_tanh
    tanh_dot = slope * get(ty, c, n)
    dh, dh_dot = get(dy, h, n), get(tdy, h, n)
    dc = get(dy, c, n) + dh * o * slope
    dc_dot = get(tdy, c, n) + dh_dot * o * slope
    dc_dot = dc_dot + dh * (o_dot * slope - two * o * cell_tanh * tanh_dot)
    c_before = get(before, c, m)
    di_dot = (dc_dot * g + dc * g_dot) * i * (one - i) + dc * g * i_dot * (one - two * i)
    df_dot = (dc_dot * c_before + dc * get(tbefore, c, m)) * f * (one - f)
    df_dot = df_dot + dc * c_before * f_dot * (one - two * f)
    dg_dot = (dc_dot * i + dc * i_dot) * (one - g * g) - two * dc * i * g * g_dot
    do_dot = (dh_dot * cell_tanh + dh * tanh_dot) * o * (one - o)
    do_dot = do_dot + dh * cell_tanh * o_dot * (one - two * o)
    put(tdy, z, di_dot, n)
    put(tdy, z + units, df_dot, n)
    put(tdy, z + 2 * units, dg_dot, n)
    put(tdy, z + 3 * units, do_dot, n)
    put(tdbefore, c, get(tdbefore, c, m) + dc_dot * f + dc * f_dot, m)


def _gru_tangent(op, y, before, ty, tbefore, j, n, m):
    units, z, h = op[CELL.units], op[CELL.gates] + j, op[CELL.state] + j
    r, u, new = get(y, z, n), get(y, z + units, n), get(y, z + 2 * units, n)
    one, q = const_like(r, 1), op[CELL.kept] + j
    r_dot = get(ty, z, n) * r * (one - r)
    u_dot = get(ty, z + units, n) * u * (one - u)
    new_dot = get(ty, z + 2 * units, n) + r_dot * get(y, q, n) + r * get(ty, q, n)
    new_dot = new_dot * (one - new * new)
    put(ty, z, r_dot, n)
    put(ty, z + units, u_dot, n)
    put(ty, z + 2 * units, new_dot, n)
    h_dot = new_dot + u_dot * (get(before, h, m) - new) + u * (get(tbefore, h, m) - new_dot)
    put(ty, h, h_dot, n)


def _gru_second(op, y, before, ty, tbefore, dy, tdy, tdbefore, j, n, m):
    units, z, h, q = op[CELL.units], op[CELL.gates] + j, op[CELL.state] + j, op[CELL.kept] + j
    r, u, new = get(y, z, n), get(y, z + units, n), get(y, z + 2 * units, n)
    r_dot, u_dot, new_dot = get(ty, z, n), get(ty, z + units, n), get(ty, z + 2 * units, n)
    one, two, product = const_like(r, 1), const_like(r, 2), get(y, q, n)
    dh, dh_dot = get(dy, h, n), get(tdy, h, n)
    slope = one - new * new
    dz_new = dh * (one - u) * slope
    dz_new_dot = (dh_dot * (one - u) - dh * u_dot) * slope
    dz_new_dot = dz_new_dot - two * dh * (one - u) * new * new_dot
    dr_dot = (dz_new_dot * product + dz_new * get(ty, q, n)) * r * (one - r)
    dr_dot = dr_dot + dz_new * product * r_dot * (one - two * r)
    behind = get(before, h, m) - new
    du_dot = (dh_dot * behind + dh * (get(tbefore, h, m) - new_dot)) * u * (one - u)
    du_dot = du_dot + dh * behind * u_dot * (one - two * u)
    put(tdy, z, dr_dot, n)
    put(tdy, z + units, du_dot, n)
    put(tdy, z + 2 * units, dz_new_dot, n)
    put(tdy, q, dz_new_dot * r + dz_new * r_dot, n)
    put(tdbefore, h, get(tdbefore, h, m) + dh_dot * u + dh * u_dot, m)


tangent: Any = None
second: Any = None


@inline
def _before(op, memory, i, s):
    """(row of sample i before step number s, elements from one sample's to the next)"""
    columns = op[CELL.columns]
    if s == 0 and op[CELL.initial]:
        return _initial_row(op, memory, i), columns - op[CELL.carried]
    _, t = _steps(op, s)
    return ptr_add(memory, op[Y] + i * op[N_OUT] + t * columns), op[N_OUT]


@inline
def _add_product(op, rows, known, before, n_before, u, beta, y):
    """z += h' U and q = β q + h' U_n, for some samples of a step; h' has `known` elements"""
    width, summed, n = op[CELL.width], op[CELL.summed], op[N_OUT]
    h, z, q = ptr_add(before, op[CELL.state]), ptr_add(y, op[CELL.gates]), ptr_add(y, op[CELL.kept])
    gemm(rows, summed, known, h, n_before, u, width, 1, z, n)
    if width > summed:
        gemm(rows, width - summed, known, h, n_before, ptr_add(u, summed), width, beta, q, n)


def _tangent(op, params, grads, acts, deltas, lo, hi):
    """Run the tangents of the cell over the steps of samples lo ≤ i < hi.

    deltas[y]   the tangents of z become those of the gates and of h
    grads[W]    the tangents of U; a null pointer where there are none
    """
    units, width, summed = op[CELL.units], op[CELL.width], op[CELL.summed]
    steps, columns, with_params = op[CELL.steps], op[CELL.columns], address(grads) != 0
    n, u, u_dot = op[N_OUT], ptr_add(params, op[W]), ptr_add(grads, op[W])
    for s in range(steps):
        (t, _), known = _steps(op, s), _known(op, s)
        first = op[Y] + lo * n + t * columns
        y, ty = ptr_add(acts, first), ptr_add(deltas, first)
        y_before, n_before = _before(op, acts, lo, s)
        ty_before, _ = _before(op, deltas, lo, s)
        _add_product(op, hi - lo, known, ty_before, n_before, u, 0, ty)
        if with_params:
            _add_product(op, hi - lo, known, y_before, n_before, u_dot, 1, ty)
            for i in range(hi - lo):
                for j in range(width - summed):
                    ty[i * n + op[CELL.kept] + j] += u_dot[op[N_WEIGHTS] + j]
        for i in range(hi - lo):
            row, row_before = ptr_add(y, i * n), ptr_add(y_before, i * n_before)
            t_row, t_row_before = ptr_add(ty, i * n), ptr_add(ty_before, i * n_before)
            if t < sequence_length(op, lo + i, steps):
                for j in range(0, units, lanes(acts)):
                    tangent(op, row, row_before, t_row, t_row_before, j, units - j, known - j)
            else:
                _clear(op, t_row)


def _second_backward(op, params, grads, acts, deltas, lo, hi):
    """Carry the error and its tangents back through time, for samples lo ≤ i < hi.

    deltas[y]   as `backward` leaves them, and so their tangents
    grads[W]    the tangents of U; a null pointer where there are none
    """
    units, width, summed = op[CELL.units], op[CELL.width], op[CELL.summed]
    steps, columns, tangents = op[CELL.steps], op[CELL.columns], context(op, TANGENTS)
    n, u_t, u_dot = op[N_OUT], ptr_add(acts, op[SCRATCH]), ptr_add(grads, op[W])
    u_q, with_params = ptr_add(u_t, summed * units), address(grads) != 0
    transpose(units, width, ptr_add(params, op[W]), width, u_t, units)
    for s in range(steps - 1, -1, -1):
        (t, _), known = _steps(op, s), _known(op, s)
        first = op[Y] + lo * n + t * columns
        y, dy = ptr_add(acts, first), ptr_add(deltas, first)
        y_before, n_before = _before(op, acts, lo, s)
        d_before, _ = _before(op, deltas, lo, s)
        for i in range(hi - lo):
            row, last = ptr_add(y, i * n), ptr_add(y_before, i * n_before)
            d_row, d_last = ptr_add(dy, i * n), ptr_add(d_before, i * n_before)
            t_row, t_last = ptr_add(row, tangents), ptr_add(last, tangents)
            td_row, td_last = ptr_add(d_row, tangents), ptr_add(d_last, tangents)
            if s == 0 and known:
                _clear_carried(op, d_last)
                _clear_carried(op, td_last)
            if t < sequence_length(op, lo + i, steps):
                for j in range(0, units, lanes(acts)):
                    k, m = units - j, known - j
                    second(op, row, last, t_row, t_last, d_row, td_row, td_last, j, k, m)
                    vjp(op, row, last, d_row, d_last, j, k, m)
            else:
                _clear(op, d_row)
                _clear(op, td_row)
        for shift in (0, tangents):
            dz, dh = ptr_add(dy, shift + op[CELL.gates]), ptr_add(d_before, shift + op[CELL.state])
            gemm(hi - lo, known, summed, dz, n, u_t, units, 1, dh, n_before)
            if width > summed:
                dq = ptr_add(dy, shift + op[CELL.kept])
                gemm(hi - lo, known, width - summed, dq, n, u_q, units, 1, dh, n_before)
        if with_params:
            dz, dh = ptr_add(dy, op[CELL.gates]), ptr_add(d_before, tangents + op[CELL.state])
            gemm_nt(hi - lo, known, summed, dz, n, u_dot, width, 1, dh, n_before)
            if width > summed:
                dq, u_dot_q = ptr_add(dy, op[CELL.kept]), ptr_add(u_dot, summed)
                gemm_nt(hi - lo, known, width - summed, dq, n, u_dot_q, width, 1, dh, n_before)


def _tangent_cuda(op, params, grads, acts, deltas, lo, hi):
    units, width, summed = op[CELL.units], op[CELL.width], op[CELL.summed]
    steps, columns, with_params = op[CELL.steps], op[CELL.columns], address(grads) != 0
    for i in range(lo + thread_rank(), hi, num_threads()):
        for s in range(steps):
            (t, _), known = _steps(op, s), _known(op, s)
            first = op[Y] + i * op[N_OUT] + t * columns
            y, ty = ptr_add(acts, first), ptr_add(deltas, first)
            (y_before, _), (ty_before, _) = _before(op, acts, i, s), _before(op, deltas, i, s)
            for c in range(width):
                total = ty[_u_column(op, c)] if c < summed else const_like(deltas, 0)
                for k in range(known):
                    total += ty_before[op[CELL.state] + k] * params[op[W] + k * width + c]
                if with_params:
                    for k in range(known):
                        total += y_before[op[CELL.state] + k] * grads[op[W] + k * width + c]
                    if c >= summed:
                        total += grads[op[W] + op[N_WEIGHTS] + c - summed]
                ty[_u_column(op, c)] = total
            if t < sequence_length(op, i, steps):
                for j in range(units):
                    tangent(op, y, y_before, ty, ty_before, j, units - j, known - j)
            else:
                _clear(op, ty)


def _second_backward_cuda(op, params, grads, acts, deltas, lo, hi):
    units, width, steps = op[CELL.units], op[CELL.width], op[CELL.steps]
    columns, tangents, with_params = op[CELL.columns], context(op, TANGENTS), address(grads) != 0
    for i in range(lo + thread_rank(), hi, num_threads()):
        for s in range(steps - 1, -1, -1):
            (t, _), known = _steps(op, s), _known(op, s)
            first = op[Y] + i * op[N_OUT] + t * columns
            y, dy = ptr_add(acts, first), ptr_add(deltas, first)
            (y_before, _), (d_before, _) = _before(op, acts, i, s), _before(op, deltas, i, s)
            ty, ty_before = ptr_add(y, tangents), ptr_add(y_before, tangents)
            tdy, td_before = ptr_add(dy, tangents), ptr_add(d_before, tangents)
            if s == 0 and known:
                _clear_carried(op, d_before)
                _clear_carried(op, td_before)
            if t < sequence_length(op, i, steps):
                for j in range(units):
                    k, m = units - j, known - j
                    second(op, y, y_before, ty, ty_before, dy, tdy, td_before, j, k, m)
                    vjp(op, y, y_before, dy, d_before, j, k, m)
            else:
                _clear(op, dy)
                _clear(op, tdy)
            for k in range(known):
                total, change = d_before[op[CELL.state] + k], td_before[op[CELL.state] + k]
                for c in range(width):
                    place, element = _u_column(op, c), op[W] + k * width + c
                    total += dy[place] * params[element]
                    change += tdy[place] * params[element]
                    if with_params:
                        change += dy[place] * grads[element]
                d_before[op[CELL.state] + k] = total
                td_before[op[CELL.state] + k] = change


def _make_tangent_kernels(name, tangent, second=None, vjp=None) -> tuple[Kernel, Kernel | None]:
    """The kernels `name_tangent` and `name_second_backward` of a cell, for CPU and GPU."""

    def made(verb, cpu, cuda, **cells):
        both = []
        for template, kind, words in (
            (cpu, "", {"get": _get, "put": _put}),
            (cuda, "_scalar", {"get": _get_scalar, "put": _put_scalar}),
        ):
            functions = {
                what: inline(specialize(cell, f"{name}_{verb}_{what}{kind}", **words))
                for what, cell in cells.items()
            }
            both.append(specialize(template, f"{name}_{verb}", **functions))
        return kernel(both[0]).cuda(both[1])

    forward = made("tangent", _tangent, _tangent_cuda, tangent=tangent)
    if second is None:
        return forward, None
    cells = {"second": second, "vjp": vjp}
    return forward, made("second_backward", _second_backward, _second_backward_cuda, **cells)


tanh_tangent, tanh_second_backward = _make_tangent_kernels(
    "tanh", _tanh_tangent, _tanh_second, _tanh_vjp
)
relu_tangent = _make_tangent_kernels("relu", _relu_tangent)[0]
lstm_tangent, lstm_second_backward = _make_tangent_kernels(
    "lstm", _lstm_tangent, _lstm_second, _lstm_vjp
)
gru_tangent, gru_second_backward = _make_tangent_kernels("gru", _gru_tangent, _gru_second, _gru_vjp)


@kernel
def second_gradient(op, params, grads, acts, deltas, lo, hi):
    """dU += Σ ḣ'ᵀ dz over samples lo ≤ i < hi and all steps that have an h'

    grads[W] added to
    """
    units, width, summed, n = op[CELL.units], op[CELL.width], op[CELL.summed], op[N_OUT]
    columns, steps, du = op[CELL.columns], op[CELL.steps], ptr_add(grads, op[W])
    (from_row, to_row), tangents = _pairs(op), ptr_add(acts, context(op, TANGENTS))
    h = ptr_add(tangents, op[Y] + lo * n + from_row + op[CELL.state])
    dy = ptr_add(deltas, op[Y] + lo * n + to_row)
    dz, rest = ptr_add(dy, op[CELL.gates]), width - summed
    brgemm_tn(units, summed, steps - 1, hi - lo, h, columns, n, dz, columns, n, 1, du, width)
    if op[CELL.initial]:
        _accumulate_first(op, tangents, deltas, lo, hi, du)
    if rest:
        dq, du_q = ptr_add(dy, op[CELL.kept]), ptr_add(du, summed)
        brgemm_tn(units, rest, steps - 1, hi - lo, h, columns, n, dq, columns, n, 1, du_q, width)


@second_gradient.cuda
def second_gradient(op, params, grads, acts, deltas, lo, hi):
    units, width, n = op[CELL.units], op[CELL.width], op[N_OUT]
    columns, steps, tangents = op[CELL.columns], op[CELL.steps], context(op, TANGENTS)
    from_row, to_row = _pairs(op)
    for e in range(thread_rank(), units * width, num_threads()):
        k = div_u32(e, width)
        c, total = e - k * width, const_like(grads, 0)
        for i in range(op[Y] + lo * n, op[Y] + hi * n, n):
            h, dz = tangents + i + from_row + op[CELL.state] + k, i + to_row + _u_column(op, c)
            for t in range(0, (steps - 1) * columns, columns):
                total += acts[h + t] * deltas[dz + t]
            if op[CELL.initial]:
                sample = lo + div_u32(i - op[Y] - lo * n, n)
                h = _initial_row(op, ptr_add(acts, tangents), sample)[op[CELL.state] + k]
                total += h * deltas[_first_row(op, sample) + _u_column(op, c)]
        grads[op[W] + e] += total


# --- the state before the first step, and after the last ----------------------------------------


@kernel(independent=True)
def trained_state(op, params, grads, acts, deltas, lo, hi):
    """acts[y] = the parameters, for samples lo ≤ i < hi"""
    for i in range(lo, hi):
        y = op[Y] + i * op[CARRY.count]
        for j in range(op[CARRY.count]):
            acts[y + j] = params[op[W] + j]


@kernel
def trained_state_gradient(op, params, grads, acts, deltas, lo, hi):
    """The sum of deltas[y] over samples lo ≤ i < hi        grads[W] added to"""
    for i in range(lo, hi):
        y = op[Y] + i * op[CARRY.count]
        for j in range(op[CARRY.count]):
            grads[op[W] + j] += deltas[y + j]


@trained_state_gradient.cuda
def trained_state_gradient(op, params, grads, acts, deltas, lo, hi):
    for j in range(thread_rank(), op[CARRY.count], num_threads()):
        for i in range(lo, hi):
            y = op[Y] + i * op[CARRY.count]
            grads[op[W] + j] += deltas[y + j]


@kernel(independent=True)
def state_tangent(op, params, grads, acts, deltas, lo, hi):
    """0, as an initial state does not depend on the input        deltas[y]"""
    for i in range(lo, hi):
        y = op[Y] + i * op[CARRY.count]
        for j in range(op[CARRY.count]):
            deltas[y + j] = const_like(deltas, 0)


@inline
def _state_of(op, acts, i):
    """Where the state of sample i of the batch begins."""
    place = i * context(op, STATE_SIZE) + op[STATE_OFFSET]
    return ptr_add(as_pointer(context(op, STATE), acts), place)


@kernel(independent=True)
def read_state(op, params, grads, acts, deltas, lo, hi):
    """acts[y] = the state, or 0 where there is none"""
    for i in range(lo, hi):
        y = op[Y] + i * op[CARRY.count]
        for j in range(op[CARRY.count]):
            acts[y + j] = _state_of(op, acts, i)[j] if context(op, STATE) else const_like(acts, 0)


@kernel(independent=True)
def write_state(op, params, grads, acts, deltas, lo, hi):
    """The state = the carried columns of the step that came last, in acts[y]"""
    for i in range(lo if context(op, STATE) else hi, hi):
        last = sequence_length(op, i, op[CARRY.steps]) - 1
        y = op[Y] + i * op[N_OUT] + last * op[CARRY.columns] + op[CARRY.carried]
        for j in range(op[CARRY.count]):
            _state_of(op, acts, i)[j] = acts[y + j]


# --- the states that the next layer sees --------------------------------------------------------


@inline
def _step_of(op, i, s, d):
    """The step whose state of direction d is row s of the output of sample i."""
    if op[STATES.sequences]:
        return s
    if op[STATES.reverse] + d == 1:
        return 0
    return sequence_length(op, i, op[STATES.steps]) - 1


@kernel(independent=True)
def states_forward(op, params, grads, acts, deltas, lo, hi):
    """y = the columns of h, of all steps or of the last one        acts[y] overwritten"""
    units, columns = op[STATES.units], op[STATES.columns]
    n_in, n_out = op[STATES.steps] * columns, op[N_OUT]
    rows = op[STATES.steps] if op[STATES.sequences] else 1
    for i in range(lo, hi):
        y = op[Y] + i * n_out
        for s in range(rows):
            for d in range(op[STATES.directions]):
                x = op[X] + i * n_in + _step_of(op, i, s, d) * columns
                x += op[STATES.state] + d * units
                for j in range(units):
                    acts[y + j] = acts[x + j]
                y += units


@kernel(independent=True)
def states_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = dy in the columns of h of these steps, else 0

    deltas[x] overwritten, but for the columns before `read`
    """
    units, columns = op[STATES.units], op[STATES.columns]
    n_in, n_out = op[STATES.steps] * columns, op[N_OUT]
    rows = op[STATES.steps] if op[STATES.sequences] else 1
    for i in range(lo, hi):
        for x in range(op[X] + i * n_in, op[X] + (i + 1) * n_in, columns):
            for k in range(x + op[STATES.read], x + columns):
                deltas[k] = const_like(deltas, 0)
        y = op[Y] + i * n_out
        for s in range(rows):
            for d in range(op[STATES.directions]):
                x = op[X] + i * n_in + _step_of(op, i, s, d) * columns
                x += op[STATES.state] + d * units
                for j in range(units):
                    deltas[x + j] = deltas[y + j]
                y += units


# --- layers -------------------------------------------------------------------------------------


def _by_gate(given, gates: int):
    """An initialiser that draws every gate's block of columns by itself; arrays stay whole."""
    if isinstance(given, (np.ndarray, list, tuple)):
        return given
    return Columns((given,) * gates)


@dataclass(frozen=True, eq=False)
class Recurrent(Layer):
    """A cell of `units` that reads a sequence (steps, n_in) from its first step, or its last one.

    return_sequences   False: the output is the state after the last step, (units,). True: the
                       states of all steps, (steps, units)
    reverse            begin with the last step; the states stay with their steps
    initializer             of W (n_in, gates · units), by default Glorot
    recurrent_initializer   of U (units, gates · units), by default orthogonal
    bias_initializer        of b (gates · units,), by default zeros, and 1 for the forget gate
    penalty            L1(…), L2(…) or a list of them, on W and U and not on the bias
    initial_state      the state before the first step: "zeros", or "trained": parameters
                       `initial_h`, and `initial_c` of an LSTM
    stateful           True: the state after the last step is the one before the first step of the
                       sample at the same place of the next batch, until `network.reset_state()`;
                       its derivative ends there (truncated back-propagation)
    Initialisers draw gate by gate. Raises ValueError for an input that is not a sequence.
    """

    instead: ClassVar[dict[str, str]] = {
        **Layer.instead,
        "hidden_size": "its size is `units`",
        "input_size": "Sequential takes the shape of a sample, input_shape",
        "activation": "gates have the sigmoid, all else tanh; nn.RNN takes an activation",
        "recurrent_activation": "gates have the sigmoid",
        "num_layers": "write a layer for each, with return_sequences=True but for the last",
        "bidirectional": "write nn.Bidirectional(nn.LSTM(units))",
        "go_backwards": "reverse=True begins with the last step",
        "return_state": "network.stream() has the state",
        "batch_first": "inputs are (samples, steps, channels)",
        **dict.fromkeys(("bias", "use_bias"), "it always has a bias"),
        **dict.fromkeys(("dropout", "recurrent_dropout"), "put nn.Dropout(rate) between layers"),
    }

    units: Annotated[int, Count()]
    return_sequences: Annotated[bool, Flag()] = False
    reverse: Annotated[bool, Flag()] = False
    initializer: Annotated[Any, INITIALIZER] = "glorot"
    recurrent_initializer: Annotated[Any, INITIALIZER] = "orthogonal"
    bias_initializer: Annotated[Any, INITIALIZER] = None
    penalty: Annotated[Any, PENALTY] = None
    initial_state: Annotated[str, Choice(("zeros", "trained"))] = "zeros"
    stateful: Annotated[bool, Flag()] = False

    gates: ClassVar[int] = 1
    """Blocks of columns in W and U."""
    summed: ClassVar[int] = 1
    """How many of them are added to z before the cell; the last ones of U have a bias of their own
    instead, `recurrent_bias`."""
    kept: ClassVar[int] = 0
    """Blocks of columns in the slot besides the gates and h."""
    carries: ClassVar[tuple[str, ...]] = ("h",)
    """What a step hands to the next one, in the order of the columns."""

    def __post_init__(self):
        kind, second = type(self).__name__, self.return_sequences
        if type(second) is int:
            raise ValueError(
                f"{kind}: return_sequences must be True or False, got {second}; the size of the "
                f"input comes from input_shape, so PyTorch's {kind}({self.units}, {second}) is "
                f"nn.{kind}({second})"
            )
        super().__post_init__()
        if self.stateful and self.reverse:
            raise ValueError(
                f"{kind}: reverse=True ends with the first step, which the next "
                "batch cannot go on from; a stateful layer begins with it"
            )
        if self.stateful and self.initial_state != "zeros":
            raise ValueError(
                f"{kind}: a stateful layer goes on from the state of the batch "
                "before, and initial_state='trained' begins every sequence anew; choose one"
            )

    def output_shape(self, shape: Shape) -> Shape:
        return self.direction_shape(shape, 1)

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        return self.direction_parameters(shape, ("",))

    def initializers(self, next_activation) -> dict:
        return self.direction_initializers(("",))

    def ops(self, shape: Shape) -> list[Op]:
        return self.direction_ops(shape, 1)

    def following_activation(self):
        return None  # an RNN's is inside

    def initial_bias(self) -> tuple:
        """Return the initialisers of the gates' biases."""
        return ("zeros",) * self.gates

    def kernels(self) -> tuple[Kernel, Kernel, Kernel]:
        """Return the forward and the backward pass of the cell over time, and one step of it."""
        raise NotImplementedError

    def tangent_kernels(self) -> tuple[Kernel, Kernel | None]:
        """Return the cell's tangents over time, and with the second derivative, if it has one."""
        raise NotImplementedError

    def step_ops(self, shape: Shape) -> list[Op]:
        """Return the ops of one step (1, n_in), whose state the caller of compiled code keeps."""
        dense, *rest = self.direction_ops((1, shape[-1]), 1)
        cell = next(op for op in rest if op.in_place)
        unused = [  # parameters in front of the cell's
            Op(op.name, op.n_in, 0, None, param_rows=op.param_rows, param_cols=op.param_cols)
            for op in rest[: rest.index(cell)]
        ]
        step = Op(
            cell.name,
            cell.n_in,
            self.units,
            self.kernels()[2],
            state=len(self.carries) * self.units,
            param_rows=cell.param_rows,
            param_cols=cell.param_cols,
            n_weights=cell.n_weights,
            attrs=cell.attrs,
        )
        return [dense, *unused, step]

    # --- for one direction or two ---

    def direction_shape(self, shape: Shape, directions: int) -> Shape:
        """Return the output shape of one direction, or of two side by side."""
        if len(shape) != 2:
            hint = ""
            if len(shape) == 1:
                hint = (
                    f"; give it a channel axis: input_shape={(*shape, 1)}, or the recurrent layer "
                    "before it return_sequences=True"
                )
            raise ValueError(
                f"{type(self).__name__} expects a sequence (steps, channels), got {shape}{hint}"
            )
        width = directions * self.units
        return (shape[0], width) if self.return_sequences else (width,)

    def direction_parameters(self, shape: Shape, prefixes: tuple[str, ...]) -> dict[str, Shape]:
        """Return the parameters: W and b of all directions together, then U for each."""
        width = self.gates * self.units
        shapes: dict[str, Shape] = {
            "weights": (shape[1], len(prefixes) * width),
            "bias": (len(prefixes) * width,),
        }
        if self.initial_state == "trained":
            for name in self.carries:
                shapes |= {f"{prefix}initial_{name}": (self.units,) for prefix in prefixes}
        for prefix in prefixes:
            shapes[f"{prefix}recurrent_weights"] = (self.units, width)
            if self.summed < self.gates:
                rest = (self.gates - self.summed) * self.units
                shapes[f"{prefix}recurrent_bias"] = (rest,)
        return shapes

    def direction_initializers(self, prefixes: tuple[str, ...]) -> dict:
        """Return an initialiser for each of these parameters."""
        given = self.bias_initializer
        chosen = {
            "weights": _by_gate(self.initializer, len(prefixes) * self.gates),
            "bias": Columns(self.initial_bias() * len(prefixes)) if given is None else given,
        }
        for prefix in prefixes:
            drawn = _by_gate(self.recurrent_initializer, self.gates)
            chosen[f"{prefix}recurrent_weights"] = drawn
            chosen[f"{prefix}recurrent_bias"] = Zeros()
        return chosen

    def direction_ops(self, shape: Shape, directions: int) -> list[Op]:
        """Return the ops; of two directions the second runs against the first."""
        (steps, n_in), units, width = shape, self.units, self.gates * self.units
        overlay = self.gates == 1  # h replaces z
        states = 0 if overlay else directions * (self.gates + self.kept) * units
        columns = states + directions * units
        ops = [dense_op(n_in, directions * width, True, steps, columns)]
        count = len(self.carries) * directions * units
        carry = CARRY.pack(steps=steps, columns=columns, carried=columns - count, count=count)
        before = self._initial_state(steps * columns, count, carry)
        ops += [before] if before else []
        for d in range(directions):
            attrs = CELL.pack(
                units=units,
                steps=steps,
                columns=columns,
                gates=d * width,
                kept=directions * width + d * self.kept * units,
                state=states + d * units,
                width=width,
                summed=self.summed * units,
                reverse=int(self.reverse) ^ d,
                carried=columns - count,
                initial=int(before is not None),
            )
            ops.append(self._recurrence(steps, columns, attrs, before))
        if self.stateful:
            options: dict[str, Any] = {"in_place": True, "aux": before, "attrs": carry}
            ops.append(Op("CarriedState", 0, steps * columns, write_state, **options))
        attrs = STATES.pack(
            units=units,
            steps=steps,
            columns=columns,
            state=states,
            read=0 if overlay else directions * width,
            directions=directions,
            reverse=int(self.reverse),
            sequences=int(self.return_sequences),
        )
        rows = steps if self.return_sequences else 1
        n_out = rows * directions * units
        kernels = states_forward, states_backward
        options = {"linear": True, "parts": rows, "attrs": attrs}
        ops.append(Op("States", steps * columns, n_out, *kernels, **options))
        return ops

    def _initial_state(self, n_in: int, count: int, attrs: tuple) -> Op | None:
        """The op of the rows before the first step, None where these are zero."""
        options: dict[str, Any] = {"side_output": True, "side_delta": True, "attrs": attrs}
        options |= {"linear": True, "tangent": state_tangent}
        if self.stateful:
            return Op("InitialState", n_in, count, read_state, state=count, **options)
        if self.initial_state == "zeros":
            return None
        options |= {"param_rows": count, "param_cols": 1}
        gradient = trained_state_gradient
        return Op(
            "InitialState", n_in, count, trained_state, accumulate_gradient=gradient, **options
        )

    def _recurrence(self, steps: int, columns: int, attrs: tuple, before: Op | None) -> Op:
        (forward, backward, _), (tangent, second_backward) = self.kernels(), self.tangent_kernels()
        units, width = self.units, self.gates * self.units
        return Op(
            type(self).__name__,
            steps * columns,
            steps * columns,
            forward,
            backward,
            accumulate_gradient=accumulate_gradient,
            tangent=tangent,
            second_backward=second_backward,
            second_gradient=second_gradient,
            in_place=True,
            parts=steps,
            aux=before,
            param_rows=width + self.gates - self.summed,
            param_cols=units,
            n_weights=units * width,
            weight_reuse=steps,
            scratch=units * width,
            attrs=attrs,
        )


@dataclass(frozen=True, eq=False)
class RNN(Recurrent):
    """A recurrent layer without gates: h = f(x W + b + h' U).

    activation   f: "tanh" or "relu"
    The other arguments are those of Recurrent.
    """

    activation: Annotated[str, Choice(("tanh", "relu"))] = "tanh"

    def kernels(self) -> tuple[Kernel, Kernel, Kernel]:
        if self.activation == "relu":
            return relu_forward, relu_backward, relu_step
        return tanh_forward, tanh_backward, tanh_step

    def tangent_kernels(self) -> tuple[Kernel, Kernel | None]:
        if self.activation == "relu":
            return relu_tangent, None
        return tanh_tangent, tanh_second_backward


class LSTM(Recurrent):
    """Long short-term memory: a cell with input, forget and output gates.

    The bias of the forget gate begins at 1. The arguments are those of Recurrent.
    """

    gates, summed, kept, carries = 4, 4, 1, ("c", "h")

    def initial_bias(self) -> tuple:
        gates = list(super().initial_bias())
        gates[FORGET_GATE] = "ones"
        return tuple(gates)

    def kernels(self) -> tuple[Kernel, Kernel, Kernel]:
        return lstm_forward, lstm_backward, lstm_step

    def tangent_kernels(self) -> tuple[Kernel, Kernel | None]:
        return lstm_tangent, lstm_second_backward


class GRU(Recurrent):
    """A gated recurrent unit: reset and update gates, and no state besides its output.

    The recurrent product of n has a bias of its own, `recurrent_bias` (units,). The arguments are
    those of Recurrent.
    """

    gates, summed, kept = 3, 2, 1

    def kernels(self) -> tuple[Kernel, Kernel, Kernel]:
        return gru_forward, gru_backward, gru_step

    def tangent_kernels(self) -> tuple[Kernel, Kernel | None]:
        return gru_tangent, gru_second_backward


def _recurrent(given) -> None:
    if not isinstance(given, Recurrent) or type(given) is Recurrent:
        raise TypeError(f"RNN(…), LSTM(…) or GRU(…) was expected, got {shown(given)}")


@dataclass(frozen=True, eq=False)
class Bidirectional(Layer):
    """A recurrent layer that reads a sequence in both directions: twice as many outputs.

    layer   RNN(…), LSTM(…) or GRU(…): its states, then those of a second one that begins at the
            other end; not a stateful one
    The parameters of the second one are `reverse_recurrent_weights` and, for a GRU,
    `reverse_recurrent_bias`; in weights and bias its columns follow those of the first.
    """

    layer: Annotated[Any, By(_recurrent)]

    def __post_init__(self):
        super().__post_init__()
        if self.layer.stateful:
            raise ValueError(
                "Bidirectional: its second direction begins at the end, which the next batch "
                "cannot go on from; take a layer that is not stateful"
            )

    @property
    def penalty(self):
        """The penalty of the layer, on the weights of both directions."""
        return self.layer.penalty

    def output_shape(self, shape: Shape) -> Shape:
        return self.layer.direction_shape(shape, 2)

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        return self.layer.direction_parameters(shape, BOTH)

    def initializers(self, next_activation) -> dict:
        return self.layer.direction_initializers(BOTH)

    def ops(self, shape: Shape) -> list[Op]:
        return self.layer.direction_ops(shape, 2)
