"""Sequential: a network of layers. It holds their parameters and lowers them for an engine."""

import os
import threading
import warnings
from contextlib import contextmanager
from typing import Any

import numpy as np

from numbanet.engine.executors import ExecutorCache
from numbanet.io import arrays, fields, registry, validation
from numbanet.io.attributes import KnownArguments, KnownAttributes, known_arguments
from numbanet.io.tables import Table
from numbanet.network import (
    built_layer,
    checkpoints,
    config,
    names,
    scaling,
    serialization,
    transfer,
)
from numbanet.nn import data, losses, optimizers
from numbanet.nn import metrics as measures
from numbanet.nn.initializers import initial
from numbanet.nn.layers import Activation, Identity, Rescale
from numbanet.nn.layers.base import Shape, checks_inputs, size
from numbanet.nn.layers.standardize import UnscaleTargets
from numbanet.nn.regularizers import penalties
from numbanet.nn.schedules import Schedule
from numbanet.plan.columns import EPOCH, LENGTHS, OUTPUTS, SEED, STATE, TARGETS, WEIGHTS
from numbanet.plan.op import DEFAULT_GROUP, Op
from numbanet.training.data import check_last_batch
from numbanet.training.fit import fit
from numbanet.training.rate_finder import LearningRates, find_learning_rate
from numbanet.training.steps import Unfinished
from numbanet.training.weights import (
    axes,
    class_weights,
    labels_of,
    relative_weights,
    sample_weights,
    step_weights,
)

CONFIG_KEYS = {
    "input_shape",
    "dtype",
    "seed",
    "threads",
    "epoch",
    "unfinished",
    "penalty",
    "layers",
    "optimizer",
    "optimizer_steps",
    "schedule_state",
    "scales_targets",
    "class_names",
    "feature_names",
    "target_name",
    "frozen",
    "groups",
}
"""What the description of a network in a file consists of."""
INSTEAD = {
    "trainable": "network.freeze() freezes its layers, network.unfreeze() trains them again",
    "learning_rate": "pass optimizer=nn.Adam(learning_rate) to fit",
    "loss": "pass the loss to fit",
    "stop_training": "a callback stops the training by returning True from on_epoch_end",
    "metrics": "evaluate and the history of fit hold the metrics",
    "name": "networks have no names",
    "reset_states": "network.reset_state() lets the next batch begin with sequences",
}
"""What a network has instead of arguments and attributes of these names."""
IN_THE_OPTIMIZER = "pass an optimizer with it, such as nn.Adam(learning_rate=0.001)"
OF_FIT = {
    **dict.fromkeys(("lr", "learning_rate", "momentum", "weight_decay"), IN_THE_OPTIMIZER),
    **dict.fromkeys(optimizers.AROUND, IN_THE_OPTIMIZER),
    **dict.fromkeys(("patience", "early_stopping"), "pass callbacks=nn.callbacks.EarlyStopping()"),
    **dict.fromkeys(
        ("dropout", "penalty", "l1", "l2", "alpha"), "it belongs to the network or its layers"
    ),
    **dict.fromkeys(
        ("max_seconds", "max_time", "time_limit"), "pass callbacks=nn.callbacks.TimeLimit(seconds)"
    ),
    **dict.fromkeys(
        ("schedule", "scheduler", "lr_scheduler"),
        "it is the learning rate of an optimizer: nn.Adam(nn.schedules.OneCycle(0.01))",
    ),
    "weights": "sample_weight and class_weight are those of samples and classes",
    "initial_epoch": "fit goes on where the last one ended",
    "seed": "nn.Sequential(…, seed=…) decides on the start and on the order of the samples",
    "device": "network.to(device) chooses it",
}
"""What fit has instead of arguments of these names."""
OF_EVALUATE = {
    "verbose": "evaluate prints nothing",
}
"""What evaluate has instead of arguments of these names."""
OF_FINDER = {
    "epochs": "it takes `steps` steps",
    "learning_rate": "it tries rates from `lowest` to `highest`",
    **dict.fromkeys(
        ("metrics", "validation_data", "validation_split"), "it looks at the training loss alone"
    ),
    **dict.fromkeys(("augment", "callbacks", "shuffle", "verbose"), "it belongs to fit"),
}
"""What find_learning_rate has instead of arguments of these names."""

OF_DIAGNOSE = dict.fromkeys(
    ("class_weight", "sample_weight"),
    "the report is on the samples without weights, also for a network that was trained with some",
) | {"lengths": "sequences count with all their steps; pass those of one length"}
"""What diagnose has instead of arguments of these names."""


@registry.register("network")
class Sequential(KnownArguments, KnownAttributes):
    """A network of layers in a row.

    layers        the layers; an `activation=` in one becomes a separate layer after it
    input_shape   shape of one sample: an int for a vector, (height, width, channels) for an image
    dtype         "float32" or "float64", of parameters and arithmetic
    seed          of the initial parameters, the shuffling and all other random numbers
    penalty       L1(…), L2(…) or both, for every layer that has no penalty of its own
    threads       most threads to use; by default Numba's number, fewer for little work
    device        "cpu", or "cuda" for an NVIDIA GPU; `to` changes it later

    Raises ValueError where two layers do not fit, with both shapes and how to fix it.
    """

    instead = INSTEAD

    dtype: np.dtype
    seed: int
    penalty: tuple
    device: str
    threads: int | None
    input_shape: Shape
    output_shape: Shape
    specs: list
    layers: list[built_layer.BuiltLayer]
    memory: np.ndarray
    executors: ExecutorCache
    epoch: int
    unfinished: Unfinished | None
    optimizer: Any
    optimizer_state: np.ndarray
    optimizer_steps: int
    schedule_state: tuple
    scales_targets: bool
    target_scaling: built_layer.BuiltLayer
    target_name: str
    _checks_inputs: bool
    _state: np.ndarray | None
    _state_size: int
    _class_names: tuple[str, ...]
    _feature_names: tuple[str, ...]
    _parameters: np.ndarray
    _trained_by: int | None

    def __init__(
        self,
        layers,
        input_shape,
        dtype="float32",
        seed: int = 0,
        penalty: Any = None,
        threads: int | None = None,
        device: str = "cpu",
    ):
        self._build(layers, input_shape, dtype, seed, penalty, threads, device)
        self._allocate()
        self.initialize()

    # --- building ---

    def _build(self, layers, input_shape, dtype, seed, penalty, threads, device) -> None:
        """Check the arguments and give every layer its shapes; no memory is allocated yet."""
        self.dtype = _dtype(dtype)
        self.seed = validation.check_int(seed, "seed", 0)
        self.penalty = penalties(penalty)
        self.device = _device(device)
        self.threads = validation.check_threads(threads)
        is_shape = isinstance(input_shape, (tuple, list)) or np.ndim(input_shape)
        shape = input_shape if is_shape else (input_shape,)
        self.input_shape = fields.Counts()(shape, "input_shape")
        self.specs = list(layers)
        self.layers = built_layer.build_layers(self.specs, self.input_shape)
        scaling.check_layers(self.layers)
        built_layer.check_first(self.layers)
        self._checks_inputs = checks_inputs(self.layers[0].layer)
        ops = self.layer_ops()
        self._state, self._state_size = None, sum(op.state for op in ops)
        self.output_shape = self.layers[-1].output_shape
        n_outputs = (size(self.output_shape),)
        self.target_scaling = built_layer.BuiltLayer(UnscaleTargets(), n_outputs, n_outputs, 0)
        self.scales_targets = False
        self._class_names = self._feature_names = ()
        self.target_name = ""
        built_layer.check_size(self.layers, ops, self.dtype)

    def _allocate(self) -> None:
        """Allocate the flat memory, filled with zeros."""
        layers = [*self.layers, self.target_scaling]
        n_elements = sum(built.n_parameters + built.n_buffers for built in layers)
        self.memory = np.zeros(n_elements, self.dtype)
        self._bind()
        self._reset_executors()

    def _bind(self) -> None:
        """Give every layer views of its parameters and of its buffers, which follow them all."""
        n_parameters = sum(built.n_parameters for built in self.layers)
        self._parameters, start = self.memory[:n_parameters], n_parameters
        for built in [*self.layers, self.target_scaling]:
            built.bind(self.memory, start)
            start += built.n_buffers

    def _reset_executors(self) -> None:
        self.executors = ExecutorCache(self)
        self._trained_by = None

    def _refuse_in_training(self, what: str) -> None:
        """RuntimeError while fit runs on this network."""
        if self._trained_by == threading.get_ident():
            raise RuntimeError(
                f"{what} was called on a network that is in training, from one of its callbacks; "
                "call it after fit, or on a copy (copy.deepcopy)"
            )
        if self._trained_by is not None:
            raise RuntimeError(
                f"{what} was called on a network that another thread is training; "
                "wait until its fit returns, or work on a copy (copy.deepcopy)"
            )

    @contextmanager
    def in_training(self):
        """A context in which this thread trains the network; RuntimeError where another one is."""
        with self.executors.lock:
            self._refuse_in_training("fit")
            self._trained_by = threading.get_ident()
        try:
            yield
        finally:
            self._trained_by = None

    def move_memory(self, memory: np.ndarray) -> None:
        """Keep parameters and buffers in this array, of the same size and dtype, from now on."""
        self._refuse_in_training("move_memory")
        memory[:] = self.memory
        self.memory = memory
        self._bind()
        self.executors.clear()

    def to(self, device: str) -> "Sequential":
        """Compute on "cpu" or "cuda" from now on, with the same parameters; return the network."""
        if _device(device) != self.device:
            self._refuse_in_training("to")
            self.device = device
            self._reset_executors()
        return self

    def initialize(self, seed: int | None = None) -> None:
        """Draw all parameters again and discard the optimiser's state and the epochs trained."""
        self._refuse_in_training("initialize")
        self.seed = self.seed if seed is None else validation.check_int(seed, "seed", 0)
        for i, (built, chosen) in enumerate(built_layer.initializers(self.layers)):
            generator = np.random.Generator(np.random.Philox(key=[self.seed, i]))
            for name, values in built.parameters.items():
                where = f"layer {i} ({type(built.layer).__name__}), {name}"
                values[...] = initial(chosen.get(name, "zeros"), values.shape, generator, where)
            built.layer.initialize_buffers(built.buffers)
        self.scales_targets = False
        for values in self.target_scaling.buffers.values():
            values[:] = 0
        self.executors.clear()
        self.epoch = 0
        self.unfinished = None
        self.optimizer = None
        self.optimizer_state = np.zeros(0, self.dtype)
        self.optimizer_steps = 0
        self.schedule_state = ()
        self._state = None

    @property
    def parameters(self) -> np.ndarray:
        """All parameters as one vector: layer by layer, weights then bias, each in C order.

        It is a view: writing to it changes the network.
        """
        return self._parameters

    @parameters.setter
    def parameters(self, values) -> None:
        values = arrays.as_numbers(values, "parameters")
        if values.shape != self._parameters.shape:
            raise ValueError(
                f"the network has {self._parameters.size} parameters, "
                f"got an array of shape {values.shape}"
            )
        self._parameters[...] = values

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names in the order of their labels, saved with the network; () for none.

        Setting them raises ValueError unless they are different texts, one for each output, or two
        for a single output.
        """
        return self._class_names

    @class_names.setter
    def class_names(self, given) -> None:
        self._class_names = names.checked(given, names.n_classes(self), "class_names")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the inputs, or none; from the data frame of the first fit.

        A data frame with other columns, or in another order, is then refused.
        """
        return self._feature_names

    @feature_names.setter
    def feature_names(self, given) -> None:
        self._feature_names = names.checked(given, size(self.input_shape), "feature_names")

    def learn_names(self, x, y) -> None:
        """Take the names of columns and classes from the training data, where there are none."""
        names.learn(self, x, y)

    # --- using ---

    def predict(
        self, x, *, lengths=None, batch_size: int | None = None, threads: int | None = None
    ) -> np.ndarray:
        """Return the outputs (samples, *output_shape), of the network's dtype.

        x   inputs (samples, *input_shape): float32, float64 and uint8 are read where they lie,
            other real numbers are converted; matrices of scipy.sparse (samples, features) are
            gathered into dense rows on the fly, here and wherever inputs are taken; where less
            than a sixteenth is stored, a first Dense multiplies that alone in a prediction
        lengths   the number of steps of each sequence, as in fit
        batch_size   of a stateful network: how many sequences go on from batch to batch; by
            default as many as the state has, for a new network all samples. Others take none
        Raises ValueError for a wrong shape, no samples, and inputs that are not finite in the
        network's dtype. Outputs that are not finite give a RuntimeWarning with the reason.
        """
        batch_size = self.check_batch_size(batch_size)
        if type(x) is np.ndarray and not self._checks_inputs and lengths is None:
            small_batch = self.executors.small_batch.get(x.dtype)
            if (
                small_batch is not None
                and not self._state_size
                and x.shape[1:] == self.input_shape
                and 0 < len(x) <= small_batch.most
                and x.flags.c_contiguous
                and x.flags.aligned
            ):
                outputs = np.empty((len(x), *self.output_shape), self.dtype)
                with self.executors.lock:
                    if small_batch(x, outputs, self.memory):
                        return outputs
        names.check_columns(self, x, "x")
        x = validation.check_inputs(x, self.input_shape, self.dtype, check_finite=False)
        self.layers[0].layer.check_inputs(x, "x")
        lengths = self.check_lengths(lengths, len(x))
        outputs = np.empty((len(x), *self.output_shape), self.dtype)
        with self.executors.lock:
            if isinstance(x, np.ndarray):
                self.executors.build_small_batch(x.dtype)
            state = self.begin_state(len(x), batch_size)
            batch = None if state is None else len(state)
            executor = self.executors.inference(data.inference_layout(x), len(x), threads, batch)
            data.bind_inputs(executor, x)
            executor.bind(OUTPUTS, outputs)
            executor.bind(LENGTHS, lengths)
            executor.bind(STATE, state)
            try:
                if not executor.checks_finite:
                    validation.assert_all_finite(x, "x", self.dtype)
                executor.infer(self.memory, len(x))
            finally:
                executor.release()
        if executor.checks_finite and not executor.inputs_finite():
            validation.assert_all_finite(x, "x", self.dtype)
        self.keep_state(state)
        self._warn_of_overflow(outputs)
        return outputs

    def _warn_of_overflow(self, outputs: np.ndarray) -> None:
        """RuntimeWarning with the reason, if an output is not finite."""
        finite = np.isfinite(outputs)
        if finite.all():
            return
        sample = int(np.argwhere(~finite)[0][0])
        reason = f"values inside the network exceed {self.dtype}; scale the inputs"
        if self.dtype == np.float32:
            reason += ", or use dtype='float64'"
        if not np.isfinite(self.memory).all():
            reason = "the network's parameters hold NaN or infinity"
        warnings.warn(
            f"predict: the outputs of sample {sample} are not finite: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )

    @property
    def is_stateful(self) -> bool:
        """Whether a layer goes on from the state of the batch before."""
        return self._state_size > 0

    def reset_state(self) -> None:
        """Let the next batch begin with sequences, of a stateful network; others have no state.

        As many go on as before; `batch_size` of fit, predict and evaluate chooses another number.
        """
        if self._state is None:
            return
        if self._trained_by is None:
            self._state = np.zeros_like(self._state)
        else:
            self._state[:] = 0  # that of the training that is under way

    def check_batch_size(self, batch_size) -> int | None:
        """Return how many sequences go on from batch to batch, or None where that is not said.

        Raises ValueError for a network that is not stateful: it finds its batches itself.
        """
        if batch_size is None:
            return None
        if not self.is_stateful:
            raise ValueError(
                "batch_size says how many sequences of a stateful network go on, and this one has "
                "no stateful layer: the size of its batches changes no result; drop batch_size"
            )
        return validation.check_int(batch_size, "batch_size")

    def begin_state(
        self, samples: int, batch: int | None = None, keep: bool = False
    ) -> np.ndarray | None:
        """Return a copy of the state of a stateful network, zeros for a new one, else None.

        batch   samples of a batch, by default as many as the state has, or all
        keep    the copy becomes the state; else it does so where `keep_state` is given it
        Raises ValueError where the samples are no whole batches, or a state that is not zero is
        that of another number of sequences.
        """
        if not self.is_stateful:
            return None
        known = None if self._state is None else len(self._state)
        wanted = batch or known or samples
        own = "in a callback of fit take network[:], a copy with a state of its own"
        if samples % wanted:
            others = f"; other sequences after network.reset_state(), with batch_size; {own}"
            raise ValueError(
                f"a stateful network takes batches of one size, and {samples} samples in batches "
                f"of {wanted} leave one of {samples % wanted}: pass a multiple of {wanted} samples"
                + ("" if batch else others)
            )
        if self._state is not None and known != wanted and self._state.any():
            raise ValueError(
                f"the network's state is that of {known} sequences, and a batch has {wanted} "
                f"samples: take {known} for a batch, or call network.reset_state() first; {own}"
            )
        state = np.zeros((wanted, self._state_size), self.dtype)
        if self._state is not None and known == wanted:
            state[:] = self._state
        if keep:
            self._state = state
        return state

    def keep_state(self, state: np.ndarray | None) -> None:
        """Let this be the state from now on, except while fit runs, whose own goes on."""
        if self._trained_by is None:
            self._state = state

    @contextmanager
    def other_sequences(self, batch: int):
        """A context in which batches of so many other sequences begin, and the state is kept."""
        before = self._state
        if self.is_stateful:
            self._state = np.zeros((batch, self._state_size), self.dtype)
        try:
            yield
        finally:
            self._state = before

    def predict_classes(
        self, x, *, lengths=None, batch_size: int | None = None, threads: int | None = None
    ) -> np.ndarray:
        """Return labels (samples,): the largest output; of a single output whether it is > 0.5.

        Where every step has outputs (steps, classes), they are (samples, steps).
        """
        outputs = self.predict(x, lengths=lengths, batch_size=batch_size, threads=threads)
        if self.output_steps is None:
            outputs = outputs.reshape(len(outputs), -1)
        if outputs.shape[-1] > 1:
            return outputs.argmax(axis=-1)
        return (outputs[..., 0] > 0.5).astype(np.int64)

    def freeze(self, *layers) -> None:
        """Leave these layers as they are in training, from the next fit on; without any, all.

        layers   integers, negative ones from the end, or slices, as in `summary`. `unfreeze` is
                 the way back; `network.layers[k].trainable` is the state of one. Raises
                 ValueError where none of them has parameters: an activation is a layer too.

        Nothing before the lowest layer that is trained has a backward pass, so training is faster.
        A frozen BatchNorm uses its running means. Frozen layers are saved as such.
        """
        transfer.set_trainable(self, layers, False)

    def unfreeze(self, *layers) -> None:
        """Train these layers again, by default all."""
        transfer.set_trainable(self, layers, True)

    @property
    def averaged_parameters(self) -> np.ndarray | None:
        """The moving averages of all parameters, in their order; None where there are none.

        They are the last part of the optimiser's state, of which this is a view.
        """
        n = self._parameters.size
        return self.optimizer_state[-n:] if getattr(self.optimizer, "average", 0) else None

    def averaged(self) -> "Sequential":
        """Return a new network with the averaged parameters that fit with `average=` keeps.

        Its buffers, such as a BatchNorm's running means, are those of this network. Raises
        ValueError where the optimiser of the last fit averages nothing.
        """
        if self.averaged_parameters is None:
            raise ValueError(
                "the network has no averaged parameters: fit it with an optimizer that has an "
                "average, such as nn.Adam(average=0.999)"
            )
        made = self[:]
        made.parameters = self.averaged_parameters
        made.feature_names, made.target_name = self.feature_names, self.target_name
        return made

    def copy_weights(self, other, layers=None) -> None:
        """Copy parameters and buffers from the layers of another network.

        layers   which: numbers or slices, or a dict of the other network's layers by this one's; by
                 default all, layer by layer
        Raises ValueError where shapes differ; then nothing is changed.
        """
        self._refuse_in_training("copy_weights")
        transfer.copy_weights(self, other, layers)

    def __getitem__(self, key) -> "Sequential":
        """network[a:b]: a new network of layers a … b − 1, with copies of their weights."""
        return transfer.part(self, key)

    def outputs(self, x, layer: int, *, threads: int | None = None) -> np.ndarray:
        """Return the outputs (samples, …) of one layer, counted as in `summary`, in prediction."""
        (k,) = transfer.selected(self, [layer])
        return self[: k + 1].predict(x, threads=threads)

    def adapt(self, x) -> None:
        """Measure mean and deviation of the inputs x for every Standardize layer.

        fit does it with its training data before the first epoch. Raises ValueError for data that
        do not fit, or that vary by less than the network's dtype can tell apart.
        """
        self._refuse_in_training("adapt")
        scaling.adapt(self, x)

    @known_arguments(OF_EVALUATE)
    def evaluate(
        self,
        x,
        y,
        *,
        lengths=None,
        loss=None,
        metrics=(),
        sample_weight=None,
        class_weight=None,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> dict[str, float]:
        """Return loss, accuracy and mistakes for classes; loss, rmse and r2 for other targets.

        The loss is the mean over samples, without penalties; by default the one that belongs to
        the last activation, also after a fit with another: a network does not keep its loss.
        "mistakes" is the number of samples in a wrong class, whatever they weigh; all other values
        are weighted. `metrics` are added by their names. `lengths`, `metrics` and the weights are
        as in fit, `batch_size` as in predict.
        """
        chosen, wanted = self.resolve_loss(loss), measures.metrics(metrics)
        x, y, classes = self.check_data(x, y, chosen, lengths=lengths, weighs=True)
        lengths = self.check_lengths(lengths, len(x))
        weights = self.check_weights(y, classes, sample_weight, class_weight, lengths)
        before, batch_size = self._state, self.check_batch_size(batch_size)
        value, accuracy = self.score(x, y, classes, chosen, threads, lengths, weights, batch_size)
        found: dict[str, float] = {"loss": value}
        if accuracy is not None:
            right: float | None = accuracy
            answers = len(x)
            if sample_weight is not None or class_weight is not None:
                alike = self.check_weights(y, classes, None, None, lengths)
                self._state = before
                right = self.score(x, y, classes, chosen, threads, lengths, alike, batch_size)[1]
            if self.output_steps:
                answers = int(self.steps_with_targets(y, lengths).sum())
            found |= {"accuracy": accuracy, "mistakes": round((1 - (right or 0.0)) * answers)}
        else:
            wanted = measures.metrics(["rmse", "r2"]) | wanted
        if wanted:
            self._state = before
        return found | self.measure(wanted, x, y, lengths, weights, threads, batch_size)

    def measure(
        self, metrics, x, y, lengths, weights, threads=None, batch_size=None
    ) -> dict[str, float]:
        """Return the values of metrics (`nn.metrics.metrics`) of the outputs for checked data."""
        if not metrics:
            return {}
        outputs = self.predict(x, lengths=lengths, batch_size=batch_size, threads=threads)
        return measures.measure(metrics, *self.answers(y, outputs, lengths, weights))

    def answers(self, y, outputs, lengths=None, weights=None) -> tuple:
        """Return what metrics compare: targets in their own unit, outputs and weights.

        y, lengths, weights   checked ones
        outputs               of `predict`
        Of a sequence with targets for every step, each step that has one counts by itself.
        """
        if self.output_steps is None:
            return self.unscale_targets(y), outputs, weights
        steps, n = self.output_shape
        inside = self.steps_with_targets(y, lengths)
        y = y.reshape(len(y), steps, *([n] if y.dtype.kind == "f" else []))
        if weights is not None:
            if weights.ndim == 1:  # of sequences: their lengths are in them
                weights = np.broadcast_to((weights / inside.sum(axis=1))[:, None], inside.shape)
            weights = weights[inside]
        return y[inside], outputs[inside], weights

    def penalty_value(self, samples: int = 1, batches: int = 1) -> float:
        """Return the sum of all penalties, for a training set of that many samples and batches."""
        total = 0.0
        for built in self.layers:
            chosen = penalties(getattr(built.layer, "penalty", None)) or self.penalty
            start = built.offset
            for op in built.layer.ops(built.input_shape) if chosen else ():
                w = self.memory[start : start + op.n_weights].astype(np.float64)
                start += op.n_params
                for p in chosen:
                    norm = np.abs(w).sum() if p.power == 1 else 0.5 * (w * w).sum()
                    total += p.scaled(samples, batches) * norm
        return float(total)

    def loss(
        self,
        x,
        y,
        loss=None,
        *,
        lengths=None,
        sample_weight=None,
        class_weight=None,
        training: bool = False,
    ) -> float:
        """Return the mean loss over the samples plus the penalties, with x as the only batch.

        lengths    and the weights of samples and classes are as in fit
        training   False: the layers work as in prediction, without dropout and with the running
                   means of BatchNorm. True: as in the next step of training on this batch: with
                   the dropout masks of the network's seed and epoch, and with the batch's own mean
                   and variance. The network, its running means too, stays as it is.
        """
        chosen = self.resolve_loss(loss)
        x, y, classes = self.check_data(x, y, chosen, lengths=lengths, weighs=True)
        lengths = self.check_lengths(lengths, len(x))
        weights = self.check_weights(y, classes, sample_weight, class_weight, lengths)
        if fields.Flag()(training, "training"):
            value = self._differentiate(x, y, lengths, weights, chosen, None, True)[0]
        else:
            before = self._state
            only = len(x) if self.is_stateful else None
            value = self.score(x, y, classes, chosen, None, lengths, weights, only)[0]
            self._state = before
        return value + self.penalty_value(len(x), 1)

    def gradient(
        self,
        x,
        y,
        loss=None,
        *,
        lengths=None,
        sample_weight=None,
        class_weight=None,
        training: bool = False,
        threads: int | None = None,
    ) -> np.ndarray:
        """Return the gradient of `loss` with the same arguments by all parameters.

        It is a new vector in their order.
        """
        chosen, training = self.resolve_loss(loss), fields.Flag()(training, "training")
        x, y, classes = self.check_data(x, y, chosen, lengths=lengths, weighs=True)
        lengths = self.check_lengths(lengths, len(x))
        weights = self.check_weights(y, classes, sample_weight, class_weight, lengths)
        return self._differentiate(x, y, lengths, weights, chosen, threads, training)[1]

    def _differentiate(
        self, x, y, lengths, weights, loss, threads, training: bool
    ) -> tuple[float, np.ndarray]:
        """The mean loss of checked data without penalties, and the gradient with them."""
        memory = self.memory
        if training:
            check_last_batch(self, len(x), len(x))
            memory = memory.copy()  # training writes the running means
        with self.executors.lock:
            executor = self.executors.gradient(loss, x, y, threads, training, axes(weights))
            executor.plan.set_context(EPOCH, self.epoch)
            executor.plan.set_context(SEED, self.seed)
            data.bind_inputs(executor, x)
            executor.bind(TARGETS, y)
            executor.bind(LENGTHS, lengths)
            executor.bind(STATE, self.begin_state(len(x), len(x)))
            if weights is not None:
                executor.bind(WEIGHTS, relative_weights(weights, None, len(x))[0])
            try:
                total = executor.gradient(memory, len(x))
            finally:
                executor.release()
            return total / len(x), executor.grads.copy()

    @known_arguments(OF_FIT)
    def fit(
        self,
        x,
        y=None,
        *,
        lengths=None,
        loss=None,
        optimizer=None,
        batch_size: int | None = 32,
        epochs: int = 1,
        shuffle: bool = True,
        validation_data=None,
        validation_split: float = 0.0,
        scale_targets: bool = False,
        augment=None,
        callbacks=(),
        resume=None,
        verbose: int = 1,
        sample_weight=None,
        class_weight=None,
        metrics=(),
        steps_per_epoch: int | None = None,
        threads: int | None = None,
    ):
        """Train on inputs x (samples, *input_shape) and targets y, and return the history.

        Without y, x gives the data in blocks (x, y) or (x, y, sample_weight) of any size: it is a
        function without arguments that returns an iterator, or an iterable, read anew in every
        epoch. A thread reads ahead while the network is trained. Batches have batch_size samples
        and do not depend on the blocks; `shuffle` changes the order of samples that were read
        together. Where reading fails, the network is as it was before the epoch.

        lengths            for recurrent layers, the number of steps of each sequence (samples,),
                           1 … steps; what follows in x is padding, of which nothing is learned:
                           states there are zero, and the last state is that of the last step that
                           counts
        loss               a name or Loss; by default the one that belongs to the last activation
        optimizer          a name, an Optimizer or LBFGS(…); by default that of the last fit, at
                           first Adam with a rate of 0.001. Its state is kept from the last fit with
                           an optimiser of the same class
        batch_size         samples per step; None for all of them
        epochs             passes over the data
        shuffle            a new order every epoch, a function of seed and epoch; False for a
                           stateful network, whose sample i of a batch goes on where that of the
                           batch before ended, also from epoch to epoch: see `reset_state`
        validation_data    (x, y), or a dict of x, y and, if need be, lengths and sample_weight:
                           measured after every epoch, with the averaged parameters where the
                           optimizer has an `average`
        validation_split   instead: the fraction of the samples, from the end, to measure on
        scale_targets      True for targets far from 0 ± 1, such as prices: they are standardised
                           for training, by mean and deviation measured before the first epoch;
                           losses are those of standardised targets from then on, predictions,
                           rmse and r2 in the targets' own unit
        augment            Augment(…): images shifted, rotated and disturbed, new in every epoch
        callbacks          one or several, called around the training, its epochs and its steps;
                           see `callbacks.Callback`
        resume             a folder of a `callbacks.Checkpoint`: go on from its newest file, if any,
                           at the batch where it was written, until `epochs` are done in all; the
                           result is that of a training that was never interrupted
        verbose            1 shows progress in one line, on a terminal (stderr) or in a notebook;
                           2 prints a line for each epoch, in a log too; 0 shows nothing
        y                  labels (samples,), or rows (samples, outputs). Rows may be a masked array
                           of NumPy: a masked target adds 0 to the sum over the outputs, or to their
                           mean over all of them, and nothing is learned from it. A network that
                           gives (steps, outputs) takes a target for every step, (samples, steps) or
                           (samples, steps, outputs); the loss of a batch is then the mean over all
                           steps of its sequences, up to their lengths, that have a target: masked
                           labels, and steps whose targets are all masked, are left out
        sample_weight      a weight of at least 0 for every sample of x; loss and accuracy of a
                           batch are the weighted means over its samples. With a target for every
                           step (samples, steps) gives each step its own
        class_weight       a dict of weights by label or class name, 1 for what it leaves out; an
                           array of one for each class; or "balanced", inversely proportional to
                           how often a class occurs in the training data. A sample's weight is
                           multiplied by that of its class, in validation too
        metrics            names, or functions (y, outputs), measured on the validation data: "f1"
                           becomes "val_f1". See `nn.metrics`; there are accuracy, top_5 (or any
                           other number), precision, recall, f1, auc, r2, rmse, mean_squared_error,
                           mean_absolute_error. A function is given y as labels (samples,) or rows
                           (samples, outputs), and the weights if it has an argument sample_weight
        steps_per_epoch    for data in blocks: batches of an epoch; the next one goes on in the
                           blocks where it ended, and at their end they begin again

        Raises ValueError or TypeError for bad data before training starts, DivergenceError when
        the loss is no longer finite. Warns (NotLearningWarning) where the loss of a fresh network
        hardly moved in its first ten epochs, and says what to try.
        """
        with self.in_training():
            wanted, unfinished, self.unfinished = epochs, None, None
            if resume is not None:
                folder = os.fsdecode(resume)
                epochs, unfinished = checkpoints.resume(self, folder, wanted, optimizer)
            return fit(
                self,
                x,
                y,
                lengths=lengths,
                loss=loss,
                optimizer=optimizer,
                batch_size=batch_size,
                epochs=epochs,
                shuffle=shuffle,
                validation_data=validation_data,
                validation_split=validation_split,
                scale_targets=scale_targets,
                augment=augment,
                callbacks=callbacks,
                verbose=verbose,
                sample_weight=sample_weight,
                class_weight=class_weight,
                metrics=metrics,
                steps_per_epoch=steps_per_epoch,
                threads=threads,
                resumed=(wanted - epochs, unfinished) if resume is not None else (0, None),
            )

    def partial_fit(self, x, y=None, **options) -> dict[str, float]:
        """Train for one pass over a part of the data, and return the loss and the other metrics.

        options   those of fit, but for epochs and resume; verbose is 0
        It goes on from the last call or fit: parameters, the optimiser's state and the count of
        epochs are kept. A Standardize layer measures the first part alone; `adapt` before it takes
        a larger sample.
        """
        for name in ("epochs", "resume"):
            if name in options:
                raise TypeError(
                    f"partial_fit takes one pass over the data; drop {name}, or use fit"
                )
        history = self.fit(x, y, **{"verbose": 0, **options}).history
        return {name: values[-1] for name, values in history.items()}

    @known_arguments(OF_FINDER)
    def find_learning_rate(
        self,
        x,
        y,
        *,
        lengths=None,
        loss=None,
        optimizer=None,
        batch_size: int | None = 32,
        lowest: float = 1e-6,
        highest: float = 10.0,
        steps: int = 100,
        scale_targets: bool = False,
        sample_weight=None,
        class_weight=None,
        threads: int | None = None,
    ) -> LearningRates:
        """Try learning rates on a copy of the network, and return their losses and a suggestion.

        The copy takes `steps` steps, at rates that grow geometrically from `lowest` to `highest`;
        it stops where the loss has become four times its lowest, or is no longer finite. This
        network stays as it is. The other arguments are as in fit; of `optimizer` all counts but its
        learning rate, `accumulate` and `average`. `plotting.learning_rates` draws the result.
        Raises ValueError for L-BFGS, which has none.
        """
        self._refuse_in_training("find_learning_rate")
        return find_learning_rate(
            self,
            x,
            y,
            lengths=lengths,
            loss=loss,
            optimizer=optimizer,
            batch_size=batch_size,
            lowest=lowest,
            highest=highest,
            steps=steps,
            scale_targets=scale_targets,
            sample_weight=sample_weight,
            class_weight=class_weight,
            threads=threads,
        )

    def handle(
        self,
        *,
        optimizer=None,
        loss=None,
        rows: int = 1,
        gradient: bool = True,
        jvp: bool = False,
        hvp: bool = False,
        step: bool = False,
        device: str = "cpu",
    ):
        """Return the network as an array of integers for the functions of `numbanet.compiled`.

        optimizer   a name or Optimizer, for `update`
        loss        a name or Loss, for `loss_gradient`
        rows        samples in each call
        gradient    False leaves `vjp` out: less work memory, and layers without a derivative
        jvp, hvp    True: the function of that name can be called, with more work memory; hvp
                    includes jvp
        step        True: sequences can go step by step (`step`), with a state that the caller keeps
        device      "cuda": a CudaHandle instead, whose functions single threads of a GPU call in
                    `@cuda.jit` code: see `network.compiled_cuda.CudaHandle`
        It holds no parameters, and is valid in this process and its forks alone. Raises ValueError
        for layers that have not the derivatives asked for, and for a loss that does not fit.
        """
        flags = {"gradient": gradient, "jvp": jvp, "hvp": hvp, "step": step}
        flags = {name: fields.Flag()(given, name) for name, given in flags.items()}
        if _device(device) == "cuda":
            from numbanet.network.compiled_cuda import CudaHandle

            return CudaHandle(self, optimizer=optimizer, loss=loss, rows=rows, **flags)
        from numbanet.network.handle import make_handle

        return make_handle(self, optimizer=optimizer, loss=loss, rows=rows, **flags)

    def stream(self):
        """Return one sequence that is read step by step, beginning with its first one.

        See `network.stepping.Stream`: step, reset, state. Raises ValueError for layers that need
        more than one step at a time, and for no recurrent layer.
        """
        from numbanet.network.stepping import Stream

        return Stream(self)

    def compiled(self, device: str = "cpu"):
        """Return the network as it is now as a function `f(row, out)` for the user's compiled code.

        See `network.compiled.CompiledNetwork`. The function can be pickled.
        For device="cuda" it is a device function: each thread of a `@cuda.jit` kernel calls it
        with its own sample.
        """
        if _device(device) == "cuda":
            from numbanet.network import compiled_cuda

            return compiled_cuda.compiled(self)
        from numbanet.network.compiled import CompiledNetwork

        return CompiledNetwork(self)

    def cfunc(self, kind: str = "plain"):
        """Return the network as it is now as a C function of one sample, with its address.

        kind   "plain" void f(const real *x, real *out), with the network's dtype ·
               "user_data" the same with a third argument, void *user_data ·
               "integrand" double f(int n, double *x, void *user_data), as SciPy's integrators call
               it, for a network of one output
        See `network.cfunction.CFunction`: address, ctypes, user_data, low_level_callable().
        """
        from numbanet.network.cfunction import CFunction

        return CFunction(self, kind)

    def export_c(self, path):
        """Write the network as C99 source, "net.c", and its header; return both paths.

        The functions are net_forward and, where all layers have a derivative, net_vjp, for one
        sample; they keep nothing and allocate nothing, and the parameters are an argument:
        net_params holds those of now. Compiled with -DNET_SELF_TEST it is a program that compares
        itself with this network. Raises ValueError for layers that have no C code.
        """
        from numbanet.network.export_c import export

        return export(self, path)

    def profile(
        self, x, y, loss=None, batch_size: int = 128, optimizer=None, threads=None, *, lengths=None
    ):
        """Measure where the time of a training step goes; return a profile that shows itself.

        Its first table has the cost of each kernel alone: time, operations, bytes, fraction of the
        peak, and what limits the speed. The second has whole steps on all threads: microseconds in
        each kernel, waiting for the other threads, and between the kernels.
        optimizer, threads, lengths   as in fit; for LBFGS, in the network's state, Adam
        The network stays as it is. `costs` and `step` are the data. Raises ArithmeticError where
        the loss of the first batch is not finite, ValueError for optimizer=LBFGS.
        """
        from numbanet.network.profiler import profile

        return profile(self, x, y, loss, batch_size, optimizer, threads, lengths)

    @known_arguments(OF_DIAGNOSE)
    def diagnose(self, x, y, *, loss=None, validation_data=None):
        """Return the doctor's report: what is wrong, by how much, what to try.

        x, y              the training data, or a part of them
        loss              that of the training; by default what belongs to the last activation
        validation_data   (x, y), to see overfitting
        The report shows itself, at a prompt and by print; `findings` are its data
        (`numbanet.diagnostics.Diagnosis`). Steps are tried on a copy: the network stays as it is.
        Sequences count with all their steps. Raises ValueError for data that do not fit.
        """
        from numbanet.network.insight.doctor import diagnose

        return diagnose(self, x, y, loss=loss, validation_data=validation_data)

    def summary(self) -> Table:
        """Return a table: layer, output shape, parameters, bytes.

        It is a string, and an HTML table in a notebook.
        """
        return built_layer.summary(self.layers, self.dtype)

    # --- what executors, training, compilation and profiling use: plan.lowerable.Lowerable ---

    def layer_ops(
        self,
        first: int = 0,
        last: int | None = None,
        samples: int = 1,
        batches: int = 1,
        training: bool = False,
        fuse: bool = True,
    ) -> list[Op]:
        """Return the ops of layers first … last − 1, penalties scaled for a training set."""
        layers = self.layers[first:last]
        return built_layer.layer_ops(layers, self.penalty, samples, batches, training, fuse)

    def input_scale(self) -> tuple[float, int]:
        """Return the factor that copying the inputs applies, and how many layers that replaces.

        It is that of a Rescale without an offset before all layers that compute something.
        """
        for k, built in enumerate(self.layers):
            if isinstance(built.layer, Rescale) and built.layer.offset == 0:
                return built.layer.scale, k + 1
            if built.layer.ops(built.input_shape):
                break
        return 1.0, 0

    def output_ops(self) -> list[Op]:
        """Return the ops after the layers of a prediction, to the caller's array."""
        built = self.target_scaling
        unscale = built.layer.ops(built.input_shape) if self.scales_targets else []
        return [*unscale, data.outputs(size(self.output_shape))]

    def loss_ops(
        self,
        loss: losses.Loss,
        layout,
        y_dtype,
        classes: bool,
        samples: int = 1,
        batches: int = 1,
        training: bool = False,
        augment=None,
        weighted: int = 0,
        missing: bool = False,
    ) -> tuple[list[Op], Op, Op | None]:
        """Return the ops from the data to the loss, the loss's op, and the op of the accuracy.

        The last is None unless the targets name `classes`. A loss that is fused with the last
        activation takes the place of its op. If `missing`, targets that are NaN are left out.

        weighted   the axes of the weights: 1 for samples, 2 for their steps, 0 for none
        """
        self._check_loss(loss)
        n, steps = size(self.output_shape), self.output_steps
        fused = bool(loss.fused_activation)
        scale, done = (1.0, 0) if augment else self.input_scale()
        targets = data.targets(n, y_dtype, steps or 1)
        threshold = 0.0 if fused else 0.5
        by_step, correct_op = weighted == 2, None
        if classes:
            correct_op = losses.correct_op(n, targets, threshold, steps or 1, by_step)
        loss_op = end = loss.op(self.output_shape[-1], targets, steps)
        ops = [data.inputs(size(self.input_shape), layout, scale)]
        if augment:
            ops.append(augment.op(self.input_shape))
        ops += self.layer_ops(done, -1 if fused else None, samples, batches, training)
        before, after = losses.weights_ops(n)
        ops += [before, targets] if weighted == 1 else [targets]
        if missing:
            ops.append(losses.missing_op(loss, n, targets))
        if correct_op is not None:
            ops.append(correct_op)
        ends = [loss_op]
        if steps:
            average, end = losses.steps_ops(n, steps, loss_op, by_step)
            ends = [average, loss_op, end]
        return [*ops, *ends, *([after] if weighted == 1 else [])], end, correct_op

    def _check_loss(self, loss: losses.Loss) -> None:
        """ValueError for a loss that the network's outputs or its last activation do not fit."""
        if len(self.output_shape) not in (1, 2):
            raise ValueError(
                f"the network's output has shape {self.output_shape}; "
                "end it with Flatten() to apply a loss"
            )
        loss.check_outputs(self.output_shape[-1])
        final, needed = type(self.layers[-1].layer).__name__, loss.fused_activation
        if needed and final != needed:
            name = {"Sigmoid": "sigmoid", "Softmax": "softmax", "Exp": "exp"}.get(needed, needed)
            other = {
                "Softmax": "; after a softmax use loss='cross_entropy'",
                "Sigmoid": "; after a sigmoid use loss='binary_cross_entropy'",
                "Exp": "; after an exponential use loss='poisson'",
            }.get(final, "")
            raise ValueError(
                f"{type(loss).__name__} needs a network that ends in {name}, this one ends in "
                f"{final}; give the last layer activation={name!r}{other}"
            )

    def resolve_loss(self, given) -> losses.Loss:
        """Return the loss asked for, or the one that belongs to the last activation."""
        if given is None:
            given = {
                "Softmax": "cross_entropy",
                "Sigmoid": "binary_cross_entropy",
                "Exp": "poisson",
            }.get(type(self.layers[-1].layer).__name__, "mean_squared_error")
        return losses.loss(given)

    @property
    def output_steps(self) -> int | None:
        """The steps of the output where each has targets of its own, else None."""
        return self.output_shape[0] if len(self.output_shape) == 2 else None

    def check_data(
        self, x, y, loss, labels=("x", "y"), lengths=None, weighs: bool = False
    ) -> tuple[Any, np.ndarray, bool]:
        """Return x and y as kernels read them, and whether y names classes.

        lengths   of sequences, as given: targets behind the last step do not matter and become 0
        weighs    whether the caller weighs the targets (`weigh`), so that steps may have no label
        Labels are int64 (samples,), or (samples, steps) where every step has one; rows are
        (samples, outputs), those of all steps one after the other.
        Raises ValueError or TypeError for data that do not fit; `labels` stand in the messages.
        """
        names.check_columns(self, x, labels[0])
        x = validation.check_inputs(x, self.input_shape, self.dtype, labels[0])
        self.layers[0].layer.check_inputs(x, labels[0])
        y, names_of = names.encode(self, y, labels[1]), (labels[1], labels[0])
        lengths = self.check_lengths(lengths, len(x))
        if self.output_steps:
            steps, outputs = self.output_shape
            y, classes = validation.check_step_targets(
                y, len(x), steps, outputs, self.dtype, lengths, *names_of
            )
            if y.dtype.kind != "f" and not weighs and (y == validation.NO_LABEL).any():
                raise ValueError(
                    f"{labels[1]} masks labels of steps, which fit, evaluate, loss and gradient of "
                    "a network take, with x and y; here leave such sequences out"
                )
        else:
            outputs = size(self.output_shape)
            y, classes = validation.check_targets(y, len(x), outputs, self.dtype, *names_of)
        last = self.layers[-1].layer
        if self.output_shape[-1] == 1 and (
            isinstance(last, Identity) or not isinstance(last, Activation)
        ):
            classes = False  # real targets that happen to be 0 and 1
        if loss.fused_activation and y.dtype.kind == "f":
            validation.check_target_range(y, labels[1], type(loss).__name__, *loss.target_range)
        if loss.neutral is None and validation.has_missing(y):
            what, them = "sample", "them"
            if self.output_steps:
                what, them = "step", f"them, by shape (samples, {self.output_steps}),"
            raise ValueError(
                f"{labels[1]} masks some targets, and {type(loss).__name__} needs all of a {what}; "
                f"fill such {what}s and give {them} a sample_weight of 0"
            )
        if self.scales_targets:
            if y.dtype.kind != "f":
                raise ValueError(
                    f"{labels[1]} holds labels, but this network was trained with scale_targets on "
                    f"real targets; pass rows of {size(self.output_shape)} targets"
                )
            y, classes = self.scale_targets(y), False
        return x, y, classes

    @property
    def reads_data_its_own_way(self) -> bool:
        """Whether `check_data` depends on more than shapes, dtype and the names of classes."""
        return self._checks_inputs or self.scales_targets

    def check_lengths(self, lengths, samples: int, name: str = "lengths") -> np.ndarray | None:
        """Return the lengths of sequences as kernels read them, int64 (samples,), or None.

        Raises ValueError for lengths that do not fit the inputs, or layers that take none.
        """
        if lengths is None:
            return None
        built_layer.check_takes_lengths(self.layers)
        return validation.check_lengths(lengths, samples, self.input_shape[0], name)

    def check_weights(
        self, y, classes, sample_weight, class_weight, lengths=None
    ) -> np.ndarray | None:
        """Return the weights of checked targets; see `weigh`.

        lengths   checked ones
        """
        given = None
        if sample_weight is not None:
            given = validation.check_weights(sample_weight, len(y), steps=self.output_steps)
        by_class = class_weights(self, class_weight, y, classes, lengths)
        return self.weigh(y, given, by_class, lengths)

    def weigh(self, y, given, by_class, lengths, part: str = "") -> np.ndarray | None:
        """Return weights of samples, float64 (samples,), or of steps (samples, steps), or None.

        given      checked weights, or None
        by_class   what `class_weights` returned
        part       which part of the data they are, for the message of ValueError where all are 0
        Where every step has a target, those behind the lengths and those without one weigh 0.
        """
        labels = None if by_class is None else labels_of(y, self.output_shape)
        if self.output_steps is None:
            return sample_weights(labels, given, by_class, part)
        inside = self.steps_with_targets(y, lengths)
        return step_weights(labels, given, by_class, inside, lengths, part)

    def steps_with_targets(self, y, lengths) -> np.ndarray:
        """Return which steps have a target, bool (samples, steps), of checked targets."""
        steps, outputs = self.output_shape
        if y.dtype.kind == "f":
            inside = ~np.isnan(y).reshape(len(y), steps, outputs).all(axis=2)
        else:
            inside = y != validation.NO_LABEL
        return inside if lengths is None else inside & (np.arange(steps) < lengths[:, None])

    def score(
        self, x, y, classes, loss, threads=None, lengths=None, weights=None, batch_size=None
    ) -> tuple[float, float | None]:
        """Return the mean loss without penalties, and for classes the accuracy, of checked data.

        Both are weighted where the samples have weights.
        """
        with self.executors.lock:
            state = self.begin_state(len(x), batch_size)
            executor = self.executors.evaluation(
                loss,
                data.layout(x),
                y.dtype,
                classes,
                len(x),
                threads,
                batch=None if state is None else len(state),
                weighted=axes(weights),
                missing=validation.has_missing(y),
            )
            if weights is not None:
                executor.bind(WEIGHTS, relative_weights(weights, None, len(x))[0])
            data.bind_inputs(executor, x)
            executor.bind(TARGETS, y)
            executor.bind(LENGTHS, lengths)
            executor.bind(STATE, state)
            try:
                total, correct = executor.infer(self.memory, len(x))
            finally:
                executor.release()
            self.keep_state(state)
        return total / len(x), correct / len(x) if classes else None

    def learn_scalings(self, x, y, loss, scale_targets: bool, whole: bool = True) -> bool:
        """Measure checked training data where that was not done; True if y is to be scaled now.

        whole   whether they are all; ValueError where there is something to measure and they are
                not
        """
        scale_now = scale_targets and not self.scales_targets
        if not whole:
            scaling.check_measured(self, scale_now)
        if scale_now:
            scaling.check_targets(self, y, loss)
        scaling.adapt(self, x, again=False)
        if scale_now:
            scaling.measure_targets(self, y)
        return scale_now

    def undo_scalings(self) -> scaling.Undo:
        """Return a function that puts back the scalings as they are now."""
        return scaling.Undo(self)

    def scale_targets(self, y) -> np.ndarray:
        """Return targets, or outputs, in the unit of the loss: standardised, if fit does so."""
        if not self.scales_targets:
            return y
        found = self.target_scaling
        return ((y - found.mean) / found.deviation).astype(self.dtype)

    def unscale_targets(self, t) -> np.ndarray:
        """Return the way back from `scale_targets`: targets in their own unit."""
        if not self.scales_targets:
            return t
        found = self.target_scaling
        return t * found.deviation + found.mean

    def take_state(self, other) -> None:
        """Become what another network of the same layers is, with its optimiser and its epochs."""
        self.take_training(other)
        self._state = None if other._state is None else other._state.copy()

    def take_training(self, other) -> None:
        """Take parameters, optimiser and epochs of a network whose layers have the same parameters.

        Activations, and other layers without parameters, may be others.
        """
        self.memory[...] = other.memory
        for name in ("seed", "epoch", "optimizer", "optimizer_steps", "schedule_state"):
            setattr(self, name, getattr(other, name))
        self.scales_targets = other.scales_targets
        self.optimizer_state = other.optimizer_state.copy()
        ours, theirs = (
            [one for one in network.layers if one.n_parameters] for network in (self, other)
        )
        for built, source in zip(ours, theirs, strict=True):
            built.copy_settings(source)
        self.executors.clear()

    # --- files ---

    def save(self, path) -> None:
        """Write the network to a file in the safetensors layout, completely or not at all."""
        serialization.save(self, path)

    def to_config(self) -> dict[str, Any]:
        """Return what describes the network besides its tensors, as JSON holds it."""
        return {
            "input_shape": list(self.input_shape),
            "dtype": str(self.dtype),
            "seed": self.seed,
            "threads": self.threads,
            "epoch": self.epoch,
            "unfinished": self.unfinished and self.unfinished.to_config(),
            "penalty": config.encode(self.penalty, "penalty"),
            "layers": [config.encode(spec, f"layer {i}") for i, spec in enumerate(self.specs)],
            "optimizer": config.encode(self.optimizer, "optimizer"),
            "optimizer_steps": self.optimizer_steps,
            "schedule_state": list(self.schedule_state),
            "scales_targets": self.scales_targets,
            "class_names": list(self.class_names),
            "feature_names": list(self.feature_names),
            "target_name": self.target_name,
            "frozen": [k for k, built in enumerate(self.layers) if not built.trainable],
            "groups": [
                [k, built.learning_rate_factor, built.weight_decay]
                for k, built in enumerate(self.layers)
                if built.group != DEFAULT_GROUP
            ],
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """Return views of parameters, buffers and optimiser state by their names in a file."""
        views = {
            f"{i}.{name}": values
            for i, built in enumerate(self.layers)
            for name, values in {**built.parameters, **built.buffers}.items()
        }
        for name, values in self.target_scaling.buffers.items() if self.scales_targets else ():
            views[f"targets.{name}"] = values
        names = getattr(self.optimizer, "vectors", ())
        state = self.optimizer_state
        vectors = np.reshape(state, (-1, self.parameters.size)) if state.size else ()
        for name, vector in zip(names, vectors, strict=True):
            views[f"optimizer.{name}"] = vector
        if self._state is not None:
            views["state"] = self._state
        return views

    def _tensor_shapes(self, optimizer, state) -> dict[str, Shape]:
        """The shapes of `tensors` by name, before there is memory for them.

        state   that of a file, or None
        """
        shapes = {
            f"{i}.{name}": shape
            for i, built in enumerate(self.layers)
            for name, shape in {**built.shapes, **built.buffer_shapes}.items()
        }
        for name, shape in self.target_scaling.buffer_shapes.items() if self.scales_targets else ():
            shapes[f"targets.{name}"] = shape
        n_parameters = sum(built.n_parameters for built in self.layers)
        for name in getattr(optimizer, "vectors", ()):
            shapes[f"optimizer.{name}"] = (n_parameters,)
        if self.is_stateful and state is not None and len(state.shape) == 2 and len(state):
            shapes["state"] = (len(state), self._state_size)
        return shapes

    @classmethod
    def from_config(cls, content, tensors, classes: dict[str, Any], where: str) -> "Sequential":
        """Build the network that `to_config` described, with the `tensors` of its file.

        classes   what the description may name
        where     stands in front of the messages
        Raises ValueError for a description or tensors that do not make a network. The tensors are
        compared with the layers' shapes before memory is allocated.
        """
        config.check_keys(where, content, "network", CONFIG_KEYS)
        network = cls.__new__(cls)
        try:
            specs, shape, penalty, optimizer = (
                config.decode(content[key], classes, key)
                for key in ("layers", "input_shape", "penalty", "optimizer")
            )
            dtype, seed, threads = (content[key] for key in ("dtype", "seed", "threads"))
            network._build(specs, shape, dtype, seed, penalty, threads, "cpu")
            if optimizer is not None:
                optimizer = optimizers.optimizer(optimizer)
            epoch, steps = (
                fields.Count(0, 2**62 - 1)(content[key], key)
                for key in ("epoch", "optimizer_steps")
            )
            state = config.decode(content["schedule_state"], {}, "schedule_state")
            (getattr(optimizer, "schedule", None) or Schedule()).check_state(state)
            network.class_names = content["class_names"]
            network.feature_names = content["feature_names"]
            (network.target_name,) = names.checked([content["target_name"]], 1, "target_name")
            begun = content["unfinished"]
            unfinished = None if begun is None else Unfinished(**begun)
            frozen = fields.Counts(0)(content["frozen"], "frozen")
            for k in transfer.selected(network, frozen):
                network.layers[k].trainable = False
            config.check_groups(content["groups"], len(network.layers))
            for k, rate_factor, weight_decay in content["groups"]:
                built = network.layers[k]
                built.learning_rate_factor, built.weight_decay = rate_factor, weight_decay
            network.layer_ops()
            network.scales_targets = fields.Flag()(content["scales_targets"], "scales_targets")
            if network.scales_targets:
                scaling.check_last_layer(network)
        except Exception as error:
            raise ValueError(f"{where}: {error}") from error
        shapes = network._tensor_shapes(optimizer, tensors.get("state"))
        config.check_tensors(where, tensors, shapes, network.dtype)
        scales_targets = network.scales_targets
        network._allocate()
        network.initialize()
        network.scales_targets = scales_targets
        if "state" in shapes:
            network._state = np.zeros(shapes["state"], network.dtype)
        for name, values in network.tensors().items():
            values[...] = tensors[name]
        network.epoch, network.optimizer, network.optimizer_steps = epoch, optimizer, steps
        network.unfinished = unfinished
        network.schedule_state = state
        vectors = [tensors[f"optimizer.{name}"] for name in getattr(optimizer, "vectors", ())]
        network.optimizer_state = np.concatenate([np.zeros(0, network.dtype), *vectors])
        return network

    # --- Python's own ---

    def __repr__(self):
        kinds = (spec if isinstance(spec, type) else type(spec) for spec in self.specs)
        names = ", ".join(kind.__name__ for kind in kinds)
        shapes = f"{self.input_shape} → {self.output_shape}"
        count = f"{self._parameters.size:,} parameters {self.dtype}"
        return f"<Sequential {shapes}: {names}; {count}>"

    def __getstate__(self):
        state = self.__dict__.copy()
        for name in ("executors", "_trained_by", "_parameters"):
            del state[name]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._bind()
        self._reset_executors()


def _dtype(given) -> np.dtype:
    """float32 or float64; ValueError for anything else, None too, which NumPy takes for float64."""
    try:
        found = None if given is None else np.dtype(given)
    except Exception:
        found = None
    if found is None or found not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {fields.shown(given)}")
    return found


def _device(name: str) -> str:
    """The name of a device that can be used.

    Raises ValueError for a wrong name, CudaError where no GPU can be used.
    """
    if name not in ("cpu", "cuda"):
        raise ValueError(f'device is "cpu" or "cuda", not {name!r}')
    if name == "cuda":
        from numbanet.backend.cuda import driver

        driver.require_gpu()
    return name
