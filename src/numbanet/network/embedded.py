"""The functions of `numbanet.compiled`: a network that the user's compiled code is given as data.

    model    a handle, int64: `network.handle(…)`, made in this process; made for n rows
    params   the flat vector: network.memory, a copy of it, or another of the same layout
    work     memory of `work_size(model)` elements, one for each thread; its contents do not matter

All floats that a function reads or writes are of the network's dtype, unless it says otherwise; all
arrays are C-contiguous, of any number of dimensions. Nothing is allocated, locked or kept between
calls. Each function raises ValueError for a size that does not fit, or a handle that cannot be
used, before it writes anything.
"""

import math

import numpy as np

from numbanet.backend.intrinsics import (
    call_indirect,
    checked_pointer,
    const_like,
    float_attr,
    fold_in,
    holds_integers,
    local_array,
    process_token,
    ptr_add,
    set_float_attr,
    uniform_scalar,
)
from numbanet.backend.jit import embeddable, inline
from numbanet.network.handle import (
    ACCUMULATE_STEP,
    BACKWARD_STEP,
    GRADIENT_STEP,
    HEADER,
    INPUT_STEP,
    MAGIC,
    OPTIMIZER,
    OPTIMIZER_SIZE,
    PROGRAM,
    STEP,
    STEP_SIZE,
)
from numbanet.nn.regularizers import penalize
from numbanet.plan.columns import (
    ATTRS,
    L1_STRENGTH,
    L2_STRENGTH,
    N_WEIGHTS,
    ROW_SIZE,
    W,
)
from numbanet.plan.columns import STEP as OPTIMIZER_STEP

N_HEADER = len(HEADER)
N_PROGRAM = len(PROGRAM)

# --- checks, on pointers and sizes --------------------------------------------------------------


@inline
def _check_model(model, size):
    """ValueError for what is not a handle of this process."""
    if size < N_HEADER or model[HEADER.magic] != MAGIC:
        raise ValueError(
            "model is not a handle of this version of numbanet: pass network.handle(…); where your "
            "code says cache=True and was compiled with another version, delete that cache, the "
            "files .nbi and .nbc in __pycache__ beside it or in $NUMBA_CACHE_DIR"
        )
    if model[HEADER.token] != process_token():
        raise ValueError(
            "model was made in another process, whose addresses mean nothing here: call "
            "network.handle(…) in this one"
        )


@inline
def _check_params(model, params, size, itemsize):
    """ValueError for parameters that the network does not have."""
    if itemsize != model[HEADER.itemsize]:
        raise ValueError("params are of another dtype than the network")
    if size != model[HEADER.n_needed] and size != model[HEADER.n_memory]:
        raise ValueError(
            "params have another size than network.memory: the handle belongs to another network, "
            "or params are not its flat vector"
        )
    last = model[HEADER.n_memory] - 1  # the last deviation of scaled targets, 0 where there is none
    if size > last and (params[last] != const_like(params, 0)) != model[HEADER.scales_targets]:
        raise ValueError(
            "the handle was made before fit scaled the network's targets, or before initialize: "
            "make another with network.handle(…)"
        )


@inline
def _check_work(model, size, itemsize):
    """ValueError for work memory that is too small."""
    if itemsize != model[HEADER.itemsize]:
        raise ValueError("work is of another dtype than the network")
    if size < model[HEADER.work_size]:
        raise ValueError("work is too small: it needs work_size(model) elements")


@inline
def _check_gradient(model, size, itemsize):
    """ValueError for a gradient that is not the parameters'."""
    if size != model[HEADER.n_params]:
        raise ValueError("the gradient has another size than network.parameters")
    if itemsize != model[HEADER.itemsize]:
        raise ValueError("the gradient is of another dtype than the network")


@inline
def _check_rows(model, row_size, out_size):
    """ValueError for inputs or outputs that are not the handle's rows of them."""
    if row_size != model[HEADER.rows] * model[HEADER.n_in]:
        raise ValueError("row has another size than the handle's rows of the network's inputs")
    if out_size != model[HEADER.rows] * model[HEADER.n_out]:
        raise ValueError("out has another size than the handle's rows of the network's outputs")


@embeddable
def check(model, params, row, out, work):
    """Raise what `forward` would raise for these arguments, and do nothing else.

    For code that cannot raise, which checks once.
    """
    p = checked_pointer(params, "params", "float")
    checked_pointer(row, "row", "read")
    checked_pointer(out, "out", "write")
    checked_pointer(work, "work", "write")
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    _check_params(header, p, params.size, params.itemsize)
    _check_work(header, work.size, work.itemsize)
    _check_rows(header, row.size, out.size)


@embeddable
def work_size(model):
    """Return how many elements the work memory needs."""
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    return header[HEADER.work_size]


@embeddable
def state_size(model):
    """Return how many elements the optimiser's state has; they are 0 before the first step."""
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    return header[HEADER.n_state]


# --- the passes, on pointers ------------------------------------------------------------------


@inline
def _step(program, k):
    """(columns of step k, the row of its op)"""
    step = ptr_add(program, N_PROGRAM + STEP_SIZE * k)
    return step, ptr_add(program, program[PROGRAM.table] + step[STEP.row])


@inline
def copy_converted(source, target, n):
    """target[k] = source[k] for 0 ≤ k < n, converted"""
    for k in range(n):
        target[k] = const_like(target, source[k])


@inline
def run_forward(program, params, acts, rows):
    """All forward steps, from the inputs' slot to the outputs'."""
    for k in range(program[PROGRAM.n_forward]):
        step, op = _step(program, k)
        call_indirect(step[STEP.kernel], op, params, params, acts, acts, 0, rows)


@inline
def predict(model, params, acts, row, out):
    """What `forward` does, for pointers."""
    program, rows = ptr_add(model, model[HEADER.prediction]), model[HEADER.rows]
    copy_converted(row, ptr_add(acts, program[PROGRAM.inputs]), rows * model[HEADER.n_in])
    run_forward(program, params, acts, rows)
    copy_converted(ptr_add(acts, program[PROGRAM.outputs]), out, rows * model[HEADER.n_out])


@inline
def _run_backward(program, params, grads, acts, rows, with_params, with_inputs):
    """All steps of the backward pass that the gradients asked for need."""
    deltas = ptr_add(acts, program[PROGRAM.deltas])
    scratch = ptr_add(acts, program[PROGRAM.scratch])
    for k in range(program[PROGRAM.n_forward], program[PROGRAM.n_steps]):
        step, op = _step(program, k)
        kind = step[STEP.kind]
        if kind == BACKWARD_STEP or (kind == INPUT_STEP and with_inputs):
            call_indirect(step[STEP.kernel], op, params, params, acts, deltas, 0, rows)
        elif kind == ACCUMULATE_STEP and with_params:
            call_indirect(step[STEP.kernel], op, params, grads, acts, deltas, 0, rows)
            penalize(op, params, grads, op[W], op[W] + op[N_WEIGHTS])
        elif kind == GRADIENT_STEP and with_params:
            first, end = op[W], op[W] + step[STEP.n_params]
            part, param_rows = ptr_add(scratch, -first), step[STEP.param_rows]
            call_indirect(step[STEP.kernel], op, params, part, acts, deltas, 0, param_rows)
            penalize(op, params, part, first, first + op[N_WEIGHTS])
            for i in range(first, end):
                grads[i] += part[i]


# --- forward, gradients, loss -----------------------------------------------------------------


@embeddable
def forward(model, params, row, out, work):
    """Write the network's outputs for the handle's rows.

    row    (rows, *input_shape) or as many elements: float32, float64 or integers
    out    (rows, *output_shape) or as many elements, float32 or float64; overwritten
    """
    header, p = (
        checked_pointer(model, "model", "integers"),
        checked_pointer(params, "params", "float"),
    )
    x, y = checked_pointer(row, "row", "read"), checked_pointer(out, "out", "write")
    acts = checked_pointer(work, "work", "write")
    _check_model(header, model.size)
    _check_params(header, p, params.size, params.itemsize)
    _check_work(header, work.size, work.itemsize)
    _check_rows(header, row.size, out.size)
    predict(header, p, acts, x, y)


@embeddable
def vjp(model, params, row, dout, dparams, drow, work):
    """Carry a derivative by the outputs back to the parameters and to the inputs.

    row       as for `forward`
    dout      dL/d out for some scalar L: as many elements as `out`
    dparams   dL/d params is added to it; empty where it is not wanted
    drow      dL/d row, overwritten, of the size of `row`; empty where it is not wanted, or where
              the first layer reads indices
    The layers work as in prediction: without dropout, BatchNorm with its running means. Penalties
    are left out.
    """
    p = checked_pointer(params, "params", "float")
    x, dy = checked_pointer(row, "row", "read"), checked_pointer(dout, "dout", "read")
    dx, acts = checked_pointer(drow, "drow", "write"), checked_pointer(work, "work", "write")
    grads = checked_pointer(dparams, "dparams", "write")
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    _check_params(header, p, params.size, params.itemsize)
    _check_work(header, work.size, work.itemsize)
    _check_rows(header, row.size, dout.size)
    if dparams.size:
        _check_gradient(header, dparams.size, dparams.itemsize)
    if drow.size:
        _check_rows(header, drow.size, dout.size)
    if not header[HEADER.has_vjp]:
        raise ValueError("the handle was made with gradient=False, so it has no vjp")
    if drow.size and not header[HEADER.has_drow]:
        raise ValueError("the first layer has no derivative by the inputs; pass an empty drow")
    rows = header[HEADER.rows]
    n_in, n_out = rows * header[HEADER.n_in], rows * header[HEADER.n_out]
    program = ptr_add(header, header[HEADER.prediction])
    deltas = ptr_add(acts, program[PROGRAM.deltas])
    copy_converted(x, ptr_add(acts, program[PROGRAM.inputs]), n_in)
    run_forward(program, p, acts, rows)
    copy_converted(dy, ptr_add(deltas, program[PROGRAM.outputs]), n_out)
    _run_backward(program, p, grads, acts, rows, dparams.size > 0, drow.size > 0)
    if drow.size:
        copy_converted(ptr_add(deltas, program[PROGRAM.inputs]), dx, n_in)


@embeddable
def loss_gradient(model, params, x, y, dparams, work):
    """Return the loss of the handle's rows, and add its gradient by the parameters to `dparams`.

    x         as `row` of `forward`
    y         targets (rows, outputs), or integer labels (rows,)
    dparams   added to; empty where only the loss is wanted
    It is the mean loss plus the penalties, as `network.loss` and `network.gradient` have it. The
    layers work as in prediction.
    """
    p, acts = checked_pointer(params, "params", "float"), checked_pointer(work, "work", "write")
    source, targets = checked_pointer(x, "x", "read"), checked_pointer(y, "y", "read")
    grads = checked_pointer(dparams, "dparams", "write")
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    _check_params(header, p, params.size, params.itemsize)
    _check_work(header, work.size, work.itemsize)
    if dparams.size:
        _check_gradient(header, dparams.size, dparams.itemsize)
    if not header[HEADER.loss]:
        raise ValueError("the handle has no loss: make it with network.handle(loss=…)")
    rows, n_out = header[HEADER.rows], header[HEADER.n_out]
    _check_rows(header, x.size, rows * n_out)
    n_in, program = x.size, ptr_add(header, header[HEADER.loss])
    _write_targets(targets, y.size, ptr_add(acts, program[PROGRAM.targets]), rows, n_out)
    inputs, scale = ptr_add(acts, program[PROGRAM.inputs]), float_attr(program, PROGRAM.scale)
    for k in range(n_in):
        inputs[k] = const_like(acts, source[k]) * const_like(acts, scale)
    run_forward(program, p, acts, rows)
    total = 0.0
    for i in range(rows):
        total += acts[program[PROGRAM.outputs] + i]
    if dparams.size:
        _run_backward(program, p, grads, acts, rows, True, False)
    return total / rows + _penalty(program, p)


@inline
def _write_targets(source, size, targets, rows, n_out):
    """Copy targets, or write labels as one-hot rows."""
    if size == rows * n_out:
        copy_converted(source, targets, rows * n_out)
        return
    if size != rows or not holds_integers(source):
        raise ValueError("y must have a row of targets for each sample, or an integer label")
    for i in range(rows):
        if source[i] < 0 or source[i] >= n_out:
            raise ValueError("a label is below 0, or not below the number of outputs")
    for i in range(rows):
        for j in range(n_out):
            targets[i * n_out + j] = const_like(targets, 1 if j == source[i] else 0)


@inline
def _penalty(program, params):
    """l1 Σ|w| + l2/2 Σ w² of all ops"""
    total = 0.0
    for k in range(program[PROGRAM.n_forward]):
        _, op = _step(program, k)
        l1, l2 = float_attr(op, L1_STRENGTH), float_attr(op, L2_STRENGTH)
        if l1 > 0 or l2 > 0:
            for i in range(op[W], op[W] + op[N_WEIGHTS]):
                total += l1 * abs(params[i]) + 0.5 * l2 * params[i] * params[i]
    return total


# --- steps of training ------------------------------------------------------------------------


@embeddable
def update(model, params, grads, state, t, learning_rate=None):
    """Take step t, counted from 1, of the handle's optimiser.

    params         the first network.parameters.size elements are changed
    grads          as many elements, read
    state          `state_size(model)` elements, 0 before the first step; changed
    learning_rate  instead of the optimiser's, for this step
    """
    p, g = checked_pointer(params, "params", "write"), checked_pointer(grads, "grads", "float")
    s = checked_pointer(state, "state", "write")
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    _check_params(header, p, params.size, params.itemsize)
    _check_gradient(header, grads.size, grads.itemsize)
    if not header[HEADER.update]:
        raise ValueError("the handle has no optimizer: make it with network.handle(optimizer=…)")
    if state.size != header[HEADER.n_state] or state.itemsize != params.itemsize:
        raise ValueError("state needs state_size(model) elements of the dtype of params")
    if t < 1:
        raise ValueError("t counts the steps from 1")
    context = local_array(header, OPTIMIZER_SIZE)
    for k in range(OPTIMIZER_SIZE):
        context[k] = header[OPTIMIZER + k]
    context[OPTIMIZER_STEP], op = np.int64(t), ptr_add(context, ROW_SIZE)
    if learning_rate is not None:
        set_float_attr(op, ATTRS, learning_rate)
    if header[HEADER.begin_step]:
        call_indirect(header[HEADER.begin_step], op, p, p, s, s, 0, 0)
    call_indirect(header[HEADER.update], op, p, g, s, s, 0, grads.size)


@embeddable
def clip_by_norm(grads, most):
    """Scale `grads` to the Euclidean norm `most` where theirs is greater; return what it was."""
    g, total = checked_pointer(grads, "grads", "write"), 0.0
    for k in range(grads.size):
        total += np.float64(g[k]) * np.float64(g[k])
    norm = math.sqrt(total)
    if norm > most:
        for k in range(grads.size):
            g[k] *= const_like(g, most / norm)
    return norm


# --- random numbers ---------------------------------------------------------------------------


@embeddable
def new_key(key, number):
    """Return a key that is a function of a key, or a seed, and a number."""
    return fold_in(key, number)


@embeddable
def uniform(key, counter):
    """Return a float64 in [0, 1), a multiple of 2⁻²⁴: a function of key and counter."""
    return uniform_scalar(key, counter)


@embeddable
def normal(key, counter):
    """Return a float64 of the standard normal distribution: a function of key and counter.

    It takes the uniform numbers of the counters 2 counter and 2 counter + 1 (Box, Muller 1958).
    """
    radius = math.sqrt(-2 * math.log(1 - uniform_scalar(key, 2 * counter)))
    return radius * math.cos(2 * math.pi * uniform_scalar(key, 2 * counter + 1))


@embeddable
def categorical(key, counter, probabilities):
    """Return i with the probability probabilities[i] / Σ probabilities.

    probabilities   at least one element, none negative
    """
    p, total = checked_pointer(probabilities, "probabilities", "read"), 0.0
    if probabilities.size == 0:
        raise ValueError("probabilities are empty")
    for i in range(probabilities.size):
        total += p[i]
    rest, last = uniform_scalar(key, counter) * total, 0
    for i in range(probabilities.size):
        if p[i] > 0:
            last = i
            if rest < p[i]:
                return i
            rest -= p[i]
    return last
