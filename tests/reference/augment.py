"""Reference implementations of the kernels in augment.py: the image is mapped by matrices."""

import math

import numpy as np

from numbanet.backend.intrinsics.random import fold_in_python as fold_in
from numbanet.backend.intrinsics.random import uniform_python as uniform
from numbanet.nn.augment import AUGMENT
from numbanet.plan.columns import EPOCH, FIRST_SAMPLE, N_IN, PERMUTATION, SEED, START, X, Y


def between(key, counter, amount):
    return amount * (2 * uniform(key, counter) - 1)


def forward(op, params, grads, acts, deltas, lo, hi):
    height, width, channels, n = (
        op[AUGMENT.height],
        op[AUGMENT.width],
        op[AUGMENT.channels],
        op[N_IN],
    )
    for i in range(lo, hi):
        place = op.context(START) + i
        sample = place if op.data[PERMUTATION] is None else int(op.data[PERMUTATION][place])
        sample += op.context(FIRST_SAMPLE)
        key = fold_in(fold_in(fold_in(op.context(SEED), op.context(EPOCH)), sample), -1)
        image = np.array(acts[op[X] + i * n : op[X] + i * n + n]).reshape(height, width, channels)
        angle, zoom, shear = (
            between(key, k, op.float_attr(column))
            for k, column in enumerate((AUGMENT.rotation, AUGMENT.zoom, AUGMENT.shear))
        )
        turned = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        slanted = np.array([[1, 0], [shear, 1]])
        over = np.diag(
            [
                -1 if op[flip] and uniform(key, k) < 0.5 else 1
                for k, flip in ((3, AUGMENT.flip_vertical), (4, AUGMENT.flip_horizontal))
            ]
        )
        back = over @ slanted @ turned / (1 + zoom)
        shift = [
            math.floor(uniform(key, k) * (2 * op[far] + 1)) - op[far]
            for k, far in ((5, AUGMENT.shift_rows), (6, AUGMENT.shift_cols))
        ]
        centre = np.array([(height - 1) / 2, (width - 1) / 2])
        result = np.zeros_like(image)
        for h in range(height):
            for w in range(width):
                source = back @ (np.array([h, w]) - centre - shift) + centre
                corner = np.floor(source).astype(int)
                for r in (0, 1):
                    for s in (0, 1):
                        y, x = corner + (r, s)
                        if 0 <= y < height and 0 <= x < width:
                            weight = (1 - abs(source[0] - y)) * (1 - abs(source[1] - x))
                            result[h, w] += weight * image[y, x]
        bright, noise = (
            1 + between(key, 7, op.float_attr(AUGMENT.brightness)),
            op.float_attr(AUGMENT.noise),
        )
        keys = [fold_in(key, k) for k in (1, 2, 3, 4)]
        drawn = np.array([sum(uniform(one, k) for one in keys) - 2 for k in range(n)]).reshape(
            result.shape
        )
        result = result * bright + drawn * noise * math.sqrt(3)
        if op[AUGMENT.cutout]:
            top = math.floor(uniform(key, 8) * height) - op[AUGMENT.cutout] // 2
            left = math.floor(uniform(key, 9) * width) - op[AUGMENT.cutout] // 2
            result[
                max(0, top) : max(0, top + op[AUGMENT.cutout]),
                max(0, left) : max(0, left + op[AUGMENT.cutout]),
            ] = 0
        acts[op[Y] + i * n : op[Y] + i * n + n] = result.reshape(-1)
