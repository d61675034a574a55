"""Op: one row of the plan as a layer describes it, with kernels and sizes but no offsets yet."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from numbanet.backend.jit import Kernel
from numbanet.plan.columns import ACCUMULATE, BACKWARD, FORWARD, GRADIENT, SPLIT_K, STATISTICS


class Group(NamedTuple):
    """What the optimiser does otherwise for the parameters of some layers.

    rate_factor    what the learning rate is multiplied by
    weight_decay   the decoupled decay, or None for the optimiser's own
    """

    rate_factor: float = 1.0
    weight_decay: float | None = None


DEFAULT_GROUP = Group()
"""All as the optimiser does it."""


@dataclass(frozen=True, eq=False)
class Op:
    """One row of the plan: kernels, sizes and the attributes of its kind.

    Verbs, each a kernel or None:
    `forward`              the output of samples lo ≤ i < hi, from the input
    `backward`             the deltas of the input of samples lo ≤ i < hi, from those of the output
    `gradient`             the gradient of rows lo ≤ k < hi of the parameter block, over the batch
    `accumulate_gradient`  instead: adds the gradient of samples lo ≤ i < hi to grads[W …], after
                           their `backward`. Every chunk of the batch, a fixed part of it, has a
                           partial gradient of its own; the update region adds them in their order
    `statistics`           for an op whose samples depend on one another: sums over samples
                           lo ≤ i < hi, into grads, before any `forward` of the op; all threads
                           finish it first, and likewise `accumulate_gradient` before `backward`
    `split_k`              a first layer's partial product over inputs lo ≤ k < hi of all samples,
                           into grads; the op that copies the inputs has one as well
    `reduce_split_k`       the forward that adds these partial products up
    `embedded_verbs`       kernels by column that take the place of others in the user's compiled
                           code, and `row_verbs` where a call there has one sample

    Tangents, derivatives along a direction, for `jvp` and `hvp` in the user's compiled code. Where
    one of the first two is given, an op with parameters is linear in them, unless it works in
    place:
    `linear`               the output is linear in the input but for an offset, so that `forward`
                           on tangents gives tangents
    `offset`               the attribute that is 0 where this offset is left out
    `tangent`              instead of `forward`: the tangent of the output, in deltas, from that of
                           the input and acts
    `second_backward`      adds to the tangent of the input's deltas what the change of the input
                           makes of the `backward` of the same deltas; it finds a tangent
                           context(op, TANGENTS) elements behind what it belongs to
    `second_gradient`      likewise for the gradient of an op with a `tangent`, into grads[W …]
    An op in place with parameters needs a `tangent`. Its tangents depend on those of the parameters
    at every step, so `tangent` and `second_backward` find these in grads, a null pointer where the
    parameters do not change; and its `second_backward` is called instead of `backward`: deltas and
    their tangents, in the place of those of the output.

    Input and output:
    `in_place`             the output takes the place of the input
    `parts`                how many parts of the output it works on one after the other, each for
                           all samples, so that only one of them has to stay in cache
    `keeps_output`         backward reads the op's own output, so no op in place may follow
    `side_output`          the output is not the next op's input (the targets, correct answers); it
                           is kept for the whole batch
    `side_delta`           a side output that has a derivative, written by the op that reads it
    `aux`                  an op before it whose output it reads besides its input

    Memory and parameters:
    `param_rows`, `param_cols`  shape of the parameter block; a gradient is taken by rows
    `n_weights`            parameters, from the first, that penalties apply to
    `weight_reuse`         how often a weight is used per sample
    `statistics_size`      elements behind a chunk's partial gradient, for `statistics`
    `buffers`              elements that are kept and saved with the network, but not trained
    `scratch`              elements that a thread needs for itself during a verb
    `state`                elements of a sample's state, which outlives a batch; an op whose `aux`
                           has one finds the same
    `frozen`               training leaves its parameters as they are
    `group`                the rate and the decay of its parameters
    `attrs`                integers or floats for the columns from ATTRS on
    """

    name: str
    n_in: int
    n_out: int
    forward: Kernel | None
    backward: Kernel | None = None
    gradient: Kernel | None = None
    accumulate_gradient: Kernel | None = None
    in_place: bool = False
    parts: int = 1
    keeps_output: bool = False
    side_output: bool = False
    side_delta: bool = False
    aux: "Op | None" = None
    statistics: Kernel | None = None
    split_k: Kernel | None = None
    reduce_split_k: Kernel | None = None
    embedded_verbs: dict[int, Kernel] = field(default_factory=dict)
    row_verbs: dict[int, Kernel] = field(default_factory=dict)
    linear: bool = False
    offset: int | None = None
    tangent: Kernel | None = None
    second_backward: Kernel | None = None
    second_gradient: Kernel | None = None
    statistics_size: int = 0
    buffers: int = 0
    scratch: int = 0
    state: int = 0
    param_rows: int = 0
    param_cols: int = 0
    n_weights: int = 0
    weight_reuse: int = 1
    attrs: tuple = ()
    not_differentiable: str = ""
    penalties: tuple = (0.0, 0.0)
    frozen: bool = False
    group: Group = DEFAULT_GROUP

    @property
    def verbs(self) -> dict[int, Kernel | None]:
        """The kernel of each verb's column."""
        return {
            FORWARD: self.forward,
            BACKWARD: self.backward,
            STATISTICS: self.statistics,
            ACCUMULATE: self.accumulate_gradient,
            GRADIENT: self.gradient,
            SPLIT_K: self.split_k,
        }

    def substitutes(self, batch: int) -> dict[int, Kernel]:
        """Return the kernels that take the place of others in the user's code, for this batch."""
        return self.embedded_verbs | (self.row_verbs if batch == 1 else {})

    @property
    def n_params(self) -> int:
        """How many parameters the op has."""
        return self.param_rows * self.param_cols

    @property
    def nonlinear(self) -> bool:
        """Whether tangents of its parameters enter its tangents at every step: in place."""
        return self.in_place and self.n_params > 0

    @property
    def trained(self) -> bool:
        """Whether training changes its parameters."""
        return self.n_params > 0 and not self.frozen

    @property
    def flops(self) -> int:
        """Floating-point operations of a forward pass per sample: two for each use of a weight."""
        return 2 * self.n_weights * self.weight_reuse + self.n_out


def change_ops(ops: list[Op], change: Callable[[Op], Op]) -> list[Op]:
    """Return what `change` makes of each op; an `aux` among them is the changed one."""
    changed: dict[Op, Op] = {}
    for op in ops:
        new = change(op)
        changed[op] = replace(new, aux=changed[op.aux]) if op.aux in changed else new
    return list(changed.values())
