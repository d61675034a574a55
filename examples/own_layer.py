"""A layer of one's own: a polynomial of every input, with learned coefficients.

    python examples/own_layer.py

    y_k = c_k0 + c_k1 x_k + c_k2 x_k²          c (inputs, 3)

Nothing in the package changes. The layer is trained, saved and loaded like a built-in one.
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import numbanet as nn
from numbanet.kernels import N_IN, SAMPLES, W, X, Y, context, kernel

TERMS = 3


@kernel(independent=True)
def forward(op, params, grads, acts, deltas, lo, hi):
    """y = c₀ + c₁ x + c₂ x²"""
    n = op[N_IN]
    for i in range(lo, hi):
        for k in range(n):
            x, c = acts[op[X] + i * n + k], op[W] + TERMS * k
            acts[op[Y] + i * n + k] = params[c] + x * (params[c + 1] + x * params[c + 2])


@kernel(independent=True)
def backward(op, params, grads, acts, deltas, lo, hi):
    """dx = dy (c₁ + 2 c₂ x)"""
    n = op[N_IN]
    for i in range(lo, hi):
        for k in range(n):
            x, c = acts[op[X] + i * n + k], op[W] + TERMS * k
            slope = params[c + 1] + x * (params[c + 2] + params[c + 2])
            deltas[op[X] + i * n + k] = deltas[op[Y] + i * n + k] * slope


@kernel(independent=True)
def gradient(op, params, grads, acts, deltas, lo, hi):
    """dc = Σ dy (1, x, x²) over the batch, for inputs lo ≤ k < hi"""
    n = op[N_IN]
    for k in range(lo, hi):
        c = op[W] + TERMS * k
        grads[c] = grads[c + 1] = grads[c + 2] = acts[0] * 0
        for i in range(context(op, SAMPLES)):
            x, dy = acts[op[X] + i * n + k], deltas[op[Y] + i * n + k]
            grads[c] += dy
            grads[c + 1] += dy * x
            grads[c + 2] += dy * x * x


@dataclass(frozen=True, eq=False)
class Polynomial(nn.Layer):
    """A polynomial of degree 2 of every input; shape unchanged."""

    def parameters(self, shape):
        return {"weights": (*shape, TERMS)}

    def initializers(self, next_activation):
        return {"weights": nn.initializers.Normal(0.3)}

    def ops(self, shape):
        n = math.prod(shape)
        return [
            nn.Op(
                "Polynomial",
                n,
                n,
                forward,
                backward,
                gradient,
                param_rows=n,
                param_cols=TERMS,
                n_weights=TERMS * n,
            )
        ]


def main(epochs: int = 200) -> float:
    """Learn a sum of squares, save and load the network; the mean squared error."""
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (500, 4)).astype(np.float32)
    y = (x**2 @ [1.0, -2.0, 0.5, 3.0]).astype(np.float32)
    network = nn.Sequential([Polynomial(), nn.Dense(1)], input_shape=4)
    history = network.fit(x, y, optimizer=nn.Adam(0.02), batch_size=25, epochs=epochs, verbose=0)
    error = history.history["loss"][-1]
    print(f"mean squared error {error:.2g}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "polynomial.safetensors"
        network.save(path)
        again = nn.load(path, custom={"Polynomial": Polynomial})
    assert np.array_equal(again.predict(x), network.predict(x))
    return error


if __name__ == "__main__":
    main()
