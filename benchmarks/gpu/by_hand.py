"""A dense network by hand, with the functions of NumPy or CuPy.

Products are those of BLAS, all else is elementwise; the parameters are one vector.

    forward    a_l = f(a_{l−1} W_l + b_l)
    backward   δ_L from the loss, δ_{l−1} = (δ_l W_lᵀ) ∘ f'(z_{l−1});
               dW_l = a_{l−1}ᵀ δ_l,  db_l = Σ δ_l
    update     w ← w − η g, or Adam (Kingma, Ba 2015)

The quadratic cost is ½ Σ (a − y)², the cross-entropy −ln of the softmax of the label's output; both
are means over the batch.
"""

import numpy as np

from benchmarks.peers import work
from benchmarks.peers.worker import Contender


class Training(Contender):
    """Steps of mini-batches that all lie on the GPU.

    `xp` is CuPy, or NumPy to test the arithmetic.
    """

    first = 8

    def __init__(self, case, xp):
        self.case, self.line, self.xp = case, case.line, xp
        self.x, self.y = (
            xp.asarray(case.x),
            xp.asarray(case.rows_of_targets() if case.line.has_classes else case.y),
        )
        self.given = xp.asarray(
            np.concatenate([a.ravel() for a in case.weights]).astype(np.float32)
        )
        self.params, self.grads = self.given.copy(), xp.zeros_like(self.given)
        self.mean, self.square = xp.zeros_like(self.given), xp.zeros_like(self.given)
        self.at, self.into = self._views(self.params), self._views(self.grads)
        self.functions = [layer[-1] for layer in case.line.layers]
        self.batches = work.Batches(case.line)

    def _views(self, vector) -> list:
        views, start = [], 0
        for a in self.case.weights:
            views.append(vector[start : start + a.size].reshape(a.shape))
            start += a.size
        return views

    def reset(self) -> None:
        self.batches.restart()
        self.params[...] = self.given
        self.mean[...] = 0
        self.square[...] = 0
        self.t = 0

    def _activated(self, name: str, z):
        xp = self.xp
        if name == "relu":
            return xp.maximum(z, 0)
        if name == "tanh":
            return xp.tanh(z)
        if name == "sigmoid":
            return 1 / (1 + xp.exp(-z))
        if name == "softmax":
            e = xp.exp(z - z.max(axis=1, keepdims=True))
            return e / e.sum(axis=1, keepdims=True)
        return z

    def _through(self, name: str, delta, a):
        """delta ∘ f'(z), by the activation a = f(z)."""
        if name == "relu":
            return delta * (a > 0)
        if name == "tanh":
            return delta * (1 - a * a)
        return delta * a * (1 - a) if name == "sigmoid" else delta

    def _step(self, row):
        """Forward, backward and update; the loss stays on the GPU."""
        xp, n = self.xp, self.line.batch
        values, y = [self.x.take(row, axis=0)], self.y.take(row, axis=0)
        for k, name in enumerate(self.functions):
            values.append(self._activated(name, values[-1] @ self.at[2 * k] + self.at[2 * k + 1]))
        delta = (values[-1] - y) / np.float32(n)
        if self.line.loss == "quadratic":
            loss = 0.5 * xp.square(values[-1] - y).sum() / n
            delta = self._through(self.functions[-1], delta, values[-1])
        else:
            loss = -xp.log((values[-1] * y).sum(axis=1)).sum() / n
        for k in range(len(self.functions) - 1, -1, -1):
            xp.matmul(values[k].T, delta, out=self.into[2 * k])
            delta.sum(axis=0, out=self.into[2 * k + 1])
            if k:
                delta = self._through(self.functions[k - 1], delta @ self.at[2 * k].T, values[k])
        self._update()
        return loss

    def _update(self) -> None:
        name, rate = self.line.optimizer
        if name == "sgd":
            self.params -= np.float32(rate) * self.grads
            return
        self.t += 1
        self.mean += np.float32(0.1) * (self.grads - self.mean)
        self.square += np.float32(0.001) * (self.grads * self.grads - self.square)
        size, root = np.float32(rate / (1 - 0.9**self.t)), np.float32((1 - 0.999**self.t) ** -0.5)
        self.params -= size * self.mean / (self.xp.sqrt(self.square) * root + np.float32(1e-8))

    def run(self, steps: int) -> float:
        rows = self.xp.asarray(self.batches.take(steps))
        losses = [self._step(row) for row in rows]
        return float(self.xp.stack(losses).mean())

    def weights(self) -> list:
        return [np.array(view) if self.xp is np else view.get() for view in self.at]
