"""Dense: every output sees every input.

    z = a W + b        a (samples, n_in) · W (n_in, n_out) · b (n_out) · z (samples, n_out)

Source   Nielsen, Neural Networks and Deep Learning, chapters 1 and 2
"""

from dataclasses import dataclass
from typing import Annotated, Any

from numbanet.backend.cuda.gemm import gemm_cuda
from numbanet.backend.intrinsics import (
    brgemm_strided,
    const_like,
    div_u32,
    dot_products,
    lanes,
    load,
    local_array,
    num_threads,
    ptr_add,
    store,
    thread_rank,
    transpose,
)
from numbanet.backend.jit import inline, kernel
from numbanet.io.fields import Count, Flag
from numbanet.nn.initializers import INITIALIZER
from numbanet.nn.layers.base import ACTIVATION, Layer, Shape
from numbanet.nn.regularizers import PENALTY
from numbanet.plan.columns import (
    ATTRS,
    N_IN,
    N_OUT,
    N_SPLIT_K,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    SAMPLES,
    SCRATCH,
    Op,
    W,
    X,
    Y,
    context,
)

BIAS = ATTRS
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
        return [Op("Dense", n_in, n_out, forward, backward, gradient, accumulate_gradient, split_k=split_k, reduce_split_k=reduce_split_k,
                   param_rows=n_in + self.bias, param_cols=n_out, n_weights=n_in * n_out, scratch=BLOCK * n_out, attrs=(int(self.bias),))]


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Weigh the inputs: z = a W + b, for samples lo ≤ i < hi.

    Reads params[W], acts[x]; overwrites acts[y]
    """
    n_in, n_out, w = op[N_IN], op[N_OUT], op[W]
    a, z = ptr_add(acts, op[X] + lo * n_in), ptr_add(acts, op[Y] + lo * n_out)
    bias = ptr_add(params, w + n_in * n_out)
    brgemm_strided(bias, 0, a, n_in, 1, 0, ptr_add(params, w), n_out, 0, z, n_out, hi - lo, n_out, n_in, 1, op[BIAS])


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, w = op[N_IN], op[N_OUT], op[W]
    a, z, bias = ptr_add(acts, op[X] + lo * n_in), ptr_add(acts, op[Y] + lo * n_out), ptr_add(params, w + n_in * n_out)
    gemm_cuda(bias, 0, a, n_in, 1, -1, ptr_add(params, w), n_out, 1, z, n_out, hi - lo, n_out, n_in, op[BIAS])


@kernel
def split_k(op, params, grads, acts, deltas, lo, hi):
    """What inputs lo ≤ k < hi of all samples give: grads[i, j] = Σ_k a[i, k] W[k, j]        grads overwritten"""
    n_in, n_out, w = op[N_IN], op[N_OUT], op[W]
    brgemm_strided(grads, 0, ptr_add(acts, op[X] + lo), n_in, 1, 0, ptr_add(params, w + lo * n_out), n_out, 0, grads, n_out, context(op, SAMPLES),
             n_out, hi - lo, 1, 0)


@split_k.cuda
def split_k(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, w = op[N_IN], op[N_OUT], op[W]
    gemm_cuda(grads, 0, ptr_add(acts, op[X] + lo), n_in, 1, -1, ptr_add(params, w + lo * n_out), n_out, 1, grads, n_out, context(op, SAMPLES),
            n_out, hi - lo, 0)


@kernel
def reduce_split_k(op, params, grads, acts, deltas, lo, hi):
    """z = b + what the parts of the inputs gave, in their order, for samples lo ≤ i < hi        acts[y] overwritten"""
    n_out, parts, width = op[N_OUT], ptr_add(acts, op[PARTIAL_GRADS]), lanes(acts)
    bias, zero = ptr_add(params, op[W] + op[N_IN] * n_out), const_like(load(acts, 0), 0)
    for i in range(lo, hi):
        for j in range(0, n_out, width):
            total = load(ptr_add(bias, j), n_out - j) if op[BIAS] else zero
            for part in range(N_SPLIT_K):
                total = total + load(ptr_add(parts, part * op[PARTIAL_STRIDE] + i * n_out + j), n_out - j)
            store(ptr_add(acts, op[Y] + i * n_out + j), total, n_out - j)


@reduce_split_k.cuda
def reduce_split_k(op, params, grads, acts, deltas, lo, hi):
    n_out = op[N_OUT]
    for e in range(lo * n_out + thread_rank(), hi * n_out, num_threads()):
        j = e - div_u32(e, n_out) * n_out
        total = params[op[W] + op[N_IN] * n_out + j] if op[BIAS] else const_like(params, 0)
        for part in range(N_SPLIT_K):
            total += acts[op[PARTIAL_GRADS] + part * op[PARTIAL_STRIDE] + e]
        acts[op[Y] + e] = total


PANEL_ELEMENTS = 4096
"""Numbers of a piece of a turned matrix: 16 or 32 KiB, on the stack."""
FEW_SAMPLES = 16
"""Samples in a batch up to which dot products are faster: half as many for each of two threads."""
BLOCK = 64
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
    n_out, small = op[N_OUT], op[N_IN] * op[N_OUT] <= PANEL_ELEMENTS
    few = context(op, SAMPLES) <= FEW_SAMPLES < n_out and not small  # by the batch: which sums are taken depends on no thread
    for i in range(lo, hi, BLOCK):
        m = min(BLOCK, hi - i)
        if few:
            _backward_dot(op, params, deltas, i, m)
        elif small or m >= n_out:
            _backward_transposed_w(op, params, deltas, i, m)
        else:
            _backward_transposed_dz(op, params, acts, deltas, i, m)


@inline
def _backward_transposed_w(op, params, deltas, i, m):
    """da = dz Wᵀ for samples i … i + m, a piece of Wᵀ at a time."""
    n_in, n_out, width = op[N_IN], op[N_OUT], 2 * lanes(params)
    height, panel = PANEL_ELEMENTS // width, local_array(params, PANEL_ELEMENTS)
    for k in range(0, n_in, width):
        columns = min(width, n_in - k)
        for j in range(0, n_out, height):
            rows = min(height, n_out - j)
            transpose(ptr_add(params, op[W] + k * n_out + j), n_out, panel, width, columns, rows)
            da, dz = ptr_add(deltas, op[X] + i * n_in + k), ptr_add(deltas, op[Y] + i * n_out + j)
            brgemm_strided(da, n_in, dz, n_out, 1, 0, panel, width, 0, da, n_in, m, columns, rows, 1, min(j, 1))


@inline
def _backward_dot(op, params, deltas, i, m):
    """da[i, k] = dz[i] · W[k] for samples i … i + m."""
    n_in, n_out = op[N_IN], op[N_OUT]
    da = ptr_add(deltas, op[X] + i * n_in)
    for k in range(m * n_in):
        da[k] = const_like(da, 0)
    dot_products(ptr_add(deltas, op[Y] + i * n_out), n_out, 0, ptr_add(params, op[W]), n_out, 0, da, n_in, m, n_in, n_out, 1)


@inline
def _backward_transposed_dz(op, params, acts, deltas, i, m):
    """daᵀ = W dzᵀ for samples i … i + m; dzᵀ stands in the scratch memory, daᵀ comes out in pieces."""
    n_in, n_out = op[N_IN], op[N_OUT]
    dz, panel = ptr_add(acts, op[SCRATCH]), local_array(params, PANEL_ELEMENTS)
    transpose(ptr_add(deltas, op[Y] + i * n_out), n_out, dz, m, m, n_out)
    for k in range(0, n_in, BLOCK):
        rows = min(BLOCK, n_in - k)
        brgemm_strided(panel, 0, ptr_add(params, op[W] + k * n_out), n_out, 1, 0, dz, m, 0, panel, m, rows, m, n_out, 1, 0)
        transpose(panel, m, ptr_add(deltas, op[X] + i * n_in + k), n_in, rows, m)


@backward.cuda
def backward(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_IN], op[N_OUT]
    da, dz = ptr_add(deltas, op[X] + lo * n_in), ptr_add(deltas, op[Y] + lo * n_out)
    gemm_cuda(da, 0, dz, n_out, 1, -1, ptr_add(params, op[W]), 1, n_out, da, n_in, hi - lo, n_in, n_out, 0)


SAMPLE_CHUNK = 256
"""Samples added up at a time, so that what a tile reads stays in cache when the batch is long."""


@kernel
def gradient(op, params, grads, acts, deltas, lo, hi):
    """Take the gradient of rows lo ≤ k < hi of W, over the whole batch; row n_in is the bias.

    BP4   dW = aᵀ dz      BP3   db = Σ dz      grads[W]   overwritten
    Source   Nielsen, Neural Networks and Deep Learning, chapter 2, BP3 and BP4
    """
    n_in, n_out, w, samples = op[N_IN], op[N_OUT], op[W], context(op, SAMPLES)
    last = min(hi, n_in)
    dw = ptr_add(grads, w + lo * n_out)
    for i in range(0, samples, SAMPLE_CHUNK):
        a, dz = ptr_add(acts, op[X] + i * n_in + lo), ptr_add(deltas, op[Y] + i * n_out)
        brgemm_strided(dw, n_out, a, 1, n_in, 0, dz, n_out, 0, dw, n_out, last - lo, n_out, min(SAMPLE_CHUNK, samples - i), 1, min(i, 1))
    if hi > n_in:
        db, dz = ptr_add(grads, w + n_in * n_out), ptr_add(deltas, op[Y])
        for j in range(n_out):
            db[j] = const_like(db, 0)
        for i in range(samples):
            for j in range(n_out):
                db[j] += dz[i * n_out + j]


@gradient.cuda
def gradient(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, samples = op[N_IN], op[N_OUT], context(op, SAMPLES)
    dw, a, dz = ptr_add(grads, op[W] + lo * n_out), ptr_add(acts, op[X] + lo), ptr_add(deltas, op[Y])
    gemm_cuda(dw, 0, a, 1, n_in, n_in - lo, dz, n_out, 1, dw, n_out, hi - lo, n_out, samples, 0)


@kernel
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """Add the gradient that samples lo ≤ i < hi give: dW += aᵀ dz, db += Σ dz        grads[W] added to

    For long batches and few weights: what `gradient` would read again later is read while it is in cache.
    """
    n_in, n_out, w = op[N_IN], op[N_OUT], op[W]
    dw, a, dz = ptr_add(grads, w), ptr_add(acts, op[X] + lo * n_in), ptr_add(deltas, op[Y] + lo * n_out)
    brgemm_strided(dw, n_out, a, 1, n_in, 0, dz, n_out, 0, dw, n_out, n_in, n_out, hi - lo, 1, 1)
    if op[BIAS]:
        db = ptr_add(dw, n_in * n_out)
        for i in range(hi - lo):
            for j in range(n_out):
                db[j] += dz[i * n_out + j]


@accumulate_gradient.cuda
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_IN], op[N_OUT]
    dw, a, dz = ptr_add(grads, op[W]), ptr_add(acts, op[X] + lo * n_in), ptr_add(deltas, op[Y] + lo * n_out)
    gemm_cuda(dw, n_out, a, 1, n_in, n_in, dz, n_out, 1, dw, n_out, n_in + op[BIAS], n_out, hi - lo, 1)
