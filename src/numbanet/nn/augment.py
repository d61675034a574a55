"""Data augmentation: training images shifted, rotated and perturbed on the fly.

    y[p] = x[M⁻¹ (p − centre) + centre − shift], bilinear between pixels and 0 outside
    M = rotation · shear · zoom · flips
    then y · (1 + brightness) + noise, and a square set to 0

Every draw is a function of seed, epoch and sample: it does not depend on threads or order, and a
resumed run repeats it. `shift_copies` makes a fixed, larger training set instead, such as the
book's five-fold one.

Source   Nielsen, Neural Networks and Deep Learning, chapters 3 and 6; Simard, Steinkraus, Platt
         2003; DeVries, Taylor 2017 (cut-out)
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from numbanet.backend.intrinsics import (
    const_like,
    data_pointer,
    div_u32,
    float_attr,
    fold_in,
    lanes,
    load,
    num_threads,
    ptr_add,
    store,
    thread_rank,
    uniform,
    uniform_scalar,
)
from numbanet.backend.jit import entry_point, inline, kernel
from numbanet.io.attributes import Description
from numbanet.io.fields import Count, Flag, Pair, Real, check
from numbanet.plan.columns import EPOCH, N_IN, ROW_SIZE, SEED, Attrs, X, Y, context, sample_number
from numbanet.plan.op import Op

AMOUNT = "{label} must be a finite number of at least 0, got {got}"
PIXELS = "{label} counts whole pixels, got {got}"
NOTHING = "{owner}: a {name} of {got} would shrink an image to nothing; choose one below 1"

AUGMENT = Attrs(
    "height width channels shift_rows shift_cols rotation zoom shear flip_vertical flip_horizontal "
    "brightness noise cutout"
)


@dataclass(frozen=True)
class Augment(Description):
    """How much training images may be changed; every amount is drawn for each sample and epoch.

    shift         pixels, up to that many to each side: an integer, or (vertical, horizontal)
    rotation      degrees, up to that many to each side
    zoom          0.1 for 90 % … 110 % of the size
    shear         0.1 for a slant of up to 0.1 pixels per pixel to each side
    flip_vertical, flip_horizontal   True to flip half of the images
    brightness    0.2 for 80 % … 120 %
    noise         standard deviation of noise added to every value (nearly normal: the sum of four
                  uniform values)
    cutout        side in pixels of a square that is set to 0, anywhere in the image

    Pass it as `fit(…, augment=Augment(…))`. Raises ValueError for amounts that make no sense.
    """

    shift: Annotated[int | tuple[int, int], Pair(0, says=AMOUNT, fraction=PIXELS)] = 0
    rotation: Annotated[float, Real(0)] = 0.0
    zoom: Annotated[float, Real(0, below=1, beyond=NOTHING)] = 0.0
    shear: Annotated[float, Real(0)] = 0.0
    flip_vertical: Annotated[bool, Flag()] = False
    flip_horizontal: Annotated[bool, Flag()] = False
    brightness: Annotated[float, Real(0)] = 0.0
    noise: Annotated[float, Real(0)] = 0.0
    cutout: Annotated[int, Count(0, says=AMOUNT, fraction=PIXELS)] = 0

    def __post_init__(self):
        check(self)

    def op(self, shape) -> Op:
        """Return the row of the plan, between the inputs and the first layer.

        Raises ValueError for samples that are not images.
        """
        if len(shape) != 3:
            raise ValueError(
                "Augment expects images (height, width, channels), "
                f"the network's input is {shape}; "
                "use input_shape=(height, width, channels) and begin with Flatten() if need be"
            )
        n = math.prod(shape)
        vertical, horizontal = (
            self.shift if isinstance(self.shift, (tuple, list)) else (self.shift, self.shift)
        )
        attrs = AUGMENT.pack(
            height=shape[0],
            width=shape[1],
            channels=shape[2],
            shift_rows=int(vertical),
            shift_cols=int(horizontal),
            rotation=math.radians(self.rotation),
            zoom=float(self.zoom),
            shear=float(self.shear),
            flip_vertical=int(self.flip_vertical),
            flip_horizontal=int(self.flip_horizontal),
            brightness=float(self.brightness),
            noise=float(self.noise),
            cutout=int(self.cutout),
        )
        return Op("Augment", n, n, forward, attrs=attrs)


@inline
def _sample_key(op, i):
    """The key of the random numbers for sample i of the batch."""
    return fold_in(
        fold_in(fold_in(context(op, SEED), context(op, EPOCH)), sample_number(op, i)), -1
    )


@inline
def _symmetric_uniform(key, counter, amount):
    """A random value from −amount … amount."""
    return amount * (2 * uniform_scalar(key, counter) - 1)


@inline
def _floor(x):
    """The largest integer up to x, as an integer (a GPU's floor gives a float)."""
    return int(math.floor(x))


@inline
def _inverse_affine(op, key):
    """The inverse map: (a h + b w + e, c h + d w + f) is the source of pixel (h, w)."""
    angle, zoom = (
        _symmetric_uniform(key, 0, float_attr(op, AUGMENT.rotation)),
        1 + _symmetric_uniform(key, 1, float_attr(op, AUGMENT.zoom)),
    )
    shear = _symmetric_uniform(key, 2, float_attr(op, AUGMENT.shear))
    up = -1.0 if op[AUGMENT.flip_vertical] and uniform_scalar(key, 3) < 0.5 else 1.0
    aside = -1.0 if op[AUGMENT.flip_horizontal] and uniform_scalar(key, 4) < 0.5 else 1.0
    down = (
        _floor(uniform_scalar(key, 5) * (2 * op[AUGMENT.shift_rows] + 1)) - op[AUGMENT.shift_rows]
    )
    right = (
        _floor(uniform_scalar(key, 6) * (2 * op[AUGMENT.shift_cols] + 1)) - op[AUGMENT.shift_cols]
    )
    sine, cosine = math.sin(angle), math.cos(angle)
    a, b = up * cosine / zoom, up * sine / zoom
    c, d = aside * (shear * cosine - sine) / zoom, aside * (shear * sine + cosine) / zoom
    middle_h, middle_w = (op[AUGMENT.height] - 1) / 2, (op[AUGMENT.width] - 1) / 2
    from_h, from_w = middle_h + down, middle_w + right
    return a, b, c, d, middle_h - a * from_h - b * from_w, middle_w - c * from_h - d * from_w


@inline
def _cutout_corner(op, key):
    """(row, column) of the first pixel of the square that is set to 0; it may lie outside."""
    half = op[AUGMENT.cutout] // 2
    return _floor(uniform_scalar(key, 8) * op[AUGMENT.height]) - half, _floor(
        uniform_scalar(key, 9) * op[AUGMENT.width]
    ) - half


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Change images lo ≤ i < hi        acts[y] overwritten"""
    height, width, channels, n = (
        op[AUGMENT.height],
        op[AUGMENT.width],
        op[AUGMENT.channels],
        op[N_IN],
    )
    for i in range(lo, hi):
        key = _sample_key(op, i)
        x, y = ptr_add(acts, op[X] + i * n), ptr_add(acts, op[Y] + i * n)
        a, b, c, d, e, f = _inverse_affine(op, key)
        for h in range(height):
            for w in range(width):
                _sample(x, y, h, w, a * h + b * w + e, c * h + d * w + f, height, width, channels)
        _jitter(op, y, key)
        if op[AUGMENT.cutout]:
            top, left = _cutout_corner(op, key)
            for h in range(max(0, top), min(height, top + op[AUGMENT.cutout])):
                for k in range(
                    max(0, left) * channels, min(width, left + op[AUGMENT.cutout]) * channels
                ):
                    y[h * width * channels + k] = const_like(y, 0)


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    height, width, channels, n = (
        op[AUGMENT.height],
        op[AUGMENT.width],
        op[AUGMENT.channels],
        op[N_IN],
    )
    for i in range(lo, hi):
        key = _sample_key(op, i)
        x, y = ptr_add(acts, op[X] + i * n), ptr_add(acts, op[Y] + i * n)
        a, b, c, d, e, f = _inverse_affine(op, key)
        bright, noise = (
            1 + _symmetric_uniform(key, 7, float_attr(op, AUGMENT.brightness)),
            float_attr(op, AUGMENT.noise) * math.sqrt(3.0),
        )
        top, left = _cutout_corner(op, key)
        for p in range(thread_rank(), height * width, num_threads()):
            h = div_u32(p, width)
            w = p - h * width
            _sample(x, y, h, w, a * h + b * w + e, c * h + d * w + f, height, width, channels)
            for k in range(p * channels, (p + 1) * channels):
                if noise:
                    drawn = uniform_scalar(fold_in(key, 1), k) + uniform_scalar(fold_in(key, 2), k)
                    drawn += uniform_scalar(fold_in(key, 3), k) + uniform_scalar(fold_in(key, 4), k)
                    y[k] = y[k] * const_like(y, bright) + const_like(y, drawn - 2) * const_like(
                        y, noise
                    )
                else:
                    y[k] *= const_like(y, bright)
                if top <= h < top + op[AUGMENT.cutout] and left <= w < left + op[AUGMENT.cutout]:
                    y[k] = const_like(y, 0)


@inline
def _sample(x, y, h, w, from_h, from_w, height, width, channels):
    """y[h, w] = x[from_h, from_w], interpolated between the four pixels around it"""
    top, left = _floor(from_h), _floor(from_w)
    down, right = const_like(x, from_h - top), const_like(x, from_w - left)
    for k in range(channels):
        total = const_like(x, 0)
        for r in range(2):
            for s in range(2):
                if 0 <= top + r < height and 0 <= left + s < width:
                    weight = (down if r else const_like(x, 1) - down) * (
                        right if s else const_like(x, 1) - right
                    )
                    total += weight * x[((top + r) * width + left + s) * channels + k]
        y[(h * width + w) * channels + k] = total


@inline
def _jitter(op, y, key):
    """y · (1 + brightness) + noise"""
    bright, noise = (
        1 + _symmetric_uniform(key, 7, float_attr(op, AUGMENT.brightness)),
        float_attr(op, AUGMENT.noise),
    )
    if bright == 1 and noise == 0:
        return
    n, width = op[N_IN], lanes(y)
    for k in range(0, n, width):
        v = load(ptr_add(y, k), n - k)
        first, second = (
            uniform(y, fold_in(key, 1), k) + uniform(y, fold_in(key, 2), k),
            uniform(y, fold_in(key, 3), k),
        )
        drawn = first + second + uniform(y, fold_in(key, 4), k) - const_like(v, 2)
        store(
            ptr_add(y, k),
            v * const_like(v, bright) + drawn * const_like(v, noise * math.sqrt(3.0)),
            n - k,
        )


def inverse_map(augment: Augment, shape, seed: int, epoch: int, sample: int) -> tuple[float, ...]:
    """Return (a, b, c, d, e, f) for a sample in an epoch.

    (a h + b w + e, c h + d w + f) is the source of its target pixel (h, w).
    """
    row = np.zeros(ROW_SIZE, np.int64)
    for column, value in zip(AUGMENT, augment.op(shape).attrs, strict=True):
        row[column] = np.float64(value).view(np.int64) if isinstance(value, float) else value
    return _inverse_map(row, seed, epoch, sample)


@entry_point
def _inverse_map(row, seed, epoch, sample):
    return _inverse_affine(data_pointer(row), fold_in(fold_in(fold_in(seed, epoch), sample), -1))


def shift_copies(x, y, shifts=((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))):
    """Return x and y repeated once for each shift (down, right) in pixels, with zeros moving in.

    By default this is Nielsen's five-fold set: as it is, and one pixel to each side.

    x (samples, height, width, channels) or (samples, height, width) · y (samples, …)
    Raises ValueError for other shapes or a shift beyond the image.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim not in (3, 4) or len(x) != len(y):
        raise ValueError(
            "shift_copies needs images (samples, height, width[, channels]) and as many targets, "
            f"got {x.shape} and "
            f"{y.shape}"
        )
    height, width = x.shape[1:3]
    result = np.zeros((len(shifts), *x.shape), x.dtype)
    for copy, (down, right) in zip(result, shifts, strict=True):
        if abs(down) >= height or abs(right) >= width:
            raise ValueError(
                f"a shift of {(down, right)} moves an image of {height} by {width} out of sight"
            )
        copy[:, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = x[
            :, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
        ]
    return result.reshape(-1, *x.shape[1:]), np.concatenate([y] * len(shifts))
