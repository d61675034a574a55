"""What a neuron looks for: the input that excites it most."""

from dataclasses import dataclass

import numpy as np

from numbanet.io.fields import Real
from numbanet.io.validation import check_inputs, check_int
from numbanet.network.insight.importance import layer_number
from numbanet.network.insight.layerwise import (
    input_gradient,
    is_differentiable,
    layer_name,
    unscaled_part,
)

SMALLEST_STEP = 1e-3
"""The search ends at steps below this part of the radius."""


@dataclass(frozen=True, eq=False)
class Excitation:
    """The input that a unit answers most strongly.

    name      the layer
    unit      its index on the layer's last axis
    input     (*input_shape)
    start     the output for the input that the search began at
    output    that for `input`: of a map or a sequence the mean over its positions
    """

    name: str
    unit: int
    input: np.ndarray
    start: float
    output: float


def excite(network, layer, unit, *, around=None, radius=1.0, steps=200, seed=0) -> Excitation:
    """Search for the input that excites a unit most, by gradient ascent on the input.

    layer, unit   the layer's number, as in `summary`, and an index on its last axis
    around        the input (*input_shape) at the centre, by default zeros: the mean of the data,
                  say, or one sample
    radius        the distance from the centre at which inputs are compared, in the inputs' unit
    steps         most steps of the search
    seed          of the direction that it begins in
    The search goes along the sphere and halves its step where it does not rise; it finds a maximum
    near its start, not the largest of all. For a first dense layer it is the direction of the
    unit's weights. Raises ValueError for layers without a derivative.
    """
    k = layer_number(network, layer)
    part = unscaled_part(network, 0, k + 1)
    steps, seed = check_int(steps, "steps"), check_int(seed, "seed", 0)
    radius = Real(above=0)(radius, "radius", "excite")
    n_units = part.output_shape[-1]
    if not 0 <= check_int(unit, "unit", 0) < n_units:
        raise ValueError(f"unit {unit}: {layer_name(network, k)} has {n_units}, counted from 0")
    if not is_differentiable(part.layers[0]):
        raise ValueError(
            f"layer {layer_name(network, 0)} has no derivative by its inputs; "
            "excite the layers behind it: network[1:]"
        )
    centre = np.zeros(part.input_shape) if around is None else around
    centre = check_inputs(np.asarray(centre)[None], part.input_shape, part.dtype, "around")
    centre = centre.reshape(1, *part.input_shape).astype(part.dtype)
    weighting = np.zeros((1, *part.output_shape))
    weighting[..., unit] = 1 / weighting[..., unit].size

    def answer(point) -> float:
        return float((part.predict(point) * weighting).sum())

    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    direction, step = generator.normal(size=centre.shape), 1.0
    direction /= np.linalg.norm(direction)
    start = best = answer(centre + radius * direction)
    for _ in range(steps):
        point = (centre + radius * direction).astype(part.dtype)
        gradient = input_gradient(part, point, weighting)
        norm = np.linalg.norm(gradient)
        if norm == 0 or step < SMALLEST_STEP:
            break
        other = direction + step * gradient / norm
        other /= np.linalg.norm(other)
        found = answer(centre + radius * other)
        if found > best:
            direction, best, step = other, found, min(2 * step, 4.0)
        else:
            step /= 2
    shape = centre.shape[1:]
    return Excitation(
        layer_name(network, k), unit, (centre + radius * direction).reshape(shape), start, best
    )
