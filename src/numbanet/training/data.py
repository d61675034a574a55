"""What a fit is given to learn from and to measure on, checked: arrays, or blocks of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from numbanet.io.fields import Real, shown
from numbanet.io.validation import check_int, check_weights
from numbanet.nn.data import bind_inputs
from numbanet.plan.columns import LENGTHS, TARGETS
from numbanet.training.lbfgs import LBFGS
from numbanet.training.stream import Stream, check_penalties
from numbanet.training.weights import class_weights

WRONG_SPLIT = "{label} must be at least 0 and below 1, got {got}"
SPLIT = Real(0, below=1, says=WRONG_SPLIT, beyond=WRONG_SPLIT)
TRIED_SAMPLES = 64
"""Validation samples on which metrics are tried before training."""


class Validation(NamedTuple):
    """Checked data that are measured after every epoch.

    x, y      inputs (samples, …), and labels (samples,) or rows (samples, outputs)
    classes   whether y names classes
    lengths   numbers of steps, int64 (samples,), or None
    weights   weights of the samples, or of their steps (samples, steps), float64, or None
    """

    x: np.ndarray
    y: np.ndarray
    classes: bool
    lengths: np.ndarray | None
    weights: np.ndarray | None


class Data(NamedTuple):
    """Checked data of a fit.

    x, y, classes, lengths, weights   as of Validation, of the samples; of data in blocks those of
                                      the first block
    validation                        what is measured after every epoch, or None
    stream                            the blocks, or None
    """

    x: Any
    y: np.ndarray
    classes: bool
    lengths: np.ndarray | None
    weights: np.ndarray | None
    validation: Validation | None
    stream: Stream | None

    def bind(self, trainer) -> None:
        """Let a trainer read the samples."""
        bind_inputs(trainer, self.x)
        trainer.bind(TARGETS, self.y)
        trainer.bind(LENGTHS, self.lengths)

    def weighed(self, network, class_weight) -> "Data":
        """The same with the weights of classes in those of the samples."""
        by_class = class_weights(network, class_weight, self.y, self.classes, self.lengths)
        validation = self.validation
        if validation is not None:
            y, lengths = validation.y, validation.lengths
            found = network.weigh(y, validation.weights, by_class, lengths, "validation")
            validation = validation._replace(weights=found)
        weights = self.weights
        if self.stream is None:
            weights = network.weigh(self.y, weights, by_class, self.lengths, "training")
        return self._replace(weights=weights, validation=validation)

    def scaled(self, network, loss, scale_targets: bool) -> "Data":
        """The same with targets in the unit of the loss; the network's scalings are measured."""
        whole = self.stream is None
        if not network.learn_scalings(self.x, self.y, loss, scale_targets, whole=whole):
            return self
        validation = self.validation
        if validation is not None:
            found = network.scale_targets(validation.y)
            validation = validation._replace(y=found, classes=False)
        return self._replace(y=network.scale_targets(self.y), classes=False, validation=validation)

    def log_names(self, metrics) -> list[str]:
        """The names of what an epoch measures."""
        names = ["loss", *(["accuracy"] if self.classes else [])]
        if self.validation is not None:
            found = ["loss", *(["accuracy"] if self.validation.classes else []), *metrics]
            names += [f"val_{name}" for name in found]
        return names


def read(
    network,
    x,
    y,
    loss,
    optimizer,
    *,
    batch_size,
    epochs,
    steps_per_epoch,
    lengths,
    sample_weight,
    class_weight,
    validation_data,
    validation_split,
    metrics,
) -> Data:
    """The data that fit was given, checked, with the names that the network learns from them.

    Raises ValueError or TypeError for what does not fit.
    """
    validation_split = SPLIT(validation_split, "validation_split")
    if steps_per_epoch is not None:
        steps_per_epoch = check_int(steps_per_epoch, "steps_per_epoch")
    stream, weights = None, None
    if y is None and not (hasattr(x, "__array__") or hasattr(x, "toarray")):
        whole = (lengths, sample_weight, class_weight, validation_split or None)
        _check_stream(network, optimizer, batch_size, whole)
        stream = Stream(network, x, loss, batch_size, optimizer.accumulate, steps_per_epoch, epochs)
        rows = stream.first()
        x, y, weights, classes = rows.x, rows.y, rows.weights, stream.classes
    else:
        if steps_per_epoch is not None:
            raise ValueError("steps_per_epoch is for data in blocks; x and y are all of them")
        network.learn_names(x, y)
        x, y, classes = network.check_data(x, y, loss, lengths=lengths, weighs=True)
        lengths = network.check_lengths(lengths, len(x))
        if sample_weight is not None:
            weights = check_weights(sample_weight, len(x), steps=network.output_steps)
    validation = None
    if validation_data is not None:
        validation = _validation_data(network, validation_data, validation_split, loss)
    elif validation_split:
        n_train = _n_train(len(x), validation_split)
        rest = [None if one is None else one[n_train:] for one in (lengths, weights)]
        validation = Validation(x[n_train:], y[n_train:], classes, *rest)
        x, y = x[:n_train], y[:n_train]
        weights = None if weights is None else weights[:n_train]
        lengths = None if lengths is None else lengths[:n_train]
    elif metrics:
        raise ValueError("metrics are measured on validation data; pass validation_data")
    given = Data(x, y, classes, lengths, weights, validation, stream)
    return given.weighed(network, class_weight)


def _check_stream(network, optimizer, batch_size, whole) -> None:
    """ValueError for what data in blocks do not go with.

    whole   lengths, sample_weight, class_weight and validation_split, which belong to x and y
    """
    names = ("lengths", "sample_weight", "class_weight", "validation_split")
    for name, given in zip(names, whole, strict=True):
        if given is not None:
            way = "blocks (x, y, sample_weight)" if name.endswith("weight") else "x and y"
            raise ValueError(f"{name} belongs to x and y, and the data come in blocks; pass {way}")
    if isinstance(optimizer, LBFGS):
        raise ValueError("L-BFGS needs all samples in every step; pass x and y, not blocks")
    if batch_size is None:
        raise ValueError(
            "batch_size=None is all samples, and the data come in blocks; say how many"
        )
    check_penalties(network)


def _validation_data(network, given, validation_split, loss) -> Validation:
    """The checked validation data that fit was given."""
    if validation_split:
        raise ValueError("pass validation_data or validation_split, not both")
    if isinstance(given, (tuple, list)) and len(given) == 2:
        given = dict(zip(("x", "y"), given, strict=True))
    known = {"x", "y", "lengths", "sample_weight"}
    if not isinstance(given, Mapping) or not {"x", "y"} <= set(given) <= known:
        three = isinstance(given, (tuple, list)) and len(given) == 3
        way = "; pass {'x': …, 'y': …, 'sample_weight': …}" if three else ""
        raise ValueError(
            "validation_data must be a pair (x, y), or a dict of x, y and, if need be, lengths and "
            f"sample_weight, got {shown(given)}{way}"
        )
    x, y, classes = network.check_data(
        given["x"],
        given["y"],
        loss,
        labels=("validation x", "validation y"),
        lengths=given.get("lengths"),
        weighs=True,
    )
    lengths = network.check_lengths(given.get("lengths"), len(x), "validation lengths")
    weights = given.get("sample_weight")
    if weights is not None:
        name, steps = "validation sample_weight", network.output_steps
        weights = check_weights(weights, len(x), name, steps=steps)
    return Validation(x, y, classes, lengths, weights)


def _n_train(samples: int, validation_split: float) -> int:
    """How many samples, from the first, are left to train on."""
    n_train = samples - int(round(samples * validation_split))
    if not 0 < n_train < samples:
        raise ValueError(
            f"validation_split={validation_split} of {samples} samples leaves one side empty"
        )
    return n_train


def check_last_batch(network, samples: int, batch: int) -> None:
    """ValueError where the last batch is too small for a layer with batch statistics."""
    last_batch = samples % batch or batch
    for built in network.layers:
        needs_batch = getattr(built.layer, "needs_batch", False)
        if needs_batch and built.trainable and last_batch * len(built.input_shape) == 1:
            raise ValueError(
                f"{type(built.layer).__name__} needs at least 2 samples in every batch; {samples} "
                f"samples in batches of {batch} leave one of a single sample: "
                "give more samples, or choose another batch_size"
            )


def check_stateful(network, data: Data, batch: int, shuffle: bool, optimizer) -> None:
    """ValueError for what would part the sequences of a stateful network."""
    if not network.is_stateful:
        return
    if data.stream is not None:
        raise ValueError(
            "a stateful network goes on from batch to batch, and data in blocks have batches of "
            "any size; call network.partial_fit(x, y, shuffle=False, batch_size=…) for each block"
        )
    if isinstance(optimizer, LBFGS):
        raise ValueError("L-BFGS takes one batch many times, which has no state of a batch before")
    if shuffle:
        raise ValueError(
            "a stateful network goes on from batch to batch, and shuffle=True changes the order of "
            "the samples; pass shuffle=False"
        )
    network.begin_state(len(data.x), batch)
    validation = data.validation
    if validation is not None and len(validation.x) % batch:
        raise ValueError(
            f"a stateful network takes batches of one size, and {len(validation.x)} validation "
            f"samples are no multiple of {batch}"
        )


def try_metrics(network, metrics, validation: Validation) -> None:
    """Measure a few samples: a metric that does not fit fails before training."""
    if network.is_stateful:
        return  # it takes whole batches alone
    x, y, _, *rest = validation
    some = (None if one is None else one[:TRIED_SAMPLES] for one in rest)
    network.measure(metrics, x[:TRIED_SAMPLES], y[:TRIED_SAMPLES], *some)


def validate(network, validation, loss, penalty: float, metrics, batch: int) -> dict[str, float]:
    """Loss, with the penalty, accuracy and other metrics on the validation data.

    batch   samples of a batch, for a stateful network
    """
    x, y, classes, lengths, weights = validation
    with network.other_sequences(batch):
        value, accuracy = network.score(x, y, classes, loss, None, lengths, weights)
    logs = {"val_loss": value + penalty}
    if accuracy is not None:
        logs["val_accuracy"] = accuracy
    if metrics:
        with network.other_sequences(batch):
            found = network.measure(metrics, x, y, lengths, weights)
        logs |= {f"val_{name}": value for name, value in found.items()}
    return logs
