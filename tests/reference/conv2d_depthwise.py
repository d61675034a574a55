"""Reference implementations of the kernels in nn/layers/conv2d_depthwise.py."""

from numbanet.nn.layers.conv2d_depthwise import GEOMETRY
from numbanet.plan.columns import N_IN, N_OUT, N_WEIGHTS, W, X, Y


def terms(op):
    """(output, input, weight) of every product in one image's convolution, as offsets."""
    channels = op[GEOMETRY.channels]
    for out_row in range(op[GEOMETRY.out_height]):
        for out_col in range(op[GEOMETRY.out_width]):
            for r in range(op[GEOMETRY.kernel_h]):
                for s in range(op[GEOMETRY.kernel_w]):
                    row = out_row * op[GEOMETRY.stride_row] + r * op[GEOMETRY.dilation_row]
                    col = out_col * op[GEOMETRY.stride_col] + s * op[GEOMETRY.dilation_col]
                    for c in range(channels):
                        yield (
                            (out_row * op[GEOMETRY.out_width] + out_col) * channels + c,
                            (row * op[GEOMETRY.width] + col) * channels + c,
                            (r * op[GEOMETRY.kernel_w] + s) * channels + c,
                        )


def forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
        for z in range(op[N_OUT]):
            bias = op[W] + op[N_WEIGHTS] + z % op[GEOMETRY.channels]
            acts[y + z] = params[bias] if op[GEOMETRY.bias] else 0
        for z, a, k in terms(op):
            acts[y + z] += acts[x + a] * params[op[W] + k]


def backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
        for a in range(op[N_IN]):
            deltas[x + a] = 0
        for z, a, k in terms(op):
            deltas[x + a] += deltas[y + z] * params[op[W] + k]


def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
        for z, a, k in terms(op):
            grads[op[W] + k] += acts[x + a] * deltas[y + z]
        for z in range(op[N_OUT] if op[GEOMETRY.bias] else 0):
            grads[op[W] + op[N_WEIGHTS] + z % op[GEOMETRY.channels]] += deltas[y + z]
