"""What BatchNorm and LayerNorm share: parameters, attributes, and the steps of their kernels."""

import math
from dataclasses import dataclass
from typing import Annotated

from numbanet.backend.intrinsics import const_like, float_attr
from numbanet.backend.jit import inline
from numbanet.io.fields import Real
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.plan.columns import Attrs
from numbanet.plan.op import Op

NORM = Attrs("channels epsilon momentum")


@dataclass(frozen=True, eq=False)
class Normalization(Layer):
    """A scale γ ("weights", from 1) and a shift β ("bias", from 0) per channel, and ε."""

    epsilon: Annotated[float, Real(above=0, below=1)] = 1e-5

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        return {"weights": (shape[-1],), "bias": (shape[-1],)}

    def initializers(self, next_activation) -> dict:
        return {"weights": "ones", "bias": "zeros"}

    def _op(self, shape: Shape, forward, backward, accumulate_gradient, **options) -> Op:
        attrs = NORM.pack(
            channels=shape[-1],
            epsilon=float(self.epsilon),
            momentum=float(getattr(self, "momentum", 0.0)),
        )
        return Op(
            type(self).__name__,
            size(shape),
            size(shape),
            forward,
            backward,
            accumulate_gradient=accumulate_gradient,
            param_rows=2,
            param_cols=shape[-1],
            attrs=attrs,
            **options,
        )


@inline
def inverse_std(op, acts, variance):
    """1 / √(σ² + ε)"""
    return const_like(acts, 1) / math.sqrt(
        variance + const_like(acts, float_attr(op, NORM.epsilon))
    )
