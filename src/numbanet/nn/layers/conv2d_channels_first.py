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

from numbanet.backend.elementary import largest
from numbanet.backend.intrinsics import (
    at,
    dots,
    even_lanes,
    lanes,
    like,
    load,
    multiply,
    neighbours,
    odd_lanes,
    quotient,
    store,
    thread,
    threads,
    turn,
    twice,
    where_equal,
)
from numbanet.backend.jit import kernel
from numbanet.nn.layers.base import size
from numbanet.plan.columns import N_X, N_Y, OWN, SCRATCH, WEIGHTS, Op, W, X, Y

BIAS, FILTERS, ROWS, COLUMNS, DILATION_V, DILATION_H, LINE, LENGTH = range(OWN, OWN + 8)
"""The convolution's sizes; LINE is the width of the input, LENGTH how much of a plane is output (its last row ends early)."""


def chain(placed) -> tuple[int, list[Op]]:
    """How many of these layers, the first of which is to be trained first, can work on planes, and their ops; 0 where none can.

    `placed` holds pairs of a layer and its input shape.
    """
    (convolution, shape), *others = placed
    view = getattr(convolution, "planar_window", lambda shape: None)(shape)
    if view is None:
        return 0, []
    between = []
    for layer, inside in others:
        if getattr(layer, "elementwise", False):
            between.append(layer)
        elif getattr(layer, "pools_planes", lambda shape: False)(inside):
            return len(between) + 2, _ops(convolution, view, between, inside, layer.output_shape(inside))
        else:
            break
    return 0, []


def _ops(convolution, view, between, inside, outside):
    (height, width), (out_height, out_width), (rows, columns) = view.padded, view.output, view.size
    filters, weights = inside[2], rows * columns * inside[2]
    plane = out_height * width
    own = (int(convolution.bias), filters, rows, columns, *view.dilation, width, (out_height - 1) * width + out_width)
    convolve = Op("Conv2D", height * width, filters * plane, forward, partial=partial, units=rows * columns + convolution.bias,
                  unit=filters, weights=weights, own=own, uses=out_height * out_width)
    pool = Op("MaxPool2D", filters * plane, size(outside), pool_forward, pool_backward, own=(*outside, width, out_height),
              scratch=2 * size(outside), keeps_output=True)
    if all(layer.monotone for layer in between):  # the largest stays the largest: a quarter of the numbers is enough
        return [convolve, pool, *(op for layer in between for op in layer.ops((size(outside),)))]
    return [convolve, *(op for layer in between for op in layer.ops((filters * plane,))), pool]


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Slide the filters over pictures lo ≤ i < hi        acts[y] overwritten, plane by plane"""
    filters, w, plane, width = op[FILTERS], op[W], op[N_Y] // op[FILTERS], lanes(acts)
    for i in range(lo, hi):
        z = at(acts, op[Y] + i * op[N_Y])
        for o in range(filters):
            bias = params[w + op[WEIGHTS] + o] if op[BIAS] else like(params, 0)
            for p in range(0, plane, width):
                store(at(z, o * plane + p), like(load(z, 0), bias), plane - p)
        multiply(z, plane, at(params, w), 1, filters, op[COLUMNS] * filters, at(acts, op[X] + i * op[N_X]), op[DILATION_H],
                 op[DILATION_V] * op[LINE], z, plane, filters, op[LENGTH], op[COLUMNS], op[ROWS], 1)


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    filters, w, n_y, plane = op[FILTERS], op[W], op[N_Y], op[N_Y] // op[FILTERS]
    for e in range(thread(), (hi - lo) * n_y, threads()):
        i = quotient(e, n_y)
        o = quotient(e - i * n_y, plane)
        p = e - i * n_y - o * plane
        total = params[w + op[WEIGHTS] + o] if op[BIAS] else like(params, 0)
        if p < op[LENGTH]:
            for r in range(op[ROWS]):
                x = op[X] + (lo + i) * op[N_X] + p + r * op[DILATION_V] * op[LINE]
                for s in range(op[COLUMNS]):
                    total += params[w + (r * op[COLUMNS] + s) * filters + o] * acts[x + s * op[DILATION_H]]
        acts[op[Y] + lo * n_y + e] = total


@kernel
def partial(op, params, grads, acts, deltas, lo, hi):
    """Add the gradient that pictures lo ≤ i < hi give        grads[W] added to"""
    filters, w, plane = op[FILTERS], op[W], op[N_Y] // op[FILTERS]
    dz = at(deltas, op[Y] + lo * op[N_Y])
    for r in range(op[ROWS]):
        a = at(acts, op[X] + lo * op[N_X] + r * op[DILATION_V] * op[LINE])
        dk = at(grads, w + r * op[COLUMNS] * filters)
        dots(a, op[DILATION_H], op[N_X], dz, plane, op[N_Y], dk, filters, op[COLUMNS], filters, op[LENGTH], hi - lo)
    if op[BIAS]:
        for o in range(filters):
            total = like(deltas, 0)
            for i in range(hi - lo):
                for p in range(op[LENGTH]):
                    total += dz[i * op[N_Y] + o * plane + p]
            grads[w + op[WEIGHTS] + o] += total


@partial.cuda
def partial(op, params, grads, acts, deltas, lo, hi):
    filters, w, plane = op[FILTERS], op[W], op[N_Y] // op[FILTERS]
    for k in range(thread(), op[WEIGHTS] + op[BIAS] * filters, threads()):
        place = quotient(k, filters)
        o, r = k - place * filters, quotient(place, op[COLUMNS])
        far = r * op[DILATION_V] * op[LINE] + (place - r * op[COLUMNS]) * op[DILATION_H]
        total = like(deltas, 0)
        for i in range(lo, hi):
            x, y = op[X] + i * op[N_X] + far, op[Y] + i * op[N_Y] + o * plane
            for p in range(op[LENGTH]):
                total += deltas[y + p] * (acts[x + p] if k < op[WEIGHTS] else like(acts, 1))
        grads[w + k] += total


OUT_HEIGHT, OUT_WIDTH, CHANNELS, ROW, PLANE_ROWS = range(OWN, OWN + 5)
"""The pooling's sizes; ROW is the length of a row of a plane, PLANE_ROWS how many there are."""


@kernel
def pool_forward(op, params, grads, acts, deltas, lo, hi):
    """y[h, w, c] = the largest of a 2×2 window of plane c        acts[y] overwritten

    The pooled planes stand in the scratch memory before they are turned: channels come last in y.
    """
    channels, out_width, row, width = op[CHANNELS], op[OUT_WIDTH], op[ROW], lanes(acts)
    pixels, end = op[OUT_HEIGHT] * out_width, 2 * out_width
    planes = at(acts, op[SCRATCH])
    for i in range(lo, hi):
        for c in range(channels):
            for h in range(op[OUT_HEIGHT]):
                x = at(acts, op[X] + i * op[N_X] + (c * op[PLANE_ROWS] + 2 * h) * row)
                line = at(planes, c * pixels + h * out_width)
                for k in range(0, end, 2 * width):
                    left = largest(load(at(x, k), end - k), load(at(x, row + k), end - k))
                    m = k + width
                    right = largest(load(at(x, m), max(0, end - m)), load(at(x, row + m), max(0, end - m)))
                    most = even_lanes(largest(left, neighbours(left)), largest(right, neighbours(right)))
                    store(at(line, k >> 1), most, out_width - (k >> 1))
        turn(planes, pixels, at(acts, op[Y] + i * op[N_Y]), channels, channels, pixels)


@pool_forward.cuda
def pool_forward(op, params, grads, acts, deltas, lo, hi):
    channels, n_y, row = op[CHANNELS], op[N_Y], op[ROW]
    for e in range(thread(), (hi - lo) * n_y, threads()):
        i = quotient(e, n_y)
        place = quotient(e - i * n_y, channels)
        c, h = e - i * n_y - place * channels, quotient(place, op[OUT_WIDTH])
        x = op[X] + (lo + i) * op[N_X] + (c * op[PLANE_ROWS] + 2 * h) * row + 2 * (place - h * op[OUT_WIDTH])
        upper, lower = largest(acts[x], acts[x + 1]), largest(acts[x + row], acts[x + row + 1])
        acts[op[Y] + lo * n_y + e] = largest(upper, lower)


@kernel
def pool_backward(op, params, grads, acts, deltas, lo, hi):
    """Give dy to the first of the largest of each window        deltas[x] overwritten"""
    channels, out_width, row, width = op[CHANNELS], op[OUT_WIDTH], op[ROW], lanes(acts)
    plane, pixels = op[PLANE_ROWS] * row, op[OUT_HEIGHT] * out_width
    zero, one = like(load(acts, 0), 0), like(load(acts, 0), 1)
    odd = odd_lanes(zero)
    most, given = at(acts, op[SCRATCH]), at(acts, op[SCRATCH] + op[N_Y])
    for i in range(lo, hi):
        turn(at(acts, op[Y] + i * op[N_Y]), channels, most, pixels, pixels, channels)
        turn(at(deltas, op[Y] + i * op[N_Y]), channels, given, pixels, pixels, channels)
        for c in range(channels):
            x = op[X] + i * op[N_X] + c * plane
            for h in range(op[OUT_HEIGHT]):
                y, upper = c * pixels + h * out_width, x + 2 * h * row
                for k in range(0, row, width):
                    n = max(0, out_width - (k >> 1))
                    top, dy = twice(load(at(most, y + (k >> 1)), n)), twice(load(at(given, y + (k >> 1)), n))
                    above = where_equal(load(at(acts, upper + k), row - k), top, one, zero)
                    below = where_equal(load(at(acts, upper + row + k), row - k), top, one, zero)
                    found = largest(above, neighbours(above))
                    store(at(deltas, upper + k), dy * above * (one - odd * neighbours(above)), row - k)
                    store(at(deltas, upper + row + k), dy * (one - found) * below * (one - odd * neighbours(below)), row - k)
            for p in range(x + 2 * op[OUT_HEIGHT] * row, x + plane):
                deltas[p] = like(deltas, 0)


@pool_backward.cuda
def pool_backward(op, params, grads, acts, deltas, lo, hi):
    channels, n_x, row = op[CHANNELS], op[N_X], op[ROW]
    for e in range(thread(), (hi - lo) * n_x, threads()):
        i = quotient(e, n_x)
        line = quotient(e - i * n_x, row)
        s, c = e - i * n_x - line * row, quotient(line, op[PLANE_ROWS])
        r = line - c * op[PLANE_ROWS]
        h, w = r >> 1, s >> 1
        given = like(deltas, 0)
        if h < op[OUT_HEIGHT] and w < op[OUT_WIDTH]:
            x, y = op[X] + lo * n_x + e, op[Y] + (lo + i) * op[N_Y] + (h * op[OUT_WIDTH] + w) * channels + c
            first = x - (r & 1) * row - (s & 1)
            found = acts[x] == acts[y]
            for earlier in range(2 * (r & 1) + (s & 1)):
                found = found and acts[first + (earlier >> 1) * row + (earlier & 1)] != acts[y]
            given = deltas[y] if found else given
        deltas[op[X] + lo * n_x + e] = given
