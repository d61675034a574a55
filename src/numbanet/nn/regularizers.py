"""Penalties on large weights: terms added to the loss, on weights and never on biases.

    L1(s)   s Σ|w|        adds s sign(w) to the gradient
    L2(s)   s/2 Σ w²      adds s w

The penalty is added to the loss of a batch, which is a mean over samples. `per="sample"` divides s
by the number of training samples, as in Nielsen's λ/2n Σ w²; `per="batch"` divides it by the number
of mini-batches in an epoch.

Source   Nielsen, Neural Networks and Deep Learning, chapter 3
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from numbanet.backend.intrinsics import const_like, float_attr
from numbanet.backend.jit import inline_strict
from numbanet.io.attributes import Description, instance
from numbanet.io.fields import By, Choice, Real, check, shown
from numbanet.plan.columns import L1_STRENGTH, L2_STRENGTH, PENALTY_FACTOR, context_float


@dataclass(frozen=True)
class Penalty(Description):
    """A penalty of `strength`, divided by the training samples or the batches if `per` says so."""

    after_change = "build a network with the copy"

    strength: Annotated[
        float, Real(0, says="{owner} needs a finite {name} of at least 0, got {got}")
    ]
    per: Annotated[Literal["sample", "batch"] | None, Choice((None, "sample", "batch"))] = None
    power: ClassVar[int]

    def __post_init__(self):
        check(self)

    def scaled(self, samples: int, batches: int) -> float:
        """Return the strength for that many training samples and batches per epoch."""
        return self.strength / {None: 1, "sample": samples, "batch": batches}[self.per]


class L1(Penalty):
    """s Σ|w|: drives unimportant weights to exactly zero."""

    power = 1


class L2(Penalty):
    """s/2 Σ w²: weight decay."""

    power = 2


def penalties(given) -> tuple[Penalty, ...]:
    """Return the penalties for None, one of them, or a list."""
    if given is None:
        return ()
    each = given if isinstance(given, (list, tuple)) else [given]
    each = tuple(instance(one, Penalty) for one in each)
    for one in each:
        if not isinstance(one, Penalty):
            raise TypeError(f"a penalty is L1(…), L2(…) or a list of them, not {shown(one)}")
    return each


PENALTY = By(penalties)
"""The kind of a field that holds what `penalties` takes."""


@inline_strict
def penalize(op, params, grads, lo, hi):
    """grads += l1 sign(w) + l2 w for parameters lo ≤ i < hi.

    The strengths in the op's row are multiplied by the batch's factor.
    """
    factor = context_float(op, PENALTY_FACTOR)
    l1, l2 = (
        const_like(params, factor * float_attr(op, L1_STRENGTH)),
        const_like(params, factor * float_attr(op, L2_STRENGTH)),
    )
    zero = const_like(params, 0)
    if l1 > zero or l2 > zero:
        for i in range(lo, hi):
            w = params[i]
            sign = l1 if w > zero else (-l1 if w < zero else zero)
            grads[i] += l2 * w + sign
