"""A depthwise convolution: every channel has a filter of its own.

    z[h, w, c] = b[c] + Σ_rs a[h·stride + r·dilation, w·stride + s·dilation, c] · K[r, s, 0, c]

    a (height, width, channels) · K (kernel_h, kernel_w, 1, channels) · b (channels)
    z (out_height, out_width, channels)

A sum has only as many terms as the window has elements, so there is no matrix product to speak of:
the kernels work on a register full of channels, element by element of the window. Conv2D takes them
where it has as many groups and filters as channels.

Source   Chollet 2017 (depthwise separable convolutions)
"""

from numbanet.backend.intrinsics import (
    const_like,
    div_u32,
    lanes,
    load,
    num_threads,
    ptr_add,
    splat,
    store,
    thread_rank,
)
from numbanet.backend.jit import inline, kernel
from numbanet.plan.columns import N_IN, N_OUT, N_WEIGHTS, Attrs, W, X, Y

GEOMETRY = Attrs(
    "bias height width channels out_height out_width kernel_h kernel_w "
    "stride_row stride_col dilation_row dilation_col"
)
"""Sizes of the (padded) input, the output and the window; `bias` is 1 where the layer has one."""
TILE = 4
"""Outputs beside one another that are computed at once: an element of a filter is read once."""


@inline
def _input_steps(op):
    """Elements of the input from output to output, down and right, and from tap to tap likewise."""
    channels, row = op[GEOMETRY.channels], op[GEOMETRY.width] * op[GEOMETRY.channels]
    outputs = op[GEOMETRY.stride_row] * row, op[GEOMETRY.stride_col] * channels
    return *outputs, op[GEOMETRY.dilation_row] * row, op[GEOMETRY.dilation_col] * channels


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Slide the filters over images lo ≤ i < hi        acts[y] overwritten"""
    channels, out_width = op[GEOMETRY.channels], op[GEOMETRY.out_width]
    kernel_h, kernel_w = op[GEOMETRY.kernel_h], op[GEOMETRY.kernel_w]
    row_stride, column, down, right = _input_steps(op)
    for i in range(lo, hi):
        for out_row in range(op[GEOMETRY.out_height]):
            a = ptr_add(acts, op[X] + i * op[N_IN] + out_row * row_stride)
            z = ptr_add(acts, op[Y] + i * op[N_OUT] + out_row * out_width * channels)
            for c in range(0, channels, lanes(acts)):
                n, k, bias = channels - c, ptr_add(params, op[W] + c), splat(acts, 0)
                if op[GEOMETRY.bias]:
                    bias = load(ptr_add(k, op[N_WEIGHTS]), n)
                for first in range(0, out_width, TILE):
                    # beyond the last column the last one is computed again
                    last = out_width - 1
                    o0, o1 = first, min(first + 1, last)
                    o2, o3 = min(first + 2, last), min(first + 3, last)
                    z0, z1, z2, z3 = bias, bias, bias, bias
                    for r in range(kernel_h):
                        for s in range(kernel_w):
                            weight = load(ptr_add(k, (r * kernel_w + s) * channels), n)
                            tap = ptr_add(a, r * down + s * right + c)
                            z0 = z0 + weight * load(ptr_add(tap, o0 * column), n)
                            z1 = z1 + weight * load(ptr_add(tap, o1 * column), n)
                            z2 = z2 + weight * load(ptr_add(tap, o2 * column), n)
                            z3 = z3 + weight * load(ptr_add(tap, o3 * column), n)
                    store(ptr_add(z, o0 * channels + c), z0, n)
                    store(ptr_add(z, o1 * channels + c), z1, n)
                    store(ptr_add(z, o2 * channels + c), z2, n)
                    store(ptr_add(z, o3 * channels + c), z3, n)


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    channels, out_width = op[GEOMETRY.channels], op[GEOMETRY.out_width]
    kernel_h, kernel_w = op[GEOMETRY.kernel_h], op[GEOMETRY.kernel_w]
    row_stride, column, down, right = _input_steps(op)
    for e in range(thread_rank(), (hi - lo) * op[N_OUT], num_threads()):
        i = div_u32(e, op[N_OUT])
        pixel = div_u32(e - i * op[N_OUT], channels)
        c, out_row = e - i * op[N_OUT] - pixel * channels, div_u32(pixel, out_width)
        x = op[X] + (lo + i) * op[N_IN] + out_row * row_stride + c
        a, k = ptr_add(acts, x + (pixel - out_row * out_width) * column), op[W] + c
        total = params[k + op[N_WEIGHTS]] if op[GEOMETRY.bias] else const_like(acts, 0)
        for r in range(kernel_h):
            for s in range(kernel_w):
                total += a[r * down + s * right] * params[k + (r * kernel_w + s) * channels]
        acts[op[Y] + lo * op[N_OUT] + e] = total


@kernel
def backward(op, params, grads, acts, deltas, lo, hi):
    """Carry the error back to the images lo ≤ i < hi        deltas[x] overwritten"""
    channels, out_width = op[GEOMETRY.channels], op[GEOMETRY.out_width]
    kernel_h, kernel_w = op[GEOMETRY.kernel_h], op[GEOMETRY.kernel_w]
    row_stride, column, down, right = _input_steps(op)
    for i in range(lo, hi):
        x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
        for j in range(x, x + op[N_IN]):
            deltas[j] = const_like(deltas, 0)
        for out_row in range(op[GEOMETRY.out_height]):
            da = ptr_add(deltas, x + out_row * row_stride)
            dz = ptr_add(deltas, y + out_row * out_width * channels)
            for c in range(0, channels, lanes(acts)):
                n = channels - c
                for r in range(kernel_h):
                    for s in range(kernel_w):
                        k = ptr_add(params, op[W] + (r * kernel_w + s) * channels + c)
                        weight, tap = load(k, n), ptr_add(da, r * down + s * right + c)
                        for out_col in range(out_width):
                            target = ptr_add(tap, out_col * column)
                            dz_here = load(ptr_add(dz, out_col * channels + c), n)
                            store(target, load(target, n) + weight * dz_here, n)


@backward.cuda
def backward(op, params, grads, acts, deltas, lo, hi):
    channels, width, n_x = op[GEOMETRY.channels], op[GEOMETRY.width], op[N_IN]
    stride_row, stride_col = op[GEOMETRY.stride_row], op[GEOMETRY.stride_col]
    out_width, kernel_w = op[GEOMETRY.out_width], op[GEOMETRY.kernel_w]
    for e in range(thread_rank(), (hi - lo) * n_x, num_threads()):
        i = div_u32(e, n_x)
        pixel = div_u32(e - i * n_x, channels)
        row, c = div_u32(pixel, width), e - i * n_x - pixel * channels
        y = op[Y] + (lo + i) * op[N_OUT] + c
        total = const_like(deltas, 0)
        for r in range(op[GEOMETRY.kernel_h]):
            top = row - r * op[GEOMETRY.dilation_row]
            out_row = div_u32(max(top, 0), stride_row)
            if top >= 0 and out_row < op[GEOMETRY.out_height] and out_row * stride_row == top:
                for s in range(kernel_w):
                    left = pixel - row * width - s * op[GEOMETRY.dilation_col]
                    out_col = div_u32(max(left, 0), stride_col)
                    if left >= 0 and out_col < out_width and out_col * stride_col == left:
                        dz = deltas[y + (out_row * out_width + out_col) * channels]
                        total += dz * params[op[W] + (r * kernel_w + s) * channels + c]
        deltas[op[X] + lo * n_x + e] = total


@kernel
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """Add the gradient of images lo ≤ i < hi        grads[W] added to, image by image

    dK[r, s, 0, c] += Σ_hw a[h·stride + r·dilation, w·stride + s·dilation, c] dz[h, w, c]
    db[c] += Σ_hw dz[h, w, c]
    """
    channels, out_width = op[GEOMETRY.channels], op[GEOMETRY.out_width]
    kernel_h, kernel_w = op[GEOMETRY.kernel_h], op[GEOMETRY.kernel_w]
    row_stride, column, down, right = _input_steps(op)
    for i in range(lo, hi):
        for c in range(0, channels, lanes(acts)):
            a, dz = ptr_add(acts, op[X] + i * op[N_IN] + c), op[Y] + i * op[N_OUT] + c
            n, dk, dz = channels - c, ptr_add(grads, op[W] + c), ptr_add(deltas, dz)
            for r in range(kernel_h):
                for s in range(kernel_w):
                    tap = ptr_add(a, r * down + s * right)
                    target = ptr_add(dk, (r * kernel_w + s) * channels)
                    total = _products(op, tap, row_stride, column, dz, n)
                    store(target, load(target, n) + total, n)
            if op[GEOMETRY.bias]:
                target, total = ptr_add(dk, op[N_WEIGHTS]), splat(acts, 0)
                for pixel in range(op[GEOMETRY.out_height] * out_width):
                    total = total + load(ptr_add(dz, pixel * channels), n)
                store(target, load(target, n) + total, n)


@inline
def _products(op, a, row_stride, column, dz, n):
    """Σ_hw a[h·row_stride + w·column] dz[h, w], of n channels; every second column by itself."""
    channels, out_width = op[GEOMETRY.channels], op[GEOMETRY.out_width]
    even, odd = splat(a, 0), splat(a, 0)
    for out_row in range(op[GEOMETRY.out_height]):
        a_row, dz_row = (
            ptr_add(a, out_row * row_stride),
            ptr_add(dz, out_row * out_width * channels),
        )
        for out_col in range(0, out_width - 1, 2):
            place, dz_place = ptr_add(a_row, out_col * column), ptr_add(dz_row, out_col * channels)
            even = even + load(place, n) * load(dz_place, n)
            odd = odd + load(ptr_add(place, column), n) * load(ptr_add(dz_place, channels), n)
        if out_width & 1:
            place = ptr_add(a_row, (out_width - 1) * column)
            even = even + load(place, n) * load(ptr_add(dz_row, (out_width - 1) * channels), n)
    return even + odd


@accumulate_gradient.cuda
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    channels, out_width = op[GEOMETRY.channels], op[GEOMETRY.out_width]
    row_stride, column, down, right = _input_steps(op)
    n_weights = op[N_WEIGHTS]
    for k in range(thread_rank(), n_weights + op[GEOMETRY.bias] * channels, num_threads()):
        tap = div_u32(k, channels)
        r, c = div_u32(tap, op[GEOMETRY.kernel_w]), k - tap * channels
        offset = r * down + (tap - r * op[GEOMETRY.kernel_w]) * right + c
        total = const_like(deltas, 0)
        for i in range(lo, hi):
            for out_row in range(op[GEOMETRY.out_height]):
                a = ptr_add(acts, op[X] + i * op[N_IN] + out_row * row_stride + offset)
                y = op[Y] + i * op[N_OUT] + out_row * out_width * channels + c
                for out_col in range(out_width):
                    value = a[out_col * column] if k < n_weights else const_like(acts, 1)
                    total += deltas[y + out_col * channels] * value
        grads[op[W] + k] += total
