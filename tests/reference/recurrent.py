"""Reference implementations of the kernels in nn/layers/recurrent.py.

A cell is written for one sample as functions of whole vectors; the loops over samples and steps are
those of the formulas.
"""

import numpy as np

from numbanet.nn.layers.recurrent import CARRY, CELL, STATES
from numbanet.plan.columns import (
    AUX,
    N_IN,
    N_OUT,
    N_WEIGHTS,
    STATE,
    STATE_OFFSET,
    STATE_SIZE,
    TANGENTS,
    W,
    X,
    Y,
)
from reference.data import sequence_length


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


class _Row:
    """The columns of one step of one sample, by name."""

    def __init__(self, op, memory, i, t):
        begin = op[Y] + i * op[N_OUT] + (t or 0) * op[CELL.columns]
        if t is None:  # before the first step
            begin = op[AUX] + i * (op[CELL.columns] - op[CELL.carried]) - op[CELL.carried]
        self.units = op[CELL.units]
        n_gates = op[CELL.width] // op[CELL.units]
        self.gates = [self._view(memory, begin + op[CELL.gates], k) for k in range(n_gates)]
        self.kept = self._view(memory, begin + op[CELL.kept], 0)
        self.h = self._view(memory, begin + op[CELL.state], 0)
        summed = op[CELL.summed] // op[CELL.units]
        self.products = [*self.gates[:summed], *[self.kept] * (n_gates - summed)]

    def _view(self, memory, begin, k):
        return memory[begin + k * self.units : begin + (k + 1) * self.units]


def _times(op):
    """The steps in the order in which they come, each with the one before it, or None."""
    steps = list(range(op[CELL.steps]))
    if op[CELL.reverse]:
        steps.reverse()
    return list(zip(steps, [None, *steps[:-1]], strict=True))


def _before(op, memory, i, t):
    """The row of the step before, None where that is zero."""
    return None if t is None and not op[CELL.initial] else _Row(op, memory, i, t)


def _u(op, params):
    """U as one matrix for each gate, and the bias of the last one."""
    units, width = op[CELL.units], op[CELL.width]
    u = params[op[W] : op[W] + units * width].reshape(units, width // units, units)
    bias = params[op[W] + op[N_WEIGHTS] :][: width - op[CELL.summed]]
    return [u[:, k] for k in range(width // units)], bias


def _forward(cell):
    def forward(op, params, grads, acts, deltas, lo, hi):
        u, bias = _u(op, params)
        n_summed = op[CELL.summed] // op[CELL.units]
        for i in range(lo, hi):
            for t, before in _times(op):
                row, zero = _Row(op, acts, i, t), np.zeros(op[CELL.units])
                last = _before(op, acts, i, before)
                h = zero if last is None else last.h
                for k, out in enumerate(row.products):
                    out[:] = (out if k < n_summed else bias) + h @ u[k]
                cell(row, h, zero if last is None else last.kept)

    return forward


def _backward(cell):
    def backward(op, params, grads, acts, deltas, lo, hi):
        u, _ = _u(op, params)
        for i in range(lo, hi):
            for t, before in reversed(_times(op)):
                row, drow, zero = _Row(op, acts, i, t), _Row(op, deltas, i, t), np.zeros_like
                last = _before(op, acts, i, before)
                h, kept = (zero(row.h), zero(row.h)) if last is None else (last.h, last.kept)
                dh, dkept = cell(row, drow, h, kept)
                dh = dh + sum(out @ u[k].T for k, out in enumerate(drow.products))
                if last is not None:
                    dlast = _Row(op, deltas, i, before)
                    if before is None:
                        dlast.h[:] = 0
                        if dkept is not None:
                            dlast.kept[:] = 0
                    dlast.h[:] += dh
                    if dkept is not None:
                        dlast.kept[:] += dkept

    return backward


def _tanh(row, h, kept):
    row.h[:] = np.tanh(row.gates[0])


def _tanh_vjp(row, drow, h, kept):
    drow.gates[0][:] = drow.h * (1 - row.h**2)
    return 0, None


def _relu(row, h, kept):
    row.h[:] = np.maximum(row.gates[0], 0)


def _relu_vjp(row, drow, h, kept):
    drow.gates[0][:] = drow.h * (row.h > 0)
    return 0, None


def _lstm(row, h, c):
    for k, f in enumerate((sigmoid, sigmoid, np.tanh, sigmoid)):
        row.gates[k][:] = f(row.gates[k])
    i, f, g, o = row.gates
    row.kept[:] = f * c + i * g
    row.h[:] = o * np.tanh(row.kept)


def _lstm_vjp(row, drow, h, c):
    i, f, g, o = row.gates
    do = drow.h * np.tanh(row.kept)
    dc = drow.kept + drow.h * o / np.cosh(row.kept) ** 2
    di, df, dg = dc * g, dc * c, dc * i
    drow.gates[0][:] = di * i * (1 - i)
    drow.gates[1][:] = df * f * (1 - f)
    drow.gates[2][:] = dg * (1 - g * g)
    drow.gates[3][:] = do * o * (1 - o)
    return 0, dc * f


def _gru(row, h, kept):
    row.gates[0][:] = sigmoid(row.gates[0])
    row.gates[1][:] = sigmoid(row.gates[1])
    r, u, n = row.gates
    n[:] = np.tanh(n + r * row.kept)
    row.h[:] = (1 - u) * n + u * h


def _gru_vjp(row, drow, h, kept):
    r, u, n = row.gates
    du, dn = drow.h * (h - n), drow.h * (1 - u)
    dz = dn * (1 - n * n)
    drow.gates[0][:] = dz * row.kept * r * (1 - r)
    drow.gates[1][:] = du * u * (1 - u)
    drow.gates[2][:] = dz
    drow.kept[:] = dz * r
    return drow.h * u, None


tanh_forward, tanh_backward = _forward(_tanh), _backward(_tanh_vjp)
relu_forward, relu_backward = _forward(_relu), _backward(_relu_vjp)
lstm_forward, lstm_backward = _forward(_lstm), _backward(_lstm_vjp)
gru_forward, gru_backward = _forward(_gru), _backward(_gru_vjp)


def _step(cell):
    def step(op, params, grads, acts, deltas, lo, hi):
        u, bias = _u(op, params)
        n_summed, carried = op[CELL.summed] // op[CELL.units], op[CELL.carried]
        for i in range(lo, hi):
            first = op[X] + i * op[CELL.columns]
            row = _Row(
                {CELL[k]: op[CELL[k]] for k in range(len(CELL))} | {Y: first, N_OUT: 0}, acts, 0, 0
            )
            place = i * op.context(STATE_SIZE) + op[STATE_OFFSET]
            state = grads[place : place + op[CELL.columns] - carried]
            h, kept = state[op[CELL.state] - carried :], state[: op[CELL.units]]
            for k, out in enumerate(row.products):
                out[:] = (out if k < n_summed else bias) + h @ u[k]
            cell(row, h.copy(), kept.copy())
            state[:] = acts[first + carried : first + op[CELL.columns]]
            acts[op[Y] + i * op[CELL.units] :][: op[CELL.units]] = row.h

    return step


tanh_step, relu_step, lstm_step, gru_step = (_step(cell) for cell in (_tanh, _relu, _lstm, _gru))


def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    units, width = op[CELL.units], op[CELL.width]
    du = grads[op[W] : op[W] + units * width].reshape(units, width)
    db = grads[op[W] + op[N_WEIGHTS] :][: width - op[CELL.summed]]
    for i in range(lo, hi):
        for t, before in _times(op):
            drow = _Row(op, deltas, i, t)
            last = _before(op, acts, i, before)
            if last is not None:
                du += np.outer(last.h, np.concatenate(drow.products))
            if len(db):
                db += drow.kept


# --- derivatives along a direction ----------------------------------------------------------------


def _tangent(cell):
    """grads holds the tangents of the parameters."""

    def tangent(op, params, grads, acts, deltas, lo, hi):
        (u, _), (du, dbias) = _u(op, params), _u(op, grads)
        n_summed = op[CELL.summed] // op[CELL.units]
        for i in range(lo, hi):
            for t, before in _times(op):
                row, change = _Row(op, acts, i, t), _Row(op, deltas, i, t)
                zero = np.zeros(op[CELL.units])
                last = [_before(op, memory, i, before) for memory in (acts, deltas)]
                last = last if last[0] else None
                h, dh = (zero, zero) if last is None else (one.h for one in last)
                for k, out in enumerate(change.products):
                    out[:] = dh @ u[k] + h @ du[k] + (out if k < n_summed else dbias)
                kept = (zero, zero) if last is None else (one.kept for one in last)
                cell(row, change, (h, dh), tuple(kept))

    return tangent


def _tanh_tangent(row, change, h, kept):
    change.h[:] = change.gates[0] * (1 - row.h**2)


def _relu_tangent(row, change, h, kept):
    change.h[:] = change.gates[0] * (row.h > 0)


def _lstm_tangent(row, change, h, c):
    i, f, g, o = row.gates
    slopes = i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)
    for out, slope in zip(change.gates, slopes, strict=True):
        out *= slope
    di, df, dg, do = change.gates
    change.kept[:] = df * c[0] + f * c[1] + di * g + i * dg
    change.h[:] = do * np.tanh(row.kept) + o * change.kept / np.cosh(row.kept) ** 2


def _gru_tangent(row, change, h, kept):
    r, u, n = row.gates
    dr, du, dn = change.gates
    dr *= r * (1 - r)
    du *= u * (1 - u)
    dn[:] = (dn + dr * row.kept + r * change.kept) * (1 - n * n)
    change.h[:] = (1 - u) * dn - du * n + du * h[0] + u * h[1]


tanh_tangent, relu_tangent = _tangent(_tanh_tangent), _tangent(_relu_tangent)
lstm_tangent, gru_tangent = _tangent(_lstm_tangent), _tangent(_gru_tangent)

STEP = 1e-30
"""Of a derivative by a complex step, which loses no digits: Im f(x + i STEP v) / STEP."""


def _second_backward(backward):
    """The derivative of a backward pass along the tangents of all that it reads."""

    def second_backward(op, params, grads, acts, deltas, lo, hi):
        slots = [np.arange(op[Y], op[Y] + hi * op[N_OUT])]
        if op[CELL.initial]:
            size = op[CELL.columns] - op[CELL.carried]
            slots.append(np.arange(op[AUX], op[AUX] + hi * size))
        places, tangents = np.concatenate(slots), op.context(TANGENTS)
        u, y, dy = params + 0j, acts + 0j, deltas + 0j
        u[: len(grads)] += 1j * STEP * grads
        for memory, source in ((y, acts), (dy, deltas)):
            memory[places] += 1j * STEP * source[tangents + places]
        backward(op, u, grads, y, dy, lo, hi)
        deltas[places], deltas[tangents + places] = dy[places].real, dy[places].imag / STEP

    return second_backward


tanh_second_backward = _second_backward(tanh_backward)
lstm_second_backward = _second_backward(lstm_backward)
gru_second_backward = _second_backward(gru_backward)


def second_gradient(op, params, grads, acts, deltas, lo, hi):
    units, width, tangents = op[CELL.units], op[CELL.width], acts[op.context(TANGENTS) :]
    du = grads[op[W] : op[W] + units * width].reshape(units, width)
    for i in range(lo, hi):
        for t, before in _times(op):
            last = _before(op, tangents, i, before)
            if last is not None:
                products = np.concatenate(_Row(op, deltas, i, t).products)
                du += np.outer(last.h, products)


def state_tangent(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        _initial(op, deltas, i)[:] = 0


def _initial(op, memory, i):
    """What stands before the first step of sample i."""
    first = op[Y] + i * op[CARRY.count]
    return memory[first : first + op[CARRY.count]]


def trained_state(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        _initial(op, acts, i)[:] = params[op[W] : op[W] + op[CARRY.count]]


def trained_state_gradient(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        grads[op[W] : op[W] + op[CARRY.count]] += _initial(op, deltas, i)


def _state(op, i):
    state = op.data[STATE][i, op[STATE_OFFSET] :]
    return state[: op[CARRY.count]]


def read_state(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        known = op.data.get(STATE) is not None
        _initial(op, acts, i)[:] = _state(op, i) if known else 0


def write_state(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi) if op.data.get(STATE) is not None else ():
        last = sequence_length(op, i, op[CARRY.steps]) - 1
        first = op[Y] + i * op[N_OUT] + last * op[CARRY.columns] + op[CARRY.carried]
        _state(op, i)[:] = acts[first : first + op[CARRY.count]]


def _places(op, i):
    """(place in the output, place in the input) of every state that is given."""
    steps, last = range(op[STATES.steps]), op[STATES.steps] - 1
    ends = [last, 0] if not op[STATES.reverse] else [0, last]
    out = op[Y] + i * op[N_OUT]
    for t in steps if op[STATES.sequences] else [None]:
        for d in range(op[STATES.directions]):
            row = op[X] + i * op[N_IN] + (ends[d] if t is None else t) * op[STATES.columns]
            for j in range(op[STATES.units]):
                yield out, row + op[STATES.state] + d * op[STATES.units] + j
                out += 1


def states_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for y, x in _places(op, i):
            acts[y] = acts[x]


def states_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        rows = deltas[op[X] + i * op[N_IN] :][: op[N_IN]].reshape(op[STATES.steps], -1)
        rows[:, op[STATES.read] :] = 0
        for y, x in _places(op, i):
            deltas[x] = deltas[y]
