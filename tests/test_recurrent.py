"""Recurrent layers: against PyTorch, their initial values, what they learn, and their errors."""

import copy
import pickle

import numpy as np
import pytest
from checkers import close

import numbanet as nn
from numbanet import compiled as c
from numbanet.plan.lower import lower

STEPS, CHANNELS, UNITS = 6, 3, 5
LAYERS = {
    "rnn": lambda **options: nn.RNN(UNITS, **options),
    "rnn of relu": lambda **options: nn.RNN(UNITS, activation="relu", **options),
    "lstm": lambda **options: nn.LSTM(UNITS, **options),
    "gru": lambda **options: nn.GRU(UNITS, **options),
}


def network(layers, shape=(STEPS, CHANNELS), dtype="float64", **options):
    """The layers and a dense one, no parameter zero."""
    net = nn.Sequential([*layers, nn.Flatten(), nn.Dense(2)], shape, dtype, seed=3, **options)
    net.parameters += np.random.default_rng(1).uniform(-0.2, 0.2, net.parameters.size)
    return net


def sequences(samples=7, shape=(STEPS, CHANNELS)):
    return np.random.default_rng(2).normal(size=(samples, *shape))


# --- PyTorch ------------------------------------------------------------------------------------


class Theirs:
    """PyTorch's module for each recurrent layer of a network, with the same parameters.

    PyTorch has two biases whose sum counts. The second one is frozen at zero, except for what a GRU
    adds inside the reset.
    """

    def __init__(self, net):
        self.torch = pytest.importorskip("torch")
        self.modules = []
        for built in net.layers:
            if isinstance(built.layer, nn.Bidirectional):
                self.add(built, built.layer.layer, ("", "reverse_"))
            elif hasattr(built.layer, "recurrent_initializer"):
                self.add(built, built.layer, ("",))
        last = [built for built in net.layers if built.n_parameters][-1]
        self.dense = [self.leaf(last.weights), self.leaf(last.bias)]

    def leaf(self, values):
        return self.torch.tensor(np.array(values), requires_grad=True)

    def add(self, built, layer, prefixes):
        torch = self.torch
        options = {"bidirectional": len(prefixes) == 2, "batch_first": True, "dtype": torch.float64}
        if isinstance(layer, nn.RNN):
            options["nonlinearity"] = layer.activation
        module = getattr(torch.nn, type(layer).__name__)(
            built.input_shape[1], layer.units, **options
        )
        width = layer.gates * layer.units
        for d, prefix in enumerate(prefixes):
            suffix = "l0" + "_reverse" * d
            columns = slice(d * width, (d + 1) * width)
            inner = np.zeros(width)
            rest = getattr(built, f"{prefix}recurrent_bias", np.zeros(0))
            inner[width - len(rest) :] = rest
            u = getattr(built, f"{prefix}recurrent_weights")
            for name, values in {
                "weight_ih": built.weights[:, columns].T,
                "bias_ih": built.bias[columns],
                "weight_hh": u.T,
                "bias_hh": inner,
            }.items():
                with torch.no_grad():
                    getattr(module, f"{name}_{suffix}").copy_(torch.tensor(np.array(values)))
            mask = torch.tensor(np.arange(width) >= width - len(rest))
            getattr(module, f"bias_hh_{suffix}").register_hook(lambda g, mask=mask: g * mask)
        self.modules.append((module, layer))

    def parameters(self):
        inside = [p for module, _ in self.modules for p in module.parameters()]
        return [*inside, *self.dense]

    def states(self, x):
        """What the recurrent layers give."""
        torch = self.torch
        h = torch.as_tensor(x)
        for module, layer in self.modules:
            directions = 2 if module.bidirectional else 1
            h = torch.flip(h, [1]) if layer.reverse and directions == 1 else h
            h = module(h)[0]
            h = torch.flip(h, [1]) if layer.reverse and directions == 1 else h
            if not layer.return_sequences:
                ahead, back = (0, -1) if layer.reverse else (-1, 0)
                parts = [h[:, ahead, : layer.units]]
                parts += [h[:, back, layer.units :]] * (directions - 1)
                h = torch.cat(parts, dim=1)
        return h

    def __call__(self, x):
        return self.states(x).flatten(1) @ self.dense[0] + self.dense[1]

    def over_time(self, x):
        """The same with the dense layer at every step, (samples, steps, outputs)."""
        return self.states(x) @ self.dense[0] + self.dense[1]

    def flat(self, of):
        """A vector of `of(parameter)` in the order of ours."""
        found = []
        for module, layer in self.modules:
            suffixes = ["l0", "l0_reverse"][: 2 if module.bidirectional else 1]
            values = {name: of(p) for name, p in module.named_parameters()}
            found.append(np.concatenate([values[f"weight_ih_{s}"].T for s in suffixes], axis=1))
            found.append(np.concatenate([values[f"bias_ih_{s}"] for s in suffixes]))
            for s in suffixes:
                found.append(values[f"weight_hh_{s}"].T)
                rest = (layer.gates - layer.summed) * layer.units
                found.append(values[f"bias_hh_{s}"][layer.gates * layer.units - rest :])
        found += [of(p) for p in self.dense]
        return np.concatenate([np.ravel(one) for one in found])


NETWORKS = {
    **{name: lambda make=make: [make()] for name, make in LAYERS.items()},
    **{
        f"{name} of states, reversed": lambda make=make: [make(return_sequences=True, reverse=True)]
        for name, make in LAYERS.items()
    },
    **{
        f"{name} in both directions": lambda make=make: [nn.Bidirectional(make())]
        for name, make in LAYERS.items()
    },
    "states of a gru in both directions": lambda: [
        nn.Bidirectional(nn.GRU(4, return_sequences=True))
    ],
    "two layers": lambda: [nn.LSTM(4, return_sequences=True), nn.GRU(3)],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_torch(name):
    net, x, y = network(NETWORKS[name]()), sequences(), sequences()[:, 0, :2]
    theirs = Theirs(net)
    outputs = theirs(x)
    close(net.predict(x), outputs.detach().numpy(), 1e-13)
    ((outputs - theirs.torch.tensor(y)) ** 2).mean().backward()
    close(net.gradient(x, y, "mean_squared_error"), theirs.flat(lambda p: p.grad.numpy()), 1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_along_a_direction_are_those_of_torch(name):
    """`jvp`, and `hvp` where the cell is smooth, along the inputs and the parameters at once."""
    net, direction, x = network(NETWORKS[name]()), network(NETWORKS[name]()), sequences()
    generator = np.random.default_rng(4)
    direction.parameters[:] = generator.normal(size=net.parameters.size)
    vrow, dout = generator.normal(size=x.shape), generator.normal(size=(len(x), 2))
    theirs = Theirs(net)
    torch, grad = theirs.torch, theirs.torch.autograd.grad
    given = [theirs.leaf(x), *theirs.parameters()]
    ways = [torch.tensor(vrow), *(p.detach() for p in Theirs(direction).parameters())]
    u = theirs.leaf(dout)
    first = grad(theirs(given[0]), given, u, create_graph=True)
    along = sum((one * way).sum() for one, way in zip(first, ways, strict=True))
    smooth = "relu" not in name
    model = net.handle(rows=len(x), jvp=True, hvp=smooth)
    out, tangent, work = np.empty((len(x), 2)), np.empty((len(x), 2)), np.zeros(c.work_size(model))
    c.jvp(model, net.memory, x, vrow, direction.parameters, out, tangent, work)
    close(tangent, grad(along, u, retain_graph=True)[0].numpy(), 1e-9)
    if smooth:
        expected = grad(along, given, allow_unused=True, materialize_grads=True)
        values = {id(p): value.numpy() for p, value in zip(given, expected, strict=True)}
        hrow, hparams = np.empty_like(x), np.zeros(net.parameters.size)
        c.hvp(model, net.memory, x, dout, vrow, direction.parameters, hrow, hparams, work)
        close(hrow, values[id(given[0])], 1e-9)
        close(hparams, theirs.flat(lambda p: values[id(p)]), 1e-9)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("name", NETWORKS)
def test_fifty_steps_are_those_of_torch(name, kind):
    net, x, y = network(NETWORKS[name]()), sequences(40), sequences(40)[:, 0, :2]
    theirs = Theirs(net)
    optimizer = getattr(theirs.torch.optim, kind)(theirs.parameters(), 0.01)
    for _ in range(10):
        for k in range(0, 40, 8):
            optimizer.zero_grad()
            target = theirs.torch.tensor(y[k : k + 8])
            ((theirs(x[k : k + 8]) - target) ** 2).mean().backward()
            optimizer.step()
    ours = getattr(nn, kind)(0.01)
    net.fit(x, y, optimizer=ours, batch_size=8, epochs=10, shuffle=False, verbose=0)
    close(net.parameters, theirs.flat(lambda p: p.detach().numpy()), 1e-9)


# --- shapes and initial values --------------------------------------------------------------------


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_shapes_of_outputs_and_parameters(make):
    gates = make().gates
    for layer, shape, width in (
        (make(), (UNITS,), gates * UNITS),
        (make(return_sequences=True), (STEPS, UNITS), gates * UNITS),
        (nn.Bidirectional(make()), (2 * UNITS,), 2 * gates * UNITS),
        (nn.Bidirectional(make(return_sequences=True)), (STEPS, 2 * UNITS), 2 * gates * UNITS),
    ):
        built = nn.Sequential([layer], (STEPS, CHANNELS)).layers
        assert len(built) == 1 and built[0].output_shape == shape
        assert built[0].weights.shape == (CHANNELS, width) and built[0].bias.shape == (width,)
        assert built[0].recurrent_weights.shape == (UNITS, gates * UNITS)


@pytest.mark.parametrize(
    ("layers", "steps", "batch", "samples"),
    [
        ([nn.LSTM(128)], 28, 128, 16),  # all steps of five samples would fit the cache
        ([nn.GRU(64, return_sequences=True), nn.GRU(64)], 500, 128, 16),
        ([nn.GRU(64)], 500, 10, 10),
        ([nn.LSTM(2)], 3, 128, 64),
    ],
)
def test_a_micro_batch_fills_two_tiles_where_one_step_fits_the_cache(layers, steps, batch, samples):
    net = nn.Sequential([*layers, nn.Dense(2)], (steps, 3))
    ops, *_ = net.loss_ops(nn.MeanSquaredError(), net.dtype, net.dtype, False, training=True)
    assert lower(ops, net.dtype, batch=batch, threads=1, train=True).micro_batch == samples


def test_initial_values_are_drawn_gate_by_gate():
    built = nn.Sequential([nn.Bidirectional(nn.LSTM(8))], (STEPS, 40), "float64").layers[0]
    for u in (built.recurrent_weights, built.reverse_recurrent_weights):
        for gate in np.split(u, 4, axis=1):
            np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-14)
    bound = np.sqrt(6 / (40 + 8))
    assert 0.95 * bound < np.abs(built.weights).max() <= bound
    expected = np.zeros((2, 4, 8))
    expected[:, 1] = 1
    np.testing.assert_array_equal(built.bias, expected.ravel())


def test_initial_values_can_be_given():
    w, u, b = np.ones((CHANNELS, 12)), np.eye(3, 12), np.arange(12.0)
    layer = nn.LSTM(3, initializer=w, recurrent_initializer=u, bias_initializer=b)
    built = nn.Sequential([layer], (STEPS, CHANNELS)).layers[0]
    np.testing.assert_array_equal(built.weights, w)
    np.testing.assert_array_equal(built.recurrent_weights, u)
    np.testing.assert_array_equal(built.bias, b)
    ones = nn.Sequential([nn.GRU(3, recurrent_initializer="ones")], (STEPS, 2)).layers[0]
    assert (ones.recurrent_weights == 1).all() and (ones.recurrent_bias == 0).all()


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4), (2, 3, 4)])
def test_orthogonal_values_have_orthonormal_rows_or_columns(shape):
    found = nn.initializers.Orthogonal()(shape, np.random.default_rng(0)).reshape(-1, shape[-1])
    few = found if len(found) <= found.shape[1] else found.T
    np.testing.assert_allclose(few @ few.T, np.eye(len(few)), atol=1e-14)


def test_a_penalty_counts_both_matrices_and_no_bias():
    net = network([nn.GRU(4, penalty=nn.L2(0.5))])
    w, u = net.layers[0].weights, net.layers[0].recurrent_weights
    assert np.isclose(net.penalty_value(), 0.25 * ((w * w).sum() + (u * u).sum()))


# --- what they can do -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_first_value_of_a_sequence_is_remembered(kind):
    x = np.random.default_rng(0).normal(size=(400, 12, 1)).astype("float32")
    y = (x[:, 0, 0] > 0).astype(int)
    net = nn.Sequential([kind(8), nn.Dense(1, activation="sigmoid")], (12, 1), seed=2)
    net.fit(x, y, optimizer=nn.Adam(0.02), batch_size=20, epochs=80, verbose=0)
    assert net.evaluate(x, y)["accuracy"] > 0.95


def test_a_dense_layer_over_time_is_the_same_at_every_step():
    net, x = nn.Sequential([nn.Dense(4)], (STEPS, CHANNELS), "float64"), sequences()
    built = net.layers[0]
    np.testing.assert_allclose(net.predict(x), x @ built.weights + built.bias, rtol=1e-13)


def test_an_embedding_is_a_table_of_rows():
    net = nn.Sequential([nn.Embedding(9, 4)], 3)
    for x in (np.array([[0, 8, 3]]), np.array([[0, 8, 3]], "uint8"), np.array([[0.0, 8, 3]])):
        np.testing.assert_array_equal(net.predict(x)[0], net.layers[0].weights[[0, 8, 3]])


def test_the_gradient_of_an_embedding_is_that_of_torch():
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 9, (20, 3)), generator.normal(size=(20, 12))
    net = nn.Sequential([nn.Embedding(9, 4), nn.Flatten()], 3, "float64")
    table = torch.tensor(net.layers[0].weights, requires_grad=True)
    outputs = torch.nn.functional.embedding(torch.tensor(x), table).flatten(1)
    ((outputs - torch.tensor(y)) ** 2).mean().backward()
    close(net.gradient(x, y, "mean_squared_error"), table.grad.numpy().ravel(), 1e-13)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: nn.LSTM(0), ValueError, "LSTM: units must be an integer of at least 1, got 0"),
        (lambda: nn.GRU(2.5), ValueError, "GRU: units must be an integer"),
        (
            lambda: nn.RNN(3, activation="sigmoid"),
            ValueError,
            'RNN: activation is "tanh" or "relu", not \'sigmoid\'',
        ),
        (lambda: nn.LSTM(3, return_sequences=1), ValueError, "return_sequences must be True or"),
        (
            lambda: nn.Bidirectional(nn.Dense(3)),
            TypeError,
            r"Bidirectional: layer: RNN\(…\), LSTM\(…\) or GRU\(…\) was expected",
        ),
        (lambda: nn.Bidirectional(nn.LSTM), TypeError, "was expected"),
        (
            lambda: nn.Sequential([nn.GRU(3)], 7),
            ValueError,
            r"GRU expects a sequence \(steps, channels\), got \(7,\); .* input_shape=\(7, 1\)",
        ),
        (
            lambda: nn.Sequential([nn.Bidirectional(nn.RNN(3))], (4, 4, 1)),
            ValueError,
            r"RNN expects a sequence \(steps, channels\), got \(4, 4, 1\)",
        ),
        (
            lambda: nn.Sequential([nn.RNN(3), nn.RNN(3)], (4, 2)),
            ValueError,
            r"layer 1 \(RNN\): .* got \(3,\); .* return_sequences=True",
        ),
        (lambda: nn.Sequential([nn.LSTM(3)], (0, 2)), ValueError, "input_shape"),
        (
            lambda: nn.Embedding(2**24 + 1, 2),
            ValueError,
            "Embedding: vocabulary must be at most 16,777,216",
        ),
        (
            lambda: nn.Sequential([nn.Embedding(5, 2)], (4, 3)),
            ValueError,
            r"Embedding expects indices \(steps,\), got an input of shape \(4, 3\)",
        ),
        (
            lambda: nn.Sequential([nn.Dense(3), nn.Embedding(5, 2)], 4),
            ValueError,
            r"layer 1 \(Embedding\) reads indices and stands behind Dense; make it the first layer",
        ),
    ],
)
def test_wrong_arguments_and_shapes_are_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (5, r"has 5(\.0)? at \[2, 1\]; Embedding takes integers from 0 to 4: number the words"),
        (-1, r"x has -1(\.0)? at \[2, 1\]"),
        (0.5, r"x has 0\.5 at \[2, 1\]"),
        (np.nan, "x has (nan|NaN) at"),
    ],
)
def test_indices_outside_the_vocabulary_are_refused(wrong, message):
    net = nn.Sequential([nn.Embedding(5, 2), nn.Flatten(), nn.Dense(1)], 3)
    x, y = np.zeros((4, 3), "float32"), np.zeros((4, 1))
    net.predict(x)
    bad = x.copy()
    bad[2, 1] = wrong
    before = net.parameters.copy()
    for call in (net.predict, *(lambda x, f=f: f(x, y) for f in (net.fit, net.evaluate, net.loss))):
        with pytest.raises(ValueError, match=message):
            call(bad)
    with pytest.raises(ValueError, match="validation x has"):
        net.fit(x, y, validation_data=(bad, y))
    np.testing.assert_array_equal(net.parameters, before)


# --- sequences of different lengths ---------------------------------------------------------------

LENGTHS = np.array([6, 1, 3, 2, 6, 5, 4])


def padded(fill):
    """Sequences whose steps beyond their lengths hold `fill`."""
    x = sequences()
    for one, length in zip(x, LENGTHS, strict=True):
        one[length:] = fill
    return x


LAST_STATES = {name: make for name, make in NETWORKS.items() if "states" not in name} | {
    "reversed lstm": lambda: [nn.LSTM(4, reverse=True)],
    "after a dense layer": lambda: [nn.Dense(3, activation="tanh"), nn.GRU(4)],
}


@pytest.mark.parametrize("name", LAST_STATES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_padded_sequence_is_what_it_is_alone(name, threads):
    net, y = network(LAST_STATES[name]()), sequences()[:, 0, :2]
    x, others = padded(3.0), {}
    for length in set(LENGTHS.tolist()):
        layers = LAST_STATES[name]()
        others[length] = network(layers, (length, CHANNELS))
        others[length].parameters = net.parameters
    outputs, gradient, losses = [], 0, []
    for one, target, length in zip(x, y, LENGTHS, strict=True):
        alone, short = others[length], one[None, :length]
        outputs.append(alone.predict(short)[0])
        gradient = gradient + alone.gradient(short, target[None]) / len(x)
        losses.append(alone.loss(short, target[None]))
    close(net.predict(x, lengths=LENGTHS, threads=threads), outputs, 1e-13)
    close(net.gradient(x, y, lengths=LENGTHS, threads=threads), gradient, 1e-12)
    for found in (
        net.loss(x, y, lengths=LENGTHS),
        net.loss(x, y, lengths=LENGTHS, training=True),
        net.evaluate(x, y, lengths=LENGTHS, threads=threads)["loss"],
    ):
        assert np.isclose(found, np.mean(losses), rtol=1e-12)


@pytest.mark.parametrize("name", LAST_STATES)
def test_training_learns_nothing_from_padding(name):
    nets, y = [network(LAST_STATES[name]()) for _ in range(2)], sequences()[:, 0, :2]
    validation = {"x": padded(1.0)[:3], "y": y[:3], "lengths": LENGTHS[:3]}
    histories = [
        net.fit(
            padded(fill), y, lengths=LENGTHS, validation_data=validation, batch_size=3, epochs=3
        ).history
        for net, fill in zip(nets, (0.0, -7.0), strict=True)
    ]
    assert nets[0].parameters.tobytes() == nets[1].parameters.tobytes()
    assert histories[0] == histories[1]
    found = nets[0].evaluate(**validation)
    assert np.isclose(found["loss"], histories[0]["val_loss"][-1])
    alone = network(LAST_STATES[name]())
    full = np.full(len(y), STEPS)
    alone.fit(sequences(), y, lengths=full, batch_size=3, epochs=2, validation_split=0.3)
    plain = network(LAST_STATES[name]())
    plain.fit(sequences(), y, batch_size=3, epochs=2, validation_split=0.3)
    assert alone.parameters.tobytes() == plain.parameters.tobytes()
    assert alone.predict(sequences()).tobytes() == plain.predict(sequences()).tobytes()


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_states_beyond_the_end_are_zero(make):
    for layer in (make(return_sequences=True), nn.Bidirectional(make(return_sequences=True))):
        net = nn.Sequential([layer], (STEPS, CHANNELS), "float64")
        states = net.predict(padded(2.0), lengths=LENGTHS)
        for one, length in zip(states, LENGTHS, strict=True):
            assert (one[length:] == 0).all() and (one[:length] != 0).any(axis=1).all()


WIDE = {
    "rnn": lambda: [nn.RNN(150)],
    "lstm": lambda: [nn.LSTM(70, initial_state="trained")],
    "gru of states, reversed": lambda: [nn.GRU(70, return_sequences=True, reverse=True)],
    "gru in both directions": lambda: [nn.Bidirectional(nn.GRU(67))],
}
"""Their U is larger than a level-1 cache."""


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("steps", [3, 9])
def test_a_sequence_alone_gives_what_it_gives_among_others(name, dtype, steps):
    net = network(WIDE[name](), (steps, CHANNELS), dtype)
    x, lengths = sequences(3, (steps, CHANNELS)).astype(dtype), np.array([steps, 2, 1])
    for given in ({}, {"lengths": lengths}):
        together = net.predict(x, **given)
        for i in range(len(x)):
            own = {key: values[i : i + 1] for key, values in given.items()}
            assert net.predict(x[i : i + 1], **own).tobytes() == together[i : i + 1].tobytes()


def test_lengths_on_a_gpu_are_those_of_the_cpu():
    pytest.importorskip("numba_cuda")
    layers = lambda: [nn.LSTM(3, return_sequences=True), nn.Bidirectional(nn.GRU(2))]  # noqa: E731
    cpu, cuda, x, y = network(layers()), network(layers()), padded(2.0), sequences()[:, 0, :2]
    cuda.to("cuda")
    for net in (cpu, cuda):
        net.fit(x, y, lengths=LENGTHS, batch_size=4, verbose=0)
    close(cuda.parameters, cpu.parameters, 1e-11)
    close(cuda.predict(x, lengths=LENGTHS), cpu.predict(x, lengths=LENGTHS), 1e-11)


@pytest.mark.parametrize(
    ("layers", "lengths", "message"),
    [
        ([nn.GRU(2)], [1, 2, 3], r"one length for each of 2 samples, got an array of shape \(3,\)"),
        ([nn.GRU(2)], [4, 0], r"lengths has 0 at \[1\]; a sequence has 1 to 4 steps"),
        ([nn.GRU(2)], [5, 1], r"lengths has 5 at \[0\]"),
        ([nn.GRU(2)], [1, 2.5], r"lengths has 2\.5 at \[1\]"),
        ([nn.GRU(2)], [1, np.nan], "lengths"),
        ([nn.Flatten()], [1, 2], "lengths are for recurrent layers, and the network has none"),
        (
            [nn.Conv1D(2, 2), nn.GRU(2)],
            [1, 2],
            r"layer 0 \(Conv1D\) does not know lengths, so padding would count",
        ),
        ([nn.GRU(2, True), nn.GlobalAvgPool1D()], [1, 2], r"layer 1 \(GlobalAvgPool1D\) does not"),
    ],
)
def test_wrong_lengths_are_refused(layers, lengths, message):
    net = nn.Sequential([*layers, nn.Dense(1)], (4, 3))
    x, y = np.zeros((2, 4, 3)), np.zeros((2, 1))
    calls = [net.predict, *(lambda x, f=f, **o: f(x, y, **o) for f in (net.fit, net.evaluate))]
    calls += [lambda x, f=f, **o: f(x, y, **o) for f in (net.loss, net.gradient, net.profile)]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(x, lengths=lengths)


# --- targets for every step -----------------------------------------------------------------------

CLASSES = 4
OVER_TIME = {
    "classes": ("softmax", "cross_entropy"),
    "numbers": (None, "mean_squared_error"),
    "several labels": ("sigmoid", "binary_cross_entropy"),
}


def tagger(activation=None, dtype="float64", classes=CLASSES):
    """A network that gives `classes` outputs at every step, no parameter zero."""
    layers = [nn.LSTM(4, return_sequences=True), nn.GRU(3, return_sequences=True)]
    net = nn.Sequential(
        [*layers, nn.Dense(classes, activation=activation)], (STEPS, CHANNELS), dtype, seed=3
    )
    net.parameters += np.random.default_rng(1).uniform(-0.2, 0.2, net.parameters.size)
    return net


def step_targets(kind, samples=7, padding=0):
    """Targets for every step; those behind the lengths are `padding`."""
    generator, shape = np.random.default_rng(4), (samples, STEPS)
    if kind == "classes":
        y = generator.integers(0, CLASSES, shape)
    elif kind == "numbers":
        y = generator.normal(size=(*shape, CLASSES))
    else:
        y = generator.integers(0, 2, (*shape, CLASSES)).astype("float64")
    for one, length in zip(y, np.resize(LENGTHS, samples), strict=True):
        one[length:] = padding
    return y


def torch_loss(torch, kind, outputs, y, lengths):
    """PyTorch's mean over the steps that count."""
    inside = torch.tensor(np.arange(STEPS) < np.asarray(lengths)[:, None])
    if kind == "classes":
        labels = torch.where(inside, torch.tensor(y), -100)
        return torch.nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())
    z, y = outputs[inside], torch.tensor(y)[inside]
    if kind == "numbers":
        return ((z - y) ** 2).mean()
    each = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
    return each.sum(1).mean()


@pytest.mark.parametrize("kind", OVER_TIME)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_the_loss_over_steps_is_that_of_torch(kind, lengths):
    activation, loss = OVER_TIME[kind]
    net, x = tagger(activation), padded(3.0)
    y = step_targets(kind, padding=0 if lengths is None else -1)
    theirs = Theirs(net)
    counts = np.full(7, STEPS) if lengths is None else lengths
    value = torch_loss(theirs.torch, kind, theirs.over_time(x), y, counts)
    value.backward()
    expected = theirs.flat(lambda p: p.grad.numpy())
    found = net.evaluate(x, y, lengths=lengths, loss=loss)
    close(found["loss"], value.item(), 1e-13)
    for training in (False, True):
        options = {"lengths": lengths, "training": training}
        close(net.loss(x, y, loss, **options), value.item(), 1e-13)
        close(net.gradient(x, y, loss, **options), expected, 1e-12)
    outputs, inside = net.predict(x, lengths=lengths), np.arange(STEPS) < counts[:, None]
    if kind == "classes":
        right = (outputs.argmax(-1) == y)[inside]
        assert (net.predict_classes(x, lengths=lengths) == outputs.argmax(-1)).all()
        assert found["mistakes"] == (~right).sum()
        close(found["accuracy"], right.mean(), 1e-13)
        metrics = net.evaluate(x, y, lengths=lengths, metrics=["top_2", "f1"])
        close(metrics["f1"], nn.metrics.f1(y[inside], outputs[inside]), 1e-13)
    if kind == "numbers":
        close(found["rmse"], np.sqrt(((outputs - y)[inside] ** 2).mean()), 1e-13)


@pytest.mark.parametrize("kind", OVER_TIME)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_steps_on_targets_over_time_are_those_of_torch(kind, optimizer):
    activation, loss = OVER_TIME[kind]
    net, x, y = tagger(activation), sequences(24), step_targets(kind, 24)
    lengths, theirs = np.resize(LENGTHS, 24), Theirs(net)
    step = getattr(theirs.torch.optim, optimizer)(theirs.parameters(), 0.1)
    for _ in range(10):
        for k in range(0, 24, 8):
            part = slice(k, k + 8)
            step.zero_grad()
            outputs = theirs.over_time(x[part])
            torch_loss(theirs.torch, kind, outputs, y[part], lengths[part]).backward()
            step.step()
    options = {"loss": loss, "batch_size": 8, "epochs": 10, "shuffle": False, "verbose": 0}
    net.fit(x, y, lengths=lengths, optimizer=getattr(nn, optimizer)(0.1), **options)
    close(net.parameters, theirs.flat(lambda p: p.detach().numpy()), 1e-9)


def test_weights_of_sequences_weigh_their_steps():
    net, x, y = tagger("softmax"), sequences(), step_targets("classes")
    weights = np.random.default_rng(5).uniform(0.5, 2, 7)
    inside = np.arange(STEPS) < LENGTHS[:, None]
    p = np.take_along_axis(net.predict(x, lengths=LENGTHS), y[:, :, None], 2)[:, :, 0]
    steps = np.repeat(weights, LENGTHS)
    options = {"lengths": LENGTHS, "sample_weight": weights}
    close(net.loss(x, y, **options), np.average(-np.log(p[inside]), weights=steps), 1e-13)
    found = net.evaluate(x, y, metrics="f1", **options)
    outputs = net.predict(x, lengths=LENGTHS)
    close(found["f1"], nn.metrics.f1(y[inside], outputs[inside], steps), 1e-13)
    close(found["accuracy"], np.average((outputs.argmax(-1) == y)[inside], weights=steps), 1e-13)


def test_targets_over_time_in_a_fit_with_validation_and_the_rate_finder():
    net, x, y = tagger("softmax", "float32"), sequences(24), step_targets("classes", 24, -1)
    lengths = np.resize(LENGTHS, 24)
    found = net.fit(
        x, y, lengths=lengths, validation_split=0.25, epochs=2, metrics="top_2", verbose=0
    )
    last = found.history["val_accuracy"][-1], found.history["val_top_2"][-1]
    measured = net.evaluate(x[18:], y[18:], lengths=lengths[18:], metrics="top_2")
    np.testing.assert_allclose(last, (measured["accuracy"], measured["top_2"]), rtol=1e-6)
    given = {"x": x, "y": y, "lengths": lengths}
    again = net.fit(x, y, lengths=lengths, validation_data=given, verbose=0).history
    np.testing.assert_allclose(again["val_loss"][0], net.loss(x, y, lengths=lengths), rtol=1e-5)
    assert len(net.find_learning_rate(x, y, lengths=lengths, steps=20).losses)


def test_targets_over_time_do_not_depend_on_the_threads():
    trained = []
    for threads in (1, 2):
        net, x, y = tagger("softmax", "float32"), sequences(40), step_targets("classes", 40)
        lengths = np.resize(LENGTHS, 40)
        net.fit(x, y, lengths=lengths, batch_size=16, epochs=2, threads=threads, verbose=0)
        trained.append(net.parameters.tobytes())
    assert trained[0] == trained[1]


def test_one_output_at_every_step():
    net, x = tagger("sigmoid", classes=1), sequences()
    y = np.random.default_rng(0).integers(0, 2, (7, STEPS))
    for given in (y, y[:, :, None], y.astype("float64")):
        found = net.evaluate(x, given, lengths=LENGTHS)
        inside = np.arange(STEPS) < LENGTHS[:, None]
        close(found["accuracy"], ((net.predict(x)[:, :, 0] > 0.5) == y)[inside].mean(), 1e-13)


def weighted_by_torch(torch, z, y, weights):
    """PyTorch's mean over steps of the labels y, −100 where there is none, by weights of steps."""
    each = torch.nn.functional.cross_entropy(
        z.flatten(0, 1), torch.tensor(y).flatten(), reduction="none", ignore_index=-100
    )
    weights = torch.tensor(np.where(y == -100, 0, weights)).flatten()
    return (each * weights).sum() / weights.sum()


@pytest.mark.parametrize("given", ["labels", "rows"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("weighted", ["", "steps", "samples", "classes", "steps classes"])
def test_steps_without_a_label_and_weights_of_steps_are_those_of_torch(weighted, lengths, given):
    net, x, y = tagger("softmax"), sequences(), step_targets("classes")
    generator, theirs = np.random.default_rng(6), Theirs(net)
    mask, options = generator.uniform(size=y.shape) < 0.3, {"lengths": lengths}
    mask[2] = True  # a sequence without any target
    counts = np.full(7, STEPS) if lengths is None else lengths
    labels = np.where(mask | (np.arange(STEPS) >= counts[:, None]), -100, y)
    weights = np.ones(y.shape)
    if "steps" in weighted:
        weights = options["sample_weight"] = generator.uniform(0, 2, y.shape)
    if "samples" in weighted:
        options["sample_weight"] = generator.uniform(0.5, 2, 7)
        weights = np.tile(options["sample_weight"][:, None], STEPS)
    if "classes" in weighted:
        by_class = options["class_weight"] = np.array([0.5, 2.0, 1.0, 3.0])
        weights = weights * by_class[y]
    value = weighted_by_torch(theirs.torch, theirs.over_time(x), labels, weights)
    value.backward()
    masked = np.ma.array(y, mask=mask)
    if given == "rows":
        masked = np.ma.array(np.eye(CLASSES)[y], mask=np.repeat(mask[:, :, None], CLASSES, 2))
    close(net.loss(x, masked, **options), value.item(), 1e-13)
    expected = theirs.flat(lambda p: p.grad.numpy())
    close(net.gradient(x, masked, **options), expected, 1e-12)
    found, outputs = net.evaluate(x, masked, metrics="f1", **options), net.predict(x)
    present = labels != -100
    right = (net.predict_classes(x, lengths=lengths) == y)[present]
    assert found["mistakes"] == (~right).sum()
    close(found["accuracy"], np.average(right, weights=weights[present]), 1e-13)
    close(found["f1"], nn.metrics.f1(y[present], outputs[present], weights[present]), 1e-13)


@pytest.mark.parametrize("optimizer", [nn.SGD(0.1), nn.LBFGS()])
def test_a_fit_with_steps_without_a_label_is_that_without_them(optimizer):
    x, y, nets = sequences(24), step_targets("classes", 24), [tagger("softmax") for _ in range(2)]
    mask = np.tile(np.arange(STEPS) >= 4, (24, 1))
    validation = {"x": x, "y": np.ma.array(y, mask=mask)}
    options = {"epochs": 3, "optimizer": optimizer, "verbose": 0}
    options["batch_size"] = None if isinstance(optimizer, nn.LBFGS) else 8
    nets[0].fit(x, np.ma.array(y, mask=mask), validation_data=validation, **options)
    wild = np.where(mask, (y + 1) % CLASSES, y)
    nets[1].fit(x, wild, sample_weight=(~mask).astype(float), **options)
    assert nets[0].parameters.tobytes() == nets[1].parameters.tobytes()
    assert not (nets[0].parameters == tagger("softmax").parameters).all()
    if options["batch_size"]:
        lengths = {"lengths": np.full(24, 4)}
        short = tagger("softmax")
        short.fit(x, y, validation_data=(x, y), **lengths, **options)
        close(nets[0].parameters, short.parameters, 1e-12)
    balanced = np.ma.array(y, mask=mask)
    counts = np.bincount(y[~mask], minlength=CLASSES)
    by_class = counts.sum() / (CLASSES * counts)
    expected = nets[0].loss(x, balanced, class_weight=by_class)
    close(nets[0].loss(x, balanced, class_weight="balanced"), expected, 1e-13)


def test_what_cannot_weigh_steps_refuses_labels_that_are_masked():
    net, x, y = tagger("softmax"), sequences(), step_targets("classes")
    masked = np.ma.masked_equal(y, 1)
    for call in (net.profile, nn.Population([net, tagger("softmax")]).fit):
        with pytest.raises(ValueError, match="y masks labels of steps, which fit, evaluate, loss"):
            call(x, masked)
    with pytest.raises(ValueError, match="block 1 of the data: y masks labels of steps, which"):
        net.fit(lambda: iter([(x, masked)]), verbose=0)


def test_masked_targets_over_time_are_left_out():
    net, x, y = tagger(), sequences(), step_targets("numbers")
    masked = np.ma.array(y, mask=np.random.default_rng(0).uniform(size=y.shape) < 0.3)
    masked[1, 2] = masked[3] = np.ma.masked
    outputs, inside = net.predict(x, lengths=LENGTHS), np.arange(STEPS) < LENGTHS[:, None]
    inside &= ~masked.mask.all(axis=2)
    errors = np.where(masked.mask, 0, outputs - y)[inside]
    close(net.loss(x, masked, lengths=LENGTHS), (errors**2).mean(), 1e-13)


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (np.zeros((7, 5), int), {}, r"6 steps, shape \(7, 6\) of labels, or \(7, 6, 4\), got"),
        (np.zeros((7, 6, 3)), {}, r"or \(7, 6, 4\), got \(7, 6, 3\); for one target of a whole"),
        (np.zeros(7, int), {}, r"got \(7,\); for one target of a whole sequence"),
        (np.zeros((6, 6), int), {}, "x has 7 samples and y has 6"),
        (np.full((7, 6), 4), {}, r"y has label 4 at \[0, 0\], but the network's 4 outputs"),
        (np.full((7, 6), -1), {}, r"y has label -1 at \[0, 0\]"),
        (np.full((7, 6), 0.5), {}, r"fractional label 0\.5 at \[0, 0\]"),
        (np.full((7, 6), -0.5), {}, r"or rows of 4 targets, of Quantile each target once"),
        (np.full((7, 6, 4), np.nan), {}, r"y has NaN at \[0, 0, 0\]"),
        (np.ma.masked_all((7, 6), int), {}, "y masks all targets"),
        (
            np.zeros((7, 6), int),
            {"sample_weight": np.ones((7, 5))},
            r"shape \(7,\), or \(7, 6\) for every step, got \(7, 5\)",
        ),
        (
            np.ma.masked_equal(np.resize([0.5, 0.5, 0.0, 0.0], (7, 6, 4)), 0),
            {},
            r"needs all of a step; fill such steps and give them, by shape \(samples, 6\), a",
        ),
    ],
)
def test_wrong_targets_over_time_are_refused(y, options, message):
    net, x = tagger("softmax"), sequences()
    calls = [lambda f=f: f(x, y, **options) for f in (net.fit, net.evaluate, net.loss)]
    for call in [*calls, lambda: net.gradient(x, y, **options)]:
        with pytest.raises(ValueError, match=message):
            call()


def test_targets_over_time_are_not_scaled():
    net = tagger()
    with pytest.raises(ValueError, match="every step of a sample has some; scale them before fit"):
        net.fit(sequences(), step_targets("numbers"), scale_targets=True)


@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_an_ensemble_takes_lengths_and_targets_over_time(combine):
    x, y, nets = sequences(), step_targets("classes"), [tagger("softmax") for _ in range(3)]
    for k, net in enumerate(nets):
        net.parameters += np.random.default_rng(k).uniform(-1, 1, net.parameters.size)
    both, inside = nn.Ensemble(nets, combine), np.arange(STEPS) < LENGTHS[:, None]
    outputs = [net.predict(x, lengths=LENGTHS) for net in nets]
    mean = both.predict(x, lengths=LENGTHS)
    close(mean, np.mean(outputs, axis=0), 1e-13)
    given = both.predict_classes(x, lengths=LENGTHS)
    assert given.shape == (7, STEPS)
    if combine == "mean":
        assert (given == mean.argmax(-1)).all()
    found = both.evaluate(x, y, lengths=LENGTHS)
    p = np.take_along_axis(mean, y[:, :, None], 2)[:, :, 0]
    close(found["loss"], -np.log(p[inside]).mean(), 1e-12)
    close(found["accuracy"], (given == y)[inside].mean(), 1e-13)
    assert found["mistakes"] == (given != y)[inside].sum()


def test_what_examines_samples_refuses_targets_over_time():
    net, x, y = tagger("softmax"), sequences(), step_targets("classes")
    for call in (net.diagnose, lambda x, y: nn.diagnostics.importance(net, x, y)):
        with pytest.raises(ValueError, match=r"gives outputs \(6, 4\) with targets for each step"):
            call(x, y)
    assert "LSTM" in str(net.profile(x, y))
    with pytest.raises(TypeError, match=r"lengths.*sequences count with all their steps"):
        net.diagnose(x, y, lengths=LENGTHS)


# --- the state before the first step --------------------------------------------------------------


class FromState(Theirs):
    """PyTorch's modules with the states before their first steps: (h,) or (h, c) of each."""

    def __init__(self, net, trained=False):
        super().__init__(net)
        self.initial = []
        for built in net.layers if trained else ():
            names = [f"initial_{name}" for name in getattr(built.layer, "carries", ())]
            self.initial += [[self.leaf(getattr(built, n)) for n in reversed(names)]] * bool(names)

    def chunk(self, x, states):
        """The outputs, and the states after the last steps."""
        torch = self.torch
        h, after = torch.tensor(x), []
        for k, (module, layer) in enumerate(self.modules):
            given = states[k] if states else None
            if self.initial:
                given = [one.expand(1, len(x), -1).contiguous() for one in self.initial[k]]
            if given is not None:
                given = given[0] if len(given) == 1 else tuple(given)
            h, last = module(h, given)
            after.append([last] if torch.is_tensor(last) else list(last))
            h = h if layer.return_sequences else h[:, -1]
        return h.flatten(1) @ self.dense[0] + self.dense[1], after


STATEFUL = {
    "rnn": lambda **options: [nn.RNN(4, **options)],
    "lstm": lambda **options: [nn.LSTM(4, **options)],
    "gru and lstm": lambda **options: [nn.GRU(4, True, **options), nn.LSTM(3, **options)],
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_trained_initial_state_is_that_of_torch(name):
    net = network(STATEFUL[name](initial_state="trained"))
    x, y = sequences(), sequences()[:, 0, :2]
    theirs = FromState(net, trained=True)
    outputs = theirs.chunk(x, None)[0]
    close(net.predict(x), outputs.detach().numpy(), 1e-13)
    ((outputs - theirs.torch.tensor(y)) ** 2).mean().backward()
    gradient, start, k = net.gradient(x, y), 0, 0
    for built in net.layers:
        names = list(built.parameters)
        for name, values in built.parameters.items():
            if name.startswith("initial"):
                found = gradient[start : start + values.size]
                expected = theirs.initial[k][-1 if name == "initial_c" else 0].grad
                close(found, expected.numpy(), 1e-12)
            start += values.size
        k += any(name.startswith("initial") for name in names)
    assert k == len(theirs.initial) > 0


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("name", STATEFUL)
def test_chunks_of_sequences_are_those_of_torch(name, kind):
    net, x, y = network(STATEFUL[name](stateful=True)), sequences(24), sequences(24)[:, 0, :2]
    theirs, states = FromState(net), None
    optimizer = getattr(theirs.torch.optim, kind)(theirs.parameters(), 0.01)
    for _ in range(10):
        for k in range(0, 24, 8):
            optimizer.zero_grad()
            outputs, after = theirs.chunk(x[k : k + 8], states)
            ((outputs - theirs.torch.tensor(y[k : k + 8])) ** 2).mean().backward()
            optimizer.step()
            states = [[one.detach() for one in layer] for layer in after]
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    net.fit(x, y, optimizer=getattr(nn, kind)(0.01), epochs=10, **options)
    close(net.parameters, theirs.flat(lambda p: p.detach().numpy()), 1e-9)
    with theirs.torch.no_grad():
        expected, after = theirs.chunk(x[:8], states)
        more = theirs.chunk(x[8:16], after)[0]
    close(net.predict(x[:16]), np.concatenate([expected, more]), 1e-9)


def stateful(**options):
    return network(STATEFUL["gru and lstm"](stateful=True), **options)


def test_batches_of_a_stateful_network_are_one_long_sequence():
    long = network([nn.GRU(4), nn.Dense(3)], (3 * STEPS, CHANNELS))
    x = sequences(5, (3 * STEPS, CHANNELS))
    short = network([nn.GRU(4, stateful=True), nn.Dense(3)])
    short.parameters = long.parameters
    chunks = np.concatenate(np.split(x, 3, axis=1))
    for _ in range(2):
        outputs = [short.predict(chunks[k : k + 5]) for k in (0, 5, 10)]
        close(outputs[-1], long.predict(x), 1e-13)
        short.reset_state()
    close(short.predict(chunks[:5]), outputs[0], 0)
    close(short.predict(chunks[5:]), np.concatenate(outputs[1:]), 0)
    short.reset_state()
    close(short.predict(chunks), np.concatenate(outputs), 0)
    short.reset_state()
    y = np.random.default_rng(0).normal(size=(15, 2))
    whole = short.evaluate(chunks, y)
    close(whole["rmse"], (((np.concatenate(outputs) - y) ** 2).mean()) ** 0.5, 1e-13)
    short.reset_state()
    assert short.evaluate(chunks, y, batch_size=15)["loss"] != whole["loss"]
    short.reset_state()
    close(short.evaluate(chunks, y, batch_size=5)["loss"], whole["loss"], 0)
    short.reset_state()
    first = short.evaluate(chunks[:5], y[:5], metrics=["r2", "mean_absolute_error"])
    close(first["loss"], ((outputs[0] - y[:5]) ** 2).mean(), 1e-13)
    close(first["mean_absolute_error"], abs(outputs[0] - y[:5]).mean(), 1e-13)
    expected = ((outputs[1] - y[5:10]) ** 2).mean()
    for _ in range(2):
        close(short.loss(chunks[5:10], y[5:10]), expected, 1e-13)
        close(short.loss(chunks[5:10], y[5:10], training=True), expected, 1e-13)
        short.gradient(chunks[5:10], y[5:10])
    close(short.predict(chunks[5:10]), outputs[1], 0)


def test_the_state_does_not_depend_on_the_threads_and_lasts_over_files_and_pickles(tmp_path):
    x, y, found = sequences(160), sequences(160)[:, 0, :2], []
    options = {"batch_size": 80, "shuffle": False, "verbose": 0}
    for threads in (1, 2):
        net = stateful()
        net.fit(x, y, epochs=2, threads=threads, **options)
        found.append((net.parameters.tobytes(), net.predict(x, threads=threads).tobytes()))
    assert found[0] == found[1]
    net.save(tmp_path / "net")
    away = [nn.load(tmp_path / "net"), pickle.loads(pickle.dumps(net)), copy.deepcopy(net)]
    net.fit(x, y, **options)
    for other in away:
        other.fit(x, y, **options)
        assert other.parameters.tobytes() == net.parameters.tobytes()
    expected = net.predict(x).tobytes()
    assert all(other.predict(x).tobytes() == expected for other in away)


def test_a_stateful_fit_goes_on_from_a_checkpoint(tmp_path):
    x, y, nets = sequences(40), sequences(40)[:, 0, :2], [stateful(), stateful()]
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    nets[0].fit(x, y, epochs=3, **options)
    nets[1].fit(x, y, epochs=2, callbacks=nn.callbacks.Checkpoint(tmp_path), **options)
    resumed = stateful()
    resumed.fit(x, y, epochs=3, resume=tmp_path, **options)
    assert resumed.parameters.tobytes() == nets[0].parameters.tobytes()


class ResetEveryEpoch(nn.callbacks.Callback):
    def on_epoch_begin(self, epoch, network):
        network.reset_state()


def test_a_callback_resets_the_state_and_predicts_beside_the_training():
    x, y, nets = sequences(24), sequences(24)[:, 0, :2], [stateful() for _ in range(3)]
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    for _ in range(3):
        nets[0].reset_state()
        nets[0].fit(x, y, **options)

    class Predict(nn.callbacks.Callback):
        def on_epoch_end(self, epoch, logs, network):
            network.predict(x)

    nets[1].fit(x, y, epochs=3, callbacks=[ResetEveryEpoch(), Predict()], **options)
    assert nets[1].parameters.tobytes() == nets[0].parameters.tobytes()
    validated = {"validation_data": (x[:16], y[:16]), "metrics": "rmse"}
    history = nets[2].fit(x, y, epochs=3, callbacks=ResetEveryEpoch(), **validated, **options)
    assert nets[2].parameters.tobytes() == nets[0].parameters.tobytes()
    nets[2].reset_state()
    expected = nets[2].predict(x[:8]), nets[2].predict(x[8:16])
    close(history.history["val_loss"][-1], ((np.concatenate(expected) - y[:16]) ** 2).mean(), 1e-12)


def test_a_stateful_network_on_a_gpu_is_that_of_the_cpu():
    pytest.importorskip("numba_cuda")
    make = lambda: network([nn.LSTM(3, stateful=True)], (3, CHANNELS))  # noqa: E731
    cpu, cuda, x = make(), make().to("cuda"), sequences(8, (3, CHANNELS))
    y = x[:, 0, :2]
    for net in (cpu, cuda):
        net.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    close(cuda.parameters, cpu.parameters, 1e-11)
    close(cuda.predict(x), cpu.predict(x), 1e-11)
    close(cuda.predict(x[:4]), cpu.predict(x[:4]), 1e-11)


def fitted_stateful():
    net = stateful()
    net.fit(sequences(8), sequences(8)[:, 0, :2], batch_size=4, shuffle=False, verbose=0)
    return net


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x, y: net.fit(x, y, batch_size=4), "order of the samples; pass shuffle=False"),
        (
            lambda net, x, y: net.fit(x[:7], y[:7], batch_size=4, shuffle=False),
            "7 samples in batches of 4 leave one of 3: pass a multiple of 4 samples",
        ),
        (
            lambda net, x, y: net.fit(x, y, batch_size=2, shuffle=False),
            r"state is that of 4 sequences, and a batch has 2 .* network\.reset_state\(\) first",
        ),
        (lambda net, x, y: net.predict(x[:6]), "6 samples in batches of 4 leave one of 2"),
        (
            lambda net, x, y: net.evaluate(x[:2], y[:2]),
            r"after network\.reset_state\(\), with batch_size; in a callback .* network\[:\]",
        ),
        (lambda net, x, y: net.predict(x, batch_size=8), "that of 4 sequences, and a batch has 8"),
        (
            lambda net, x, y: net.loss(x[:5], y[:5]),
            "that of 4 sequences, and a batch has 5 samples",
        ),
        (lambda net, x, y: net.gradient(x, y), "that of 4 sequences, and a batch has 8 samples"),
        (
            lambda net, x, y: net.fit(
                x, y, batch_size=4, shuffle=False, validation_data=(x[:6], y[:6])
            ),
            "6 validation samples are no multiple of 4",
        ),
        (
            lambda net, x, y: net.fit(lambda: iter([(x, y)]), batch_size=4, shuffle=False),
            r"data in blocks have batches of any size; call network\.partial_fit",
        ),
        (
            lambda net, x, y: net.fit(x, y, batch_size=None, optimizer=nn.LBFGS(), shuffle=False),
            "L-BFGS takes one batch many times",
        ),
        (lambda net, x, y: net.find_learning_rate(x, y), "without stateful=True"),
        (lambda net, x, y: nn.Population([net, stateful()]), "network 0 is stateful"),
    ],
)
def test_what_parts_the_sequences_of_a_stateful_network_is_refused(call, message):
    net = fitted_stateful()
    before, x, y = net.parameters.copy(), sequences(8), sequences(8)[:, 0, :2]
    with pytest.raises(ValueError, match=message):
        call(net, x, y)
    np.testing.assert_array_equal(net.parameters, before)


@pytest.mark.parametrize(
    ("given", "way"),
    [
        ("dropout", r"nn\.Dropout\(rate\) between layers"),
        ("bidirectional", r"nn\.Bidirectional"),
        ("hidden_size", "its size is `units`"),
        ("input_size", "input_shape"),
        ("num_layers", "a layer for each, with return_sequences=True"),
        ("batch_first", r"inputs are \(samples, steps, channels\)"),
        ("return_state", r"network\.stream\(\) has the state"),
        ("activation", r"nn\.RNN takes an activation"),
        ("recurrent_activation", "gates have the sigmoid"),
    ],
)
def test_other_names_of_a_recurrent_layer_say_what_to_write(given, way):
    with pytest.raises(TypeError, match=f"LSTM has no argument '{given}'; .*{way}"):
        nn.LSTM(units=4, **{given: 1})


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_sizes_in_torchs_order_say_what_to_write(kind):
    message = r"comes from input_shape, so PyTorch's (\w+)\(28, 64\) is nn\.\1\(64\)"
    with pytest.raises(ValueError, match=message):
        kind(28, 64)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match=r"input_shape must be an integer of at least 1, got 0"):
        network([nn.LSTM(3)], (0, 2))
    net, x, y = network([nn.LSTM(3)], (4, 2)), np.zeros((5, 0, 2)), np.zeros((5, 2))
    for call in (net.predict, lambda x: net.fit(x, y), lambda x: net.evaluate(x, y)):
        with pytest.raises(ValueError, match=r"shape \(samples, 4, 2\), got \(5, 0, 2\)"):
            call(x)


def test_a_batch_size_is_for_a_stateful_network():
    with pytest.raises(ValueError, match=r"this one has no stateful layer: .* drop batch_size"):
        network([nn.GRU(3)]).predict(sequences(4), batch_size=2)


def test_layers_that_cannot_go_on_are_refused():
    for make, message in (
        (lambda: nn.LSTM(3, reverse=True, stateful=True), "LSTM: reverse=True ends with the first"),
        (
            lambda: nn.GRU(3, stateful=True, initial_state="trained"),
            "GRU: a stateful layer goes on .* choose one",
        ),
        (lambda: nn.Bidirectional(nn.RNN(3, stateful=True)), "Bidirectional: its second direction"),
        (lambda: nn.RNN(3, initial_state="ones"), 'initial_state is "zeros" or "trained"'),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    net = network([nn.Bidirectional(nn.GRU(3, initial_state="trained"))])
    with pytest.raises(ValueError, match=r"layer 0 \(Bidirectional\) begins at the end with a"):
        net.predict(sequences(), lengths=LENGTHS)


# --- one step at a time ---------------------------------------------------------------------------

STREAMED = {
    "rnn": lambda: [nn.RNN(5, True), nn.Dense(2, activation="tanh")],
    "two layers": lambda: [
        nn.LSTM(5, True, initial_state="trained"),
        nn.LayerNorm(),
        nn.BatchNorm(),
        nn.GRU(19, True),
        nn.Dropout(0.3, inverted=False),
        nn.Dense(2, activation="softmax"),
    ],
    "one output": lambda: [
        nn.Standardize(),
        nn.Dense(1),
        nn.RNN(1, True),
        nn.GRU(11, True),
        nn.Dense(1),
    ],
    "last state": lambda: [
        nn.Rescale(0.5),
        nn.Dense(4, activation="relu"),
        nn.GRU(7, stateful=True),
        nn.Flatten(),
        nn.Dense(2),
    ],
    "words": lambda: [nn.Embedding(7, 4), nn.LSTM(8, True), nn.LSTM(33), nn.Dense(3)],
}


def streamed(name, dtype="float64"):
    """A network that goes step by step, no parameter zero, and five sequences for it."""
    net = nn.Sequential(STREAMED[name](), STEPS if name == "words" else (STEPS, 3), dtype, seed=1)
    generator = np.random.default_rng(0)
    net.parameters += generator.uniform(-0.2, 0.2, net.parameters.size)
    if name == "words":
        return net, generator.integers(0, 7, (5, STEPS))
    if name == "one output":
        net.adapt(generator.normal(3, 2, (50, STEPS, 3)))
    return net, generator.normal(size=(5, STEPS, 3)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", STREAMED)
def test_a_sequence_step_by_step_is_what_predict_gives(name, dtype):
    net, x = streamed(name, dtype)
    stream, expected = net.stream(), net.predict(x)
    for one, outputs in zip(x, expected, strict=True):
        stream.reset()
        found = [stream.step(row) for row in one]
        assert found[0].dtype == net.dtype
        found = found if net.output_steps else found[-1]
        assert np.array(found).tobytes() == outputs.tobytes()


def test_the_state_of_a_stream_is_copied_and_set_and_its_network_is_trained_meanwhile():
    net, x = streamed("two layers")
    stream = net.stream()
    stream.step(x[0, 0])
    state = stream.state
    expected = stream.step(x[0, 1])
    again = pickle.loads(pickle.dumps(stream))
    again.state = stream.state = state
    assert (stream.step(x[0, 1]) == expected).all() and (again.step(x[0, 1]) == expected).all()
    assert state.shape == (5 + 5 + 19,) and not (state == stream.state).all()
    other = net.stream()
    net.parameters *= 0.5
    other.reset()
    assert (other.step(x[0, 0]) == net.predict(x[:1])[0, 0]).all()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Dense(3)], "the network has no recurrent layer, so a step depends on none before it"),
        ([nn.Bidirectional(nn.GRU(3))], r"layer 0 \(Bidirectional\) begins with the last step"),
        ([nn.LSTM(3, reverse=True)], r"layer 0 \(LSTM\) begins with the last step"),
        ([nn.Conv1D(2, 2), nn.GRU(3)], r"layer 0 \(Conv1D\) needs more than one step at a time"),
        ([nn.GRU(3, True), nn.Flatten()], r"layer 1 \(Flatten\) needs more than one step"),
    ],
)
def test_layers_that_do_not_go_step_by_step_are_refused(layers, message):
    net = nn.Sequential(layers, (STEPS, 3))
    for call in (net.stream, lambda: net.handle(step=True)):
        with pytest.raises(ValueError, match=message):
            call()


def test_what_a_stream_cannot_read_is_refused():
    net, x = streamed("rnn")
    stream = net.stream()
    expected = stream.step(x[0, 0])
    stream.reset()
    bad = np.array([0.0, np.nan, 0.0])
    for row, message in (
        (x[0], r"row must be one step of the network's inputs, of shape \(3,\), got \(6, 3\)"),
        (x[0, 0, :2], r"got \(2,\)"),
        (bad, r"row has NaN at \[\d\]"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.step(row)
    for state, message in (
        (np.zeros(4), r"has shape \(5,\), got \(4,\)"),
        (bad[[0, 1, 0, 0, 0]], "N"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.state = state
    assert (stream.step(x[0, 0]) == expected).all()
    with pytest.raises(ValueError, match=r"row has 7(\.0)? at \[0, 0\]; Embedding takes integers"):
        streamed("words")[0].stream().step(7)
