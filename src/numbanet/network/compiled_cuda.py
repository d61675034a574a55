"""A network's functions for single threads of a GPU, inside the user's own CUDA kernels.

`network.handle(device="cuda")` gives a CudaHandle: device functions for this network, that each
thread calls with rows of its own. They are the programs of a handle (handle.py), whose kernels are
called by name, one after the other, instead of by address; the table lies in global memory, what
lies between the layers in the thread's local memory. `network.compiled(device="cuda")` is `forward`
with the parameters of now.
"""

import numpy as np

from numbanet.backend.cuda import driver
from numbanet.backend.intrinsics import (
    as_pointer,
    const_like,
    data_pointer,
    local_array,
    ptr_add,
    set_float_attr,
)
from numbanet.backend.jit import inline
from numbanet.network.embedded import copy_converted
from numbanet.network.handle import (
    ADDED,
    FOR_INPUTS,
    FOR_PARAMS,
    FROM_PARAMS,
    NO_GRADIENT,
    OPTIMIZER_SIZE,
    OVERWRITTEN,
    Program,
    is_differentiable,
    make_programs,
    optimizer_kernels,
)
from numbanet.nn.layers.base import size
from numbanet.nn.regularizers import penalize
from numbanet.plan.columns import ATTRS, N_WEIGHTS, ROW_SIZE, STEP, W

MAX_LOCAL_BYTES = 1 << 18
"""Bytes between the layers that fit the local memory of a single thread."""
MISSING = {
    "vjp": "make it with gradient=True",
    "jvp": "make it with jvp=True",
    "hvp": "make it with hvp=True",
    "loss_gradient": "make it with loss=…",
    "update": "make it with optimizer=…",
    "pullback": "a thread keeps nothing between two calls: take vjp",
    "step": "a thread reads whole sequences, by forward",
    "initialize": "draw the parameters on the CPU, by numbanet.compiled.initialize",
    "check": "a GPU cannot raise: compare the sizes before the launch",
    "work_size": "a thread's work memory is its local memory",
}
"""Why a handle for a GPU lacks a function, and the way out."""


class CudaHandle:
    """Device functions of a network for `@cuda.jit` code, which a single thread calls.

        forward(params, row, out)
        vjp(params, row, dout, dparams, drow)
        jvp(params, row, drow, dparams, out, dout)
        hvp(params, row, dout, vrow, vparams, hrow, hparams)
        loss_gradient(params, x, y, dparams)
        update(params, grads, state, t)

    They do what those of numbanet.compiled do, with arrays on the GPU; gradients are added to
    arrays of the thread's own. It has those that were asked for: see Sequential.handle. Sizes and
    labels are not checked, as a kernel on a GPU cannot raise: a label that is no output counts as
    none, and `drow` stays as it is where the first layer reads indices.

    state_size   elements of the optimiser's state
    n_local      elements of local memory that the function of most needs
    Raises ValueError if one call needs more than 256 KiB between the layers.
    """

    def __init__(
        self,
        network,
        *,
        optimizer=None,
        loss=None,
        rows=1,
        gradient=True,
        jvp=False,
        hvp=False,
        step=False,
    ):
        if step:
            raise ValueError(
                'step=True is for device="cpu": a thread of a GPU reads whole sequences, by forward'
            )
        driver.require_gpu()
        programs = make_programs(network, loss, rows, gradient, jvp, hvp, "thread")
        self.n_local = max(one.work_size for one in programs.values())
        needed = self.n_local * network.dtype.itemsize
        if needed > MAX_LOCAL_BYTES:
            what = "one sample needs" if rows == 1 else f"{rows:,} samples need"
            raise ValueError(
                f"{what} {needed:,} bytes between the layers, more than the "
                f"{MAX_LOCAL_BYTES:,} that fit the memory of a thread; "
                + ("call predict instead" if rows == 1 else "take fewer rows")
            )
        passes = {name: _Passes(network, one, rows) for name, one in programs.items()}
        prediction = passes["prediction"]
        self._kept_alive = [one.table for one in passes.values()]
        self.run = prediction.run()
        self.forward = prediction.forward(self.run)
        if gradient:
            self.vjp = prediction.vjp()
        if "tangents" in passes:
            self.jvp = passes["tangents"].jvp()
            if hvp:
                self.hvp = passes["tangents"].hvp()
        if loss is not None:
            self.loss_gradient = passes["loss"].loss_gradient()
        columns, self.state_size, kernels = optimizer_kernels(optimizer, network)
        if optimizer is not None:
            self._kept_alive.append(driver.DeviceBuffer(columns.size, np.int64))
            self._kept_alive[-1].upload(columns)
            address, n_params = self._kept_alive[-1].address, network.parameters.size
            self.update = _update(address, n_params, *kernels)
        for made in list(vars(self).values()):
            if callable(made):
                made.kept_alive = self._kept_alive

    def __getattr__(self, name: str):
        reason = f"the handle for a GPU has no {name}"
        if name in MISSING:
            reason += f": {MISSING[name]}"
        raise AttributeError(reason)


def compiled(network):
    """Return `f(row, out)` for the network as it is now, to be called from `@cuda.jit` code.

    row   C-contiguous array on the GPU, of input_shape or flat; float32, float64 or uint8
    out   array of as many elements as the network has outputs; overwritten
    Sizes are not checked, as a kernel on a GPU cannot raise. ValueError here if one sample needs
    more than 256 KiB between the layers.
    """
    handle = CudaHandle(network, gradient=False)
    params = driver.DeviceBuffer(network.memory.size, network.dtype)
    params.upload(network.memory)
    run, address, kind = handle.run, params.address, network.dtype.type

    def predict_row(row, out):
        run(as_pointer(address, kind), data_pointer(row), data_pointer(out))

    made = driver.device(predict_row)
    made.kept_alive, made.n_local = (handle, params), handle.n_local
    return made


class _Passes:
    """The passes of a program as device functions, and the functions made of them.

    table   the program's table on the GPU
    """

    def __init__(self, network, program: Program, rows: int):
        self.program, self.rows = program, rows
        self.n_in, self.n_out = rows * size(network.input_shape), rows * size(network.output_shape)
        self.n_params = network.parameters.size
        self.has_drow = is_differentiable(program.plan.ops)
        self.table = driver.DeviceBuffer(program.table.size, np.int64)
        self.table.upload(program.table)
        self.ahead = self._compose(program.steps[: program.n_forward])

    def _compose(self, steps):
        """One device function that takes these steps."""
        whole = driver.device(_nothing)
        for step in steps:
            verb = driver.per_thread(step.kernel)
            whole = _then(whole, verb, step, self.program, self.table.address)
        return whole

    def back(self):
        """The backward pass."""
        return self._compose(self.program.steps[self.program.n_forward :])

    def run(self):
        """The forward pass, on pointers."""
        ahead, n_work, n_in, n_out = self.ahead, self.program.work_size, self.n_in, self.n_out
        inputs, outputs = self.program.inputs, self.program.outputs

        def run(params, row, out):
            work = local_array(params, n_work)
            copy_converted(row, ptr_add(work, inputs), n_in)
            ahead(params, params, params, work, 0)
            copy_converted(ptr_add(work, outputs), out, n_out)

        return driver.device(run)

    def forward(self, run):
        def forward(params, row, out):
            run(data_pointer(params), data_pointer(row), data_pointer(out))

        return driver.device(forward)

    def vjp(self):
        ahead, back, n_work = self.ahead, self.back(), self.program.work_size
        inputs, outputs, deltas = self.program.inputs, self.program.outputs, self.program.deltas
        n_in, n_out, has_drow = self.n_in, self.n_out, self.has_drow

        def vjp(params, row, dout, dparams, drow):
            p = data_pointer(params)
            work = local_array(p, n_work)
            copy_converted(data_pointer(row), ptr_add(work, inputs), n_in)
            ahead(p, p, p, work, 0)
            copy_converted(data_pointer(dout), ptr_add(work, deltas + outputs), n_out)
            wanted = FOR_PARAMS if dparams.size else 0
            if has_drow and drow.size:
                back(p, p, data_pointer(dparams), work, wanted | FOR_INPUTS)
                copy_converted(ptr_add(work, deltas + inputs), data_pointer(drow), n_in)
            else:
                back(p, p, data_pointer(dparams), work, wanted)

        return driver.device(vjp)

    def with_tangents(self):
        """The forward pass with tangents; it returns where those of the parameters are, or null."""
        ahead, inputs, shift = self.ahead, self.program.inputs, self.program.tangents
        n_in, n_params, copied = self.n_in, self.n_params, self.program.params
        n_memory = self.program.plan.n_memory

        def run_tangents(params, row, drow, dparams, work):
            p, given, wanted = data_pointer(params), as_pointer(0, work), 0
            copy_converted(data_pointer(row), ptr_add(work, inputs), n_in)
            _set(ptr_add(work, shift + inputs), data_pointer(drow), drow.size, n_in)
            if dparams.size:
                given, wanted = data_pointer(dparams), FROM_PARAMS
                if copied:
                    copy_converted(given, ptr_add(work, copied), n_params)
                    given = ptr_add(work, copied)
                    for k in range(n_params, n_memory):
                        given[k] = p[k]
            ahead(p, given, work, work, wanted)
            return given

        return driver.device(run_tangents)

    def jvp(self):
        run_tangents, n_work, n_out = self.with_tangents(), self.program.work_size, self.n_out
        outputs, shift = self.program.outputs, self.program.tangents

        def jvp(params, row, drow, dparams, out, dout):
            work = local_array(data_pointer(params), n_work)
            run_tangents(params, row, drow, dparams, work)
            copy_converted(ptr_add(work, outputs), data_pointer(out), n_out)
            copy_converted(ptr_add(work, shift + outputs), data_pointer(dout), n_out)

        return driver.device(jvp)

    def hvp(self):
        run_tangents, back, n_work = self.with_tangents(), self.back(), self.program.work_size
        inputs, outputs, shift = self.program.inputs, self.program.outputs, self.program.tangents
        deltas, n_in, n_out = self.program.deltas, self.n_in, self.n_out
        has_drow = self.has_drow

        def hvp(params, row, dout, vrow, vparams, hrow, hparams):
            p = data_pointer(params)
            work = local_array(p, n_work)
            given = run_tangents(params, row, vrow, vparams, work)
            copy_converted(data_pointer(dout), ptr_add(work, deltas + outputs), n_out)
            _set(ptr_add(work, shift + deltas + outputs), p, 0, n_out)
            wanted = FROM_PARAMS if vparams.size else 0
            wanted |= FOR_PARAMS if hparams.size else 0
            if has_drow and hrow.size:
                back(p, given, data_pointer(hparams), work, wanted | FOR_INPUTS)
                copy_converted(ptr_add(work, shift + deltas + inputs), data_pointer(hrow), n_in)
            else:
                back(p, given, data_pointer(hparams), work, wanted)

        return driver.device(hvp)

    def loss_gradient(self):
        ahead, back, n_work = self.ahead, self.back(), self.program.work_size
        inputs, losses, targets = self.program.inputs, self.program.outputs, self.program.targets
        n_in, n_out, rows, scale = self.n_in, self.n_out, self.rows, self.program.scale
        penalty = driver.device(_zero)
        for op, row in self.program.plan.rows.items():
            if any(op.penalties) and op.n_weights:
                start = int(self.program.table[row, W])
                penalty = _and_penalty(penalty, *op.penalties, start, start + op.n_weights)

        def loss_gradient(params, x, y, dparams):
            p, source, wanted = data_pointer(params), data_pointer(x), data_pointer(y)
            work = local_array(p, n_work)
            for k in range(n_in):
                work[inputs + k] = const_like(work, source[k]) * const_like(work, scale)
            if y.size == n_out:
                copy_converted(wanted, ptr_add(work, targets), n_out)
            else:
                outputs = n_out // rows
                for k in range(n_out):
                    i = k // outputs
                    one = 1 if wanted[i] == k - i * outputs else 0
                    work[targets + k] = const_like(work, one)
            ahead(p, p, p, work, 0)
            total = 0.0
            for i in range(rows):
                total += work[losses + i]
            if dparams.size:
                back(p, p, data_pointer(dparams), work, FOR_PARAMS)
            return total / rows + penalty(p)

        return driver.device(loss_gradient)


def _nothing(params, tangents, grads, work, wanted):
    pass


def _zero(params):
    return 0.0


@inline
def _set(target, source, n, end):
    """target[k] = source[k] for k < n, 0 for n ≤ k < end"""
    for k in range(end):
        target[k] = const_like(target, source[k] if k < n else 0)


def _then(before, verb, step, program: Program, table: int):
    """The steps `before`, and one more: what `_run` of embedded.py does, for a single step."""
    needs, row, from_tangents, end = step.needs, step.row, step.params, step.end
    at_acts, at_deltas, shift, n_params = step.acts, step.deltas, program.tangents, step.n_params
    first_sum, end_sum, scratch = step.sum, step.sum + step.n_sum, program.scratch

    def plain(params, tangents, grads, work, wanted):
        before(params, tangents, grads, work, wanted)
        if needs & wanted == needs:
            op, given = ptr_add(as_pointer(table, np.int64), row), params
            if from_tangents:
                given = tangents
            verb(op, given, tangents, ptr_add(work, at_acts), ptr_add(work, at_deltas), 0, end)
            for i in range(first_sum, end_sum):
                work[shift + i] += work[i]

    def added(params, tangents, grads, work, wanted):
        before(params, tangents, grads, work, wanted)
        if needs & wanted == needs:
            op = ptr_add(as_pointer(table, np.int64), row)
            verb(op, params, grads, ptr_add(work, at_acts), ptr_add(work, at_deltas), 0, end)
            penalize(op, params, grads, op[W], op[W] + op[N_WEIGHTS])

    def overwritten(params, tangents, grads, work, wanted):
        before(params, tangents, grads, work, wanted)
        if needs & wanted == needs:
            op = ptr_add(as_pointer(table, np.int64), row)
            start = op[W]
            part = ptr_add(work, scratch - start)
            verb(op, params, part, ptr_add(work, at_acts), ptr_add(work, at_deltas), 0, end)
            penalize(op, params, part, start, start + op[N_WEIGHTS])
            for i in range(start, start + n_params):
                grads[i] += part[i]

    made = {NO_GRADIENT: plain, ADDED: added, OVERWRITTEN: overwritten}
    return driver.device(made[step.gradient])


def _and_penalty(before, l1, l2, start, end):
    """`before` and l1 Σ|w| + l2/2 Σ w² of parameters start … end."""

    def penalty(params):
        total = before(params)
        for i in range(start, end):
            total += l1 * abs(params[i]) + 0.5 * l2 * params[i] * params[i]
        return total

    return driver.device(penalty)


def _no_kernel(op, params, grads, acts, deltas, lo, hi):
    pass


def _update(table: int, n_params: int, update, begin_step):
    """The device function `update` of an optimiser, whose two rows are at `table`."""
    begin = driver.per_thread(begin_step) if begin_step else driver.device(_no_kernel)
    verb = driver.per_thread(update)

    def update(params, grads, state, t, learning_rate=None):
        p, g, s = data_pointer(params), data_pointer(grads), data_pointer(state)
        rows = as_pointer(table, np.int64)
        context = local_array(rows, OPTIMIZER_SIZE)
        for k in range(OPTIMIZER_SIZE):
            context[k] = rows[k]
        context[STEP], op = np.int64(t), ptr_add(context, ROW_SIZE)
        if learning_rate is not None:
            set_float_attr(op, ATTRS, learning_rate)
        begin(op, p, p, s, s, 0, 0)
        verb(op, p, g, s, s, 0, n_params)

    return driver.device(update)
