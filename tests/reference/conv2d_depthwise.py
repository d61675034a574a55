"""Reference implementations of the kernels in nn/layers/conv2d_depthwise.py."""

from numbanet.nn.layers.conv2d_depthwise import GEOMETRY
from reference.conv2d import convolution


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


forward, backward, accumulate_gradient = convolution(terms, GEOMETRY.bias, GEOMETRY.channels)
