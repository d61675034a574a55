"""Penalties on large weights: terms added to the loss, on weights and never on biases.

    L1(s)   s Σ|w|        adds s sign(w) to the gradient
    L2(s)   s/2 Σ w²      adds s w

The scale of s. As it stands, the penalty is added to the loss of a batch (a mean over samples). `per="sample"` divides s by the
number of training samples, as in Nielsen's λ/2n Σ w²; `per="batch"` divides it by the number of mini-batches in an epoch.

Source   Nielsen, Neural Networks and Deep Learning, chapter 3
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from numbanet.backend.intrinsics import const_like, float_attr
from numbanet.backend.jit import inline_strict
from numbanet.io.fields import By, Choice, Real, check, shown
from numbanet.plan.columns import L1_STRENGTH as STRENGTH_1
from numbanet.plan.columns import L2_STRENGTH as STRENGTH_2


@dataclass(frozen=True)
class Penalty:
    """A penalty of `strength`, divided by the number of training samples or of batches if `per` says so."""

    strength: Annotated[float, Real(0, says="{owner} needs a finite {name} of at least 0, got {got}")]
    per: Annotated[Literal["sample", "batch"] | None, Choice((None, "sample", "batch"))] = None
    power: ClassVar[int]

    def __post_init__(self):
        check(self)

    def scaled(self, samples: int, batches: int) -> float:
        """The strength for a training set of that many samples, cut into that many batches."""
        return self.strength / {None: 1, "sample": samples, "batch": batches}[self.per]


class L1(Penalty):
    """s Σ|w|: drives unimportant weights to exactly nothing."""

    power = 1


class L2(Penalty):
    """s/2 Σ w²: weight decay."""

    power = 2


def penalties(given) -> tuple[Penalty, ...]:
    """The penalties for None, one of them, or a list."""
    if given is None:
        return ()
    each = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    for one in each:
        if not isinstance(one, Penalty):
            raise TypeError(f"a penalty is L1(…), L2(…) or a list of them, not {shown(one)}")
    return each


PENALTY = By(penalties)
"""The kind of a field that holds what `penalties` takes."""


@inline_strict
def penalize(op, params, grads, lo, hi):
    """grads += s₁ sign(w) + s₂ w, for parameters lo ≤ i < hi, with the strengths in the op's row."""
    s, t, zero = const_like(params, float_attr(op, STRENGTH_1)), const_like(params, float_attr(op, STRENGTH_2)), const_like(params, 0)
    if s > zero or t > zero:
        for i in range(lo, hi):
            w = params[i]
            sign = s if w > zero else (-s if w < zero else zero)
            grads[i] += t * w + sign
