"""Reference implementations of the kernels in nn/layers/conv2d_channels_first.py."""

from numbanet.nn.layers.conv2d_channels_first import CONVOLUTION, POOLING
from numbanet.plan.columns import N_IN, N_OUT, N_WEIGHTS, W, X, Y


def weights(op):
    """(weight, filter, offset in the image) of every weight, the weight counted from the first."""
    filters, kernel_w = op[CONVOLUTION.filters], op[CONVOLUTION.kernel_w]
    for r in range(op[CONVOLUTION.kernel_h]):
        for s in range(kernel_w):
            for o in range(filters):
                row, col = r * op[CONVOLUTION.dilation_row], s * op[CONVOLUTION.dilation_col]
                yield (r * kernel_w + s) * filters + o, o, row * op[CONVOLUTION.width] + col


def forward(op, params, grads, acts, deltas, lo, hi):
    plane = op[N_OUT] // op[CONVOLUTION.filters]
    for i in range(lo, hi):
        x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
        for z in range(op[N_OUT]):
            bias = op[W] + op[N_WEIGHTS] + z // plane
            acts[y + z] = params[bias] if op[CONVOLUTION.bias] else 0
        for k, o, offset in weights(op):
            for p in range(op[CONVOLUTION.n_pixels]):
                acts[y + o * plane + p] += params[op[W] + k] * acts[x + p + offset]


def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    plane = op[N_OUT] // op[CONVOLUTION.filters]
    for i in range(lo, hi):
        x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
        for k, o, offset in weights(op):
            for p in range(op[CONVOLUTION.n_pixels]):
                grads[op[W] + k] += acts[x + p + offset] * deltas[y + o * plane + p]
        for o in range(op[CONVOLUTION.filters] if op[CONVOLUTION.bias] else 0):
            for p in range(op[CONVOLUTION.n_pixels]):
                grads[op[W] + op[N_WEIGHTS] + o] += deltas[y + o * plane + p]


def windows(op, i):
    """(output, its four inputs, row by row) of sample i."""
    width = op[POOLING.width]
    for out_row in range(op[POOLING.out_height]):
        for out_col in range(op[POOLING.out_width]):
            for c in range(op[POOLING.channels]):
                plane = op[X] + i * op[N_IN] + c * op[POOLING.height] * width
                pixel = out_row * op[POOLING.out_width] + out_col
                yield (
                    op[Y] + i * op[N_OUT] + pixel * op[POOLING.channels] + c,
                    [
                        plane + (2 * out_row + r) * width + 2 * out_col + s
                        for r in (0, 1)
                        for s in (0, 1)
                    ],
                )


def pool_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for y, inputs in windows(op, i):
            acts[y] = max(acts[x] for x in inputs)


def pool_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for x in range(op[N_IN]):
            deltas[op[X] + i * op[N_IN] + x] = 0
        for y, inputs in windows(op, i):
            deltas[max(inputs, key=lambda x: acts[x])] = deltas[y]  # the first of the largest
