"""A handle: a network as one array of integers, for the functions of `numbanet.compiled`.

    HEADER | optimiser: a row of context, its own row | programs: table of a plan, steps

A handle holds no parameters. Kernels are addresses of this process; the token in the header tells
it from others, and forks have it too. Nothing in a handle is ever written after it is made, so all
threads share it. Offsets are counted from its beginning, so a copy serves as well.

A *program* is a plan for `rows` samples in one micro-batch, lowered for the target "embedded". Its
steps are the plan's schedule with the kernels' addresses in them. `forward` and `vjp` run the
program `prediction`, `loss_gradient` runs `loss`, `jvp` and `hvp` run `tangents`, `step` the
program of its name.

Tangents. Acts and deltas have tangents: their derivatives along the direction that the caller gives
for the inputs and the parameters. They lie a fixed distance behind, so that a verb works on them
where it is given other pointers. An op whose output is linear in its input needs no other kernels:

    z = a W + b             ż = ȧ W                 forward of the tangents, without the offset b
                            ż += a Ẇ + ḃ            forward with the parameters' tangents
    da = dz Wᵀ              ḋa = ḋz Wᵀ              backward of the tangents
                            ḋa += dz Ẇᵀ             backward with the parameters' tangents
    dW = aᵀ dz, db = Σ dz   Ḣ = aᵀ ḋz, Σ ḋz         gradient with the deltas' tangents
                            Ḣ += ȧᵀ dz              gradient with the acts' tangents, without b

What a kernel overwrites with parameters' tangents, z and da, is written again afterwards. Other ops
give what is different: `tangent`, `second_backward` and `second_gradient` (plan/op.py). All kernels
that give no gradient are handed the parameters' tangents as `grads`, or a null pointer.
"""

import weakref
from dataclasses import replace

import numpy as np

from numbanet.backend.cache import source_hash
from numbanet.backend.intrinsics import PROCESS_TOKEN
from numbanet.io import validation
from numbanet.network.built_layer import initializers, step_ops
from numbanet.nn import data
from numbanet.nn.initializers import Columns, Initializer, resolve
from numbanet.nn.layers.base import size
from numbanet.nn.layers.recurrent import Recurrent
from numbanet.nn.optimizers import Optimizer
from numbanet.nn.optimizers import optimizer as resolve_optimizer
from numbanet.nn.schedules import Schedule
from numbanet.plan.columns import (
    ACCUMULATE,
    BACKWARD,
    FORWARD,
    GRADIENT,
    INDEX,
    ROW_SIZE,
    SAMPLES,
    TANGENTS,
    Attrs,
    X,
    Y,
    float64_bits,
)
from numbanet.plan.lower import lower
from numbanet.plan.op import DEFAULT_GROUP, Op, change_ops
from numbanet.plan.plan import Plan

HEADER = Attrs(
    "magic token itemsize rows n_in n_out n_params n_needed n_memory work_size has_vjp has_drow "
    "has_hvp scales_targets n_state begin_step update n_initial initial n_carried n_step_in "
    "n_step_out step_work_size n_starts starts prediction loss tangents step",
    first=0,
)
"""Columns of the header.

magic                   MAGIC of the version that made the handle
token                   PROCESS_TOKEN of the process that made it
itemsize                bytes of an element: 4 for float32, 8 for float64
rows                    samples in a call
n_in, n_out             elements per sample
n_params                parameters
n_needed, n_memory      elements of the flat vector that the kernels read, and of network.memory
work_size               elements of the work memory
has_vjp                 whether `vjp` can be called
has_drow                whether it gives the gradient by the inputs: not where they are indices
has_hvp                 whether `hvp` can be called
scales_targets          whether the outputs are brought to the unit of scaled targets
n_state                 elements of the optimiser's state
begin_step, update      addresses of the optimiser's kernels, or 0
n_initial, initial      blocks of parameters, and the offset of what they are drawn from, or 0
n_carried               elements of the state of a sequence
n_step_in, n_step_out   elements of a step of the inputs, and of what it gives
step_work_size          elements of the work memory of `step`
n_starts, starts        parts of that state that begin with parameters, and the offset of them
prediction, loss, tangents, step   offsets of the programs, or 0
"""
MAGIC = int(source_hash()[:15], 16)
"""The version of numbanet: compiled code that the user keeps on disk has it as a constant."""
OPTIMIZER = len(HEADER)
"""Offset of the optimiser's two rows in a handle."""
OPTIMIZER_SIZE = 2 * ROW_SIZE

PROGRAM = Attrs(
    "n_forward n_steps table scale deltas scratch tangents params n_memory inputs outputs targets",
    first=0,
)
"""Columns of a program, behind which its steps stand, then its table.

n_forward, n_steps      steps of the forward pass, and of both passes
table                   offset of the table from the program's beginning
scale                   factor of the inputs, a float
deltas, scratch         where these begin in the work memory; acts begin at 0
tangents                from acts to their tangents, and from deltas to theirs
params                  where the parameters' tangents are copied to, with the buffers behind them,
                        or 0 where no op reads buffers beside parameters
n_memory                elements of the parameters and the buffers that the kernels read
inputs, outputs         offsets of these slots in acts
targets                 offset of the targets' slot, where there is a loss
"""
STEP = Attrs("needs kernel row params acts deltas end gradient n_params sum n_sum", first=0)
"""Columns of a step: a kernel, what it is given, and what is done with its result.

needs           what must be asked for, else the step is left out: a sum of the bits below
kernel, row     the kernel's address, the offset of its row in the table
params          1 where it is given the parameters' tangents in the place of the parameters
acts, deltas    the memories that it is given: offsets in the work memory
end             samples, or rows of the parameter block
gradient        whether it gives a gradient, and how
n_params        the size of the op's parameter block
sum, n_sum      elements of the work memory that are added to their tangents afterwards
"""
STEP_SIZE = len(STEP)
FOR_PARAMS, FOR_INPUTS, FROM_PARAMS = 1, 2, 4
"""Bits of `needs`: a gradient by the parameters, by the inputs; tangents of the parameters."""
NO_GRADIENT, ADDED, OVERWRITTEN = range(3)
"""A kernel adds to the gradient, or overwrites its part of it, which is then in scratch memory."""
INITIAL = Attrs("kind offset rows columns stride a b", first=0)
"""Columns of a block of parameters: what `distribution` says of it (nn/initializers.py), where it
begins, its shape as a matrix and the distance between its rows; a and b are floats."""
INITIAL_SIZE = len(INITIAL)
START = Attrs("place offset n", first=0)
"""Columns of a part of a state: its place there, the offset of its parameters, its elements."""
START_SIZE = len(START)
PADDING = 16
"""Elements behind each memory, which a vector store may touch masked."""


def make_handle(
    network,
    *,
    optimizer=None,
    loss=None,
    rows: int = 1,
    gradient: bool = True,
    jvp: bool = False,
    hvp: bool = False,
    step: bool = False,
) -> np.ndarray:
    """Return a handle, int64 (n); see Sequential.handle."""
    programs = make_programs(network, loss, rows, gradient, jvp, hvp)
    if step:
        programs["step"] = Program(step_plan(network, rows))
    optimizer_rows, n_state, kernels = optimizer_kernels(optimizer, network)
    update, begin_step = (one.address(network.dtype) if one else 0 for one in kernels)
    arrays = _initial(network)
    integers = [one.integers(network.dtype) for one in programs.values()]
    places = np.cumsum([OPTIMIZER + OPTIMIZER_SIZE, *map(len, integers)]).tolist()
    drawn = [value for row in arrays or () for value in row]
    step_columns, starts = _step_columns(network, programs.get("step"), places[-1] + len(drawn))
    header = HEADER.pack(
        magic=MAGIC,
        token=PROCESS_TOKEN,
        itemsize=network.dtype.itemsize,
        rows=rows,
        n_in=size(network.input_shape),
        n_out=size(network.output_shape),
        n_params=network.parameters.size,
        n_needed=max(one.plan.n_memory for one in programs.values()),
        n_memory=network.memory.size,
        work_size=max(one.work_size for one in programs.values()),
        has_vjp=gradient,
        has_drow=is_differentiable(programs["prediction"].plan.ops),
        has_hvp=hvp,
        scales_targets=network.scales_targets,
        n_state=n_state,
        begin_step=begin_step,
        update=update,
        n_initial=len(arrays or []),
        initial=0 if arrays is None else places[-1],
        **{"loss": 0, "tangents": 0, "step": 0} | dict(zip(programs, places, strict=False)),
        **step_columns,
    )
    rest = np.array([*drawn, *starts], np.int64)
    handle = np.concatenate([np.array(header, np.int64), optimizer_rows, *integers, rest])
    called = [step.kernel for one in programs.values() for step in one.steps]
    weakref.finalize(handle, list, [*kernels, *called])  # the handle keeps its kernels
    return handle


def make_programs(
    network, loss, rows: int, gradient: bool, jvp: bool, hvp: bool, target: str = "embedded"
) -> dict[str, "Program"]:
    """The programs by the header's column: `prediction`, and `loss`, `tangents` where asked for."""
    rows = validation.check_int(rows, "rows", 1)
    if hvp and not gradient:
        raise ValueError("hvp is a derivative of a gradient: hvp=True needs gradient=True")
    plan = prediction_plan(network, rows, gradient, jvp or hvp, target)
    programs = {"prediction": Program(plan)}
    if loss is not None:
        loss_plan, scale, targets = _loss_plan(network, loss, rows, target)
        programs["loss"] = Program(loss_plan, scale, loss_plan.offsets[targets])
    if jvp or hvp:
        programs["tangents"] = TangentProgram(plan, hvp)
    return programs


def _initial(network) -> list[tuple] | None:
    """A row of INITIAL for each block of parameters; None where Python alone can draw them."""
    rows = []
    for built, chosen in initializers(network.layers):
        offset = built.offset
        for name, shape in built.shapes.items():
            given, shape = resolve(chosen.get(name, "zeros")), shape or (1,)
            columns = shape[-1]
            parts = given.parts if isinstance(given, Columns) else (given,)
            width = columns // len(parts)
            for k, part in enumerate(map(resolve, parts)):
                if type(part).__call__ is not Initializer.__call__:
                    return None
                kind, a, b = part.distribution((*shape[:-1], width))
                rows.append(
                    INITIAL.pack(
                        kind=kind,
                        offset=offset + k * width,
                        rows=size(shape) // columns,
                        columns=width,
                        stride=columns,
                        a=float64_bits(a),
                        b=float64_bits(b),
                    )
                )
            offset += size(shape)
    return rows


def step_plan(network, rows: int) -> Plan:
    """The plan of `step`: one step of each of the rows, whose state the caller keeps.

    Its kernels are those of `predict`, so that a product adds up in the same order.
    """
    ops = [
        data.inputs(size(network.input_shape[1:]), network.dtype),
        *step_ops(network.layers),
        *network.output_ops()[:-1],
    ]
    ops = change_ops(ops, lambda op: replace(op, embedded_verbs={}))
    return _lower(network, ops, rows, False, False, "embedded")


STEP_COLUMNS = ["n_carried", "n_step_in", "n_step_out", "step_work_size", "n_starts", "starts"]
"""The header's columns that are 0 where the handle has no step."""


def _step_columns(network, program, place: int) -> tuple[dict[str, int], list[int]]:
    """(the header's columns for `step`, rows of START) of its program, or of None.

    place   where the rows of START begin
    """
    columns = dict.fromkeys(STEP_COLUMNS, 0)
    starts: list[int] = []
    if program is None:
        return columns, starts
    n_carried = 0
    for built in network.layers:
        if not isinstance(built.layer, Recurrent):
            continue
        offset = built.offset
        names = [f"initial_{name}" for name in built.layer.carries]
        for name, shape in built.shapes.items():
            if name in names:
                at = n_carried + names.index(name) * built.layer.units
                starts += START.pack(place=at, offset=offset, n=built.layer.units)
            offset += size(shape)
        n_carried += len(names) * built.layer.units
    columns["n_carried"], columns["starts"] = n_carried, place
    columns["n_starts"] = len(starts) // START_SIZE
    columns["step_work_size"] = program.work_size
    columns["n_step_in"] = size(network.input_shape[1:])
    columns["n_step_out"] = size(network.output_shape) // (network.output_steps or 1)
    return columns, starts


def prediction_plan(
    network, rows: int, gradient: bool, tangents: bool = False, target: str = "embedded"
) -> Plan:
    """The plan of `forward` and `vjp`, without penalties and without the copy of the outputs."""
    ops = [
        data.inputs(size(network.input_shape), network.dtype),
        *network.layer_ops(fuse=not (gradient or tangents)),
        *network.output_ops()[:-1],
    ]
    ops = change_ops(ops, lambda op: replace(op, penalties=(0.0, 0.0)))
    try:
        return _lower(network, ops, rows, gradient, gradient and is_differentiable(ops), target)
    except ValueError as error:
        if not gradient:
            raise
        raise ValueError(f"{error}; handle(gradient=False) leaves vjp out") from None


def is_differentiable(ops: list[Op]) -> bool:
    """Whether the first op after the copy of the inputs has a derivative by them."""
    return len(ops) < 2 or ops[1].backward is not None


def _loss_plan(network, loss, rows: int, target: str) -> tuple[Plan, float, Op]:
    """(plan, factor of the inputs, the op of the targets) of `loss_gradient`."""
    if network.scales_targets:
        raise ValueError(
            "the network's targets are scaled, so its loss is that of standardised targets; make "
            "a handle without a loss, and use vjp with the gradient of a loss of your own"
        )
    chosen = network.resolve_loss(loss)
    ops, _, _ = network.loss_ops(chosen, network.dtype, network.dtype, False, rows)
    (targets,) = (op for op in ops if op.name == "Targets")
    return _lower(network, ops, rows, True, False, target), ops[0].attrs[0], targets


def _lower(
    network, ops: list[Op], rows: int, train: bool, input_gradient: bool, target: str
) -> Plan:
    """The plan, with the number of samples in its table."""
    plan = lower(
        ops,
        network.dtype,
        batch=rows,
        threads=1,
        train=train,
        target=target,
        input_gradient=input_gradient,
    )
    if plan.by_chunk:
        raise ValueError(
            "a layer needs statistics of the whole batch; give it `inference_ops` that do not"
        )
    plan.set_context(SAMPLES, rows)
    return plan


class Program:
    """A plan as a program: where its memories lie, its steps and its table.

    steps     a STEP each, with the Kernel itself in the column of its address
    scale     factor of the inputs
    targets   offset of the targets' slot
    """

    def __init__(self, plan: Plan, scale: float = 1.0, targets: int = 0, tangents: bool = False):
        self.plan, self.scale, self.targets = plan, scale, targets
        self.table = plan.tables[0].copy()
        self.steps: list = []
        scratch = max((op.n_params for op in plan.ops if op.gradient), default=0)
        copied = tangents and any(op.buffers and op.n_params for op in plan.ops)
        sizes = [plan.n_acts, plan.n_deltas] * (1 + tangents) + [
            scratch,
            plan.n_memory if copied else 0,
        ]
        ends = np.cumsum([-(-n // PADDING) * PADDING + PADDING for n in sizes]).tolist()
        self.deltas, self.scratch, self.work_size = ends[0], ends[-3], ends[-1]
        self.tangents = ends[1] if tangents else 0
        self.params = ends[-2] if copied else 0
        self.first_trained = next(
            (plan.rows[op] for op in plan.ops if op.n_params), len(plan.tables[0])
        )
        self._list_steps()

    @property
    def inputs(self) -> int:
        """Offset of the inputs' slot in acts."""
        return int(self.table[self.plan.rows[self.plan.ops[0]], Y])

    @property
    def outputs(self) -> int:
        """Offset of the outputs' slot, or that of the samples' losses."""
        return int(self.table[self.plan.rows[self.plan.ops[-1]], Y])

    def integers(self, dtype) -> np.ndarray:
        """The program: its columns, steps and table, with the kernels' addresses for a dtype."""
        addressed = [one._replace(kernel=one.kernel.address(dtype)) for one in self.steps]
        steps = np.array(addressed, np.int64).reshape(-1, STEP_SIZE)
        columns = PROGRAM.pack(
            n_forward=self.n_forward,
            n_steps=len(steps),
            table=len(PROGRAM) + steps.size,
            scale=float64_bits(self.scale),
            deltas=self.deltas,
            scratch=self.scratch,
            tangents=self.tangents,
            params=self.params,
            n_memory=self.plan.n_memory,
            inputs=self.inputs,
            outputs=self.outputs,
            targets=self.targets,
        )
        return np.concatenate([np.array(columns, np.int64), steps.ravel(), self.table.ravel()])

    def _list_steps(self) -> None:
        """Replay the plan's schedule."""
        schedule, by_row = self.plan.schedule.tolist(), self.plan.by_row
        ends = {row for row, op in by_row.items() if not op.n_in}  # the caller's data stand there
        for verb, row in schedule:
            if verb == FORWARD and row not in ends:
                self._forward(row)
        self.n_forward = len(self.steps)
        for verb, row in schedule:
            if verb == BACKWARD:
                self._backward(row)
            elif verb == ACCUMULATE:
                self._gradient(row, ACCUMULATE)
        for row, op in by_row.items():
            if op.gradient:
                self._gradient(row, GRADIENT)

    def _forward(self, row: int) -> None:
        self._step(row, FORWARD)

    def _backward(self, row: int) -> None:
        self._step(row, BACKWARD, self._needs(row), deltas=self.deltas)

    def _gradient(self, row: int, verb: int) -> None:
        self._step(row, verb, FOR_PARAMS, deltas=self.deltas)

    def _needs(self, row: int) -> int:
        """What the backward pass of a row is needed for, if not for everything."""
        return FOR_INPUTS if row <= self.first_trained else 0

    def _step(
        self,
        row,
        verb,
        needs=0,
        *,
        table_row=None,
        params=0,
        acts=0,
        deltas=0,
        add=None,
        kernel=None,
    ) -> None:
        """Add a step: the kernel of a verb of a row, or another one, on these memories.

        table_row   another row of the table that describes the op
        add         the column of the slot that is then added to its tangents
        """
        op, rows = self.plan.by_row[row], self.plan.batch
        gradient = {ACCUMULATE: ADDED, GRADIENT: OVERWRITTEN}.get(verb, NO_GRADIENT)
        slot, elements = (acts, op.n_out) if add == Y else (deltas, op.n_in)
        step = STEP.pack(
            needs=needs,
            kernel=kernel or (op.verbs | op.substitutes(rows))[verb],
            row=(row if table_row is None else table_row) * ROW_SIZE,
            params=params,
            acts=acts,
            deltas=deltas,
            end=op.param_rows if gradient == OVERWRITTEN else rows,
            gradient=gradient,
            n_params=op.n_params,
            sum=slot + int(self.table[row, add]) if add is not None else 0,
            n_sum=rows * elements if add is not None else 0,
        )
        self.steps.append(STEP._make(step))


class TangentProgram(Program):
    """The program of `jvp` and, with a backward pass, of `hvp`.

    Raises ValueError for an op without tangents, or for `hvp` without second derivatives.
    """

    def __init__(self, plan: Plan, hvp: bool):
        self.hvp = hvp
        for op in plan.ops:
            if op.n_in and not (op.tangent or (op.linear and not op.nonlinear)):
                raise ValueError(
                    f"{op.name} has no tangent, so the handle cannot have jvp or hvp; the layers "
                    "that have one stand in docs/compiled.md"
                )
            if op.n_in and hvp and not (op.linear or op.second_backward):
                raise ValueError(
                    f"{op.name} has no second derivative, which hvp needs: take a smooth layer, "
                    "such as tanh for ReLU, or a handle with jvp=True alone"
                )
        super().__init__(plan, tangents=True)
        self.table[0, TANGENTS] = self.tangents

    def _without_offset(self, row: int) -> int:
        """The row of an op without its offset: the op's own, or another one behind all others."""
        op = self.plan.by_row[row]
        if op.offset is None or not self.table[row, op.offset]:
            return row
        copy = self.table[row].copy()
        copy[INDEX], copy[op.offset] = len(self.table), 0
        self.table = np.concatenate([self.table, copy[None]])
        return len(self.table) - 1

    def _forward(self, row: int) -> None:
        op, tangents = self.plan.by_row[row], self.tangents
        first = op.in_place or not op.n_params  # its tangent may read the output
        if first:
            super()._forward(row)
        if op.tangent:
            self._step(row, FORWARD, kernel=op.tangent, deltas=tangents)
        else:
            there = {"acts": tangents, "deltas": tangents}
            self._step(row, FORWARD, table_row=self._without_offset(row), **there)
        if not first:
            self._step(row, FORWARD, FROM_PARAMS, params=1, add=Y)
            super()._forward(row)

    def _backward(self, row: int) -> None:
        if not self.hvp:
            return
        op, needs, deltas = self.plan.by_row[row], self._needs(row), self.deltas
        if not op.nonlinear:
            self._step(row, BACKWARD, needs, deltas=deltas + self.tangents)
        if op.second_backward:
            self._step(row, BACKWARD, needs, kernel=op.second_backward, deltas=deltas)
        if op.nonlinear:
            return
        if op.n_params:
            self._step(row, BACKWARD, needs | FROM_PARAMS, params=1, deltas=deltas, add=X)
        super()._backward(row)

    def _gradient(self, row: int, verb: int) -> None:
        if not self.hvp:
            return
        op, deltas = self.plan.by_row[row], self.deltas
        self._step(row, verb, FOR_PARAMS, deltas=deltas + self.tangents)
        if op.second_gradient:
            kernel = op.second_gradient
            self._step(row, ACCUMULATE, FOR_PARAMS, kernel=kernel, deltas=deltas)
        elif not op.tangent:
            there = {"acts": self.tangents, "deltas": deltas}
            self._step(row, verb, FOR_PARAMS, table_row=self._without_offset(row), **there)


def optimizer_kernels(given, network) -> tuple[np.ndarray, int, tuple]:
    """(two rows of a table, elements of the state, kernels of update and begin_step or None).

    Of an optimiser by name or object, or of None: without kernels.
    """
    rows = np.zeros((2, ROW_SIZE), np.int64)
    if given is None:
        return rows.ravel(), 0, (None, None)
    chosen = resolve_optimizer(given)
    if isinstance(chosen.learning_rate, Schedule):
        raise ValueError(
            "a handle's optimizer has a number as its learning rate, not a schedule; give "
            "`update` the rate of each step: update(model, params, grads, state, t, rate)"
        )
    _check_plain_update(chosen, network)
    rows[1, INDEX] = 1
    chosen.write_rows(rows[None, 1:], [DEFAULT_GROUP], network.parameters.size)
    n_state = len(chosen.state_names) * network.parameters.size
    return rows.ravel(), n_state, (chosen.update, chosen.begin_step)


def _check_plain_update(chosen: Optimizer, network) -> None:
    """ValueError for what fit does around an update or for single layers; `update` does not."""
    if chosen.around:
        raise ValueError(
            f"a handle's optimizer has no {' and no '.join(chosen.around)}, which is for fit; your "
            "code clips with numbanet.compiled.clip_by_norm, and adds gradients up and averages"
        )
    own = [k for k, built in enumerate(network.layers) if built.group != DEFAULT_GROUP]
    if own:
        raise ValueError(
            f"`update` treats all layers alike, and layer {own[0]} has a learning_rate_factor or "
            "weight_decay of its own, which are for fit: set them to 1 and None"
        )
