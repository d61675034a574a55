"""Dense: every output sees every input.

    z = a W + b        a (samples, n_in) · W (n_in, n_out) · b (n_out) · z (samples, n_out)

Source   Nielsen, Neural Networks and Deep Learning, chapters 1 and 2
"""

from dataclasses import dataclass
from typing import Annotated, Any

from numbanet._grid import product
from numbanet._jit import inline, kernel
from numbanet._simd import at, dots, lanes, like, load, multiply, quotient, stack, store, thread, threads, turn
from numbanet.fields import Count, Flag
from numbanet.initializers import INITIALIZER
from numbanet.layers.base import ACTIVATION, Layer, Shape
from numbanet.plan import COUNT, N_X, N_Y, OWN, PARTIALS, SAMPLES, SCRATCH, SPLITS, Op, W, X, Y, clock
from numbanet.regularizers import PENALTY

BIAS = OWN
"""1 where the layer has a bias, which follows the weights like one more row of W."""


@dataclass(frozen=True, eq=False)
class Dense(Layer):
    """A fully connected layer of `units` neurons, followed by `activation`.

    activation        a name, an activation layer, or a list with one of them for each neuron
    initializer       a name, an initialiser, or an array (n_in, units); by default He for ReLU and its kin, else Glorot
    bias_initializer  likewise, an array of (units,)
    penalty           L1(…), L2(…) or a list of them, on the weights and not on the bias
    Input (n_in,), output (units,). Raises ValueError for an input that is not a vector.
    """

    units: Annotated[int, Count(1, says="{owner} needs a positive whole number of {name}, got {got}")]
    activation: Annotated[Any, ACTIVATION] = None
    initializer: Annotated[Any, INITIALIZER] = None
    bias_initializer: Annotated[Any, INITIALIZER] = "zeros"
    penalty: Annotated[Any, PENALTY] = None
    bias: Annotated[bool, Flag()] = True

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise ValueError(f"Dense expects a vector, got {shape}; put Flatten() before it")
        return (int(self.units),)

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"weights": (shape[0], int(self.units))}
        return shapes | {"bias": (int(self.units),)} if self.bias else shapes

    def initializers(self, following) -> dict:
        default = "he" if type(following).__name__ in ("ReLU", "LeakyReLU") else "glorot"
        return {"weights": default if self.initializer is None else self.initializer, "bias": self.bias_initializer}

    def ops(self, shape: Shape) -> list[Op]:
        n_in, n_out = shape[0], int(self.units)
        return [Op("Dense", n_in, n_out, forward, backward, gradient, partial, split=split, joined=joined,
                   units=n_in + self.bias, unit=n_out, weights=n_in * n_out, scratch=SIDE * n_out, own=(int(self.bias),))]


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Weigh the inputs: z = a W + b, for samples lo ≤ i < hi.

    Reads params[W], acts[x]; overwrites acts[y]
    """
    n_in, n_out, w = op[N_X], op[N_Y], op[W]
    a, z = at(acts, op[X] + lo * n_in), at(acts, op[Y] + lo * n_out)
    bias = at(params, w + n_in * n_out)
    multiply(bias, 0, a, n_in, 1, 0, at(params, w), n_out, 0, z, n_out, hi - lo, n_out, n_in, 1, op[BIAS])


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, w = op[N_X], op[N_Y], op[W]
    a, z, bias = at(acts, op[X] + lo * n_in), at(acts, op[Y] + lo * n_out), at(params, w + n_in * n_out)
    product(bias, 0, a, n_in, 1, -1, at(params, w), n_out, 1, z, n_out, hi - lo, n_out, n_in, op[BIAS])


@kernel
def split(op, params, grads, acts, deltas, lo, hi):
    """What inputs lo ≤ k < hi of all samples give: grads[i, j] = Σ_k a[i, k] W[k, j]        grads overwritten"""
    n_in, n_out, w = op[N_X], op[N_Y], op[W]
    multiply(grads, 0, at(acts, op[X] + lo), n_in, 1, 0, at(params, w + lo * n_out), n_out, 0, grads, n_out, clock(op, SAMPLES),
             n_out, hi - lo, 1, 0)


@split.cuda
def split(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, w = op[N_X], op[N_Y], op[W]
    product(grads, 0, at(acts, op[X] + lo), n_in, 1, -1, at(params, w + lo * n_out), n_out, 1, grads, n_out, clock(op, SAMPLES),
            n_out, hi - lo, 0)


@kernel
def joined(op, params, grads, acts, deltas, lo, hi):
    """z = b + what the parts of the inputs gave, in their order, for samples lo ≤ i < hi        acts[y] overwritten"""
    n_out, parts, width = op[N_Y], at(acts, op[PARTIALS]), lanes(acts)
    bias, zero = at(params, op[W] + op[N_X] * n_out), like(load(acts, 0), 0)
    for i in range(lo, hi):
        for j in range(0, n_out, width):
            total = load(at(bias, j), n_out - j) if op[BIAS] else zero
            for part in range(SPLITS):
                total = total + load(at(parts, part * op[COUNT] + i * n_out + j), n_out - j)
            store(at(acts, op[Y] + i * n_out + j), total, n_out - j)


@joined.cuda
def joined(op, params, grads, acts, deltas, lo, hi):
    n_out = op[N_Y]
    for e in range(lo * n_out + thread(), hi * n_out, threads()):
        j = e - quotient(e, n_out) * n_out
        total = params[op[W] + op[N_X] * n_out + j] if op[BIAS] else like(params, 0)
        for part in range(SPLITS):
            total += acts[op[PARTIALS] + part * op[COUNT] + e]
        acts[op[Y] + e] = total


PANEL = 4096
"""Numbers of a piece of a turned matrix: 16 or 32 KiB, on the stack."""
FEW = 16
"""Samples in a batch up to which dot products are faster: half as many for each of two threads."""
SIDE = 64
"""Samples, and rows of W, whose deltas come out turned at a time: they fit a panel."""


@kernel
def backward(op, params, grads, acts, deltas, lo, hi):
    """Carry the error back through z = a W + b, for samples lo ≤ i < hi.

    BP2, first factor    da = dz Wᵀ        deltas[x]   overwritten
    Shapes   da (samples, n_in) · dz (samples, n_out) · W (n_in, n_out)
    The tile reads its second matrix row by row, so one has to be turned: Wᵀ, or, where that is large and the samples are few,
    dzᵀ, for daᵀ = W dzᵀ. For a few samples, which would leave most of a register empty, every number is a dot product.
    Source   Nielsen, Neural Networks and Deep Learning, chapter 2, BP2
    """
    n_out, small = op[N_Y], op[N_X] * op[N_Y] <= PANEL
    few = clock(op, SAMPLES) <= FEW < n_out and not small  # by the batch: which sums are taken depends on no thread
    for i in range(lo, hi, SIDE):
        m = min(SIDE, hi - i)
        if few:
            _dotted(op, params, deltas, i, m)
        elif small or m >= n_out:
            _plain(op, params, deltas, i, m)
        else:
            _turned(op, params, acts, deltas, i, m)


@inline
def _plain(op, params, deltas, i, m):
    """da = dz Wᵀ for samples i … i + m, a piece of Wᵀ at a time."""
    n_in, n_out, width = op[N_X], op[N_Y], 2 * lanes(params)
    height, panel = PANEL // width, stack(params, PANEL)
    for k in range(0, n_in, width):
        columns = min(width, n_in - k)
        for j in range(0, n_out, height):
            rows = min(height, n_out - j)
            turn(at(params, op[W] + k * n_out + j), n_out, panel, width, columns, rows)
            da, dz = at(deltas, op[X] + i * n_in + k), at(deltas, op[Y] + i * n_out + j)
            multiply(da, n_in, dz, n_out, 1, 0, panel, width, 0, da, n_in, m, columns, rows, 1, min(j, 1))


@inline
def _dotted(op, params, deltas, i, m):
    """da[i, k] = dz[i] · W[k] for samples i … i + m."""
    n_in, n_out = op[N_X], op[N_Y]
    da = at(deltas, op[X] + i * n_in)
    for k in range(m * n_in):
        da[k] = like(da, 0)
    dots(at(deltas, op[Y] + i * n_out), n_out, 0, at(params, op[W]), n_out, 0, da, n_in, m, n_in, n_out, 1)


@inline
def _turned(op, params, acts, deltas, i, m):
    """daᵀ = W dzᵀ for samples i … i + m; dzᵀ stands in the scratch memory, daᵀ comes out in pieces."""
    n_in, n_out = op[N_X], op[N_Y]
    dz, panel = at(acts, op[SCRATCH]), stack(params, PANEL)
    turn(at(deltas, op[Y] + i * n_out), n_out, dz, m, m, n_out)
    for k in range(0, n_in, SIDE):
        rows = min(SIDE, n_in - k)
        multiply(panel, 0, at(params, op[W] + k * n_out), n_out, 1, 0, dz, m, 0, panel, m, rows, m, n_out, 1, 0)
        turn(panel, m, at(deltas, op[X] + i * n_in + k), n_in, rows, m)


@backward.cuda
def backward(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_X], op[N_Y]
    da, dz = at(deltas, op[X] + lo * n_in), at(deltas, op[Y] + lo * n_out)
    product(da, 0, dz, n_out, 1, -1, at(params, op[W]), 1, n_out, da, n_in, hi - lo, n_in, n_out, 0)


RUN = 256
"""Samples added up at a time, so that what a tile reads stays in cache when the batch is long."""


@kernel
def gradient(op, params, grads, acts, deltas, lo, hi):
    """Take the gradient of rows lo ≤ k < hi of W, over the whole batch; row n_in is the bias.

    BP4   dW = aᵀ dz      BP3   db = Σ dz      grads[W]   overwritten
    Source   Nielsen, Neural Networks and Deep Learning, chapter 2, BP3 and BP4
    """
    n_in, n_out, w, samples = op[N_X], op[N_Y], op[W], clock(op, SAMPLES)
    last = min(hi, n_in)
    dw = at(grads, w + lo * n_out)
    for i in range(0, samples, RUN):
        a, dz = at(acts, op[X] + i * n_in + lo), at(deltas, op[Y] + i * n_out)
        multiply(dw, n_out, a, 1, n_in, 0, dz, n_out, 0, dw, n_out, last - lo, n_out, min(RUN, samples - i), 1, min(i, 1))
    if hi > n_in:
        db, dz = at(grads, w + n_in * n_out), at(deltas, op[Y])
        for j in range(n_out):
            db[j] = like(db, 0)
        for i in range(samples):
            for j in range(n_out):
                db[j] += dz[i * n_out + j]


@gradient.cuda
def gradient(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, samples = op[N_X], op[N_Y], clock(op, SAMPLES)
    dw, a, dz = at(grads, op[W] + lo * n_out), at(acts, op[X] + lo), at(deltas, op[Y])
    product(dw, 0, a, 1, n_in, n_in - lo, dz, n_out, 1, dw, n_out, hi - lo, n_out, samples, 0)


@kernel
def partial(op, params, grads, acts, deltas, lo, hi):
    """Add the gradient that samples lo ≤ i < hi give: dW += aᵀ dz, db += Σ dz        grads[W] added to

    For long batches and few weights: what `gradient` would read again later is read while it is in cache.
    """
    n_in, n_out, w = op[N_X], op[N_Y], op[W]
    dw, a, dz = at(grads, w), at(acts, op[X] + lo * n_in), at(deltas, op[Y] + lo * n_out)
    multiply(dw, n_out, a, 1, n_in, 0, dz, n_out, 0, dw, n_out, n_in, n_out, hi - lo, 1, 1)
    if op[BIAS]:
        db = at(dw, n_in * n_out)
        for i in range(hi - lo):
            for j in range(n_out):
                db[j] += dz[i * n_out + j]


@partial.cuda
def partial(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_X], op[N_Y]
    dw, a, dz = at(grads, op[W]), at(acts, op[X] + lo * n_in), at(deltas, op[Y] + lo * n_out)
    product(dw, n_out, a, 1, n_in, n_in, dz, n_out, 1, dw, n_out, n_in + op[BIAS], n_out, hi - lo, 1)
