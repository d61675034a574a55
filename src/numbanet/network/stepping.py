"""One sequence, step by step, from Python."""

from typing import Any

import numpy as np

from numbanet.io import arrays, validation
from numbanet.io.attributes import KnownAttributes
from numbanet.network import embedded
from numbanet.network.handle import make_handle


class Stream(KnownAttributes):
    """A sequence that a network reads step by step: `network.stream()`.

    The network may be trained meanwhile: a step is taken with its parameters of that moment.
    """

    _network: Any
    _model: np.ndarray
    _state: np.ndarray
    _work: np.ndarray

    def __init__(self, network, state=None):
        self._network = network
        self._model = make_handle(network, gradient=False, step=True)
        self._state = np.zeros(embedded.step_state_size(self._model), network.dtype)
        self._work = np.zeros(embedded.step_work_size(self._model), network.dtype)
        self.reset()
        if state is not None:
            self.state = state

    def step(self, row) -> np.ndarray:
        """Return what the network gives after the next step, (outputs,), of its dtype.

        row   one step of the inputs, of input_shape[1:]: (channels,), or an index
        Of a network that gives one output for a sequence it is that for the steps so far. Raises
        ValueError for another shape and what is not finite; the state then stays as it is.
        """
        network = self._network
        row, shape = arrays.as_numbers(row, "row"), network.input_shape[1:]
        if row.shape != shape:
            raise ValueError(
                f"row must be one step of the network's inputs, of shape {shape}, got {row.shape}"
            )
        validation.assert_all_finite(np.atleast_1d(row), "row", network.dtype)
        network.layers[0].layer.check_inputs(row.reshape(1, -1), "row")
        row = np.ascontiguousarray(row, network.dtype)
        n = network.output_shape[-1] if network.output_steps else np.prod(network.output_shape)
        out = np.empty(n, network.dtype)
        embedded.step(self._model, network.memory, self._state, row, out, self._work)
        return out

    def reset(self) -> None:
        """Begin another sequence."""
        embedded.begin_sequence(self._model, self._network.memory, self._state)

    @property
    def state(self) -> np.ndarray:
        """A copy of what is kept from step to step: layer by layer, c of an LSTM, then h.

        Setting it goes on from there. Raises ValueError for another size, or what is not finite.
        """
        return self._state.copy()

    @state.setter
    def state(self, given) -> None:
        given = arrays.as_numbers(given, "state")
        if given.shape != self._state.shape:
            raise ValueError(
                f"the state of this network has shape {self._state.shape}, got {given.shape}"
            )
        validation.assert_all_finite(given, "state", self._state.dtype)
        self._state[:] = given

    def __reduce__(self):
        return type(self), (self._network, self._state)

    def __repr__(self):
        return f"<Stream of {self._network!r}>"
