"""Dense: every output depends on every input.

    z = a W + b        a (samples, n_in) · W (n_in, n_out) · b (n_out) · z (samples, n_out)

Over a sequence every step is a row of a and of z: a sample has as many rows as steps.

Source   Nielsen, Neural Networks and Deep Learning, chapters 1 and 2
"""

from dataclasses import dataclass
from typing import Annotated, Any

from numbanet.backend.cuda.gemm import gemm_bias_cuda, gemm_cuda, gemm_nt_cuda, gemm_tn_cuda
from numbanet.backend.intrinsics import (
    VECTOR_BYTES,
    const_like,
    div_u32,
    gemm,
    gemm_bias,
    gemm_nt,
    gemm_tn,
    lanes,
    load,
    local_array,
    num_threads,
    ptr_add,
    splat,
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
    ACCUMULATE,
    BACKWARD,
    FORWARD,
    N_IN,
    N_OUT,
    N_SPLIT_K,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    SAMPLES,
    SCRATCH,
    Attrs,
    W,
    X,
    Y,
    context,
)
from numbanet.plan.op import Op

LAYOUT = Attrs("bias rows n_in n_out stride")
"""
bias          1 where the layer has a bias, which follows the weights as one more row of W
rows          rows of a and of z in a sample: 1, or the steps of a sequence
n_in, n_out   elements of a row of a, and those of a row of z that are computed
stride        elements from one row of z to the next; those behind the first n_out are left alone
"""
LONG_DOT = 32
"""Inputs from which a single output is faster as a dot product, with vectors along the inputs."""
POSITIVE = "{owner} needs a positive integer number of {name}, got {got}"


@dataclass(frozen=True, eq=False)
class Dense(Layer):
    """A fully connected layer of `units` neurons, followed by `activation`.

    activation        a name, an activation layer, or a list with one of them for each neuron
    initializer       a name, an initialiser, or an array (n_in, units); by default He for ReLU and
                      LeakyReLU, else Glorot
    bias_initializer  likewise, an array of (units,)
    penalty           L1(…), L2(…) or a list of them, on the weights and not on the bias
    Input (n_in,), output (units,); of a sequence (steps, n_in) every step gives one: the output is
    (steps, units). Raises ValueError for an input of another shape.
    """

    units: Annotated[int, Count(1, says=POSITIVE)]
    activation: Annotated[Any, ACTIVATION] = None
    initializer: Annotated[Any, INITIALIZER] = None
    bias_initializer: Annotated[Any, INITIALIZER] = "zeros"
    penalty: Annotated[Any, PENALTY] = None
    bias: Annotated[bool, Flag()] = True

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) not in (1, 2):
            raise ValueError(
                f"Dense expects a vector or a sequence (steps, channels), got {shape}; "
                "put Flatten() before it"
            )
        return (*shape[:-1], int(self.units))

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"weights": (shape[-1], int(self.units))}
        return shapes | {"bias": (int(self.units),)} if self.bias else shapes

    def initializers(self, next_activation) -> dict:
        default = "he" if type(next_activation).__name__ in ("ReLU", "LeakyReLU") else "glorot"
        weights = default if self.initializer is None else self.initializer
        return {"weights": weights, "bias": self.bias_initializer}

    def ops(self, shape: Shape) -> list[Op]:
        rows = 1 if len(shape) == 1 else shape[0]
        return [dense_op(shape[-1], int(self.units), self.bias, rows, int(self.units))]


def dense_op(n_in: int, n_out: int, bias: bool, rows: int, stride: int) -> Op:
    """Return the op that multiplies each of the `rows` of a sample by W.

    stride   elements from one row of the output to the next, at least n_out; those behind the
             first n_out are left alone
    The gradient of a sequence is a long sum of few parameters, so it is accumulated.
    """
    vector = rows == 1 and stride == n_out
    single = {FORWARD: forward_single, ACCUMULATE: accumulate_single}
    row = {BACKWARD: backward_row, ACCUMULATE: accumulate_single if n_out == 1 else accumulate_row}
    return Op(
        "Dense",
        rows * n_in,
        rows * stride,
        forward,
        backward,
        gradient if vector else None,
        accumulate_gradient,
        split_k=split_k if vector else None,
        reduce_split_k=reduce_split_k if vector else None,
        embedded_verbs=single if vector and n_out == 1 else {},
        row_verbs=row if vector else {},
        linear=True,
        offset=LAYOUT.bias,
        param_rows=n_in + bias,
        param_cols=n_out,
        n_weights=n_in * n_out,
        weight_reuse=rows,
        scratch=BLOCK * n_out,
        attrs=LAYOUT.pack(bias=int(bias), rows=rows, n_in=n_in, n_out=n_out, stride=stride),
    )


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Compute z = a W + b, for samples lo ≤ i < hi.

    Reads params[W], acts[x]; overwrites acts[y]
    """
    n_in, n_out, stride = op[LAYOUT.n_in], op[LAYOUT.n_out], op[LAYOUT.stride]
    rows = (hi - lo) * op[LAYOUT.rows]
    w, bias = ptr_add(params, op[W]), ptr_add(params, op[W] + n_in * n_out)
    a, z = ptr_add(acts, op[X] + lo * op[N_IN]), ptr_add(acts, op[Y] + lo * op[N_OUT])
    if n_out == 1 and n_in >= LONG_DOT:
        for i in range(rows):
            z[i * stride] = bias[0] if op[LAYOUT.bias] else const_like(z, 0)
        gemm_nt(rows, 1, n_in, a, n_in, w, n_in, 1, z, stride)
    else:
        gemm_bias(rows, n_out, n_in, a, n_in, w, n_out, bias, op[LAYOUT.bias], z, stride)


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, stride = op[LAYOUT.n_in], op[LAYOUT.n_out], op[LAYOUT.stride]
    rows = (hi - lo) * op[LAYOUT.rows]
    w, bias = ptr_add(params, op[W]), ptr_add(params, op[W] + n_in * n_out)
    a, z = ptr_add(acts, op[X] + lo * op[N_IN]), ptr_add(acts, op[Y] + lo * op[N_OUT])
    gemm_bias_cuda(rows, n_out, n_in, a, n_in, w, n_out, bias, op[LAYOUT.bias], z, stride)


@kernel
def split_k(op, params, grads, acts, deltas, lo, hi):
    """Compute the part of a W that inputs lo ≤ k < hi give, for all samples.

    grads[i, j] = Σ_k a[i, k] W[k, j]        grads overwritten
    """
    n_in, n_out, samples = op[N_IN], op[N_OUT], context(op, SAMPLES)
    a, w = ptr_add(acts, op[X] + lo), ptr_add(params, op[W] + lo * n_out)
    gemm(samples, n_out, hi - lo, a, n_in, w, n_out, 0, grads, n_out)


@split_k.cuda
def split_k(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, samples = op[N_IN], op[N_OUT], context(op, SAMPLES)
    a, w = ptr_add(acts, op[X] + lo), ptr_add(params, op[W] + lo * n_out)
    gemm_cuda(samples, n_out, hi - lo, a, n_in, w, n_out, 0, grads, n_out)


@kernel
def reduce_split_k(op, params, grads, acts, deltas, lo, hi):
    """Add up z = b + the partial products in their order, for samples lo ≤ i < hi.

    acts[y] overwritten
    """
    n_out, parts, width = op[N_OUT], ptr_add(acts, op[PARTIAL_GRADS]), lanes(acts)
    bias, zero = ptr_add(params, op[W] + op[N_IN] * n_out), splat(acts, 0)
    for i in range(lo, hi):
        for j in range(0, n_out, width):
            n = n_out - j
            total = load(ptr_add(bias, j), n) if op[LAYOUT.bias] else zero
            for part in range(N_SPLIT_K):
                offset = part * op[PARTIAL_STRIDE] + i * n_out + j
                total = total + load(ptr_add(parts, offset), n)
            store(ptr_add(acts, op[Y] + i * n_out + j), total, n)


@reduce_split_k.cuda
def reduce_split_k(op, params, grads, acts, deltas, lo, hi):
    n_out = op[N_OUT]
    bias = ptr_add(params, op[W] + op[N_IN] * n_out)
    for e in range(lo * n_out + thread_rank(), hi * n_out, num_threads()):
        j = e - div_u32(e, n_out) * n_out
        total = bias[j] if op[LAYOUT.bias] else const_like(params, 0)
        for part in range(N_SPLIT_K):
            total += acts[op[PARTIAL_GRADS] + part * op[PARTIAL_STRIDE] + e]
        acts[op[Y] + e] = total


PANEL_ELEMENTS = 4096
"""Elements of a panel of a transposed matrix: 16 or 32 KiB, on the stack."""
FEW_SAMPLES = 16
"""Samples in a batch up to which dot products are faster: half as many for each of two threads."""
BLOCK = 64
"""Samples, and rows of W, whose deltas are computed transposed at a time: they fit a panel."""


@kernel
def backward(op, params, grads, acts, deltas, lo, hi):
    """Carry the error back through z = a W + b, for samples lo ≤ i < hi.

    BP2, first factor    da = dz Wᵀ        deltas[x]   overwritten
    Shapes   da (samples, n_in) · dz (samples, n_out) · W (n_in, n_out); the steps of a sequence are
    treated as samples
    The microkernel reads B row by row, so one matrix is transposed: W, or, where W is large and
    the samples are few, dz, for daᵀ = W dzᵀ. A few samples would leave most of a register empty:
    then every element is a dot product. Of a single output W is its own transpose.
    Source   Nielsen, Neural Networks and Deep Learning, chapter 2, BP2
    """
    n_out, rows = op[LAYOUT.n_out], op[LAYOUT.rows]
    small = op[LAYOUT.n_in] * n_out <= PANEL_ELEMENTS
    # chosen by the size of the batch: the order of a sum depends on no thread
    few = context(op, SAMPLES) * rows <= FEW_SAMPLES < n_out and not small
    for i in range(lo * rows, hi * rows, BLOCK):
        m = min(BLOCK, hi * rows - i)
        if n_out == 1:
            _backward_single(op, params, deltas, i, m)
        elif few:
            _backward_dot(op, params, deltas, i, m)
        elif small or m >= n_out:
            _backward_transposed_w(op, params, deltas, i, m)
        else:
            _backward_transposed_dz(op, params, acts, deltas, i, m)


@inline
def _backward_single(op, params, deltas, i, m):
    """da = dz Wᵀ for rows i … i + m of dz, of one element each."""
    n_in, stride = op[LAYOUT.n_in], op[LAYOUT.stride]
    da, dz = ptr_add(deltas, op[X] + i * n_in), ptr_add(deltas, op[Y] + i * stride)
    gemm(m, n_in, 1, dz, stride, ptr_add(params, op[W]), n_in, 0, da, n_in)


@inline
def _backward_transposed_w(op, params, deltas, i, m):
    """da = dz Wᵀ for rows i … i + m of dz, a panel of Wᵀ at a time, as wide as it can be."""
    n_in, n_out, stride = op[LAYOUT.n_in], op[LAYOUT.n_out], op[LAYOUT.stride]
    tile = 2 * lanes(params)
    width = max(1, PANEL_ELEMENTS // n_out // tile) * tile
    height, panel = PANEL_ELEMENTS // width, local_array(params, PANEL_ELEMENTS)
    for k in range(0, n_in, width):
        n = min(width, n_in - k)
        for j in range(0, n_out, height):
            depth = min(height, n_out - j)
            transpose(n, depth, ptr_add(params, op[W] + k * n_out + j), n_out, panel, width)
            da = ptr_add(deltas, op[X] + i * n_in + k)
            dz = ptr_add(deltas, op[Y] + i * stride + j)
            gemm(m, n, depth, dz, stride, panel, width, min(j, 1), da, n_in)


@inline
def _backward_dot(op, params, deltas, i, m):
    """da[i, k] = dz[i] · W[k] for rows i … i + m of dz."""
    n_in, n_out, stride = op[LAYOUT.n_in], op[LAYOUT.n_out], op[LAYOUT.stride]
    da, dz = ptr_add(deltas, op[X] + i * n_in), ptr_add(deltas, op[Y] + i * stride)
    gemm_nt(m, n_in, n_out, dz, stride, ptr_add(params, op[W]), n_out, 0, da, n_in)


@inline
def _backward_transposed_dz(op, params, acts, deltas, i, m):
    """daᵀ = W dzᵀ for rows i … i + m; dzᵀ is in scratch memory, daᵀ computed panel by panel."""
    n_in, n_out, stride = op[LAYOUT.n_in], op[LAYOUT.n_out], op[LAYOUT.stride]
    dz_t, da_t = ptr_add(acts, op[SCRATCH]), local_array(params, PANEL_ELEMENTS)
    transpose(m, n_out, ptr_add(deltas, op[Y] + i * stride), stride, dz_t, m)
    for k in range(0, n_in, BLOCK):
        rows = min(BLOCK, n_in - k)
        w, da = ptr_add(params, op[W] + k * n_out), ptr_add(deltas, op[X] + i * n_in + k)
        gemm(rows, m, n_out, w, n_out, dz_t, m, 0, da_t, m)
        transpose(rows, m, da_t, m, da, n_in)


@backward.cuda
def backward(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, rows = op[LAYOUT.n_in], op[LAYOUT.n_out], (hi - lo) * op[LAYOUT.rows]
    w, stride = ptr_add(params, op[W]), op[LAYOUT.stride]
    da, dz = ptr_add(deltas, op[X] + lo * op[N_IN]), ptr_add(deltas, op[Y] + lo * op[N_OUT])
    gemm_nt_cuda(rows, n_in, n_out, dz, stride, w, n_out, 0, da, n_in)


SAMPLE_CHUNK = 256
"""Samples added up at a time, so that what a tile reads stays in cache when the batch is long."""


@kernel
def gradient(op, params, grads, acts, deltas, lo, hi):
    """Take the gradient of rows lo ≤ k < hi of W, over the whole batch; row n_in is the bias.

    BP4   dW = aᵀ dz      BP3   db = Σ dz      grads[W]   overwritten
    Source   Nielsen, Neural Networks and Deep Learning, chapter 2, BP3 and BP4
    """
    n_in, n_out, samples = op[N_IN], op[N_OUT], context(op, SAMPLES)
    rows = min(hi, n_in) - lo
    dw = ptr_add(grads, op[W] + lo * n_out)
    for i in range(0, samples, SAMPLE_CHUNK):
        a, dz = ptr_add(acts, op[X] + i * n_in + lo), ptr_add(deltas, op[Y] + i * n_out)
        chunk = min(SAMPLE_CHUNK, samples - i)
        _add_products(rows, n_out, chunk, a, n_in, dz, n_out, min(i, 1), dw)
    if hi > n_in:
        db, dz = ptr_add(grads, op[W] + n_in * n_out), ptr_add(deltas, op[Y])
        add_rows(samples, n_out, dz, n_out, 0, db)


FEW_COLUMNS, MANY_SAMPLES = 4 if VECTOR_BYTES < 64 else 0, 32
"""Most columns beside whole panels of the microkernel whose gradient is taken transposed: none
where it lets short ends of rows share a vector (AVX-512); and the fewest samples for which that
saves more than it costs to turn them back."""


@inline
def _add_products(n_in, n_out, m, a, lda, dz, stride, beta, dw):
    """dW = β dW + aᵀ dz over m rows; of a single output dWᵀ = dzᵀ a fills the registers."""
    few = n_out % (2 * lanes(dw))
    fits = 0 < few <= FEW_COLUMNS and few * n_in <= PANEL_ELEMENTS
    if n_out == 1:
        gemm_tn(1, n_in, m, dz, stride, a, lda, beta, dw, n_in)
    elif fits and m >= MANY_SAMPLES and beta == 0:
        gemm_tn(n_in, n_out - few, m, a, lda, dz, stride, 0, dw, n_out)
        _few_products(n_in, few, m, a, lda, dz, stride, dw, n_out)
    else:
        gemm_tn(n_in, n_out, m, a, lda, dz, stride, beta, dw, n_out)


@inline
def _few_products(n_in, few, m, a, lda, dz, stride, dw, n_out):
    """The last `few` columns of dW = aᵀ dz over m rows, from dWᵀ = dzᵀ a in a panel."""
    j, panel = n_out - few, local_array(dw, PANEL_ELEMENTS)
    gemm_tn(few, n_in, m, ptr_add(dz, j), stride, a, lda, 0, panel, n_in)
    for k in range(n_in):
        for c in range(few):
            dw[k * n_out + j + c] = panel[c * n_in + k]


@inline
def add_rows(m, n, dz, stride, beta, db):
    """db = β db + Σ dz over m rows, in their order: 1ᵀ dz with a 1 for all rows."""
    one = local_array(db, 1)
    one[0] = const_like(db, 1)
    gemm_tn(1, n, m, one, 0, dz, stride, beta, db, n)


@gradient.cuda
def gradient(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, samples = op[N_IN], op[N_OUT], context(op, SAMPLES)
    dw = ptr_add(grads, op[W] + lo * n_out)
    a, dz = ptr_add(acts, op[X] + lo), ptr_add(deltas, op[Y])
    gemm_tn_cuda(hi - lo, n_out, samples, a, n_in, dz, n_out, 0, dw, n_out, n_in - lo)


@kernel
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """Add the gradient of samples lo ≤ i < hi: dW += aᵀ dz, db += Σ dz        grads[W] added to

    For long batches and few weights: what `gradient` would read again later is read while it is
    in cache.
    """
    n_in, n_out, stride = op[LAYOUT.n_in], op[LAYOUT.n_out], op[LAYOUT.stride]
    rows, dw = (hi - lo) * op[LAYOUT.rows], ptr_add(grads, op[W])
    a, dz = ptr_add(acts, op[X] + lo * op[N_IN]), ptr_add(deltas, op[Y] + lo * op[N_OUT])
    _add_products(n_in, n_out, rows, a, n_in, dz, stride, 1, dw)
    if op[LAYOUT.bias]:
        add_rows(rows, n_out, dz, stride, 1, ptr_add(dw, n_in * n_out))


@accumulate_gradient.cuda
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, stride = op[LAYOUT.n_in], op[LAYOUT.n_out], op[LAYOUT.stride]
    rows, dw = (hi - lo) * op[LAYOUT.rows], ptr_add(grads, op[W])
    a, dz = ptr_add(acts, op[X] + lo * op[N_IN]), ptr_add(deltas, op[Y] + lo * op[N_OUT])
    param_rows = n_in + op[LAYOUT.bias]
    gemm_tn_cuda(param_rows, n_out, rows, a, n_in, dz, stride, 1, dw, n_out, n_in)


# --- in the user's compiled code: one sample in a call, or one output ---------------------------


@kernel(independent=True)
def backward_row(op, params, grads, acts, deltas, lo, hi):
    """da[k] = dz · W[k] for sample lo, the only one        deltas[x] overwritten"""
    n_in, n_out, w = op[N_IN], op[N_OUT], ptr_add(params, op[W])
    da, dz = ptr_add(deltas, op[X] + lo * n_in), ptr_add(deltas, op[Y] + lo * n_out)
    for k in range(n_in):
        total = const_like(deltas, 0)
        for j in range(n_out):
            total += w[k * n_out + j] * dz[j]
        da[k] = total


@kernel(independent=True)
def accumulate_row(op, params, grads, acts, deltas, lo, hi):
    """dW += aᵀ dz, db += dz for sample lo, the only one        grads[W] added to"""
    n_in, n_out, dw = op[N_IN], op[N_OUT], ptr_add(grads, op[W])
    a, dz = ptr_add(acts, op[X] + lo * n_in), ptr_add(deltas, op[Y] + lo * n_out)
    for k in range(n_in):
        for j in range(n_out):
            dw[k * n_out + j] += a[k] * dz[j]
    if op[LAYOUT.bias]:
        for j in range(n_out):
            dw[n_in * n_out + j] += dz[j]


@kernel(independent=True)
def forward_single(op, params, grads, acts, deltas, lo, hi):
    """z = a · w + b for samples lo ≤ i < hi, of one output        acts[y] overwritten"""
    n_in, w = op[N_IN], ptr_add(params, op[W])
    for i in range(lo, hi):
        a, total = ptr_add(acts, op[X] + i * n_in), const_like(acts, 0)
        for k in range(n_in):
            total += a[k] * w[k]
        acts[op[Y] + i] = total + w[n_in] if op[LAYOUT.bias] else total


@kernel
def accumulate_single(op, params, grads, acts, deltas, lo, hi):
    """dw += Σ dz a, db += Σ dz over samples lo ≤ i < hi, of one output        grads[W] added to"""
    n_in, dw = op[N_IN], ptr_add(grads, op[W])
    for i in range(lo, hi):
        a, dz = ptr_add(acts, op[X] + i * n_in), deltas[op[Y] + i]
        for k in range(n_in):
            dw[k] += a[k] * dz
        if op[LAYOUT.bias]:
            dw[n_in] += dz


@accumulate_single.cuda
def accumulate_single(op, params, grads, acts, deltas, lo, hi):
    n_in = op[N_IN]
    for k in range(thread_rank(), n_in + op[LAYOUT.bias], num_threads()):
        for i in range(lo, hi):
            a = acts[op[X] + i * n_in + k] if k < n_in else const_like(acts, 1)
            grads[op[W] + k] += a * deltas[op[Y] + i]
