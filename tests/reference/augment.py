"""Twins of the kernels in augment.py. The picture is turned by matrices, the random numbers by Python's whole numbers."""

import math

import numpy as np

from numbanet.backend.intrinsics.random import fold_in_python as fold_in
from numbanet.backend.intrinsics.random import uniform_python as uniform
from numbanet.nn import augment as at
from numbanet.plan.columns import EPOCH, N_IN, PERMUTATION, SEED, START, X, Y


def between(key, counter, amount):
    return amount * (2 * uniform(key, counter) - 1)


def forward(op, params, grads, acts, deltas, lo, hi):
    height, width, channels, n = op[at.HEIGHT], op[at.WIDTH_IN], op[at.CHANNELS], op[N_IN]
    for i in range(lo, hi):
        place = op.context(START) + i
        sample = place if op.data[PERMUTATION] is None else int(op.data[PERMUTATION][place])
        key = fold_in(fold_in(fold_in(op.context(SEED), op.context(EPOCH)), sample), -1)
        picture = np.array(acts[op[X] + i * n : op[X] + i * n + n]).reshape(height, width, channels)
        angle, zoom, shear = (between(key, k, op.float_attr(column)) for k, column in enumerate((at.ROTATION, at.ZOOM, at.SHEAR)))
        turned = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        slanted = np.array([[1, 0], [shear, 1]])
        over = np.diag([-1 if op[flip] and uniform(key, k) < 0.5 else 1 for k, flip in ((3, at.FLIP_V), (4, at.FLIP_H))])
        back = over @ slanted @ turned / (1 + zoom)
        shift = [math.floor(uniform(key, k) * (2 * op[far] + 1)) - op[far] for k, far in ((5, at.SHIFT_V), (6, at.SHIFT_H))]
        centre = np.array([(height - 1) / 2, (width - 1) / 2])
        result = np.zeros_like(picture)
        for h in range(height):
            for w in range(width):
                source = back @ (np.array([h, w]) - centre - shift) + centre
                corner = np.floor(source).astype(int)
                for r in (0, 1):
                    for s in (0, 1):
                        y, x = corner + (r, s)
                        if 0 <= y < height and 0 <= x < width:
                            share = (1 - abs(source[0] - y)) * (1 - abs(source[1] - x))
                            result[h, w] += share * picture[y, x]
        bright, noise = 1 + between(key, 7, op.float_attr(at.BRIGHTNESS)), op.float_attr(at.NOISE)
        keys = [fold_in(key, k) for k in (1, 2, 3, 4)]
        drawn = np.array([sum(uniform(one, k) for one in keys) - 2 for k in range(n)]).reshape(result.shape)
        result = result * bright + drawn * noise * math.sqrt(3)
        if op[at.CUTOUT]:
            top = math.floor(uniform(key, 8) * height) - op[at.CUTOUT] // 2
            left = math.floor(uniform(key, 9) * width) - op[at.CUTOUT] // 2
            result[max(0, top) : max(0, top + op[at.CUTOUT]), max(0, left) : max(0, left + op[at.CUTOUT])] = 0
        acts[op[Y] + i * n : op[Y] + i * n + n] = result.reshape(-1)
