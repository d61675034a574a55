"""PyTorch on the GPU: eager, compiled, and the whole step as a CUDA graph; all data lie on the GPU.

    eager         autograd and the fused optimiser
    eager, tf32   the same with products of TF32; shown, not compared with
    compiled      gather, forward, backward and update compiled as one graph
    graph         the same uncompiled, recorded once and played again as a CUDA graph
Predictions under inference_mode, with the rows brought from the host's memory and the outputs back;
"resident" does neither.
"""

import numpy as np
import torch

from benchmarks.peers import with_pytorch, work
from benchmarks.peers.with_pytorch import forward, samples_first
from benchmarks.peers.worker import Contender

NAME, VERSION = "PyTorch", torch.__version__
ASIDE = ("eager, tf32", "resident")
"""Variants that do less work than numbanet, or in fewer bits."""


def variants(line) -> tuple[str, ...]:
    return (
        ("eager", "compiled", "graph", "eager, tf32")
        if line.trains
        else ("eager", "compiled", "resident")
    )


def missing() -> str:
    """Why there is nothing to measure, or nothing."""
    return "" if torch.cuda.is_available() else "PyTorch sees no GPU; install a build for CUDA"


def precision(variant: str) -> None:
    """float32 products, or TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        variant == "eager, tf32"
    )


class Training(with_pytorch.Training):
    """Steps of mini-batches that all lie on the GPU."""

    def __init__(self, case, variant: str, device: str = "cuda"):
        super().__init__(case, "whole step" if variant in ("compiled", "graph") else "eager")
        self.how, self.device = variant, device
        self.x, self.y = self.x.to(device), self.y.to(device)
        self.given = [a.to(device) for a in self.given]
        self.params = [a.clone().requires_grad_(self.whole is None) for a in self.given]
        self.state = [torch.zeros_like(p) for p in self.params + self.params]
        self.t = torch.zeros((), device=device)
        if variant == "graph":
            self.whole = self._whole
            self.chosen, self.sum = (
                torch.zeros(self.line.batch, dtype=torch.int64, device=device),
                torch.zeros((), device=device),
            )
            self.recorded = self._record()

    def _record(self):
        """The step as a CUDA graph, which reads samples from `chosen`, adds its loss to `sum`."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(aside):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            self._step()
        return graph

    def _step(self):
        self.sum.add_(self._whole(self.params, self.state, self.t, self.x, self.y, self.chosen))

    def reset(self) -> None:
        precision(self.how)
        super().reset()

    def run(self, steps: int) -> float:
        rows = torch.from_numpy(self.batches.take(steps)).to(self.device)
        if self.how == "graph":
            self.sum.zero_()
            for row in rows:
                self.chosen.copy_(row)
                self.recorded.replay()
            return float(self.sum) / steps
        losses = []
        if self.whole is not None:
            with torch.no_grad():
                losses = [
                    self.whole(self.params, self.state, self.t, self.x, self.y, row) for row in rows
                ]
        else:
            for row in rows:
                value = self.loss(
                    self.params, self.x.index_select(0, row), self.y.index_select(0, row)
                )
                self.optimizer.zero_grad(set_to_none=True)
                value.backward()
                self.optimizer.step()
                losses.append(value.detach())
        return float(torch.stack(losses).mean())

    def weights(self) -> list:
        return work.channels_last(self.line, [p.detach().cpu().numpy() for p in self.params])

    def ready(self, x_test, y_test) -> None:
        """Take a test set, onto the GPU."""
        images = np.ascontiguousarray(x_test.transpose(0, 3, 1, 2))
        self.test = (
            torch.from_numpy(images).to(self.device),
            torch.from_numpy(y_test).to(self.device),
        )

    def learn(self, wanted: float, most: int) -> tuple[int, float]:
        """Train until the accuracy on the test set is reached, at most so many epochs.

        Epochs taken and the last accuracy.
        """
        x, y = self.test
        epoch, reached = 0, -1.0
        while epoch < most and reached < wanted:
            self.run(self.line.steps)
            epoch += 1
            with torch.inference_mode():
                reached = float(
                    (forward(self.line, self.params, x, logits=True).argmax(1) == y).float().mean()
                )
        return epoch, reached


class Predicting(Contender):
    """A call of the network."""

    def __init__(self, case, variant: str, device: str = "cuda"):
        self.variant, self.device, self.x = variant, device, samples_first(case)
        values = [
            torch.from_numpy(a).to(device) for a in work.channels_first(case.line, case.weights)
        ]
        self.there = self.x.to(device) if variant == "resident" else None

        def net(x):
            return forward(case.line, values, x, logits=False)

        self.net = (
            torch.compile(net, fullgraph=True, dynamic=False) if variant == "compiled" else net
        )

    def call(self) -> None:
        precision(self.variant)
        if self.there is not None:
            self.net(self.there)
            torch.cuda.synchronize()
        else:
            self.net(self.x.to(self.device)).cpu()

    def repeat(self, calls: int) -> None:
        with torch.inference_mode():
            super().repeat(calls)

    def outputs(self) -> np.ndarray:
        precision(self.variant)
        with torch.inference_mode():
            return self.net(self.x.to(self.device)).cpu().numpy()


def start(case, variant: str):
    """A contender for the line."""
    return (Training if case.line.trains else Predicting)(case, variant)
