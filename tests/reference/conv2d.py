"""Reference implementations of the kernels in nn/layers/conv2d.py."""

from numbanet.nn.layers.conv2d import GEOMETRY
from numbanet.plan.columns import N_IN, N_OUT, N_WEIGHTS, W, X, Y


def terms(op):
    """(output, input, weight) of every product in one image's convolution, as offsets."""
    groups, c_in, c_out = op[GEOMETRY.groups], op[GEOMETRY.c_in], op[GEOMETRY.c_out]
    channels, filters = c_in // groups, c_out // groups
    for out_row in range(op[GEOMETRY.out_height]):
        for out_col in range(op[GEOMETRY.out_width]):
            for o in range(c_out):
                for r in range(op[GEOMETRY.kernel_h]):
                    for s in range(op[GEOMETRY.kernel_w]):
                        for c in range(channels):
                            row = out_row * op[GEOMETRY.stride_row] + r * op[GEOMETRY.dilation_row]
                            col = out_col * op[GEOMETRY.stride_col] + s * op[GEOMETRY.dilation_col]
                            channel = o // filters * channels + c
                            yield (
                                (out_row * op[GEOMETRY.out_width] + out_col) * c_out + o,
                                (row * op[GEOMETRY.width] + col) * c_in + channel,
                                ((r * op[GEOMETRY.kernel_w] + s) * channels + c) * c_out + o,
                            )


def convolution(terms, bias, filters):
    """The three kernels of a convolution, from its products.

    bias, filters   the columns of an op that say whether there is a bias, and how many filters
    """

    def forward(op, params, grads, acts, deltas, lo, hi):
        for i in range(lo, hi):
            x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
            for z in range(op[N_OUT]):
                place = op[W] + op[N_WEIGHTS] + z % op[filters]
                acts[y + z] = params[place] if op[bias] else 0
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
            for z in range(op[N_OUT] if op[bias] else 0):
                grads[op[W] + op[N_WEIGHTS] + z % op[filters]] += deltas[y + z]

    return forward, backward, accumulate_gradient


forward, backward, accumulate_gradient = convolution(terms, GEOMETRY.bias, GEOMETRY.c_out)
