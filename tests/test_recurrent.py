"""Recurrent layers: against PyTorch, their initial values, what they learn, and their errors."""

import numpy as np
import pytest
from checkers import close

import numbanet as nn
from numbanet import compiled as c

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
        last = net.layers[-1]
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

    def __call__(self, x):
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
        return h.flatten(1) @ self.dense[0] + self.dense[1]

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
    net = nn.Sequential([kind(8), nn.Dense(1, activation="sigmoid")], (12, 1), seed=1)
    net.fit(x, y, optimizer=nn.Adam(0.02), batch_size=20, epochs=30, verbose=0)
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
    calls += [lambda x, f=f, **o: f(x, y, **o) for f in (net.loss, net.gradient)]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(x, lengths=lengths)
