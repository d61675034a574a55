"""A handle: a network as one array of integers, for the functions of `numbanet.compiled`.

    HEADER | optimiser: a row of context, its own row | programs: table of a plan, steps

A handle holds no parameters. Kernels are addresses of this process; the token in the header tells
it from others, and forks have it too. Nothing in a handle is ever written after it is made, so all
threads share it. Offsets are counted from its beginning, so a copy serves as well.

A *program* is a plan for `rows` samples in one micro-batch, lowered for the target "embedded". Its
steps are the plan's schedule with the kernels' addresses in them. There are two: `forward` and
`vjp` run the first, `loss_gradient` the second.
"""

import weakref
from dataclasses import replace

import numpy as np

from numbanet.backend.cache import source_hash
from numbanet.backend.intrinsics import PROCESS_TOKEN
from numbanet.io import validation
from numbanet.nn import data
from numbanet.nn.layers.base import size
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
    Attrs,
    Y,
    float64_bits,
)
from numbanet.plan.lower import lower
from numbanet.plan.op import DEFAULT_GROUP, Op
from numbanet.plan.plan import Plan

HEADER = Attrs(
    "magic token itemsize rows n_in n_out n_params n_needed n_memory work_size has_vjp has_drow "
    "scales_targets n_state begin_step update prediction loss",
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
scales_targets          whether the outputs are brought to the unit of scaled targets
n_state                 elements of the optimiser's state
begin_step, update      addresses of the optimiser's kernels, or 0
prediction, loss        offsets of the programs, or 0
"""
MAGIC = int(source_hash()[:15], 16)
"""The version of numbanet: compiled code that the user keeps on disk has it as a constant."""
OPTIMIZER = len(HEADER)
"""Offset of the optimiser's two rows in a handle."""
OPTIMIZER_SIZE = 2 * ROW_SIZE
OPTIMIZER_COLUMNS = "n_state", "begin_step", "update"
"""The header's columns for it."""

PROGRAM = Attrs("n_forward n_steps table scale deltas scratch inputs outputs targets", first=0)
"""Columns of a program, behind which its steps stand, then its table.

n_forward, n_steps      steps of the forward pass, and of both passes
table                   offset of the table from the program's beginning
scale                   factor of the inputs, a float
deltas, scratch         where these begin in the work memory; acts begin at 0
inputs, outputs         offsets of these slots in acts
targets                 offset of the targets' slot, where there is a loss
"""
STEP = Attrs("kind kernel row param_rows n_params", first=0)
"""Columns of a step: its kind, the kernel's address, the offset of its row in the table, the rows
and the size of the op's parameter block."""
STEP_SIZE = len(STEP)
FORWARD_STEP, BACKWARD_STEP, INPUT_STEP, ACCUMULATE_STEP, GRADIENT_STEP = range(5)
"""Kinds of steps: INPUT_STEP is a backward step that only the gradient of the inputs needs,
ACCUMULATE_STEP adds to the gradient and GRADIENT_STEP overwrites it."""
PADDING = 16
"""Elements behind each memory, which a vector store may touch masked."""


def make_handle(
    network, *, optimizer=None, loss=None, rows: int = 1, gradient: bool = True
) -> np.ndarray:
    """Return a handle, int64 (n); see Sequential.handle."""
    rows = validation.check_int(rows, "rows", 1)
    plans = [prediction_plan(network, rows, gradient)]
    programs = [_program(plans[0])]
    if loss is not None:
        plan, scale, targets = _loss_plan(network, loss, rows)
        plans.append(plan)
        programs.append(_program(plan, scale, plan.offsets[targets]))
    optimizer_columns, optimizer_rows, kernels = _optimizer(optimizer, network)
    starts = OPTIMIZER + OPTIMIZER_SIZE + np.cumsum([0, *map(len, programs)])
    header = HEADER.pack(
        magic=MAGIC,
        token=PROCESS_TOKEN,
        itemsize=network.dtype.itemsize,
        rows=rows,
        n_in=size(network.input_shape),
        n_out=size(network.output_shape),
        n_params=network.parameters.size,
        n_needed=max(plan.n_memory for plan in plans),
        n_memory=network.memory.size,
        work_size=max(_memories(plan)[-1] for plan in plans),
        has_vjp=gradient,
        has_drow=gradient and is_differentiable(plans[0].ops),
        scales_targets=network.scales_targets,
        prediction=starts[0],
        loss=starts[1] if loss is not None else 0,
        **optimizer_columns,
    )
    handle = np.concatenate([np.array(header, np.int64), optimizer_rows, *programs])
    kernels += [kernel for plan in plans for op in plan.ops for kernel in op.verbs.values()]
    weakref.finalize(handle, list, kernels)  # the handle keeps its kernels
    return handle


def prediction_plan(network, rows: int, gradient: bool) -> Plan:
    """The plan of `forward` and `vjp`, without penalties and without the copy of the outputs."""
    ops = [
        data.inputs(size(network.input_shape), network.dtype),
        *network.layer_ops(fuse=not gradient),
        *network.output_ops()[:-1],
    ]
    ops = [replace(op, penalties=(0.0, 0.0)) for op in ops]
    try:
        return _lower(network, ops, rows, gradient, gradient and is_differentiable(ops))
    except ValueError as error:
        if not gradient:
            raise
        raise ValueError(f"{error}; handle(gradient=False) leaves vjp out") from None


def is_differentiable(ops: list[Op]) -> bool:
    """Whether the first op after the copy of the inputs has a derivative by them."""
    return len(ops) < 2 or ops[1].backward is not None


def _loss_plan(network, loss, rows: int) -> tuple[Plan, float, Op]:
    """(plan, factor of the inputs, the op of the targets) of `loss_gradient`."""
    if network.scales_targets:
        raise ValueError(
            "the network's targets are scaled, so its loss is that of standardised targets; make "
            "a handle without a loss, and use vjp with the gradient of a loss of your own"
        )
    chosen = network.resolve_loss(loss)
    ops, loss_op, _ = network.loss_ops(chosen, network.dtype, network.dtype, False, rows)
    return _lower(network, ops, rows, True, False), ops[0].attrs[0], loss_op.aux


def _lower(network, ops: list[Op], rows: int, train: bool, input_gradient: bool) -> Plan:
    """The plan, with the number of samples in its table."""
    plan = lower(
        ops,
        network.dtype,
        batch=rows,
        threads=1,
        train=train,
        target="embedded",
        input_gradient=input_gradient,
    )
    if plan.by_chunk:
        raise ValueError(
            "a layer needs statistics of the whole batch; give it `inference_ops` that do not"
        )
    plan.set_context(SAMPLES, rows)
    return plan


def _memories(plan: Plan) -> tuple[int, int, int]:
    """Where deltas and the scratch gradient begin in the work memory, and its size."""
    scratch = max((op.n_params for op in plan.ops if op.gradient), default=0)
    sizes = [plan.n_acts, plan.n_deltas, scratch]
    deltas, gradient, end = np.cumsum([-(-n // PADDING) * PADDING + PADDING for n in sizes])
    return int(deltas), int(gradient), int(end)


def _program(plan: Plan, scale: float = 1.0, targets: int = 0) -> np.ndarray:
    """A program: its columns, steps and table."""
    table, steps = plan.tables[0], _steps(plan)
    deltas, scratch, _ = _memories(plan)
    start = len(PROGRAM) + steps.size
    columns = PROGRAM.pack(
        n_forward=int((steps[:, STEP.kind] == FORWARD_STEP).sum()),
        n_steps=len(steps),
        table=start,
        scale=float64_bits(scale),
        deltas=deltas,
        scratch=scratch,
        inputs=int(table[plan.rows[plan.ops[0]], Y]),
        outputs=int(table[plan.rows[plan.ops[-1]], Y]),
        targets=targets,
    )
    return np.concatenate([np.array(columns, np.int64), steps.ravel(), table.ravel()])


def _steps(plan: Plan) -> np.ndarray:
    """The steps (n, STEP_SIZE) that replay the plan's schedule."""
    table, by_row, steps = plan.tables[0], plan.by_row, []
    first_trained = next((plan.rows[op] for op in plan.ops if op.n_params), len(table))
    ends = {plan.rows[op] for op in plan.ops if not op.n_in}  # the caller's data are copied there

    def step(kind, verb, row):
        op = by_row[row]
        steps.append(
            STEP.pack(
                kind=kind,
                kernel=table[row, verb],
                row=row * ROW_SIZE,
                param_rows=op.param_rows,
                n_params=op.n_params,
            )
        )

    for verb, row in plan.schedule.tolist():
        if verb == FORWARD and row not in ends:
            step(FORWARD_STEP, verb, row)
        elif verb == ACCUMULATE:
            step(ACCUMULATE_STEP, verb, row)
        elif verb == BACKWARD:
            step(INPUT_STEP if row <= first_trained else BACKWARD_STEP, verb, row)
    for row, op in by_row.items():
        if op.gradient:
            step(GRADIENT_STEP, GRADIENT, row)
    return np.array(steps, np.int64).reshape(-1, STEP_SIZE)


def _optimizer(given, network) -> tuple[dict[str, int], np.ndarray, list]:
    """(columns of the header, two rows of a table, kernels) of an optimiser, or of None."""
    rows, columns = np.zeros((2, ROW_SIZE), np.int64), dict.fromkeys(OPTIMIZER_COLUMNS, 0)
    if given is None:
        return columns, rows.ravel(), []
    chosen = resolve_optimizer(given)
    if isinstance(chosen.learning_rate, Schedule):
        raise ValueError(
            "a handle's optimizer has a number as its learning rate, not a schedule; give "
            "`update` the rate of each step: update(model, params, grads, state, t, rate)"
        )
    _check_plain_update(chosen, network)
    rows[1, INDEX] = 1
    chosen.write_rows(rows[None, 1:], [DEFAULT_GROUP], network.parameters.size)
    kernels = [chosen.update, chosen.begin_step]
    columns["n_state"] = len(chosen.state_names) * network.parameters.size
    columns["update"] = chosen.update.address(network.dtype)
    if chosen.begin_step:
        columns["begin_step"] = chosen.begin_step.address(network.dtype)
    return columns, rows.ravel(), kernels


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
