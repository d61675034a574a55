"""Conv2D: local receptive fields with shared weights.

    z[h, w, o] = b[o] + Σ_rsc a[h·stride + r·dilation, w·stride + s·dilation, c] · K[r, s, c, o]

    a (height, width, c_in) · K (kernel_h, kernel_w, c_in / groups, c_out) · b (c_out)
    z (out_height, out_width, c_out)

Every product is a batch-reduce GEMM on the image as it lies: nothing is copied into columns first.
  forward               rows of A are the pixels of one output row; k runs over (s, c), which are
                        contiguous, and the batch over r
  accumulate_gradient   rows of A are (s, c); k and the batch run over the columns and rows of the
                        output; B is dz
  backward              for an input row: rows of dz times the transposed filters, k running over o
                        and the batch over r; the (s, c) results of neighbouring pixels overlap and
                        are added to the row one after the other
With dilation or groups (s, c) are not contiguous, and each s takes a product of its own. Where
every channel is a group with one filter, no product is left: see conv2d_depthwise.

Source   LeCun et al. 1998; Nielsen, Neural Networks and Deep Learning, chapter 6; Dumoulin,
         Visin 2016 (geometry)
"""

from dataclasses import dataclass
from typing import Annotated, Any

from numbanet.backend.intrinsics import (
    brgemm,
    brgemm_bias,
    brgemm_tn,
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
from numbanet.nn.layers import conv2d_depthwise as depthwise
from numbanet.nn.layers.base import ACTIVATION, Layer, Shape
from numbanet.nn.layers.window import pad_ops, window
from numbanet.nn.regularizers import PENALTY
from numbanet.plan.columns import N_IN, N_OUT, N_WEIGHTS, SCRATCH, Attrs, W, X, Y
from numbanet.plan.op import Op

GEOMETRY = Attrs(
    "bias height width c_in out_height out_width c_out kernel_h kernel_w "
    "stride_row stride_col dilation_row dilation_col groups"
)
"""Sizes of the (padded) input, the output and the window; `bias` is 1 where the layer has one."""
POSITIVE = "{owner} needs a positive integer number of {name}, got {got}"


@dataclass(frozen=True, eq=False)
class Conv2D(Layer):
    """A convolution with `filters` kernels of `kernel_size`, followed by `activation`.

    kernel_size, stride, dilation   an integer or (vertical, horizontal)
    padding       of zeros: "valid", "same", an integer, (vertical, horizontal) or
                  ((top, bottom), (left, right))
    groups        channels are split into that many groups that do not see each other; c_in groups
                  make a depthwise convolution
    activation, initializer, bias_initializer, penalty, bias   as in Dense
    Input (height, width, c_in), channels last; output (out_height, out_width, filters). Raises
    ValueError for a window that does not fit.
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
                raise ValueError(
                    f"Conv2D: {self.groups} groups do not divide {channels} {name}; "
                    "choose a divisor of both"
                )
        return (*output, int(self.filters))

    def channels_first_window(self, shape: Shape):
        """The window, if conv2d_channels_first can do it: one channel in, stride 1, no padding."""
        view = self._window(shape)
        fits = shape[2] == 1 and view.stride == (1, 1) and not any(view.padding)
        return view if fits else None

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        kernel_shape = (*self._window(shape).size, shape[2] // self.groups, int(self.filters))
        shapes: dict[str, Shape] = {"weights": kernel_shape}
        return shapes | {"bias": (int(self.filters),)} if self.bias else shapes

    def initializers(self, next_activation) -> dict:
        default = "he" if type(next_activation).__name__ in ("ReLU", "LeakyReLU") else "glorot"
        weights = default if self.initializer is None else self.initializer
        return {"weights": weights, "bias": self.bias_initializer}

    def ops(self, shape: Shape) -> list[Op]:
        view = self._window(shape)
        (height, width), (out_height, out_width), (kernel_h, kernel_w) = (
            view.padded,
            view.output,
            view.size,
        )
        c_in, c_out = shape[2], int(self.filters)
        taps = kernel_h * kernel_w * (c_in // self.groups)
        sizes = {
            "bias": int(self.bias),
            "height": height,
            "width": width,
            "out_height": out_height,
            "out_width": out_width,
            "kernel_h": kernel_h,
            "kernel_w": kernel_w,
            "stride_row": view.stride[0],
            "stride_col": view.stride[1],
            "dilation_row": view.dilation[0],
            "dilation_col": view.dilation[1],
        }
        options: dict[str, Any]
        if self.groups == c_in == c_out:
            kernels = depthwise.forward, depthwise.backward
            options = {
                "accumulate_gradient": depthwise.accumulate_gradient,
                "offset": depthwise.GEOMETRY.bias,
                "attrs": depthwise.GEOMETRY.pack(**sizes, channels=c_in),
            }
        else:
            kernels, groups = (forward, backward), int(self.groups)
            options = {
                "accumulate_gradient": accumulate_gradient,
                "offset": GEOMETRY.bias,
                "attrs": GEOMETRY.pack(**sizes, c_in=c_in, c_out=c_out, groups=groups),
                "scratch": taps * c_out + out_width * kernel_w * c_in,
            }
        convolve = Op(
            "Conv2D",
            height * width * c_in,
            out_height * out_width * c_out,
            *kernels,
            linear=True,
            param_rows=taps + self.bias,
            param_cols=c_out,
            n_weights=taps * c_out,
            weight_reuse=out_height * out_width,
            **options,
        )
        return [*pad_ops(view), convolve]


@inline
def _gemm_shape(op):
    """How many products a row of the window takes, and how many (s, c) each covers.

    One over all columns where (s, c) are contiguous, else one per column.
    """
    channels = op[GEOMETRY.c_in] // op[GEOMETRY.groups]
    if op[GEOMETRY.dilation_col] == 1 and op[GEOMETRY.groups] == 1:
        return 1, op[GEOMETRY.kernel_w] * channels
    return op[GEOMETRY.kernel_w], channels


FILTERS_PER_THREAD = 4
"""Filters that one GPU thread computes for a pixel, reading each input once for all of them."""


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Slide the filters over images lo ≤ i < hi        acts[y] overwritten"""
    groups, c_in, c_out = op[GEOMETRY.groups], op[GEOMETRY.c_in], op[GEOMETRY.c_out]
    out_width, kernel_h = op[GEOMETRY.out_width], op[GEOMETRY.kernel_h]
    filters, channels = c_out // groups, c_in // groups
    row_stride = op[GEOMETRY.width] * c_in
    lda, stride_a = op[GEOMETRY.stride_col] * c_in, op[GEOMETRY.dilation_row] * row_stride
    stride_b = op[GEOMETRY.kernel_w] * channels * c_out
    n_products, depth = _gemm_shape(op)
    for i in range(lo, hi):
        for out_row in range(op[GEOMETRY.out_height]):
            x = op[X] + i * op[N_IN] + out_row * op[GEOMETRY.stride_row] * row_stride
            y = op[Y] + i * op[N_OUT] + out_row * out_width * c_out
            for g in range(groups):
                z, a = ptr_add(acts, y + g * filters), ptr_add(acts, x + g * channels)
                k = ptr_add(params, op[W] + g * filters)
                bias = ptr_add(k, op[N_WEIGHTS])
                brgemm_bias(
                    out_width, filters, depth, kernel_h, a, lda, stride_a,
                    k, c_out, stride_b, bias, op[GEOMETRY.bias], z, c_out,
                )  # fmt: skip
                for s in range(1, n_products):
                    a_s = ptr_add(a, s * op[GEOMETRY.dilation_col] * c_in)
                    k_s = ptr_add(k, s * channels * c_out)
                    brgemm(
                        out_width, filters, depth, kernel_h, a_s, lda, stride_a,
                        k_s, c_out, stride_b, 1, z, c_out,
                    )  # fmt: skip


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    groups, c_in, c_out = op[GEOMETRY.groups], op[GEOMETRY.c_in], op[GEOMETRY.c_out]
    out_width, width = op[GEOMETRY.out_width], op[GEOMETRY.width]
    pixels = op[GEOMETRY.out_height] * out_width
    filters, channels = c_out // groups, c_in // groups
    sums = local_array(acts, FILTERS_PER_THREAD)
    # threads that share a pixel and a group
    sharing = div_u32(filters + FILTERS_PER_THREAD - 1, FILTERS_PER_THREAD)
    for e in range(thread_rank(), (hi - lo) * pixels * groups * sharing, num_threads()):
        pixel = div_u32(e, groups * sharing)
        i, g = div_u32(pixel, pixels), div_u32(e - pixel * groups * sharing, sharing)
        out_row = div_u32(pixel - i * pixels, out_width)
        out_col = pixel - i * pixels - out_row * out_width
        first = e - pixel * groups * sharing - g * sharing
        for j in range(FILTERS_PER_THREAD):
            o = g * filters + min(first + j * sharing, filters - 1)
            has_bias = op[GEOMETRY.bias]
            sums[j] = params[op[W] + op[N_WEIGHTS] + o] if has_bias else const_like(acts, 0)
        row, col = out_row * op[GEOMETRY.stride_row], out_col * op[GEOMETRY.stride_col]
        x = op[X] + (lo + i) * op[N_IN] + (row * width + col) * c_in + g * channels
        for r in range(op[GEOMETRY.kernel_h]):
            for s in range(op[GEOMETRY.kernel_w]):
                tap = r * op[GEOMETRY.dilation_row] * width + s * op[GEOMETRY.dilation_col]
                weight = (r * op[GEOMETRY.kernel_w] + s) * channels * c_out + g * filters
                a, k = ptr_add(acts, x + tap * c_in), ptr_add(params, op[W] + weight)
                for c in range(channels):
                    for j in range(FILTERS_PER_THREAD):
                        o = min(first + j * sharing, filters - 1)
                        sums[j] += a[c] * k[c * c_out + o]
        z = ptr_add(acts, op[Y] + lo * op[N_OUT] + pixel * c_out + g * filters)
        for j in range(FILTERS_PER_THREAD):
            if first + j * sharing < filters:
                z[first + j * sharing] = sums[j]


@kernel
def backward(op, params, grads, acts, deltas, lo, hi):
    """Carry the error back to the images lo ≤ i < hi        deltas[x] overwritten

    Kernel row r sees the input row from output row out_row where row = out_row·stride + r·dilation.
    Such r lie at a fixed distance from one another, so one batch-reduce product over them gives,
    for every pixel of those output rows together, its (s, c) results.
    """
    groups, c_in, c_out = op[GEOMETRY.groups], op[GEOMETRY.c_in], op[GEOMETRY.c_out]
    kernel_h, out_width = op[GEOMETRY.kernel_h], op[GEOMETRY.out_width]
    stride, dilation = op[GEOMETRY.stride_row], op[GEOMETRY.dilation_row]
    filters, row_len = c_out // groups, op[GEOMETRY.kernel_w] * (c_in // groups)
    in_row_stride, out_row_stride = op[GEOMETRY.width] * c_in, out_width * c_out
    filters_t = ptr_add(acts, op[SCRATCH])
    result = ptr_add(filters_t, op[N_WEIGHTS])
    _transpose_filters(op, params, filters_t)
    step = 1
    while step * dilation % stride:
        step += 1
    row_step = step * dilation // stride
    stride_b = step * c_out * row_len
    for i in range(lo, hi):
        for row in range(op[GEOMETRY.height]):
            da = ptr_add(deltas, op[X] + i * op[N_IN] + row * in_row_stride)
            for j in range(in_row_stride):
                da[j] = const_like(da, 0)
            first = _first_kernel_row(op, row)
            if first >= kernel_h or row < first * dilation:
                continue
            out_row = (row - first * dilation) // stride
            n_rows = min((kernel_h - 1 - first) // step, out_row // row_step) + 1
            for g in range(groups):
                dz = ptr_add(deltas, op[Y] + i * op[N_OUT] + out_row * out_row_stride + g * filters)
                k_t = ptr_add(filters_t, (first * groups + g) * filters * row_len)
                brgemm(
                    out_width, row_len, filters, n_rows, dz, c_out, -row_step * out_row_stride,
                    k_t, row_len, stride_b, 0, result, row_len,
                )  # fmt: skip
                _overlap_add(op, result, ptr_add(da, g * (c_in // groups)))


@backward.cuda
def backward(op, params, grads, acts, deltas, lo, hi):
    groups, c_in, c_out, n_x = op[GEOMETRY.groups], op[GEOMETRY.c_in], op[GEOMETRY.c_out], op[N_IN]
    stride_row, stride_col = op[GEOMETRY.stride_row], op[GEOMETRY.stride_col]
    out_width, kernel_w = op[GEOMETRY.out_width], op[GEOMETRY.kernel_w]
    filters, channels = c_out // groups, c_in // groups
    for e in range(thread_rank(), (hi - lo) * n_x, num_threads()):
        i = div_u32(e, n_x)
        pixel = div_u32(e - i * n_x, c_in)
        row, c = div_u32(pixel, op[GEOMETRY.width]), e - i * n_x - pixel * c_in
        col, g = pixel - row * op[GEOMETRY.width], div_u32(c, channels)
        total = const_like(deltas, 0)
        for r in range(op[GEOMETRY.kernel_h]):
            top = row - r * op[GEOMETRY.dilation_row]
            out_row = div_u32(max(top, 0), stride_row)
            if top >= 0 and out_row < op[GEOMETRY.out_height] and out_row * stride_row == top:
                for s in range(kernel_w):
                    left = col - s * op[GEOMETRY.dilation_col]
                    out_col = div_u32(max(left, 0), stride_col)
                    if left >= 0 and out_col < out_width and out_col * stride_col == left:
                        y = op[Y] + (lo + i) * op[N_OUT] + (out_row * out_width + out_col) * c_out
                        tap = (r * kernel_w + s) * channels + c - g * channels
                        dz = ptr_add(deltas, y + g * filters)
                        k = ptr_add(params, op[W] + tap * c_out + g * filters)
                        for o in range(filters):
                            total += dz[o] * k[o]
        deltas[op[X] + lo * n_x + e] = total


@inline
def _first_kernel_row(op, row):
    """The first kernel row that covers the input row from a row of the output, or from above it."""
    stride, dilation = op[GEOMETRY.stride_row], op[GEOMETRY.dilation_row]
    r = 0
    while r < op[GEOMETRY.kernel_h]:
        top = row - r * dilation
        if top % stride == 0 and top // stride < op[GEOMETRY.out_height]:
            break
        r += 1
    return r


@inline
def _transpose_filters(op, params, filters_t):
    """filters_t[r, g, o, s, c] = K[r, s, c, g o]: per group a matrix from its filters to (s, c)."""
    c_out = op[GEOMETRY.c_out]
    row_len = op[GEOMETRY.kernel_w] * (op[GEOMETRY.c_in] // op[GEOMETRY.groups])
    for r in range(op[GEOMETRY.kernel_h]):
        offset = r * row_len * c_out
        k, k_t = ptr_add(params, op[W] + offset), ptr_add(filters_t, offset)
        transpose(row_len, c_out, k, c_out, k_t, row_len)


@inline
def _overlap_add(op, result, da):
    """da[(out_col·stride + s·dilation), c] += result[out_col, s, c]"""
    c_in, out_width, kernel_w = op[GEOMETRY.c_in], op[GEOMETRY.out_width], op[GEOMETRY.kernel_w]
    channels, step = c_in // op[GEOMETRY.groups], op[GEOMETRY.stride_col] * c_in
    row_len = kernel_w * channels
    if op[GEOMETRY.dilation_col] == 1 and op[GEOMETRY.groups] == 1:
        width = lanes(da)
        for out_col in range(out_width):
            for k in range(0, row_len, width):
                n, target = row_len - k, ptr_add(da, out_col * step + k)
                store(target, load(target, n) + load(ptr_add(result, out_col * row_len + k), n), n)
    else:
        for out_col in range(out_width):
            for s in range(kernel_w):
                offset = out_col * step + s * op[GEOMETRY.dilation_col] * c_in
                for c in range(channels):
                    da[offset + c] += result[out_col * row_len + s * channels + c]


@kernel
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """Add the gradient of images lo ≤ i < hi        grads[W] added to, image by image

    dK[r, s, c, o] += Σ_hw a[h·stride + r·dilation, w·stride + s·dilation, c] dz[h, w, o]
    db[o] += Σ_hw dz[h, w, o]
    """
    groups, c_in, c_out = op[GEOMETRY.groups], op[GEOMETRY.c_in], op[GEOMETRY.c_out]
    out_height, out_width = op[GEOMETRY.out_height], op[GEOMETRY.out_width]
    filters, channels = c_out // groups, c_in // groups
    row_stride, out_row_stride = op[GEOMETRY.width] * c_in, out_width * c_out
    lda, stride_a = op[GEOMETRY.stride_col] * c_in, op[GEOMETRY.stride_row] * row_stride
    n_products, depth = _gemm_shape(op)
    for i in range(lo, hi):
        y = op[Y] + i * op[N_OUT]
        for r in range(op[GEOMETRY.kernel_h]):
            x = op[X] + i * op[N_IN] + r * op[GEOMETRY.dilation_row] * row_stride
            for g in range(groups):
                dz = ptr_add(deltas, y + g * filters)
                for s in range(n_products):
                    tap = s * op[GEOMETRY.dilation_col] * c_in + g * channels
                    weight = (r * op[GEOMETRY.kernel_w] + s) * channels * c_out + g * filters
                    a, dk = ptr_add(acts, x + tap), ptr_add(grads, op[W] + weight)
                    brgemm_tn(
                        depth, filters, out_width, out_height,
                        a, lda, stride_a, dz, c_out, out_row_stride, 1, dk, c_out,
                    )  # fmt: skip
        if op[GEOMETRY.bias]:
            db, dz = ptr_add(grads, op[W] + op[N_WEIGHTS]), ptr_add(deltas, y)
            for o in range(0, c_out, lanes(dz)):
                total = load(ptr_add(db, o), c_out - o)
                for p in range(o, out_height * out_row_stride, c_out):
                    total = total + load(ptr_add(dz, p), c_out - o)
                store(ptr_add(db, o), total, c_out - o)


@accumulate_gradient.cuda
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    c_in, c_out, n_weights = op[GEOMETRY.c_in], op[GEOMETRY.c_out], op[N_WEIGHTS]
    width, out_width, kernel_w = op[GEOMETRY.width], op[GEOMETRY.out_width], op[GEOMETRY.kernel_w]
    filters, channels = c_out // op[GEOMETRY.groups], c_in // op[GEOMETRY.groups]
    step = op[GEOMETRY.stride_col] * c_in
    for k in range(thread_rank(), n_weights + op[GEOMETRY.bias] * c_out, num_threads()):
        param_row = div_u32(k, c_out)
        tap, o = div_u32(param_row, channels), k - param_row * c_out
        r = div_u32(tap, kernel_w)
        s, c = tap - r * kernel_w, param_row - tap * channels
        pixel = r * op[GEOMETRY.dilation_row] * width + s * op[GEOMETRY.dilation_col]
        offset = pixel * c_in + div_u32(o, filters) * channels + c
        total = const_like(deltas, 0)
        for i in range(lo, hi):
            x, y = op[X] + i * op[N_IN] + offset, op[Y] + i * op[N_OUT] + o
            for out_row in range(op[GEOMETRY.out_height]):
                a = ptr_add(acts, x + out_row * op[GEOMETRY.stride_row] * width * c_in)
                dz = ptr_add(deltas, y + out_row * out_width * c_out)
                for out_col in range(out_width):
                    value = a[out_col * step] if k < n_weights else const_like(acts, 1)
                    total += dz[out_col * c_out] * value
        grads[op[W] + k] += total
