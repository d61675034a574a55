"""Sequential: the one object with state. It describes a network, holds its flat vector and lowers it for an engine."""

import threading
from typing import Any

import numpy as np

from numbanet.engine.executors import ExecutorCache
from numbanet.io import fields, validation
from numbanet.network.built_layer import build_layers, check_size, layer_ops, parameter_views, summary
from numbanet.nn import data, losses, metrics
from numbanet.nn.initializers import initial
from numbanet.nn.layers.base import Shape, size
from numbanet.nn.regularizers import penalties
from numbanet.plan.columns import INPUTS, OUTPUTS, TARGETS, Op
from numbanet.training.fit import fit


class Sequential:
    """A network of layers in a row.

    layers        the layers; an `activation=` in one becomes a layer of its own behind it
    input_shape   shape of one sample: an int for a vector, (height, width, channels) for a picture
    dtype         "float32" or "float64", of parameters and arithmetic
    seed          of the start, the shuffling and everything else that is random
    penalty       L1(…), L2(…) or both, for every layer that has none of its own
    threads       most threads to use; by default Numba's number, fewer where there is little to do
    device        "cpu", or "cuda" for an NVIDIA GPU, which may be changed later by `to`

    Raises ValueError where two layers do not fit, with both shapes and the way out.
    """

    def __init__(self, layers, input_shape, dtype="float32", seed: int = 0, penalty: Any = None, threads: int | None = None,
                 device: str = "cpu"):
        self.dtype = _dtype(dtype)
        self.seed = validation.check_int(seed, "seed", 0)
        self.penalty = penalties(penalty)
        self.device = _device(device)
        self.threads = validation.check_threads(threads)
        shape = input_shape if isinstance(input_shape, (tuple, list)) or np.ndim(input_shape) else (input_shape,)
        self.input_shape: Shape = fields.Counts()(shape, "input_shape")
        self.description = list(layers)
        self.layers = build_layers(self.description, self.input_shape)
        self.output_shape: Shape = self.layers[-1].output_shape
        check_size(self.layers, self._ops(), self.dtype)
        count = sum(placed.count for placed in self.layers)
        buffers = sum(size(shape) for placed in self.layers for shape in placed.buffer_shapes.values())
        self._memory = np.zeros(count + buffers, self.dtype)
        self._bind()
        self._reset_executors()
        self.initialize()

    # --- building ---

    def _bind(self) -> None:
        """Give every layer views of its parameters, and behind all parameters of its buffers."""
        count = sum(placed.count for placed in self.layers)
        self._parameters, start = self._memory[:count], count
        for placed in self.layers:
            placed.parameters = parameter_views(self._memory, placed.offset, placed.shapes)
            placed.buffers = parameter_views(self._memory, start, placed.buffer_shapes)
            start += sum(view.size for view in placed.buffers.values())

    def _reset_executors(self) -> None:
        self._executors = ExecutorCache(self)
        self._trained_by: int | None = None

    def _refuse_in_training(self, what: str) -> None:
        """RuntimeError while fit is at work on this network: what it works on may not change under it."""
        if self._trained_by == threading.get_ident():
            raise RuntimeError(f"{what} was called on a network that is in training, from one of its callbacks; call it after fit, "
                               "or on a copy (copy.deepcopy)")
        if self._trained_by is not None:
            raise RuntimeError(f"{what} was called on a network that another thread is training; wait until its fit returns, or "
                               "work on a copy (copy.deepcopy)")

    def to(self, device: str) -> "Sequential":
        """Compute on "cpu" or "cuda" from now on, with the same parameters; returns the network."""
        if _device(device) != self.device:
            self._refuse_in_training("to")
            self.device = device
            self._reset_executors()
        return self

    def initialize(self, seed: int | None = None) -> None:
        """Draw all parameters anew and forget the optimiser's state and the epochs trained."""
        self._refuse_in_training("initialize")
        self.seed = self.seed if seed is None else validation.check_int(seed, "seed", 0)
        for i, placed in enumerate(self.layers):
            generator = np.random.Generator(np.random.Philox(key=[self.seed, i]))
            following = self.layers[i + 1].layer if i + 1 < len(self.layers) else None
            chosen = placed.layer.initializers(following)
            for name, values in placed.parameters.items():
                where = f"layer {i} ({type(placed.layer).__name__}), {name}"
                values[...] = initial(chosen.get(name, "zeros"), values.shape, generator, where)
            placed.layer.initialize_buffers(placed.buffers)
        self.epoch = 0
        self.optimizer: Any = None
        self.optimizer_state = np.zeros(0, self.dtype)
        self.optimizer_steps = 0

    @property
    def parameters(self) -> np.ndarray:
        """All parameters as one vector: layer by layer, weights then bias, each in C order. Writing to it changes the network."""
        return self._parameters

    @parameters.setter
    def parameters(self, values) -> None:
        values = np.asarray(values)
        if values.shape != self._parameters.shape:
            raise ValueError(f"the network has {self._parameters.size} parameters, got an array of shape {values.shape}")
        self._parameters[...] = values

    # --- lowering ---

    def _ops(self, last: int | None = None, samples: int = 1, batches: int = 1, training: bool = False) -> list[Op]:
        """The rows of the layers before `last`, with their penalties scaled for a training set."""
        return layer_ops(self.layers[:last], self.penalty, samples, batches, training)

    def _with_loss(self, loss: losses.Loss, x_dtype, y_dtype, classes: bool, samples: int = 1, batches: int = 1, training=False,
                   augment=None):
        """Ops from the data to the loss, with the ops of loss and hits."""
        final = self.layers[-1].layer
        if len(self.output_shape) != 1:
            raise ValueError(f"the network's output has shape {self.output_shape}; end it with Flatten() to apply a loss")
        n = self.output_shape[0]
        fused = bool(loss.fused_activation)
        if fused and type(final).__name__ != loss.fused_activation:
            name = {"Sigmoid": "sigmoid", "Softmax": "softmax"}.get(loss.fused_activation, loss.fused_activation)
            other = {"Softmax": "; after a softmax use loss='cross_entropy'", "Sigmoid": "; after a sigmoid use "
                     "loss='binary_cross_entropy'"}.get(type(final).__name__, "")
            raise ValueError(f"{type(loss).__name__} needs a network that ends in {name}, this one ends in "
                             f"{type(final).__name__}; give the last layer activation={name!r}{other}")
        targets = data.targets(n, y_dtype)
        threshold = 0.0 if fused else 0.5
        hits = losses.correct_op(n, targets, threshold) if classes else None
        last = loss.op(n, targets)
        body = self._ops(-1 if fused else None, samples, batches, training)
        begin = [data.inputs(size(self.input_shape), x_dtype), *([augment.op(self.input_shape)] if augment else [])]
        ops = [*begin, *body, targets, *([hits] if hits else []), last]
        return ops, last, hits

    # --- using ---

    def predict(self, x, *, threads: int | None = None) -> np.ndarray:
        """Return the outputs (samples, *output_shape) for inputs (samples, *input_shape), in the network's dtype.

        Inputs are float32, float64, uint8 (pictures: 0 … 255 become 0 … 1) or other real numbers, which are converted.
        Raises ValueError for a wrong shape, no samples, NaN or infinity.
        """
        if type(x) is np.ndarray:
            direct = self._executors.direct.get(x.dtype)
            if direct is not None and x.shape[1:] == self.input_shape and 0 < len(x) <= direct.most and (
                    x.flags.c_contiguous and x.flags.aligned):
                outputs = np.empty((len(x), *self.output_shape), self.dtype)
                with self._executors.lock:
                    if direct(x, outputs, self._memory):
                        return outputs
        x = validation.check_inputs(x, self.input_shape, self.dtype, look=False)
        outputs = np.empty((len(x), *self.output_shape), self.dtype)
        with self._executors.lock:
            self._executors.build_small_batch(x.dtype)
            machine = self._executors.predictor(x.dtype, len(x), threads)
            machine.bind(INPUTS, x)
            machine.bind(OUTPUTS, outputs)
            try:
                if not machine.looks:
                    validation.assert_all_finite(x, "x")
                machine.forward(self._memory, len(x))
            finally:
                machine.release()
        if machine.looks and not machine.finite():
            validation.assert_all_finite(x, "x")
        return outputs

    def predict_classes(self, x, *, threads: int | None = None) -> np.ndarray:
        """Return labels (samples,): the largest output, or for a single output 1 where it is above 0.5."""
        outputs = self.predict(x, threads=threads).reshape(len(x), -1)
        return outputs.argmax(axis=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0.5).astype(np.int64)

    def _loss(self, given) -> losses.Loss:
        """The loss asked for, or the one that belongs to the last activation."""
        if given is None:
            given = {"Softmax": "cross_entropy", "Sigmoid": "binary_cross_entropy"}.get(
                type(self.layers[-1].layer).__name__, "mean_squared_error")
        return losses.loss(given)

    def _data(self, x, y, loss, names=("x", "y")):
        x = validation.check_inputs(x, self.input_shape, self.dtype, names[0])
        y, classes = validation.check_targets(y, len(x), size(self.output_shape), self.dtype, names[1], names[0])
        if loss.fused_activation and y.dtype.kind == "f":
            validation.check_probabilities(y, names[1], type(loss).__name__)
        return x, y, classes

    def _score(self, x, y, classes, loss, threads=None) -> tuple[float, float | None]:
        """Mean loss without penalties, and accuracy for classes, of checked data."""
        with self._executors.lock:
            machine = self._executors.evaluator(loss, x.dtype, y.dtype, classes, len(x), threads)
            machine.bind(INPUTS, x)
            machine.bind(TARGETS, y)
            try:
                total, hits = machine.forward(self._memory, len(x))
            finally:
                machine.release()
        return total / len(x), hits / len(x) if classes else None

    def evaluate(self, x, y, *, loss=None, threads: int | None = None) -> dict[str, float]:
        """Return {"loss", "accuracy", "mistakes"} for classes, {"loss", "rmse", "r2"} for other targets.

        The loss is the mean over samples, without penalties; by default the one that belongs to the last activation.
        """
        chosen = self._loss(loss)
        x, y, classes = self._data(x, y, chosen)
        value, hits = self._score(x, y, classes, chosen, threads)
        if hits is not None:
            return {"loss": value, "accuracy": hits, "mistakes": round((1 - hits) * len(x))}
        outputs = self.predict(x, threads=threads)
        return {"loss": value, "rmse": metrics.rmse(y, outputs), "r2": metrics.r2(y, outputs)}

    def penalty_value(self, samples: int = 1, batches: int = 1) -> float:
        """The sum of all penalties at the present weights, for a training set of that many samples and batches."""
        total = 0.0
        for placed in self.layers:
            if not any(op.n_weights for op in placed.layer.ops(placed.input_shape)):
                continue
            for p in penalties(getattr(placed.layer, "penalty", None)) or self.penalty:
                w = placed.parameters["weights"].astype(np.float64)
                total += p.scaled(samples, batches) * (np.abs(w).sum() if p.power == 1 else 0.5 * (w * w).sum())
        return float(total)

    def loss(self, x, y, loss=None) -> float:
        """Return the mean loss over the samples plus the penalties, which count x as the training set and one batch."""
        chosen = self._loss(loss)
        x, y, classes = self._data(x, y, chosen)
        return self._score(x, y, classes, chosen)[0] + self.penalty_value(len(x), 1)

    def gradient(self, x, y, loss=None, *, threads: int | None = None) -> np.ndarray:
        """Return the gradient of `loss(x, y)` by all parameters, as a new vector in their order."""
        chosen = self._loss(loss)
        x, y, classes = self._data(x, y, chosen)
        with self._executors.lock:
            machine = self._executors.differentiator(chosen, x, y, threads)
            machine.bind(INPUTS, x)
            machine.bind(TARGETS, y)
            try:
                machine.gradient(self._memory, len(x))
            finally:
                machine.release()
            return machine.grads.copy()

    def fit(self, x, y, *, loss=None, optimizer="sgd", batch_size: int | None = 32, epochs: int = 1, shuffle: bool = True,
            validation_data=None, validation_split: float = 0.0, augment=None, callbacks=(), verbose: int = 1,
            threads: int | None = None):
        """Train on inputs x (samples, *input_shape) and targets y, and return the history.

        loss              a name or Loss; by default the one that belongs to the last activation
        optimizer         a name or Optimizer; its state goes on where the last fit with the same kind of optimiser left it
        batch_size        samples per step; 1 is one example at a time, None all of them
        epochs            passes over the data
        shuffle           a new order every epoch, a function of seed and epoch
        validation_data   (x, y), or validation_split, the share taken from the end: measured after every epoch
        augment           Augment(…): pictures moved, turned and disturbed anew in every epoch
        callbacks         called after every epoch; see `numbanet.callbacks`
        verbose           1 shows progress when the output is a terminal, 0 nothing

        Raises ValueError or TypeError for bad data before anything is trained, DivergenceError when the loss is no longer finite.
        """
        with self._executors.lock:
            self._refuse_in_training("fit")
            self._trained_by = threading.get_ident()
        try:
            return fit(self, x, y, loss=loss, optimizer=optimizer, batch_size=batch_size, epochs=epochs, shuffle=shuffle,
                                validation_data=validation_data, validation_split=validation_split, augment=augment,
                                callbacks=callbacks, verbose=verbose, threads=threads)
        finally:
            self._trained_by = None

    def compiled(self, device: str = "cpu"):
        """Return the network as it is now, as a function that the user's own compiled code calls: `f(row, out)`.

        For device="cuda" it is a device function, which each thread of a `@cuda.jit` kernel calls with a sample of its own.
        """
        if _device(device) == "cuda":
            from numbanet.network import compiled_cuda

            return compiled_cuda.compiled(self)
        from numbanet.network.compiled import compiled

        return compiled(self)

    def profile(self, x, y, loss=None, batch_size: int = 128) -> str:
        """Return a table of what each kernel of a training step costs: time, operations, bytes, share of peak, what bounds it."""
        from numbanet.network.profiler import costs, table

        return table(costs(self, x, y, loss, batch_size))

    def save(self, path) -> None:
        """Write the network to a file in the safetensors layout, whole or not at all."""
        from numbanet.network.serialization import save

        save(self, path)

    def summary(self) -> str:
        """Return a table: layer, output shape, parameters, bytes."""
        return summary(self.layers, self.dtype)

    def __repr__(self):
        inside = ", ".join((layer if isinstance(layer, type) else type(layer)).__name__ for layer in self.description)
        return f"<Sequential {self.input_shape} → {self.output_shape}: {inside}; {self._parameters.size:,} parameters {self.dtype}>"

    def __getstate__(self):
        state = self.__dict__.copy()
        del state["_executors"], state["_trained_by"]
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
    """A device's name, if there is such a device: ValueError for a wrong name, CudaError where no GPU can be used."""
    if name not in ("cpu", "cuda"):
        raise ValueError(f'device is "cpu" or "cuda", not {name!r}')
    if name == "cuda":
        from numbanet.backend.cuda import driver

        driver.require_gpu()
    return name

