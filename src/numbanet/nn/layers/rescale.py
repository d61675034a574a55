"""Rescale: every element times a constant, plus a constant.

    y = scale · x + offset        dx = scale · dy

As the first layer, without an offset, it costs nothing: the inputs are multiplied where they are
copied in (nn/data.py), so that bytes are still read where they lie.
"""

from dataclasses import dataclass
from typing import Annotated

from numbanet.backend.intrinsics import const_like, float_attr
from numbanet.backend.jit import kernel
from numbanet.io.fields import Real
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.plan.columns import N_OUT, Attrs, Y
from numbanet.plan.op import Op

RESCALE = Attrs("scale offset")


@dataclass(frozen=True, eq=False)
class Rescale(Layer):
    """Multiply every input by `scale` and add `offset`: `Rescale(1 / 255)` for bytes of an image.

    Both are part of the network and are saved with it; neither is trained.
    """

    scale: Annotated[float, Real()]
    offset: Annotated[float, Real()] = 0.0

    def ops(self, shape: Shape) -> list[Op]:
        return [op(size(shape), self.scale, self.offset)]


def op(n: int, scale: float, offset: float = 0.0) -> Op:
    """Return the op y = scale · x + offset on samples of n elements, in place."""
    attrs = RESCALE.pack(scale=float(scale), offset=float(offset))
    return Op(
        "Rescale",
        n,
        n,
        forward,
        backward,
        linear=True,
        offset=RESCALE.offset,
        in_place=True,
        attrs=attrs,
    )


@kernel(independent=True)
def forward(op, params, grads, acts, deltas, lo, hi):
    """y = scale · x + offset        acts[y] in place"""
    scale = const_like(acts, float_attr(op, RESCALE.scale))
    offset = const_like(acts, float_attr(op, RESCALE.offset))
    for i in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT]):
        acts[i] = acts[i] * scale + offset


@kernel(independent=True)
def backward(op, params, grads, acts, deltas, lo, hi):
    """dx = scale · dy        deltas[y] in place"""
    scale = const_like(acts, float_attr(op, RESCALE.scale))
    for i in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT]):
        deltas[i] *= scale
