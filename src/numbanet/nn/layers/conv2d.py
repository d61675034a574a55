"""Conv2D: local receptive fields with shared weights.

    z[h, w, o] = b[o] + Σ_r Σ_s Σ_c a[h·stride + r·dilation, w·stride + s·dilation, c] · K[r, s, c, o]

    a (height, width, c_in) · K (rows, columns, c_in / groups, c_out) · b (c_out) · z (out_height, out_width, c_out)

Every product is the matrix tile, on the picture as it lies: nothing is copied into columns first.
  forward    rows of A are the pixels of one output row; K runs over (s, c), which are contiguous, and outside over r
  partial    rows of A are (s, c); K runs over the output pixels of a picture; B is the delta
  backward   for an input row: delta rows times the turned kernel, K running over (r, o); the (s, c) results of neighbouring
             pixels overlap and are added to the row one after the other
With dilation or groups (s, c) are not contiguous, and each s takes a product of its own.

Source   LeCun et al. 1998; Nielsen, Neural Networks and Deep Learning, chapter 6; Dumoulin, Visin 2016 (geometry)
"""

from dataclasses import dataclass
from typing import Annotated, Any

from numbanet.backend.intrinsics import (
    brgemm_strided,
    const_like,
    div_u32,
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
from numbanet.io.fields import Count, Flag, Padding, Pair
from numbanet.nn.initializers import INITIALIZER
from numbanet.nn.layers.base import ACTIVATION, Layer, Shape
from numbanet.nn.layers.window import pad_ops, window
from numbanet.nn.regularizers import PENALTY
from numbanet.plan.columns import ATTRS, N_IN, N_OUT, N_WEIGHTS, SCRATCH, Op, W, X, Y

(BIAS, HEIGHT, WIDTH_IN, C_IN, OUT_HEIGHT, OUT_WIDTH, C_OUT, ROWS, COLUMNS, STRIDE_V, STRIDE_H, DILATION_V, DILATION_H,
 GROUPS) = range(ATTRS, ATTRS + 14)
"""Sizes of the (padded) input, the output and the window."""
POSITIVE = "{owner} needs a positive whole number of {name}, got {got}"


@dataclass(frozen=True, eq=False)
class Conv2D(Layer):
    """A convolution with `filters` kernels of `kernel_size` over pictures, channels last, followed by `activation`.

    kernel_size, stride, dilation   a whole number or (vertical, horizontal)
    padding       "valid", "same", a number, (vertical, horizontal) or ((top, bottom), (left, right)), of zeros
    groups        channels are split into that many groups that do not see each other; c_in of them is a depthwise convolution
    activation, initializer, bias_initializer, penalty, bias   as in Dense
    Input (height, width, c_in), output (out_height, out_width, filters). Raises ValueError for a window that does not fit.
    """

    filters: Annotated[int, Count(1, says=POSITIVE)]
    kernel_size: Annotated[Any, Pair()]
    stride: Annotated[Any, Pair()] = 1
    padding: Annotated[Any, Padding()] = "valid"
    dilation: Annotated[Any, Pair()] = 1
    groups: Annotated[int, Count(1, says=POSITIVE)] = 1
    activation: Annotated[Any, ACTIVATION] = None
    initializer: Annotated[Any, INITIALIZER] = None
    bias_initializer: Annotated[Any, INITIALIZER] = "zeros"
    penalty: Annotated[Any, PENALTY] = None
    bias: Annotated[bool, Flag()] = True

    def _window(self, shape: Shape):
        return window("Conv2D", shape, self.kernel_size, self.stride, self.padding, self.dilation)

    def output_shape(self, shape: Shape) -> Shape:
        output = self._window(shape).output
        for name, channels in (("input channels", shape[2]), ("filters", self.filters)):
            if channels % self.groups:
                raise ValueError(f"Conv2D: {self.groups} groups do not divide {channels} {name}; choose a divisor of both")
        return (*output, int(self.filters))

    def channels_first_window(self, shape: Shape):
        """The window, if the convolution can work on planes (planar.py): one channel in and stride 1."""
        view = self._window(shape)
        return view if shape[2] == 1 and view.stride == (1, 1) and not any(view.padding) else None

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        kernel_shape = (*self._window(shape).size, shape[2] // self.groups, int(self.filters))
        shapes: dict[str, Shape] = {"weights": kernel_shape}
        return shapes | {"bias": (int(self.filters),)} if self.bias else shapes

    def initializers(self, following) -> dict:
        default = "he" if type(following).__name__ in ("ReLU", "LeakyReLU") else "glorot"
        return {"weights": default if self.initializer is None else self.initializer, "bias": self.bias_initializer}

    def ops(self, shape: Shape) -> list[Op]:
        view = self._window(shape)
        (height, width), (out_height, out_width), (rows, columns) = view.padded, view.output, view.size
        c_in, c_out = shape[2], int(self.filters)
        weights = rows * columns * (c_in // self.groups) * c_out
        units = rows * columns * (c_in // self.groups) + self.bias
        own = (int(self.bias), height, width, c_in, out_height, out_width, c_out, rows, columns, *view.stride, *view.dilation,
               int(self.groups))
        return [*pad_ops(view),
                Op("Conv2D", height * width * c_in, out_height * out_width * c_out, forward, backward, accumulate_gradient=accumulate_gradient, param_rows=units,
                   param_cols=c_out, n_weights=weights, scratch=weights + out_width * columns * c_in, attrs=own,
                   weight_reuse=out_height * out_width)]


@inline
def _gemm_shape(op):
    """How many products a window row takes, and how many (s, c) and input numbers each covers.

    One over all columns where (s, c) lie side by side, else one per column.
    """
    together = op[DILATION_H] == 1 and op[GROUPS] == 1
    channels = op[C_IN] // op[GROUPS]
    return (1, op[COLUMNS] * channels) if together else (op[COLUMNS], channels)


FILTERS_PER_THREAD = 4
"""Filters that one thread of a GPU works out for a pixel: each number of the picture is read once for all of them."""


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Slide the kernels over pictures lo ≤ i < hi        acts[y] overwritten"""
    groups, c_in, c_out, w = op[GROUPS], op[C_IN], op[C_OUT], op[W]
    line, out_line = op[WIDTH_IN] * c_in, op[OUT_WIDTH] * c_out
    parts, depth = _gemm_shape(op)
    filters, channels = c_out // groups, c_in // groups
    next_row = op[COLUMNS] * channels * c_out
    for i in range(lo, hi):
        for h in range(op[OUT_HEIGHT]):
            for g in range(groups):
                z = ptr_add(acts, op[Y] + i * op[N_OUT] + h * out_line + g * filters)
                a = ptr_add(acts, op[X] + i * op[N_IN] + h * op[STRIDE_V] * line + g * channels)
                k = ptr_add(params, w + g * filters)
                bias = ptr_add(params, w + op[N_WEIGHTS] + g * filters)
                for s in range(parts):
                    start, start_row = (bias, 0) if s == 0 else (z, c_out)
                    brgemm_strided(start, start_row, ptr_add(a, s * op[DILATION_H] * c_in), op[STRIDE_H] * c_in, 1, op[DILATION_V] * line,
                             ptr_add(k, s * channels * c_out), c_out, next_row, z, c_out, op[OUT_WIDTH], filters, depth, op[ROWS],
                             op[BIAS] if s == 0 else 1)


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    groups, c_in, c_out, w, pixels = op[GROUPS], op[C_IN], op[C_OUT], op[W], op[OUT_HEIGHT] * op[OUT_WIDTH]
    filters, channels, sums = c_out // groups, c_in // groups, local_array(acts, FILTERS_PER_THREAD)
    parts = div_u32(filters + FILTERS_PER_THREAD - 1, FILTERS_PER_THREAD)  # threads that share a pixel and a group
    for e in range(thread_rank(), (hi - lo) * pixels * groups * parts, num_threads()):
        place = div_u32(e, groups * parts)
        i, g = div_u32(place, pixels), div_u32(e - place * groups * parts, parts)
        h = div_u32(place - i * pixels, op[OUT_WIDTH])
        v, o = place - i * pixels - h * op[OUT_WIDTH], e - place * groups * parts - g * parts
        for j in range(FILTERS_PER_THREAD):
            sums[j] = params[w + op[N_WEIGHTS] + g * filters + min(o + j * parts, filters - 1)] if op[BIAS] else const_like(acts, 0)
        x = op[X] + (lo + i) * op[N_IN] + (h * op[STRIDE_V] * op[WIDTH_IN] + v * op[STRIDE_H]) * c_in + g * channels
        for r in range(op[ROWS]):
            for s in range(op[COLUMNS]):
                a = ptr_add(acts, x + (r * op[DILATION_V] * op[WIDTH_IN] + s * op[DILATION_H]) * c_in)
                k = ptr_add(params, w + (r * op[COLUMNS] + s) * channels * c_out + g * filters)
                for c in range(channels):
                    for j in range(FILTERS_PER_THREAD):
                        sums[j] += a[c] * k[c * c_out + min(o + j * parts, filters - 1)]
        for j in range(FILTERS_PER_THREAD):
            if o + j * parts < filters:
                acts[op[Y] + lo * op[N_OUT] + place * c_out + g * filters + o + j * parts] = sums[j]


@kernel
def backward(op, params, grads, acts, deltas, lo, hi):
    """Carry the error back to the picture, for lo ≤ i < hi        deltas[x] overwritten

    For input row h, every kernel row r with h = h'·stride + r·dilation sees it from output row h'. Such r lie a fixed step apart,
    so one product with a run of its own over them gives, for every output pixel w of those rows together, its (s, c) results.
    """
    groups, c_in, c_out = op[GROUPS], op[C_IN], op[C_OUT]
    line, out_line = op[WIDTH_IN] * c_in, op[OUT_WIDTH] * c_out
    filters, channels = c_out // groups, c_in // groups
    stride, dilation = op[STRIDE_V], op[DILATION_V]
    wide = op[COLUMNS] * channels
    turned, result = ptr_add(acts, op[SCRATCH]), ptr_add(acts, op[SCRATCH] + op[N_WEIGHTS])
    _transpose_filters(op, params, turned)
    step = 1
    while step * dilation % stride:
        step += 1
    down = step * dilation // stride
    for i in range(lo, hi):
        for h in range(op[HEIGHT]):
            da = ptr_add(deltas, op[X] + i * op[N_IN] + h * line)
            for j in range(line):
                da[j] = const_like(da, 0)
            first = 0
            while first < op[ROWS] and ((h - first * dilation) % stride or (h - first * dilation) // stride >= op[OUT_HEIGHT]):
                first += 1
            top = h - first * dilation
            if first >= op[ROWS] or top < 0:
                continue
            runs = min((op[ROWS] - 1 - first) // step, top // stride // down) + 1
            for g in range(groups):
                dz = ptr_add(deltas, op[Y] + i * op[N_OUT] + top // stride * out_line + g * filters)
                k = ptr_add(turned, (first * groups + g) * filters * wide)
                brgemm_strided(result, wide, dz, c_out, 1, -down * out_line, k, wide, step * groups * filters * wide, result, wide,
                         op[OUT_WIDTH], wide, filters, runs, 0)
                _overlap_add(op, result, ptr_add(da, g * channels))


@backward.cuda
def backward(op, params, grads, acts, deltas, lo, hi):
    groups, c_in, c_out, n_x = op[GROUPS], op[C_IN], op[C_OUT], op[N_IN]
    filters, channels = c_out // groups, c_in // groups
    for e in range(thread_rank(), (hi - lo) * n_x, num_threads()):
        i = div_u32(e, n_x)
        pixel = div_u32(e - i * n_x, c_in)
        h, c = div_u32(pixel, op[WIDTH_IN]), e - i * n_x - pixel * c_in
        v, g = pixel - h * op[WIDTH_IN], div_u32(c, channels)
        total = const_like(deltas, 0)
        for r in range(op[ROWS]):
            top = h - r * op[DILATION_V]
            above = div_u32(max(top, 0), op[STRIDE_V])
            if top >= 0 and above < op[OUT_HEIGHT] and above * op[STRIDE_V] == top:
                for s in range(op[COLUMNS]):
                    left = v - s * op[DILATION_H]
                    aside = div_u32(max(left, 0), op[STRIDE_H])
                    if left >= 0 and aside < op[OUT_WIDTH] and aside * op[STRIDE_H] == left:
                        dz = ptr_add(deltas, op[Y] + (lo + i) * op[N_OUT] + (above * op[OUT_WIDTH] + aside) * c_out + g * filters)
                        place = (r * op[COLUMNS] + s) * channels + c - g * channels
                        k = ptr_add(params, op[W] + place * c_out + g * filters)
                        for o in range(filters):
                            total += dz[o] * k[o]
        deltas[op[X] + lo * n_x + e] = total


@inline
def _transpose_filters(op, params, turned):
    """turned[r, g, o, s, c] = K[r, s, c, g o]: for each group a matrix from its filters to (s, c)."""
    c_out, wide = op[C_OUT], op[COLUMNS] * (op[C_IN] // op[GROUPS])
    for r in range(op[ROWS]):
        transpose(ptr_add(params, op[W] + r * wide * c_out), c_out, ptr_add(turned, r * c_out * wide), wide, wide, c_out)


@inline
def _overlap_add(op, result, da):
    """da[(w·stride + s·dilation), c] += result[w, s, c]"""
    channels, step = op[C_IN] // op[GROUPS], op[STRIDE_H] * op[C_IN]
    wide = op[COLUMNS] * channels
    if op[DILATION_H] == 1 and op[GROUPS] == 1:
        width = lanes(da)
        for w in range(op[OUT_WIDTH]):
            for k in range(0, wide, width):
                place = ptr_add(da, w * step + k)
                store(place, load(place, wide - k) + load(ptr_add(result, w * wide + k), wide - k), wide - k)
    else:
        for w in range(op[OUT_WIDTH]):
            for s in range(op[COLUMNS]):
                place = w * step + s * op[DILATION_H] * op[C_IN]
                for c in range(channels):
                    da[place + c] += result[w * wide + s * channels + c]


@kernel
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """Add the gradient that pictures lo ≤ i < hi give        grads[W] added to, picture by picture

    dK[r, s, c, o] += Σ_hw a[h·stride + r·dilation, w·stride + s·dilation, c] dz[h, w, o]        db[o] += Σ_hw dz[h, w, o]
    """
    groups, c_in, c_out, w = op[GROUPS], op[C_IN], op[C_OUT], op[W]
    line, out_line = op[WIDTH_IN] * c_in, op[OUT_WIDTH] * c_out
    parts, depth = _gemm_shape(op)
    filters, channels = c_out // groups, c_in // groups
    for i in range(lo, hi):
        for r in range(op[ROWS]):
            for g in range(groups):
                dz = ptr_add(deltas, op[Y] + i * op[N_OUT] + g * filters)
                for s in range(parts):
                    a = ptr_add(acts, op[X] + i * op[N_IN] + r * op[DILATION_V] * line + s * op[DILATION_H] * c_in + g * channels)
                    dk = ptr_add(grads, w + (r * op[COLUMNS] + s) * channels * c_out + g * filters)
                    brgemm_strided(dk, c_out, a, 1, op[STRIDE_H] * c_in, op[STRIDE_V] * line, dz, c_out, out_line, dk, c_out, depth,
                             filters, op[OUT_WIDTH], op[OUT_HEIGHT], 1)
        if op[BIAS]:
            db, dz = ptr_add(grads, w + op[N_WEIGHTS]), ptr_add(deltas, op[Y] + i * op[N_OUT])
            for o in range(0, c_out, lanes(dz)):
                total = load(ptr_add(db, o), c_out - o)
                for p in range(o, op[OUT_HEIGHT] * out_line, c_out):
                    total = total + load(ptr_add(dz, p), c_out - o)
                store(ptr_add(db, o), total, c_out - o)


@accumulate_gradient.cuda
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    c_in, c_out, w, weights = op[C_IN], op[C_OUT], op[W], op[N_WEIGHTS]
    filters, channels = c_out // op[GROUPS], c_in // op[GROUPS]
    for k in range(thread_rank(), weights + op[BIAS] * c_out, num_threads()):
        place = div_u32(k, c_out)
        o = k - place * c_out
        tap = div_u32(place, channels)
        r = div_u32(tap, op[COLUMNS])
        far = (r * op[DILATION_V] * op[WIDTH_IN] + (tap - r * op[COLUMNS]) * op[DILATION_H]) * c_in
        far += div_u32(o, filters) * channels + place - tap * channels
        total = const_like(deltas, 0)
        for i in range(lo, hi):
            for h in range(op[OUT_HEIGHT]):
                a = ptr_add(acts, op[X] + i * op[N_IN] + h * op[STRIDE_V] * op[WIDTH_IN] * c_in + far)
                dz = ptr_add(deltas, op[Y] + i * op[N_OUT] + h * op[OUT_WIDTH] * c_out + o)
                for v in range(op[OUT_WIDTH]):
                    total += dz[v * c_out] * (a[v * op[STRIDE_H] * c_in] if k < weights else const_like(acts, 1))
        grads[w + k] += total
