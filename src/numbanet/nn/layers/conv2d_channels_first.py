"""The first convolution of a picture with one channel, its activation and its max-pooling, on planes instead of pixels.

With few channels a pixel fills a small part of a vector register. Here the convolution's output lies plane by plane, each plane a
long row: the output's rows one behind the other, as wide as the input (the few columns beyond the output's edge are computed and
ignored; their deltas are zero). The roles in the product change: rows of A are the filters, B is the picture itself, moved.

    z[o, p] = b[o] + Σ_r Σ_s K[r, s, 0, o] · a[p + r·line + s]
    dK[r, s, 0, o] = Σ_p a[p + r·line + s] · dz[o, p]                 a dot product along the plane

The pooling reads planes and writes channels last, so nothing behind it sees the difference. An activation that never falls comes
after it: max f(z) = f(max z). `chain` finds where this applies: the
first layer with parameters, stride 1, an elementwise activation or none, and a 2×2 pooling.
"""

from numbanet.backend.elementary import maximum
from numbanet.backend.intrinsics import (
    brgemm_strided,
    concat_even,
    const_like,
    div_u32,
    dot_products,
    interleave_low,
    lanes,
    load,
    num_threads,
    odd_mask,
    ptr_add,
    store,
    swap_pairs,
    thread_rank,
    transpose,
    where_equal,
)
from numbanet.backend.jit import kernel
from numbanet.nn.layers.base import size
from numbanet.plan.columns import ATTRS, N_IN, N_OUT, N_WEIGHTS, SCRATCH, W, X, Y
from numbanet.plan.op import Op

BIAS, FILTERS, ROWS, COLUMNS, DILATION_V, DILATION_H, LINE, LENGTH = range(ATTRS, ATTRS + 8)
"""The convolution's sizes; LINE is the width of the input, LENGTH how much of a plane is output (its last row ends early)."""


def fuse(placed) -> tuple[int, list[Op]]:
    """How many of these layers, the first of which is to be trained first, can work on planes, and their ops; 0 where none can.

    `placed` holds pairs of a layer and its input shape.
    """
    (convolution, shape), *others = placed
    view = getattr(convolution, "channels_first_window", lambda shape: None)(shape)
    if view is None:
        return 0, []
    between = []
    for layer, inside in others:
        if getattr(layer, "elementwise", False):
            between.append(layer)
        elif getattr(layer, "pools_channels_first", lambda shape: False)(inside):
            return len(between) + 2, _ops(convolution, view, between, inside, layer.output_shape(inside))
        else:
            break
    return 0, []


def _ops(convolution, view, between, inside, outside):
    (height, width), (out_height, out_width), (rows, columns) = view.padded, view.output, view.size
    filters, weights = inside[2], rows * columns * inside[2]
    plane = out_height * width
    own = (int(convolution.bias), filters, rows, columns, *view.dilation, width, (out_height - 1) * width + out_width)
    convolve = Op("Conv2D", height * width, filters * plane, forward, accumulate_gradient=accumulate_gradient, param_rows=rows * columns + convolution.bias,
                  param_cols=filters, n_weights=weights, attrs=own, weight_reuse=out_height * out_width)
    pool = Op("MaxPool2D", filters * plane, size(outside), pool_forward, pool_backward, attrs=(*outside, width, out_height),
              scratch=2 * size(outside), keeps_output=True)
    if all(layer.monotone for layer in between):  # the largest stays the largest: a quarter of the numbers is enough
        return [convolve, pool, *(op for layer in between for op in layer.ops((size(outside),)))]
    return [convolve, *(op for layer in between for op in layer.ops((filters * plane,))), pool]


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Slide the filters over pictures lo ≤ i < hi        acts[y] overwritten, plane by plane"""
    filters, w, plane, width = op[FILTERS], op[W], op[N_OUT] // op[FILTERS], lanes(acts)
    for i in range(lo, hi):
        z = ptr_add(acts, op[Y] + i * op[N_OUT])
        for o in range(filters):
            bias = params[w + op[N_WEIGHTS] + o] if op[BIAS] else const_like(params, 0)
            for p in range(0, plane, width):
                store(ptr_add(z, o * plane + p), const_like(load(z, 0), bias), plane - p)
        brgemm_strided(z, plane, ptr_add(params, w), 1, filters, op[COLUMNS] * filters, ptr_add(acts, op[X] + i * op[N_IN]), op[DILATION_H],
                 op[DILATION_V] * op[LINE], z, plane, filters, op[LENGTH], op[COLUMNS], op[ROWS], 1)


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    filters, w, n_y, plane = op[FILTERS], op[W], op[N_OUT], op[N_OUT] // op[FILTERS]
    for e in range(thread_rank(), (hi - lo) * n_y, num_threads()):
        i = div_u32(e, n_y)
        o = div_u32(e - i * n_y, plane)
        p = e - i * n_y - o * plane
        total = params[w + op[N_WEIGHTS] + o] if op[BIAS] else const_like(params, 0)
        if p < op[LENGTH]:
            for r in range(op[ROWS]):
                x = op[X] + (lo + i) * op[N_IN] + p + r * op[DILATION_V] * op[LINE]
                for s in range(op[COLUMNS]):
                    total += params[w + (r * op[COLUMNS] + s) * filters + o] * acts[x + s * op[DILATION_H]]
        acts[op[Y] + lo * n_y + e] = total


@kernel
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """Add the gradient that pictures lo ≤ i < hi give        grads[W] added to"""
    filters, w, plane = op[FILTERS], op[W], op[N_OUT] // op[FILTERS]
    dz = ptr_add(deltas, op[Y] + lo * op[N_OUT])
    for r in range(op[ROWS]):
        a = ptr_add(acts, op[X] + lo * op[N_IN] + r * op[DILATION_V] * op[LINE])
        dk = ptr_add(grads, w + r * op[COLUMNS] * filters)
        dot_products(a, op[DILATION_H], op[N_IN], dz, plane, op[N_OUT], dk, filters, op[COLUMNS], filters, op[LENGTH], hi - lo)
    if op[BIAS]:
        for o in range(filters):
            total = const_like(deltas, 0)
            for i in range(hi - lo):
                for p in range(op[LENGTH]):
                    total += dz[i * op[N_OUT] + o * plane + p]
            grads[w + op[N_WEIGHTS] + o] += total


@accumulate_gradient.cuda
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    filters, w, plane = op[FILTERS], op[W], op[N_OUT] // op[FILTERS]
    for k in range(thread_rank(), op[N_WEIGHTS] + op[BIAS] * filters, num_threads()):
        place = div_u32(k, filters)
        o, r = k - place * filters, div_u32(place, op[COLUMNS])
        far = r * op[DILATION_V] * op[LINE] + (place - r * op[COLUMNS]) * op[DILATION_H]
        total = const_like(deltas, 0)
        for i in range(lo, hi):
            x, y = op[X] + i * op[N_IN] + far, op[Y] + i * op[N_OUT] + o * plane
            for p in range(op[LENGTH]):
                total += deltas[y + p] * (acts[x + p] if k < op[N_WEIGHTS] else const_like(acts, 1))
        grads[w + k] += total


OUT_HEIGHT, OUT_WIDTH, CHANNELS, ROW, PLANE_ROWS = range(ATTRS, ATTRS + 5)
"""The pooling's sizes; ROW is the length of a row of a plane, PLANE_ROWS how many there are."""


@kernel
def pool_forward(op, params, grads, acts, deltas, lo, hi):
    """y[h, w, c] = the largest of a 2×2 window of plane c        acts[y] overwritten

    The pooled planes stand in the scratch memory before they are turned: channels come last in y.
    """
    channels, out_width, row, width = op[CHANNELS], op[OUT_WIDTH], op[ROW], lanes(acts)
    pixels, end = op[OUT_HEIGHT] * out_width, 2 * out_width
    planes = ptr_add(acts, op[SCRATCH])
    for i in range(lo, hi):
        for c in range(channels):
            for h in range(op[OUT_HEIGHT]):
                x = ptr_add(acts, op[X] + i * op[N_IN] + (c * op[PLANE_ROWS] + 2 * h) * row)
                line = ptr_add(planes, c * pixels + h * out_width)
                for k in range(0, end, 2 * width):
                    left = maximum(load(ptr_add(x, k), end - k), load(ptr_add(x, row + k), end - k))
                    m = k + width
                    right = maximum(load(ptr_add(x, m), max(0, end - m)), load(ptr_add(x, row + m), max(0, end - m)))
                    most = concat_even(maximum(left, swap_pairs(left)), maximum(right, swap_pairs(right)))
                    store(ptr_add(line, k >> 1), most, out_width - (k >> 1))
        transpose(planes, pixels, ptr_add(acts, op[Y] + i * op[N_OUT]), channels, channels, pixels)


@pool_forward.cuda
def pool_forward(op, params, grads, acts, deltas, lo, hi):
    channels, n_y, row = op[CHANNELS], op[N_OUT], op[ROW]
    for e in range(thread_rank(), (hi - lo) * n_y, num_threads()):
        i = div_u32(e, n_y)
        place = div_u32(e - i * n_y, channels)
        c, h = e - i * n_y - place * channels, div_u32(place, op[OUT_WIDTH])
        x = op[X] + (lo + i) * op[N_IN] + (c * op[PLANE_ROWS] + 2 * h) * row + 2 * (place - h * op[OUT_WIDTH])
        upper, lower = maximum(acts[x], acts[x + 1]), maximum(acts[x + row], acts[x + row + 1])
        acts[op[Y] + lo * n_y + e] = maximum(upper, lower)


@kernel
def pool_backward(op, params, grads, acts, deltas, lo, hi):
    """Give dy to the first of the largest of each window        deltas[x] overwritten"""
    channels, out_width, row, width = op[CHANNELS], op[OUT_WIDTH], op[ROW], lanes(acts)
    plane, pixels = op[PLANE_ROWS] * row, op[OUT_HEIGHT] * out_width
    zero, one = const_like(load(acts, 0), 0), const_like(load(acts, 0), 1)
    odd = odd_mask(zero)
    most, given = ptr_add(acts, op[SCRATCH]), ptr_add(acts, op[SCRATCH] + op[N_OUT])
    for i in range(lo, hi):
        transpose(ptr_add(acts, op[Y] + i * op[N_OUT]), channels, most, pixels, pixels, channels)
        transpose(ptr_add(deltas, op[Y] + i * op[N_OUT]), channels, given, pixels, pixels, channels)
        for c in range(channels):
            x = op[X] + i * op[N_IN] + c * plane
            for h in range(op[OUT_HEIGHT]):
                y, upper = c * pixels + h * out_width, x + 2 * h * row
                for k in range(0, row, width):
                    n = max(0, out_width - (k >> 1))
                    top, dy = interleave_low(load(ptr_add(most, y + (k >> 1)), n)), interleave_low(load(ptr_add(given, y + (k >> 1)), n))
                    above = where_equal(load(ptr_add(acts, upper + k), row - k), top, one, zero)
                    below = where_equal(load(ptr_add(acts, upper + row + k), row - k), top, one, zero)
                    found = maximum(above, swap_pairs(above))
                    store(ptr_add(deltas, upper + k), dy * above * (one - odd * swap_pairs(above)), row - k)
                    store(ptr_add(deltas, upper + row + k), dy * (one - found) * below * (one - odd * swap_pairs(below)), row - k)
            for p in range(x + 2 * op[OUT_HEIGHT] * row, x + plane):
                deltas[p] = const_like(deltas, 0)


@pool_backward.cuda
def pool_backward(op, params, grads, acts, deltas, lo, hi):
    channels, n_x, row = op[CHANNELS], op[N_IN], op[ROW]
    for e in range(thread_rank(), (hi - lo) * n_x, num_threads()):
        i = div_u32(e, n_x)
        line = div_u32(e - i * n_x, row)
        s, c = e - i * n_x - line * row, div_u32(line, op[PLANE_ROWS])
        r = line - c * op[PLANE_ROWS]
        h, w = r >> 1, s >> 1
        given = const_like(deltas, 0)
        if h < op[OUT_HEIGHT] and w < op[OUT_WIDTH]:
            x, y = op[X] + lo * n_x + e, op[Y] + (lo + i) * op[N_OUT] + (h * op[OUT_WIDTH] + w) * channels + c
            first = x - (r & 1) * row - (s & 1)
            found = acts[x] == acts[y]
            for earlier in range(2 * (r & 1) + (s & 1)):
                found = found and acts[first + (earlier >> 1) * row + (earlier & 1)] != acts[y]
            given = deltas[y] if found else given
        deltas[op[X] + lo * n_x + e] = given
