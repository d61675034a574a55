"""A first convolution of images with one channel, and its max-pooling, channels first.

With few channels a pixel fills a small part of a vector register. Here the convolution's output
is a plane for each filter, and a plane is one long row: the rows of the output one after the other,
as wide as the input (the few columns beyond the edge of the output are computed and ignored; their
deltas are zero). In the matrix product the rows of A are the filters, and B is the shifted image.

    z[o, p] = b[o] + Σ_r Σ_s K[r, s, 0, o] · a[p + r·width + s]
    dK[r, s, 0, o] = Σ_p a[p + r·width + s] · dz[o, p]                a dot product along the plane

The pooling reads planes and writes channels last, so no later layer sees the difference. A monotone
activation comes after the pooling: max f(z) = f(max z). `fuse` finds where this applies: the first
layer with parameters, stride 1, an elementwise activation or none, and a 2×2 pooling.
"""

from numbanet.backend.elementary import maximum
from numbanet.backend.intrinsics import (
    brgemm_nt,
    brgemm_tn,
    concat_even,
    const_like,
    div_u32,
    interleave_low,
    lanes,
    load,
    num_threads,
    odd_mask,
    ptr_add,
    splat,
    store,
    swap_pairs,
    thread_rank,
    transpose,
    where_equal,
)
from numbanet.backend.jit import kernel
from numbanet.nn.layers.base import size
from numbanet.plan.columns import N_IN, N_OUT, N_WEIGHTS, SCRATCH, Attrs, W, X, Y
from numbanet.plan.op import Op

CONVOLUTION = Attrs("bias filters kernel_h kernel_w dilation_row dilation_col width n_pixels")
"""Sizes of the convolution.

A plane is `width` wide, as the input; its first `n_pixels` elements are output (the last row ends
early).
"""

POOLING = Attrs("out_height out_width channels width height")
"""Sizes of the pooling; `width` and `height` are those of a plane."""


def fuse(pairs) -> tuple[int, list[Op]]:
    """How many of these layers can work channels first, and their ops; 0 where none can.

    `pairs` holds pairs of a layer and its input shape; the first is the first with parameters.
    """
    (convolution, shape), *others = pairs
    view = getattr(convolution, "channels_first_window", lambda shape: None)(shape)
    if view is None:
        return 0, []
    between = []
    for layer, in_shape in others:
        if getattr(layer, "elementwise", False):
            between.append(layer)
        elif getattr(layer, "pools_channels_first", lambda shape: False)(in_shape):
            pooled = layer.output_shape(in_shape)
            return len(between) + 2, _ops(convolution, view, between, in_shape[2], pooled)
        else:
            break
    return 0, []


def _ops(convolution, view, between, filters, pooled):
    (height, width), (out_height, out_width) = view.padded, view.output
    (kernel_h, kernel_w), bias = view.size, int(convolution.bias)
    plane, n_pooled = out_height * width, size(pooled)
    convolve = Op(
        "Conv2D",
        height * width,
        filters * plane,
        forward,
        accumulate_gradient=accumulate_gradient,
        param_rows=kernel_h * kernel_w + bias,
        param_cols=filters,
        n_weights=kernel_h * kernel_w * filters,
        attrs=CONVOLUTION.pack(
            bias=bias,
            filters=filters,
            kernel_h=kernel_h,
            kernel_w=kernel_w,
            dilation_row=view.dilation[0],
            dilation_col=view.dilation[1],
            width=width,
            n_pixels=(out_height - 1) * width + out_width,
        ),
        weight_reuse=out_height * out_width,
    )
    pool = Op(
        "MaxPool2D",
        filters * plane,
        n_pooled,
        pool_forward,
        pool_backward,
        attrs=POOLING.pack(
            out_height=pooled[0],
            out_width=pooled[1],
            channels=pooled[2],
            width=width,
            height=out_height,
        ),
        scratch=2 * n_pooled,
        keeps_output=True,
    )
    # the largest stays the largest: a monotone activation has a quarter of the elements to do
    monotone = all(layer.monotone for layer in between)
    n = n_pooled if monotone else filters * plane
    activations = [op for layer in between for op in layer.ops((n,))]
    return [convolve, pool, *activations] if monotone else [convolve, *activations, pool]


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Slide the filters over images lo ≤ i < hi        acts[y] overwritten, plane by plane"""
    filters, plane = op[CONVOLUTION.filters], op[N_OUT] // op[CONVOLUTION.filters]
    kernel_h, kernel_w = op[CONVOLUTION.kernel_h], op[CONVOLUTION.kernel_w]
    dilation_row, dilation_col = op[CONVOLUTION.dilation_row], op[CONVOLUTION.dilation_col]
    k, biases = ptr_add(params, op[W]), ptr_add(params, op[W] + op[N_WEIGHTS])
    stride_a = dilation_row * op[CONVOLUTION.width]
    for i in range(lo, hi):
        a, z = ptr_add(acts, op[X] + i * op[N_IN]), ptr_add(acts, op[Y] + i * op[N_OUT])
        for o in range(filters):
            bias = biases[o] if op[CONVOLUTION.bias] else const_like(params, 0)
            for p in range(0, plane, lanes(acts)):
                store(ptr_add(z, o * plane + p), splat(z, bias), plane - p)
        brgemm_tn(
            filters, op[CONVOLUTION.n_pixels], kernel_w, kernel_h,
            k, filters, kernel_w * filters, a, dilation_col, stride_a, 1, z, plane,
        )  # fmt: skip


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    filters, n_y, plane = op[CONVOLUTION.filters], op[N_OUT], op[N_OUT] // op[CONVOLUTION.filters]
    width, kernel_w = op[CONVOLUTION.width], op[CONVOLUTION.kernel_w]
    k, biases = ptr_add(params, op[W]), ptr_add(params, op[W] + op[N_WEIGHTS])
    for e in range(thread_rank(), (hi - lo) * n_y, num_threads()):
        i = div_u32(e, n_y)
        o = div_u32(e - i * n_y, plane)
        p = e - i * n_y - o * plane
        total = biases[o] if op[CONVOLUTION.bias] else const_like(params, 0)
        if p < op[CONVOLUTION.n_pixels]:
            for r in range(op[CONVOLUTION.kernel_h]):
                x = op[X] + (lo + i) * op[N_IN] + p + r * op[CONVOLUTION.dilation_row] * width
                for s in range(kernel_w):
                    weight = k[(r * kernel_w + s) * filters + o]
                    total += weight * acts[x + s * op[CONVOLUTION.dilation_col]]
        acts[op[Y] + lo * n_y + e] = total


@kernel
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """Add the gradient of images lo ≤ i < hi        grads[W] added to"""
    filters, plane = op[CONVOLUTION.filters], op[N_OUT] // op[CONVOLUTION.filters]
    kernel_w, n_pixels = op[CONVOLUTION.kernel_w], op[CONVOLUTION.n_pixels]
    dz = ptr_add(deltas, op[Y] + lo * op[N_OUT])
    for r in range(op[CONVOLUTION.kernel_h]):
        tap = r * op[CONVOLUTION.dilation_row] * op[CONVOLUTION.width]
        a = ptr_add(acts, op[X] + lo * op[N_IN] + tap)
        dk = ptr_add(grads, op[W] + r * kernel_w * filters)
        brgemm_nt(
            kernel_w, filters, n_pixels, hi - lo,
            a, op[CONVOLUTION.dilation_col], op[N_IN], dz, plane, op[N_OUT], 1, dk, filters,
        )  # fmt: skip
    if op[CONVOLUTION.bias]:
        for o in range(filters):
            total = const_like(deltas, 0)
            for i in range(hi - lo):
                for p in range(n_pixels):
                    total += dz[i * op[N_OUT] + o * plane + p]
            grads[op[W] + op[N_WEIGHTS] + o] += total


@accumulate_gradient.cuda
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    filters, plane = op[CONVOLUTION.filters], op[N_OUT] // op[CONVOLUTION.filters]
    n_weights, kernel_w = op[N_WEIGHTS], op[CONVOLUTION.kernel_w]
    for k in range(thread_rank(), n_weights + op[CONVOLUTION.bias] * filters, num_threads()):
        tap = div_u32(k, filters)
        o, r = k - tap * filters, div_u32(tap, kernel_w)
        s = tap - r * kernel_w
        offset = r * op[CONVOLUTION.dilation_row] * op[CONVOLUTION.width]
        offset += s * op[CONVOLUTION.dilation_col]
        total = const_like(deltas, 0)
        for i in range(lo, hi):
            x, y = op[X] + i * op[N_IN] + offset, op[Y] + i * op[N_OUT] + o * plane
            for p in range(op[CONVOLUTION.n_pixels]):
                total += deltas[y + p] * (acts[x + p] if k < n_weights else const_like(acts, 1))
        grads[op[W] + k] += total


# --- the pooling --------------------------------------------------------------------------------


@kernel
def pool_forward(op, params, grads, acts, deltas, lo, hi):
    """y[h, w, c] = the largest of a 2×2 window of plane c        acts[y] overwritten

    The pooled planes are stored in scratch memory, then transposed: channels come last in y.
    """
    channels, width, n = op[POOLING.channels], op[POOLING.width], lanes(acts)
    out_height, out_width = op[POOLING.out_height], op[POOLING.out_width]
    pixels, end = out_height * out_width, 2 * out_width
    planes = ptr_add(acts, op[SCRATCH])
    for i in range(lo, hi):
        for c in range(channels):
            for out_row in range(out_height):
                row = c * op[POOLING.height] + 2 * out_row
                x = ptr_add(acts, op[X] + i * op[N_IN] + row * width)
                y = ptr_add(planes, c * pixels + out_row * out_width)
                for k in range(0, end, 2 * n):
                    next_k = k + n
                    n_left, n_right = end - k, max(0, end - next_k)
                    left = maximum(load(ptr_add(x, k), n_left), load(ptr_add(x, width + k), n_left))
                    right = maximum(
                        load(ptr_add(x, next_k), n_right),
                        load(ptr_add(x, width + next_k), n_right),
                    )
                    max_value = concat_even(
                        maximum(left, swap_pairs(left)), maximum(right, swap_pairs(right))
                    )
                    store(ptr_add(y, k >> 1), max_value, out_width - (k >> 1))
        y = ptr_add(acts, op[Y] + i * op[N_OUT])
        transpose(channels, pixels, planes, pixels, y, channels)


@pool_forward.cuda
def pool_forward(op, params, grads, acts, deltas, lo, hi):
    channels, n_y, width = op[POOLING.channels], op[N_OUT], op[POOLING.width]
    for e in range(thread_rank(), (hi - lo) * n_y, num_threads()):
        i = div_u32(e, n_y)
        pixel = div_u32(e - i * n_y, channels)
        c, out_row = e - i * n_y - pixel * channels, div_u32(pixel, op[POOLING.out_width])
        out_col = pixel - out_row * op[POOLING.out_width]
        row = c * op[POOLING.height] + 2 * out_row
        x = op[X] + (lo + i) * op[N_IN] + row * width + 2 * out_col
        upper = maximum(acts[x], acts[x + 1])
        lower = maximum(acts[x + width], acts[x + width + 1])
        acts[op[Y] + lo * n_y + e] = maximum(upper, lower)


@kernel
def pool_backward(op, params, grads, acts, deltas, lo, hi):
    """Give dy to the first of the largest of each window        deltas[x] overwritten"""
    channels, width, n = op[POOLING.channels], op[POOLING.width], lanes(acts)
    out_height, out_width = op[POOLING.out_height], op[POOLING.out_width]
    plane, pixels = op[POOLING.height] * width, out_height * out_width
    zero, one = splat(acts, 0), splat(acts, 1)
    odd = odd_mask(zero)
    y_t, dy_t = ptr_add(acts, op[SCRATCH]), ptr_add(acts, op[SCRATCH] + op[N_OUT])
    for i in range(lo, hi):
        y = op[Y] + i * op[N_OUT]
        transpose(pixels, channels, ptr_add(acts, y), channels, y_t, pixels)
        transpose(pixels, channels, ptr_add(deltas, y), channels, dy_t, pixels)
        for c in range(channels):
            x = op[X] + i * op[N_IN] + c * plane
            for out_row in range(out_height):
                out, upper = c * pixels + out_row * out_width, x + 2 * out_row * width
                lower = upper + width
                for k in range(0, width, n):
                    n_in, n_out, half = width - k, max(0, out_width - (k >> 1)), out + (k >> 1)
                    max_value = interleave_low(load(ptr_add(y_t, half), n_out))
                    dy = interleave_low(load(ptr_add(dy_t, half), n_out))
                    above = where_equal(load(ptr_add(acts, upper + k), n_in), max_value, one, zero)
                    below = where_equal(load(ptr_add(acts, lower + k), n_in), max_value, one, zero)
                    found = maximum(above, swap_pairs(above))
                    dx_above = dy * above * (one - odd * swap_pairs(above))
                    dx_below = dy * (one - found) * below * (one - odd * swap_pairs(below))
                    store(ptr_add(deltas, upper + k), dx_above, n_in)
                    store(ptr_add(deltas, lower + k), dx_below, n_in)
            for p in range(x + 2 * out_height * width, x + plane):
                deltas[p] = const_like(deltas, 0)


@pool_backward.cuda
def pool_backward(op, params, grads, acts, deltas, lo, hi):
    channels, n_x, width = op[POOLING.channels], op[N_IN], op[POOLING.width]
    out_height, out_width = op[POOLING.out_height], op[POOLING.out_width]
    for e in range(thread_rank(), (hi - lo) * n_x, num_threads()):
        i = div_u32(e, n_x)
        plane_row = div_u32(e - i * n_x, width)
        col, c = e - i * n_x - plane_row * width, div_u32(plane_row, op[POOLING.height])
        row = plane_row - c * op[POOLING.height]
        r, s, out_row, out_col = row & 1, col & 1, row >> 1, col >> 1
        dx = const_like(deltas, 0)
        if out_row < out_height and out_col < out_width:
            pixel = out_row * out_width + out_col
            x, y = op[X] + lo * n_x + e, op[Y] + (lo + i) * op[N_OUT] + pixel * channels + c
            window = x - r * width - s
            found = acts[x] == acts[y]
            for before in range(2 * r + s):
                value = acts[window + (before >> 1) * width + (before & 1)]
                found = found and value != acts[y]
            dx = deltas[y] if found else dx
        deltas[op[X] + lo * n_x + e] = dx
