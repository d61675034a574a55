"""What happens around an optimiser's update, where it is asked for.

    gradient   g ← s g        s = 1/k · min(1, c / (‖g/k‖ + 10⁻⁶)), for the sum g of k batches
    clip       g ← min(c, max(−c, g))
    decay      θ ← θ − η λ θ
    update     of the optimiser
    average    ā ← ā + (1 − d) (θ − ā)

A row of the optimiser holds the kernels that are asked for, and 0 for the others, in the columns of
an op's verbs. The engines write the learning rate and the factor s before every update.

Source   Pascanu, Mikolov, Bengio 2013 (clipping); Polyak, Juditsky 1992 (averages); Loshchilov,
         Hutter 2019 (decay)
"""

from numbanet.backend.intrinsics import const_like, float_attr
from numbanet.backend.jit import kernel
from numbanet.plan.columns import (
    ACCUMULATE,
    BACKWARD,
    FORWARD,
    GRADIENT,
    INDEX,
    SPLIT_K,
    Attrs,
)

BEGIN_STEP, CLIP, DECAY, UPDATE, AVERAGE = FORWARD, BACKWARD, SPLIT_K, GRADIENT, ACCUMULATE
"""Columns of the kernels in an optimiser's row, each a kernel pointer or 0."""
COMMON = Attrs("learning_rate")
"""The columns of the hyper-parameters that every optimiser has, the first ones."""
STEERING = Attrs(
    "gradient_factor rate_factor clip_value clip_norm weight_decay average averages square_sum",
    first=INDEX + 1,
)
"""
gradient_factor   what the gradient is multiplied by, written before every update
rate_factor       what the rates of a schedule are multiplied by
clip_value        the largest element of a gradient, or infinity
clip_norm         the largest norm of the whole gradient, or infinity
weight_decay      λ of the decoupled decay
average           d, the decay of the averages
averages          where the averages begin in the state
square_sum        where the CPU's engine leaves the sum of squares of a task's gradient
"""


@kernel(independent=True)
def clip(op, params, grads, state, _, lo, hi):
    """g ← min(c, max(−c, s g)); a NaN stays one"""
    factor = const_like(params, float_attr(op, STEERING.gradient_factor))
    most = const_like(params, float_attr(op, STEERING.clip_value))
    for i in range(lo, hi):
        g = factor * grads[i]
        grads[i] = most if g > most else (-most if g < -most else g)


@kernel(independent=True)
def decay(op, params, grads, state, _, lo, hi):
    """θ ← θ − η λ θ"""
    rate = float_attr(op, COMMON.learning_rate) * float_attr(op, STEERING.weight_decay)
    rest = const_like(params, 1 - rate)
    for i in range(lo, hi):
        params[i] *= rest


@kernel(independent=True)
def average(op, params, grads, state, _, lo, hi):
    """ā ← ā + (1 − d) (θ − ā)"""
    part, first = const_like(params, 1 - float_attr(op, STEERING.average)), op[STEERING.averages]
    for i in range(lo, hi):
        state[first + i] += part * (params[i] - state[first + i])
