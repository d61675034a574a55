"""The doctor: what is wrong with a network, by how much, and what to try.

Each examination measures one illness and compares a figure with a threshold, whose docstring says
where it comes from. The healthy networks that it speaks of are dense networks and LeNets on digits,
regressions on diabetes, ten ReLU layers, a GRU that reads digits row by row, and sigmoid and tanh
networks: fresh, after a few epochs and after many.
"""

import copy
import html
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from numbanet.io.fields import shown
from numbanet.io.validation import check_dense
from numbanet.network import names, scaling, transfer
from numbanet.network.built_layer import RECURRENT
from numbanet.network.insight.activity import Activities, activations
from numbanet.network.insight.layerwise import (
    check_one_target,
    has_matrix,
    layer_name,
    own_targets,
)
from numbanet.network.insight.learning import batches, speeds
from numbanet.nn.layers.base import checks_inputs
from numbanet.nn.optimizers import Optimizer
from numbanet.training.diagnosis import CONSTANT_SHARE, Run, constant_loss, filled
from numbanet.training.epoch import DivergenceError

VANISHING = 1e-3
"""The first layer's gradient, in units of its weights, as a part of the last one's. A sigmoid
passes at most a quarter of it, so ten of them pass 1e-6 (measured: 5e-7 to 1e-6). In healthy
networks, ten ReLU layers among them, it is 0.008 to 5."""
EXPLODING = 1e3
"""The same figure from which the first layer learns out of all proportion: it is 5 at most in
healthy networks."""
SATURATED = 0.7
"""Part of a layer's outputs that is flat. Three tanh layers have up to 0.44 after 100 epochs, and
0.99 or more where the inputs or the learning rate are 100 times too large."""
DEAD = 0.5
"""Part of a layer's units whose slope is 0 for every sample. ReLU networks have up to 0.3 after a
good training (the dense layer of a LeNet); with a learning rate 100 times too high 0.75 or more."""
UPDATE = 0.2
"""What a first step changes in the weights of half of the layers: with steps this long nothing is
left of the initial weights after five. Usual rates change them by 0.002 to 0.15, rates 100 times as
high by 0.2 or more. It counts where a lower rate learns faster: weights that begin near 0, as in a
linear model, may change by any factor."""
LOW_UPDATE = 2e-4
"""What a first step changes in the weights where a rate may be too low: a tenth of what the lowest
of the usual rates change."""
MOVED = 0.01
"""What the weights of half of the layers changed since their initial values, below which they have
hardly moved: one epoch on digits changes them by 0.013 (Adam, rate 0.0001) to 0.3 (SGD, 0.1)."""
USUAL_UPDATE, FASTER = 0.01, 0.99
"""A higher rate is tried with steps of this size, amid those of usual rates; it learns faster where
the mean loss of the first steps is below this part."""
RELATED = 4.0
"""Standard errors from which outputs and targets are related: chance alone gives 4 once in 15,000
times."""
ROUNDING = 1e-5
"""An output that varies by less than this part of its largest is constant but for rounding."""
OTHER_SCALE = 3.0
"""Root mean squares of two sets of inputs that differ by more than this factor are on different
scales: two parts of one set of data differ by a few per cent."""
OVERFIT_GAP = 0.2
"""What the validation loss is above the training loss, in units of a constant prediction's loss:
the part of what was learned that holds for the training data alone. Healthy networks have up to
0.08, networks that learned noise, or 40 samples by heart, 0.3 to 1.4."""
RARE = 0.1
"""A class that is predicted less than this part as often as it occurs is ignored."""
FEWEST = 10
"""Samples of a class below which nothing is said of it."""
SPACED_EPOCHS = 1000
"""Most epochs of a schedule that are looked at."""
SHOWN_INPUTS = 5
"""Most inputs that a finding names."""


@dataclass(frozen=True, eq=False)
class Finding:
    """One thing that is wrong.

    name     what it is: "vanishing gradients"
    what     a sentence with the figure
    advice   what to try, the likeliest first
    figure   the figure that was compared with a threshold
    layer    the number of the layer concerned, as in `summary`, or None
    """

    name: str
    what: str
    advice: str
    figure: float
    layer: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """The doctor's report; `print`, a prompt and a notebook show it as text.

    findings    what is wrong, causes before what follows from them
    looked_at   what was examined
    left_out    what was not, and why
    """

    findings: tuple[Finding, ...]
    looked_at: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self):
        count = len(self.findings)
        lines = [f"{count} finding{'s' * (count > 1)}" if count else "no trouble found"]
        for number, one in enumerate(self.findings, 1):
            lines += [f"  {number}. {one.name}: {one.what}", f"     try: {one.advice}"]
        lines.append(f"looked at: {', '.join(self.looked_at)}")
        lines += [f"not looked at: {'; '.join(self.left_out)}"] * bool(self.left_out)
        return "\n".join(lines)

    def __repr__(self):
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


class _LeftOut(Exception):
    """Why something cannot be examined; layers without a derivative say so by a ValueError."""


@dataclass(frozen=True, eq=False)
class _Case:
    """A copy of the network with what its examinations share.

    x, y         checked data, the targets in the unit of the loss, missing ones filled
    own          the targets in their own unit, missing ones masked
    value        the mean loss on them
    constant     that of the best constant prediction, or None
    validation   checked x, y and whether y names classes; or None
    """

    network: Any
    x: np.ndarray
    y: np.ndarray
    own: np.ndarray
    classes: bool
    loss: Any
    value: float
    constant: float | None
    activity: Activities
    validation: Any

    def name(self, k: int) -> str:
        return f"layer {layer_name(self.network, k)}"


def diagnose(network, x, y, *, loss=None, validation_data=None) -> Diagnosis:
    """Examine a network on data; see Sequential.diagnose."""
    chosen = network.resolve_loss(loss)
    check_dense(x, "what it holds is examined")
    check_one_target(network)
    x, y, classes = network.check_data(x, y, chosen)
    if validation_data is not None:
        if not (isinstance(validation_data, (tuple, list)) and len(validation_data) == 2):
            raise ValueError(f"validation_data must be a pair (x, y), got {shown(validation_data)}")
        labels = ("validation x", "validation y")
        validation_data = network.check_data(*validation_data, chosen, labels)
    network = copy.deepcopy(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaling.adapt(network, x, again=False)
        broken = list(_not_finite(network, x))
        if broken:
            return Diagnosis(tuple(broken), ("parameters and outputs",), ())
        own, outputs = own_targets(network, y), network.output_shape[0]
        value = network.score(x, y, classes, chosen)[0]
        y = filled(y)
        constant = constant_loss(chosen, y, outputs)
        case = _Case(
            network,
            x,
            y,
            own,
            classes,
            chosen,
            value,
            constant,
            activations(network, x),
            validation_data,
        )
        findings: list[Finding] = []
        looked_at, left_out = ["parameters and outputs"], []
        for name, examine in EXAMINATIONS.items():
            try:
                findings += examine(case)
                looked_at.append(name)
            except (_LeftOut, ValueError) as reason:
                left_out.append(f"{name} ({reason})")
    hidden = [k for k, b in enumerate(network.layers) if isinstance(b.layer, RECURRENT)]
    left_out += [f"activations inside layer {layer_name(network, k)}" for k in hidden]
    return Diagnosis(tuple(findings), tuple(looked_at), tuple(left_out))


def _not_finite(network, x) -> Iterator[Finding]:
    for k, built in enumerate(network.layers):
        for name, values in {**built.parameters, **built.buffers}.items():
            wrong = ~np.isfinite(values)
            if wrong.any():
                yield Finding(
                    "parameters that are not finite",
                    f"{wrong.sum():,} of {wrong.size:,} {name} of layer {layer_name(network, k)}",
                    "network.initialize(), and train again with a lower learning rate",
                    float(wrong.mean()),
                    k,
                )
                return
    wrong = ~np.isfinite(network.predict(x))
    if wrong.any():
        yield Finding(
            "outputs that are not finite",
            f"{wrong.sum():,} of {wrong.size:,} outputs",
            "scale the inputs: begin the network with nn.Standardize(); or dtype='float64'",
            float(wrong.mean()),
        )


# --- data -----------------------------------------------------------------------------------------


def _inputs(case: _Case) -> Iterator[Finding]:
    run = Run(case.network, case.x, case.y, case.classes, case.loss, case.network.optimizer, 0, 0)
    for what, advice in run.of_inputs():
        yield Finding("unscaled inputs", what, advice, float(np.abs(case.x).max()))


def _constant_targets(case: _Case) -> Iterator[Finding]:
    """Targets that are the same in every sample: there is nothing to learn from them."""
    if len(case.own) < FEWEST:
        raise _LeftOut("for 10 samples or more")
    if _is_constant(case.own):
        value = np.ravel(case.own.min(axis=0))
        if case.classes:
            label = int(value[0]) if value.size == 1 else int(value.argmax())
            known = case.network.class_names
            what = f"all {len(case.own)} samples are of class {known[label] if known else label}"
        else:
            what = f"y is {', '.join(f'{one:.4g}' for one in value[:SHOWN_INPUTS])} in all samples"
        yield Finding(
            "constant targets",
            what,
            "look at how y was read and split; a network learns from targets that differ",
            1.0,
        )


def _is_constant(y) -> bool:
    return bool((y.min(axis=0) == y.max(axis=0)).all())


def _targets(case: _Case) -> Iterator[Finding]:
    run = Run(case.network, case.x, case.y, case.classes, case.loss, case.network.optimizer, 0, 0)
    for what, advice in run.of_targets():
        yield Finding("targets out of reach", what, advice, float(np.abs(case.own).max()))


def _constant_inputs(case: _Case) -> Iterator[Finding]:
    """Columns of a table that are the same in every sample.

    A column of zeros counts in a table with names alone: images have margins without ink.
    """
    if case.x.ndim != 2 or len(case.x) < FEWEST:
        raise _LeftOut("for tables of 10 samples or more")
    constant = (case.x == case.x[0]).all(axis=0)
    known = case.network.feature_names
    found = np.flatnonzero(constant if known else constant & (case.x[0] != 0))
    if len(found):
        named = [known[k] if known else str(k) for k in found[:SHOWN_INPUTS]]
        rest = ", …" if len(found) > SHOWN_INPUTS else ""
        yield Finding(
            "constant inputs",
            f"{len(found)} of {case.x.shape[1]} columns of x never change: "
            f"{', '.join(named)}{rest}",
            "leave them out; their weights learn nothing, and disturb where the column does change",
            float(len(found)),
        )


# --- training -------------------------------------------------------------------------------------


def _baseline(case: _Case) -> float:
    """The loss in units of the best constant prediction's."""
    if case.constant is None:
        raise _LeftOut("what a constant prediction loses is not known for this loss")
    if _is_constant(case.own):
        raise _LeftOut("the targets are constant")
    return case.value / case.constant if case.constant > 0 else 0.0


def _compared(case: _Case) -> str:
    return f"loss {case.value:.3g}, that of the best constant prediction {case.constant:.3g}"


def _untrained(case: _Case) -> Iterator[Finding]:
    """A network of no epoch, unless its parameters were set and it is good with them."""
    ratio = _baseline(case)
    initial = _fresh(case).parameters
    as_begun = bool(initial.size) and np.array_equal(initial, case.network.parameters)
    if case.network.epoch == 0 and (as_begun or ratio > CONSTANT_SHARE):
        advice = "train it: network.fit(x, y, epochs=20)"
        yield Finding("untrained", f"no epoch yet; {_compared(case)}", advice, ratio)


def _is_related(case: _Case) -> bool:
    """Whether the outputs say something about the targets, however high the loss is.

    The loss alone cannot say so: with weights of classes it may lie above a constant prediction's,
    and where targets are mostly chance, as of prices, the best loss there is lies just below it.
    For every output k (a class is a target of 0 or 1) and sample i the product
    p_ik = (a_ik − mean a_k)(y_ik − mean y_k), in units of both deviations, has the correlation as
    its mean; for a class that is a difference of means. They are related where the mean over
    samples of Σ_k p_ik is RELATED of its standard errors above 0. Random weights give outputs that
    depend on the inputs, and so on the targets, but about half of the outputs the wrong way
    round: none may be as far below 0.
    """
    outputs = case.network.predict(case.x).reshape(len(case.x), -1).astype(np.float64)
    y = case.y if case.y.ndim > 1 else case.y[:, None] == np.arange(max(2, outputs.shape[1]))
    targets = y.reshape(len(y), -1).astype(np.float64)[:, -outputs.shape[1] :]
    deviation = outputs.std(axis=0)
    told = (deviation > ROUNDING * np.abs(outputs).max(axis=0)) & (targets.std(axis=0) > 0)
    if len(outputs) < FEWEST or not told.any():
        return False
    outputs, targets = outputs[:, told], targets[:, told]
    products = _standard(outputs) * _standard(targets)
    return bool(
        _standard_errors(products.sum(axis=1)) >= RELATED
        and (_standard_errors(products) > -RELATED).all()
    )


def _standard(columns: np.ndarray) -> np.ndarray:
    return (columns - columns.mean(axis=0)) / columns.std(axis=0)


def _standard_errors(values: np.ndarray) -> np.ndarray:
    """The means of columns, in units of their standard errors."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return values.mean(axis=0) / np.maximum(error, np.finfo(np.float64).tiny)


def _nothing_learned(case: _Case) -> Iterator[Finding]:
    ratio = _baseline(case)
    if case.network.epoch and ratio > CONSTANT_SHARE and not _is_related(case):
        yield Finding(
            "nothing learned",
            f"{_compared(case)}, after {case.network.epoch} epochs",
            "what the other findings say; else more epochs, another learning rate, a larger "
            "network, or other inputs: x may say nothing about y",
            ratio,
        )


def _rate(case: _Case) -> Iterator[Finding]:
    """The first steps of a new training with the network's own optimiser, on a copy.

    Later ones say little: by then the weights have grown with the steps, or nothing moves any more.
    """
    network, optimizer = case.network, case.network.optimizer
    if not isinstance(optimizer, Optimizer):
        raise _LeftOut("the network keeps no optimiser; train it first")
    matrices = [k for k, b in enumerate(network.layers) if has_matrix(b) and b.trainable]
    if not matrices:
        raise _LeftOut("no layer of weights is trained")
    rate, data = _highest_rate(optimizer, network.epoch), batches(case.x, case.own)
    loss, change = _trial(_fresh(case), matrices, data, case.loss, optimizer, rate)
    if change < LOW_UPDATE:
        yield from _too_low(case, matrices, data, rate, loss, change)
    if not change > UPDATE:
        return
    lower = [rate / 10, rate / 100]
    losses = [_trial(_fresh(case), matrices, data, case.loss, optimizer, r)[0] for r in lower]
    best = int(np.argmin(losses)) if np.isfinite(min(losses)) else len(lower) - 1
    if losses[best] < loss or not np.isfinite(loss):
        yield Finding(
            "learning rate too high",
            f"from new initial values a step changes the weights by {_percent(change)}, and the "
            f"loss of the first {len(data)} is {loss:.3g}; with a rate of {lower[best]:g} it is "
            f"{losses[best]:.3g}",
            f"{type(optimizer).__name__}({lower[best]:g}) instead of {rate:g}, from new initial "
            "values (network.initialize()); network.find_learning_rate(x, y) suggests one",
            change,
        )


def _too_low(case: _Case, matrices, data, rate: float, loss: float, change: float):
    """A rate whose steps have hardly moved the weights, where a higher one learns faster."""
    network, initial, optimizer = case.network, _fresh(case), case.network.optimizer
    pairs = [(one.layers[k].parameters["weights"] for one in (initial, network)) for k in matrices]
    moved = float(np.median([_change(before, after) for before, after in pairs]))
    if not (network.epoch and rate > 0 and change > 0 and moved < MOVED):
        return
    higher = rate * 10.0 ** np.floor(np.log10(USUAL_UPDATE / change))
    found, step = _trial(initial, matrices, data, case.loss, optimizer, higher)
    if step <= UPDATE and found < FASTER * loss:
        yield Finding(
            "learning rate too low",
            f"after {network.epoch} epochs the weights differ from their initial values by a part "
            f"of {moved:.1g}; the loss of the first {len(data)} steps is {loss:.3g}, with a rate "
            f"of {higher:g} it is {found:.3g}",
            f"{type(optimizer).__name__}({higher:g}) instead of {rate:g}; "
            "network.find_learning_rate(x, y) suggests one",
            change,
        )


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if np.isfinite(part) else "more than any factor"


def _fresh(case: _Case):
    """A copy with new initial values, but for frozen layers and scalings."""
    fresh = copy.deepcopy(case.network)
    fresh.initialize()
    kept = [k for k, built in enumerate(fresh.layers) if not built.trainable]
    transfer.copy_weights(fresh, case.network, kept)
    scaling.adapt(fresh, case.x, again=False)
    transfer.copy_outputs(fresh, case.network)
    return fresh


def _trial(network, matrices, data, loss, optimizer, rate: float) -> tuple[float, float]:
    """The mean loss after each of the first steps, and how far a step changes the weights.

    The latter is the median over layers of the root of the mean square over steps of |Δw| / |w|.
    Both are infinite where the training diverges, the latter too where weights begin at 0.
    """
    optimizer = replace(optimizer, learning_rate=rate)
    x, y = np.concatenate([x for x, _ in data]), np.ma.concatenate([y for _, y in data])
    losses, squares = [], []
    for batch in data:
        before = [network.layers[k].parameters["weights"].copy() for k in matrices]
        try:
            network.fit(*batch, loss=loss, optimizer=optimizer, batch_size=None, verbose=0)
        except DivergenceError:
            return np.inf, np.inf
        after = [network.layers[k].parameters["weights"] for k in matrices]
        squares.append([_change(a, b) ** 2 for a, b in zip(before, after, strict=True)])
        losses.append(network.evaluate(x, y, loss=loss)["loss"])
    if not np.isfinite(losses).all():
        return np.inf, np.inf
    return float(np.mean(losses)), float(np.median(np.sqrt(np.mean(squares, axis=0))))


def _change(before, after) -> float:
    """|after − before| / |before|."""
    norm = np.linalg.norm(before.astype(np.float64))
    return float(np.linalg.norm((after - before).astype(np.float64)) / norm) if norm else np.inf


def _highest_rate(optimizer, epochs: int) -> float:
    """The highest learning rate of a training of so many epochs."""
    last = max(1, epochs)
    looked_at = range(0, last, -(-last // SPACED_EPOCHS))
    rates = [optimizer.rates(epoch, 1, last) for epoch in looked_at]
    found = [float(rate[0]) for rate in rates if rate is not None]
    return max(found) if found else float(optimizer.learning_rate)


def _gradients(case: _Case) -> Iterator[Finding]:
    network = case.network
    found = speeds(network, case.x, case.own, case.loss)
    chosen = [has_matrix(network.layers[k]) and network.layers[k].trainable for k in found.layers]
    layers, relative = found.layers[chosen], found.relative[chosen]
    if len(layers) < 2:
        raise _LeftOut("fewer than two layers of weights are trained")
    stopped = any(one.dead.size and one.dead.all() for one in case.activity)
    if not relative[-1] > 0 or (stopped and not relative[0] > 0):
        return  # no error at all, or dead units stop it
    ratio = relative[0] / relative[-1]
    what = (
        f"in units of its weights, the gradient of {case.name(layers[0])} is {ratio:.2g} times "
        f"that of {case.name(layers[-1])}"
    )
    if ratio < VANISHING:
        yield Finding(
            "vanishing gradients",
            what,
            'activation="relu" instead of sigmoid and tanh, BatchNorm between the layers, or fewer '
            "layers",
            float(ratio),
            int(layers[0]),
        )
    elif ratio > EXPLODING:
        yield Finding(
            "exploding gradients",
            what,
            "smaller initial weights (the default initialisers), BatchNorm between the layers, a "
            "lower learning rate, or fewer layers",
            float(ratio),
            int(layers[0]),
        )


def _hidden(case: _Case) -> Activities:
    """The activity of all layers but the last one of a classifier, which is to reach its ends."""
    is_output = case.classes or case.loss.fused_activation
    return Activities(case.activity[: -1 if is_output else None])


def _saturation(case: _Case) -> Iterator[Finding]:
    found = [one for one in _hidden(case) if one.saturated > SATURATED]
    if found:
        worst = max(found, key=lambda one: one.saturated)
        yield Finding(
            "saturated activations",
            f"{worst.saturated:.0%} of the outputs of {case.name(worst.layer)} lie where it is "
            f"flat{_and_others(len(found))}",
            "scaled inputs (nn.Standardize), smaller initial weights, a lower learning rate, "
            'BatchNorm before the activation, or activation="relu"',
            worst.saturated,
            worst.layer,
        )


def _dead(case: _Case) -> Iterator[Finding]:
    found = [one for one in _hidden(case) if one.dead.size and one.dead.mean() > DEAD]
    if found:
        worst = max(found, key=lambda one: one.dead.mean())
        yield Finding(
            "dead units",
            f"{worst.dead.sum()} of {worst.dead.size} units of {case.name(worst.layer)} have slope "
            f"0 for every sample{_and_others(len(found))}",
            "a lower learning rate, network.initialize(), biases that begin at 0, scaled inputs, "
            'or activation="leaky_relu"',
            float(worst.dead.mean()),
            worst.layer,
        )


def _and_others(count: int) -> str:
    return f" (and of {count - 1} more layers)" if count > 1 else ""


# --- predictions ----------------------------------------------------------------------------------


def _overfitting(case: _Case) -> Iterator[Finding]:
    if case.validation is None:
        raise _LeftOut("pass validation_data")
    _baseline(case)
    value = case.network.score(*case.validation, case.loss)[0]
    gap = (value - case.value) / case.constant if case.constant else 0.0
    scales = [float(np.sqrt(np.mean(x.astype(np.float64) ** 2))) for x in _floats(case)]
    if gap > OVERFIT_GAP and max(scales) > OTHER_SCALE * min(scales):
        yield Finding(
            "validation data on another scale",
            f"the root mean square of x is {scales[0]:.3g}, that of validation x {scales[1]:.3g}; "
            f"loss {case.value:.3g} on the training data, {value:.3g} on the validation data",
            "prepare both alike, with the means and deviations of the training data",
            scales[1] / scales[0],
        )
    elif gap > OVERFIT_GAP:
        yield Finding(
            "overfitting",
            f"loss {case.value:.3g} on the training data, {value:.3g} on the validation data "
            f"({case.constant:.3g} for a constant prediction)",
            "more data or Augment, EarlyStopping, a penalty (nn.L2), Dropout, a smaller network",
            float(gap),
        )


def _floats(case: _Case) -> list[np.ndarray]:
    """The inputs for training and validation; none where a layer reads indices."""
    reads_indices = checks_inputs(case.network.layers[0].layer)
    return [np.ones(1)] * 2 if reads_indices else [case.x, case.validation[0]]


def _rare_classes(case: _Case) -> Iterator[Finding]:
    """Classes with less than half of an equal share that are hardly ever predicted."""
    if not case.classes:
        raise _LeftOut("for classes")
    network, y = case.network, case.own
    true = y if y.ndim == 1 else y.argmax(axis=1) if y.shape[1] > 1 else y[:, 0].astype(np.int64)
    n = names.n_classes(network)
    counts = np.bincount(true, minlength=n)
    predicted = np.bincount(network.predict_classes(case.x), minlength=n)
    rare = (counts >= FEWEST) & (counts < len(true) / n / 2) & (predicted < RARE * counts)
    if network.epoch and rare.any():
        found = np.flatnonzero(rare)
        k = int(found[np.argmax(counts[found])])
        name = network.class_names[k] if network.class_names else k
        yield Finding(
            "a rare class is ignored",
            f"class {name} is {counts[k]} of {len(true)} samples and was predicted "
            f"{predicted[k]} times{_and_others(len(found)).replace('layers', 'classes')}",
            "fit(…, class_weight='balanced'), more samples of the rare one, or another threshold "
            "than the largest output",
            float(predicted[k] / counts[k]),
        )


EXAMINATIONS: dict[str, Callable[[_Case], Iterator[Finding]]] = {
    "scale of the inputs": _inputs,
    "constant inputs": _constant_inputs,
    "constant targets": _constant_targets,
    "scale of the targets": _targets,
    "learning rate": _rate,
    "training": _untrained,
    "saturation": _saturation,
    "dead units": _dead,
    "gradients": _gradients,
    "overfitting": _overfitting,
    "rare classes": _rare_classes,
    "loss of a constant prediction": _nothing_learned,
}
"""What is examined, causes before what follows from them."""
