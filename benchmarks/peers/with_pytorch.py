"""PyTorch: eager, compiled, and the whole step as one compiled graph.

The tensors lie in memory; the batches are taken by index_select.

    eager            autograd and the fused optimiser
    eager, foreach   the same with the optimiser that PyTorch takes by default
    compiled         forward, loss and backward compiled, fused optimiser
    whole step       gather, forward, backward and update compiled as one graph
    channels last    eager on images with channels last in memory
Predictions: eager under inference_mode, compiled with constants folded, and traced and frozen.
"""

import warnings

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.peers import work
from benchmarks.peers.worker import Contender

NAME, PACKAGES = "PyTorch", ("torch",)
ACTIVATIONS = {"": lambda z: z, "relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


def variants(line: work.Line) -> tuple[str, ...]:
    if line.kind == "inside":
        return ()
    if any(kind in work.RECURRENT for kind, *_ in line.layers):  # torch.compile takes none of them
        return ("eager", "eager, foreach") if line.trains else ("eager", "traced")
    if not line.trains:
        return ("eager", "compiled", "traced")
    return ("eager", "eager, foreach", "compiled", "whole step") + (
        ("channels last",) if line.has_images else ()
    )


def forward(line: work.Line, weights, x, logits: bool):
    """The outputs; with `logits` without the last softmax, which the loss contains."""
    values, last = iter(weights), len(line.layers) - 1
    for i, (kind, *own) in enumerate(line.layers):
        if kind == "pool":
            x = F.max_pool2d(x, own[0])
        elif kind == "lp_pool":
            x = F.lp_pool2d(x, 2.0, own[0])
        elif kind == "avg_pool":
            x = F.avg_pool2d(x, own[0])
        elif kind == "flatten":
            x = x.flatten(1)
        elif kind in work.RECURRENT:
            x = recurrent(kind, x, values)
        else:
            w, b = next(values), next(values)
            if kind == "batch_norm":  # without running means: less work than a module does
                x = F.batch_norm(x, None, None, w, b, training=True)
                continue
            if kind == "layer_norm":
                x = F.layer_norm(x, w.shape, w, b)
                continue
            groups = len(w) if kind == "depthwise" else 1
            x = F.linear(x, w, b) if kind == "dense" else F.conv2d(x, w, b, groups=groups)
            if own[-1] != "softmax":
                x = ACTIVATIONS[own[-1]](x)
            elif not (logits and i == last):
                x = torch.softmax(x, 1)
    return x


def recurrent(kind: str, x, values):
    """The last state, by PyTorch's own layer.

    It has two biases, whose sum counts: the second one is zero and is not trained, but for what a
    GRU adds inside the reset.
    """
    w, b, u = next(values), next(values), next(values)
    start, options = x.new_zeros(1, len(x), u.shape[1]), (1, 0.0, torch.is_grad_enabled(), False)
    if kind == "lstm":
        layer = [w, u, b, torch.zeros_like(b)]
        return torch.lstm(x, (start, start), layer, True, *options, True)[1][0]
    inner = torch.cat([b.new_zeros(len(b) - u.shape[1]), next(values)])
    return torch.gru(x, start, [w, u, b, inner], True, *options, True)[1][0]


def samples_first(case: work.Case) -> torch.Tensor:
    """The samples, images with channels first; there is one channel, so nothing moves."""
    x = case.x.transpose(0, 3, 1, 2) if case.line.has_images else case.x
    return torch.from_numpy(np.ascontiguousarray(x))


class Training(Contender):
    """Steps of mini-batches that all lie in memory."""

    first = 8

    def __init__(self, case: work.Case, variant: str):
        self.case, self.line, self.variant = case, case.line, variant
        self.x, self.y = samples_first(case), torch.from_numpy(case.targets())
        self.given = [torch.from_numpy(a) for a in work.channels_first(self.line, case.weights)]
        self.batches = work.Batches(self.line)
        self.layout = torch.channels_last if variant == "channels last" else torch.contiguous_format
        if variant == "channels last":
            self.x = self.x.contiguous(memory_format=self.layout)
        line = self.line

        def loss(weights, x, y):
            outputs = forward(line, weights, x, logits=True)
            if line.loss == "cross_entropy":
                return F.cross_entropy(outputs, y)
            return 0.5 * (outputs - y).square().sum() / len(y)

        self.loss = (
            torch.compile(loss, fullgraph=True, dynamic=False) if variant == "compiled" else loss
        )
        self.whole = (
            torch.compile(self._whole, fullgraph=True, dynamic=False)
            if variant == "whole step"
            else None
        )
        self.params = [self._laid(a).clone().requires_grad_(self.whole is None) for a in self.given]
        self.state = [torch.zeros_like(p) for p in self.params + self.params]
        self.t = torch.zeros(())

    def _laid(self, a):
        return a.contiguous(memory_format=self.layout) if a.ndim == 4 else a

    def reset(self) -> None:
        self.batches.restart()
        with torch.no_grad():
            for p, a in zip(self.params, self.given, strict=True):
                p.copy_(a)
            for s in [*self.state, self.t]:
                s.zero_()
        if self.whole is None:
            name, rate = self.line.optimizer
            kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
            which = {"foreach": True} if self.variant == "eager, foreach" else {"fused": True}
            self.optimizer = kind(self.params, lr=rate, **which)

    def _whole(self, params, state, t, x, y, chosen):
        """A step as one graph; the update writes the weights and the state where they are."""
        x, y = x.index_select(0, chosen), y.index_select(0, chosen)
        grads, loss = torch.func.grad_and_value(lambda p: self._plain_loss(p, x, y))(params)
        name, rate = self.line.optimizer
        if name == "sgd":
            for p, g in zip(params, grads, strict=True):
                p.sub_(rate * g)
            return loss
        t.add_(1)
        means, squares = state[: len(params)], state[len(params) :]
        size, root = rate / (1 - 0.9**t), (1 - 0.999**t).rsqrt()
        for p, g, m, v in zip(params, grads, means, squares, strict=True):
            m.mul_(0.9).add_(g, alpha=1 - 0.9)
            v.mul_(0.999).add_(g * g, alpha=1 - 0.999)
            p.sub_(size * m / (v.sqrt() * root + 1e-8))
        return loss

    def _plain_loss(self, params, x, y):
        outputs = forward(self.line, params, x, logits=True)
        if self.line.loss == "cross_entropy":
            return F.cross_entropy(outputs, y)
        return 0.5 * (outputs - y).square().sum() / len(y)

    def run(self, steps: int) -> float:
        losses, rows = [], torch.from_numpy(self.batches.take(steps)).unbind(0)
        if self.whole is not None:
            with torch.no_grad():
                losses = [
                    self.whole(self.params, self.state, self.t, self.x, self.y, row) for row in rows
                ]
        else:
            params, optimizer, loss, x, y = self.params, self.optimizer, self.loss, self.x, self.y
            for row in rows:
                value = loss(params, x.index_select(0, row), y.index_select(0, row))
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                losses.append(value.detach())
        return float(torch.stack(losses).mean())

    def weights(self) -> list:
        return work.channels_last(self.line, [p.detach().numpy() for p in self.params])


class Net(torch.nn.Module):
    """The network as a module, for those who compile modules."""

    def __init__(self, case: work.Case):
        super().__init__()
        self.line = case.line
        self.values = torch.nn.ParameterList(
            [torch.from_numpy(a) for a in work.channels_first(case.line, case.weights)]
        )
        self.requires_grad_(False).eval()

    def forward(self, x):
        return forward(self.line, self.values, x, logits=False)


class Predicting(Contender):
    """A call of the network, tensor to tensor."""

    def __init__(self, case: work.Case, variant: str):
        self.x, net = samples_first(case), Net(case)
        if variant == "compiled":
            from torch._inductor import config

            config.freezing = True
            net = torch.compile(net, fullgraph=True, dynamic=False)
        elif variant == "traced":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                net = torch.jit.optimize_for_inference(
                    torch.jit.freeze(torch.jit.trace(net, self.x))
                )
        else:
            values = list(net.values)  # no module, no hooks: the functions alone
            net = lambda x, line=case.line: forward(line, values, x, logits=False)  # noqa: E731
        self.net = net

    def repeat(self, calls: int) -> None:
        net, x = self.net, self.x
        with torch.inference_mode():
            for _ in range(calls):
                net(x)

    def outputs(self) -> np.ndarray:
        with torch.inference_mode():
            return self.net(self.x).numpy()


def start(case: work.Case, variant: str, threads: int):
    """A contender for the line."""
    torch.set_num_threads(threads)
    return (Training if case.line.trains else Predicting)(case, variant)
