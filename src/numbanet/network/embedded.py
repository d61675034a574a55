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
    address,
    as_pointer,
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
    ADDED,
    FOR_INPUTS,
    FOR_PARAMS,
    FROM_PARAMS,
    HEADER,
    INITIAL,
    INITIAL_SIZE,
    MAGIC,
    NO_GRADIENT,
    OPTIMIZER,
    OPTIMIZER_SIZE,
    PROGRAM,
    START,
    START_SIZE,
    STEP,
    STEP_SIZE,
)
from numbanet.nn.initializers import CONSTANT, NORMAL, ORTHOGONAL, UNIFORM
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
            "make another with network.handle(…), or network.stream()"
        )


@inline
def _check_work_dtype(model, itemsize):
    if itemsize != model[HEADER.itemsize]:
        raise ValueError("work is of another dtype than the network")


@inline
def _check_work(model, size, itemsize):
    """ValueError for work memory that is too small."""
    _check_work_dtype(model, itemsize)
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
def _check_direction(model, row_size, params_size, params_itemsize):
    """ValueError for derivatives by, or directions of, inputs and parameters; either may lack."""
    if row_size:
        if row_size != model[HEADER.rows] * model[HEADER.n_in]:
            raise ValueError(
                "a derivative by the inputs, or their direction, has another size than row"
            )
        if not model[HEADER.has_drow]:
            raise ValueError(
                "the first layer has no derivative by the inputs: pass an empty array for it"
            )
    if params_size:
        _check_gradient(model, params_size, params_itemsize)


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
def _run(program, first, end, params, tangents, grads, work, wanted):
    """Steps first ≤ k < end, except those that need what is not among `wanted`.

    tangents   the parameters' tangents, a null pointer where they have none
    grads      the gradient by the parameters, added to
    """
    scratch = ptr_add(work, program[PROGRAM.scratch])
    for k in range(first, end):
        step, op = _step(program, k)
        if step[STEP.needs] & ~wanted:
            continue
        given = tangents if step[STEP.params] else params
        acts, deltas = ptr_add(work, step[STEP.acts]), ptr_add(work, step[STEP.deltas])
        kernel, end_row = step[STEP.kernel], step[STEP.end]
        if step[STEP.gradient] == NO_GRADIENT:
            call_indirect(kernel, op, given, tangents, acts, deltas, 0, end_row)
            source = ptr_add(work, step[STEP.sum])
            target = ptr_add(source, program[PROGRAM.tangents])
            for i in range(step[STEP.n_sum]):
                target[i] += source[i]
        elif step[STEP.gradient] == ADDED:
            call_indirect(kernel, op, given, grads, acts, deltas, 0, end_row)
            penalize(op, params, grads, op[W], op[W] + op[N_WEIGHTS])
        else:
            start, n = op[W], step[STEP.n_params]
            part = ptr_add(scratch, -start)
            call_indirect(kernel, op, given, part, acts, deltas, 0, end_row)
            penalize(op, params, part, start, start + op[N_WEIGHTS])
            for i in range(start, start + n):
                grads[i] += part[i]


@inline
def predict(model, params, acts, row, out):
    """What `forward` does, for pointers."""
    program, rows = ptr_add(model, model[HEADER.prediction]), model[HEADER.rows]
    copy_converted(row, ptr_add(acts, program[PROGRAM.inputs]), rows * model[HEADER.n_in])
    run_forward(program, params, acts, rows)
    copy_converted(ptr_add(acts, program[PROGRAM.outputs]), out, rows * model[HEADER.n_out])


@inline
def _run_backward(program, params, grads, acts, with_params, with_inputs):
    """All steps of the backward pass that the gradients asked for need."""
    wanted = (FOR_PARAMS if with_params else 0) | (FOR_INPUTS if with_inputs else 0)
    first, end = program[PROGRAM.n_forward], program[PROGRAM.n_steps]
    _run(program, first, end, params, params, grads, acts, wanted)


# --- forward ----------------------------------------------------------------------------------


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


# --- a sequence, step by step -----------------------------------------------------------------


@embeddable
def step_state_size(model):
    """Return how many elements `state` of `step` has, for all rows of the handle."""
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    _check_has_step(header)
    return header[HEADER.rows] * header[HEADER.n_carried]


@embeddable
def step_work_size(model):
    """Return how many elements the work memory of `step` needs: those of one step."""
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    _check_has_step(header)
    return header[HEADER.step_work_size]


@inline
def _check_has_step(model):
    if not model[HEADER.step]:
        raise ValueError("the handle has no step: make it with network.handle(step=True)")


@inline
def _check_state(model, size, itemsize):
    """ValueError for what is not the state of the handle's sequences."""
    if size != model[HEADER.rows] * model[HEADER.n_carried]:
        raise ValueError("state has another size: it needs step_state_size(model) elements")
    if itemsize != model[HEADER.itemsize]:
        raise ValueError("state is of another dtype than the network")


@embeddable
def begin_sequence(model, params, state):
    """Write the state before the first step: zeros, or the parameters of a trained one.

    state   `step_state_size(model)` elements; overwritten
    """
    p, s = checked_pointer(params, "params", "float"), checked_pointer(state, "state", "write")
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    _check_params(header, p, params.size, params.itemsize)
    _check_has_step(header)
    _check_state(header, state.size, state.itemsize)
    _clear(s, state.size)
    for k in range(header[HEADER.n_starts]):
        start = ptr_add(header, header[HEADER.starts] + k * START_SIZE)
        for place in range(start[START.place], state.size, header[HEADER.n_carried]):
            copy_converted(ptr_add(p, start[START.offset]), ptr_add(s, place), start[START.n])


@embeddable
def step(model, params, state, row, out, work):
    """Take one step of a sequence: write what the network gives after it.

    state   of the sequence before the step, `step_state_size(model)` elements; becomes that after
            it. `begin_sequence` writes the first one
    row     one step of the inputs, (rows, *input_shape[1:]) or as many elements: float32, float64
            or integers
    out     the outputs of this step, (rows, outputs); of a network that gives one output for a
            sequence, that for the steps so far. float32 or float64; overwritten
    work    `step_work_size(model)` elements, or more
    The handle is made with step=True. A sequence step by step gives what `predict` gives for all of
    it.
    """
    header, p = (
        checked_pointer(model, "model", "integers"),
        checked_pointer(params, "params", "float"),
    )
    x, y = checked_pointer(row, "row", "read"), checked_pointer(out, "out", "write")
    s, acts = checked_pointer(state, "state", "write"), checked_pointer(work, "work", "write")
    _check_model(header, model.size)
    _check_params(header, p, params.size, params.itemsize)
    _check_work_dtype(header, work.itemsize)
    _check_has_step(header)
    if work.size < header[HEADER.step_work_size]:
        raise ValueError("work is too small: it needs step_work_size(model) elements")
    _check_state(header, state.size, state.itemsize)
    rows = header[HEADER.rows]
    if row.size != rows * header[HEADER.n_step_in]:
        raise ValueError("row has another size than one step of the network's inputs for each row")
    if out.size != rows * header[HEADER.n_step_out]:
        raise ValueError("out has another size than the outputs of one step for each row")
    program = ptr_add(header, header[HEADER.step])
    copy_converted(x, ptr_add(acts, program[PROGRAM.inputs]), row.size)
    for k in range(program[PROGRAM.n_forward]):
        columns, op = _step(program, k)
        call_indirect(columns[STEP.kernel], op, p, s, acts, acts, 0, rows)
    copy_converted(ptr_add(acts, program[PROGRAM.outputs]), y, out.size)


# --- gradients, loss --------------------------------------------------------------------------


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
    _check_direction(header, drow.size, dparams.size, dparams.itemsize)
    _check_has_vjp(header)
    n_in, program = header[HEADER.rows] * header[HEADER.n_in], header[HEADER.prediction]
    program = ptr_add(header, program)
    copy_converted(x, ptr_add(acts, program[PROGRAM.inputs]), n_in)
    run_forward(program, p, acts, header[HEADER.rows])
    _pull_back(header, p, dy, grads, dparams.size, dx, drow.size, acts)


@embeddable
def pullback(model, params, dout, dparams, drow, work):
    """Do the second half of `vjp`, after `forward` with the same handle, params and work.

    As `vjp`, without its forward pass: for a `dout` that depends on the outputs, and for several of
    them, such as the rows of a Jacobian. Between the two, params and work stay as they are.
    """
    p, dy = checked_pointer(params, "params", "float"), checked_pointer(dout, "dout", "read")
    dx, acts = checked_pointer(drow, "drow", "write"), checked_pointer(work, "work", "write")
    grads = checked_pointer(dparams, "dparams", "write")
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    _check_params(header, p, params.size, params.itemsize)
    _check_work(header, work.size, work.itemsize)
    _check_rows(header, header[HEADER.rows] * header[HEADER.n_in], dout.size)
    _check_direction(header, drow.size, dparams.size, dparams.itemsize)
    _check_has_vjp(header)
    _pull_back(header, p, dy, grads, dparams.size, dx, drow.size, acts)


@inline
def _check_has_vjp(model):
    if not model[HEADER.has_vjp]:
        raise ValueError("the handle was made with gradient=False, so it has no vjp")


@inline
def _pull_back(model, params, dout, grads, n_params, drow, n_row, acts):
    """The backward pass of the program `prediction`, after its forward pass."""
    program = ptr_add(model, model[HEADER.prediction])
    deltas = ptr_add(acts, program[PROGRAM.deltas])
    n_out = model[HEADER.rows] * model[HEADER.n_out]
    copy_converted(dout, ptr_add(deltas, program[PROGRAM.outputs]), n_out)
    _run_backward(program, params, grads, acts, n_params > 0, n_row > 0)
    if n_row:
        copy_converted(ptr_add(deltas, program[PROGRAM.inputs]), drow, n_row)


@embeddable
def jvp(model, params, row, drow, dparams, out, dout, work):
    """Write the outputs, and their derivative along a direction of the inputs and parameters.

    row, out  as for `forward`
    drow      the direction of the inputs, of the size of `row`; empty for none
    dparams   the direction of the parameters, of the size of a gradient; empty for none
    dout      J_row drow + J_params dparams, of the size of `out`; overwritten
    The handle is made with jvp=True or hvp=True. The layers work as in prediction.
    """
    p = checked_pointer(params, "params", "float")
    x, dx = checked_pointer(row, "row", "read"), checked_pointer(drow, "drow", "read")
    y, dy = checked_pointer(out, "out", "write"), checked_pointer(dout, "dout", "write")
    direction = checked_pointer(dparams, "dparams", "float")
    acts = checked_pointer(work, "work", "write")
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    _check_params(header, p, params.size, params.itemsize)
    _check_work(header, work.size, work.itemsize)
    _check_rows(header, row.size, out.size)
    _check_rows(header, row.size, dout.size)
    _check_direction(header, drow.size, dparams.size, dparams.itemsize)
    if not header[HEADER.tangents]:
        raise ValueError("the handle has no tangents: make it with network.handle(jvp=True)")
    program, n_out = ptr_add(header, header[HEADER.tangents]), header[HEADER.rows]
    n_out *= header[HEADER.n_out]
    _run_tangents(program, p, x, dx, row.size, drow.size, direction, dparams.size, acts)
    outputs = ptr_add(acts, program[PROGRAM.outputs])
    copy_converted(outputs, y, n_out)
    copy_converted(ptr_add(outputs, program[PROGRAM.tangents]), dy, n_out)


@embeddable
def hvp(model, params, row, dout, vrow, vparams, hrow, hparams, work):
    """Multiply the second derivative of Σ dout · out by a direction (vrow, vparams).

    row, dout  as for `vjp`
    vrow       the direction's part by the inputs, of the size of `row`; empty for none
    vparams    its part by the parameters, of the size of a gradient; empty for none
    hrow       the derivative of drow along the direction, of the size of `row`; overwritten, empty
               where it is not wanted
    hparams    the derivative of dparams, of the size of a gradient; added to, empty where it is not
               wanted
    The handle is made with hvp=True. dout is constant: where it depends on the outputs, as with a
    loss L, `vjp` of L″ jvp adds what is missing.
    """
    p = checked_pointer(params, "params", "float")
    x, dy = checked_pointer(row, "row", "read"), checked_pointer(dout, "dout", "read")
    vx, direction = (
        checked_pointer(vrow, "vrow", "read"),
        checked_pointer(vparams, "vparams", "float"),
    )
    hx, grads = checked_pointer(hrow, "hrow", "write"), checked_pointer(hparams, "hparams", "write")
    acts = checked_pointer(work, "work", "write")
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    _check_params(header, p, params.size, params.itemsize)
    _check_work(header, work.size, work.itemsize)
    _check_rows(header, row.size, dout.size)
    _check_direction(header, vrow.size, vparams.size, vparams.itemsize)
    _check_direction(header, hrow.size, hparams.size, hparams.itemsize)
    if not header[HEADER.has_hvp]:
        raise ValueError("the handle has no hvp: make it with network.handle(hvp=True)")
    if hparams.size and vparams.size and address(direction) == address(grads):
        raise ValueError("hparams is added to while vparams are read: pass two arrays")
    program, n_out = ptr_add(header, header[HEADER.tangents]), header[HEADER.rows]
    n_out *= header[HEADER.n_out]
    given = _run_tangents(program, p, x, vx, row.size, vrow.size, direction, vparams.size, acts)
    deltas = ptr_add(acts, program[PROGRAM.deltas] + program[PROGRAM.outputs])
    copy_converted(dy, deltas, n_out)
    _clear(ptr_add(deltas, program[PROGRAM.tangents]), n_out)
    wanted = (FOR_PARAMS if hparams.size else 0) | (FOR_INPUTS if hrow.size else 0)
    if vparams.size:
        wanted |= FROM_PARAMS
    first, end = program[PROGRAM.n_forward], program[PROGRAM.n_steps]
    _run(program, first, end, p, given, grads, acts, wanted)
    if hrow.size:
        inputs = program[PROGRAM.deltas] + program[PROGRAM.inputs]
        copy_converted(ptr_add(acts, inputs + program[PROGRAM.tangents]), hx, hrow.size)


@inline
def _clear(target, n):
    for k in range(n):
        target[k] = const_like(target, 0)


@inline
def _run_tangents(program, params, row, drow, n_in, n_row, dparams, n_params, work):
    """The forward pass with tangents; return where those of the parameters are, or null."""
    inputs = ptr_add(work, program[PROGRAM.inputs])
    tangents = ptr_add(inputs, program[PROGRAM.tangents])
    copy_converted(row, inputs, n_in)
    if n_row:
        copy_converted(drow, tangents, n_in)
    else:
        _clear(tangents, n_in)
    given, wanted = as_pointer(0, params), 0
    if n_params:
        given, wanted = as_pointer(address(dparams), params), FROM_PARAMS
        if program[PROGRAM.params]:
            given = as_pointer(address(ptr_add(work, program[PROGRAM.params])), params)
            copy_converted(dparams, given, n_params)
            for k in range(n_params, program[PROGRAM.n_memory]):
                given[k] = params[k]
    _run(program, 0, program[PROGRAM.n_forward], params, given, work, work, wanted)
    return given


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
        _run_backward(program, p, grads, acts, True, False)
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
    return _normal(key, counter)


@inline
def _normal(key, counter):
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


# --- initial values ---------------------------------------------------------------------------


@embeddable
def initialize(model, params, key):
    """Draw all parameters again, from the distributions that `network.initialize` draws from.

    The values are others: element k of array i, counted from 0 in the order of the flat vector, has
    the key new_key(key, i) and the counter k, where a recurrent layer's gates are arrays of their
    own. Buffers, such as running means, stay.
    """
    p = checked_pointer(params, "params", "write")
    header = checked_pointer(model, "model", "integers")
    _check_model(header, model.size)
    _check_params(header, p, params.size, params.itemsize)
    if not header[HEADER.initial]:
        raise ValueError(
            "a layer's initial values are an array, or drawn by a Python function: copy "
            "network.parameters instead"
        )
    for i in range(header[HEADER.n_initial]):
        row = ptr_add(header, header[HEADER.initial] + i * INITIAL_SIZE)
        kind, own = row[INITIAL.kind], fold_in(key, i)
        a, b = float_attr(row, INITIAL.a), float_attr(row, INITIAL.b)
        values, columns = ptr_add(p, row[INITIAL.offset]), row[INITIAL.columns]
        for k in range(row[INITIAL.rows] * columns):
            place = k // columns * row[INITIAL.stride] + k % columns
            if kind == CONSTANT:
                values[place] = const_like(values, a)
            elif kind == UNIFORM:
                values[place] = const_like(values, a + (b - a) * uniform_scalar(own, k))
            elif kind == NORMAL:
                values[place] = const_like(values, a + b * _normal(own, k))
            else:
                values[place] = const_like(values, _normal(own, k))
        if kind == ORTHOGONAL:
            _make_orthogonal(values, row[INITIAL.rows], columns, row[INITIAL.stride], a)


@inline
def _make_orthogonal(values, rows, columns, stride, gain):
    """Make the rows, or the columns where there are fewer, orthogonal and of length `gain`.

    Gram and Schmidt's method; every vector is projected twice, which rounding needs.
    """
    few, many, step, inside = rows, columns, stride, 1
    if columns < rows:
        few, many, step, inside = columns, rows, 1, stride
    for i in range(few):
        v = ptr_add(values, i * step)
        for _ in range(2):
            for j in range(i):
                u, dot = ptr_add(values, j * step), 0.0
                for k in range(many):
                    dot += np.float64(u[k * inside]) * np.float64(v[k * inside])
                for k in range(many):
                    v[k * inside] -= const_like(values, dot) * u[k * inside]
            total = 0.0
            for k in range(many):
                total += np.float64(v[k * inside]) * np.float64(v[k * inside])
            for k in range(many):
                v[k * inside] *= const_like(values, 1 / math.sqrt(total))
    for i in range(few):
        for k in range(many):
            values[i * step + k * inside] *= const_like(values, gain)
