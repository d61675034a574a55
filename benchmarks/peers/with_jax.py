"""JAX: the steps of an epoch in one lax.scan under jit.

The data lie on the device; the batches are taken by index inside.

    scan                   XLA's own convolution and window maximum
    scan, shifted          convolution as a matrix product with shifted images, pooling by reshape:
                           often faster on a CPU
    scan, unrolled         of a recurrent layer, which is a scan of its own, four steps in a round
The number of threads is set by the environment before this file is imported.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.peers import work
from benchmarks.peers.worker import Contender

NAME, PACKAGES = "JAX", ("jax", "jaxlib")
ACTIVATIONS = {"": lambda z: z, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}
UNROLLED = 4
"""Steps in a round of the unrolled scan."""
LONGEST = 2.0
"""Seconds that a scan over an epoch may last; a longer one is cut."""


def variants(line: work.Line) -> tuple[str, ...]:
    if line.kind == "inside" or not line.is_plain:
        return ()
    name = "scan" if line.trains else "jit"
    if line.is_recurrent:
        return (name, f"{name}, unrolled")
    return (name, f"{name}, shifted") if line.has_images else (name,)


def convolve(x, w, b, shifted: bool):
    """Valid convolution, channels last."""
    if not shifted:
        return (
            lax.conv_general_dilated(
                x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            + b
        )
    rows, columns = w.shape[:2]
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    patches = jnp.concatenate(
        [x[:, r : r + height, s : s + width] for r in range(rows) for s in range(columns)], -1
    )
    return patches @ w.reshape(-1, w.shape[-1]) + b


def pool(x, size: int, shifted: bool):
    """The largest of each window."""
    if not shifted:
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, size, size, 1), (1, size, size, 1), "VALID"
        )
    n, height, width, c = x.shape
    height, width = height // size, width // size
    return (
        x[:, : height * size, : width * size].reshape(n, height, size, width, size, c).max((2, 4))
    )


def recurrent(kind: str, x, values, unrolled: bool):
    """The last state: x·W for all steps at once, then a scan over time."""
    w, b, u = next(values), next(values), next(values)

    def lstm(state, z):
        h, c = state
        i, f, g, o = jnp.split(z + h @ u, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    def gru(state, z):
        (h,) = state
        (r, k, n), (q_r, q_k, q) = jnp.split(z, 3, -1), jnp.split(h @ u, 3, -1)
        r, k = jax.nn.sigmoid(r + q_r), jax.nn.sigmoid(k + q_k)
        n = jnp.tanh(n + r * (q + inner))
        return (n + k * (h - n),), None

    if kind == "lstm":
        cell, states = lstm, 2
    else:
        cell, states, inner = gru, 1, next(values)
    start = (jnp.zeros((len(x), len(u)), x.dtype),) * states
    z = jnp.swapaxes(x @ w + b, 0, 1)
    return lax.scan(cell, start, z, unroll=UNROLLED if unrolled else 1)[0][0]


def forward(line: work.Line, weights, x, logits: bool, other: bool):
    """The outputs; with `logits` without the last softmax, which the loss contains.

    other   in the second way: shifted images, an unrolled scan
    """
    values, last = iter(weights), len(line.layers) - 1
    for i, (kind, *own) in enumerate(line.layers):
        if kind == "pool":
            x = pool(x, own[0], other)
        elif kind == "flatten":
            x = x.reshape(len(x), -1)
        elif kind in work.RECURRENT:
            x = recurrent(kind, x, values, other)
        else:
            w, b = next(values), next(values)
            x = x @ w + b if kind == "dense" else convolve(x, w, b, other)
            if own[-1] != "softmax":
                x = ACTIVATIONS[own[-1]](x)
            elif not (logits and i == last):
                x = jax.nn.softmax(x)
    return x


def loss(line, weights, x, y, other):
    outputs = forward(line, weights, x, True, other)
    if line.loss == "cross_entropy":
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], 1).mean()
    return 0.5 * jnp.square(outputs - y).sum() / len(y)


def update(line, weights, state, grads):
    """SGD, or Adam with its state (t, means, squares)."""
    name, rate = line.optimizer
    if name == "sgd":
        return [w - rate * g for w, g in zip(weights, grads, strict=True)], state
    t, means, squares = state
    t = t + 1
    size, root = rate / (1 - 0.9**t), lax.rsqrt(1 - 0.999**t)
    means = [0.9 * m + (1 - 0.9) * g for m, g in zip(means, grads, strict=True)]
    squares = [0.999 * v + (1 - 0.999) * g * g for v, g in zip(squares, grads, strict=True)]
    weights = [
        w - size * m / (jnp.sqrt(v) * root + 1e-8)
        for w, m, v in zip(weights, means, squares, strict=True)
    ]
    return weights, (t, means, squares)


class Training(Contender):
    """A scan over the steps of a piece; the weights are handed from one to the next."""

    first = 8

    def __init__(self, case: work.Case, other: bool):
        self.case, line = case, case.line
        self.x, self.y = jnp.asarray(case.x), jnp.asarray(case.targets())
        self.batches = work.Batches(line)

        def step(carried, chosen, x, y):
            weights, state = carried
            value, grads = jax.value_and_grad(lambda w: loss(line, w, x[chosen], y[chosen], other))(
                weights
            )
            return update(line, weights, state, grads), value

        def steps(carried, chosen, x, y):
            return lax.scan(lambda carried, row: step(carried, row, x, y), carried, chosen)

        self.steps = jax.jit(steps, donate_argnums=0)

    def reset(self) -> None:
        self.batches.restart()
        weights = [jnp.array(w, jnp.float32) for w in self.case.weights]
        zeros = lambda: [jnp.zeros_like(w) for w in weights]  # noqa: E731
        state = (jnp.zeros(()), zeros(), zeros()) if self.case.line.optimizer[0] == "adam" else ()
        self.carried = jax.block_until_ready((weights, state))

    def piece(self, step: float, seconds: float) -> int:
        """An epoch, unless that takes long."""
        steps = self.case.line.steps
        return steps if step * steps < max(seconds, LONGEST) else super().piece(step, seconds)

    def run(self, steps: int) -> float:
        chosen = self.batches.take(steps).astype(np.int32)
        self.carried, values = jax.block_until_ready(
            self.steps(self.carried, chosen, self.x, self.y)
        )
        return float(values.mean())

    def weights(self) -> list:
        return [np.asarray(w) for w in self.carried[0]]


class Predicting(Contender):
    """A call of the compiled function, array on the device to array on the device.

    The weights are constants in it.
    """

    def __init__(self, case: work.Case, other: bool):
        weights, line = [jnp.asarray(w) for w in case.weights], case.line
        self.x = jnp.asarray(case.x)
        self.net = jax.jit(lambda x: forward(line, weights, x, False, other))

    def call(self) -> None:
        self.net(self.x).block_until_ready()

    def outputs(self) -> np.ndarray:
        return np.asarray(self.net(self.x))


def start(case: work.Case, variant: str, threads: int):
    """A contender for the line."""
    return (Training if case.line.trains else Predicting)(case, "," in variant)
