"""Sparse inputs: gathered by a kernel, they give what the dense array gives, bit for bit."""

import tracemalloc

import numpy as np
import pytest
from checkers import close, reference_fit, reference_gradient, reference_predict

import numbanet as nn
from numbanet.io import validation
from numbanet.nn import data

sparse = pytest.importorskip("scipy.sparse")

GENERATOR = np.random.default_rng(0)
Y = GENERATOR.integers(0, 3, 60)


def matrix(samples=60, features=12, dtype="float32", density=0.2):
    """A matrix of which some rows and some columns are empty."""
    stored = GENERATOR.random((samples, features)) < density
    stored[::7] = False
    stored[:, 3] = False
    return (stored * GENERATOR.normal(size=stored.shape) * 9).astype(dtype)


def network(layers, features=12, **options):
    return nn.Sequential([*layers, nn.Dense(3, activation="softmax")], features, seed=3, **options)


SPLIT = [nn.Dense(30, "tanh")]
"""With 400 features and batches of 8 its first product is cut by features."""
CASES = {
    "dense": ([nn.Dense(7, "tanh")], 12, {}, {}),
    "float64": ([nn.Dense(7, "tanh")], 12, {"dtype": "float64"}, {}),
    "activation first": ([nn.Tanh()], 12, {}, {}),
    "rescale": ([nn.Rescale(-0.5), nn.Dense(7)], 12, {}, {}),
    "standardize": ([nn.Standardize(), nn.Dense(7), nn.BatchNorm(), nn.Dropout(0.3)], 12, {}, {}),
    "cut by features": (SPLIT, 400, {}, {}),
    "cut and rescaled": ([nn.Rescale(0.1), *SPLIT], 400, {"dtype": "float64"}, {}),
    "images": (
        [nn.Conv2D(3, 2, activation="relu"), nn.Flatten()],
        (3, 4, 1),
        {},
        {"augment": nn.Augment(shift=1, noise=0.1)},
    ),
    "sequences": ([nn.LSTM(4)], (4, 3), {}, {}),
    "weights": ([nn.Dense(7)], 12, {}, {"sample_weight": np.linspace(0.1, 2, 60)}),
    "in order": ([nn.Dense(7)], 12, {}, {"shuffle": False, "validation_split": 0.2}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "bool"])
def test_training_and_all_else_give_the_same_bits(case, threads, dtype):
    layers, shape, options, fit = CASES[case]
    features = int(np.prod(shape))
    x = abs(matrix(60, features)).astype(dtype)
    given = sparse.csr_array(x)
    nets = [network(layers, shape, threads=threads, **options) for _ in range(2)]
    common = {"optimizer": nn.Adam(0.01), "batch_size": 8, "epochs": 2, "verbose": 0, **fit}
    histories = [net.fit(one, Y, **common).history for net, one in zip(nets, (x, given))]
    assert histories[0] == histories[1]
    assert nets[0].memory.tobytes() == nets[1].memory.tobytes()
    net, some = nets[0], slice(3, 20)
    for use in (
        lambda x: net.predict(x),
        lambda x: net.predict(x[:1]),
        lambda x: net.predict_classes(x),
        lambda x: net.gradient(x[some], Y[some]),
        lambda x: net.gradient(x[some], Y[some], training=True),
        lambda x: np.array([net.loss(x, Y), *net.evaluate(x, Y).values()]),
    ):
        assert use(given).tobytes() == use(x).tobytes()


def test_every_format_serves_and_stays_as_it_is():
    x = matrix()
    net = network([nn.Dense(7)])
    expected = net.predict(x)
    doubled = sparse.coo_array((np.ones(4, "float32"), ([0, 0, 1, 1], [2, 2, 4, 1])), shape=(2, 12))
    unsorted = sparse.csr_array(
        (np.array([1, 2, 3], "float32"), np.array([5, 1, 5]), np.array([0, 3])), shape=(1, 12)
    )
    assert (net.predict(doubled) == net.predict(doubled.toarray())).all()
    assert (net.predict(unsorted) == net.predict(unsorted.toarray())).all()
    assert unsorted.indices.tolist() == [5, 1, 5] and not unsorted.has_canonical_format
    for kind in (sparse.csr_matrix, sparse.csc_array, sparse.coo_array, sparse.lil_array):
        assert (net.predict(kind(x)) == expected).all()
    long = sparse.csr_array(x)
    long.indices, long.indptr = long.indices.astype("int64"), long.indptr.astype("int64")
    assert (net.predict(long) == expected).all()
    given = sparse.csr_array(x)
    rows = validation.check_inputs(given, (12,), np.dtype("float32"))
    assert np.shares_memory(rows.values, given.data)
    assert np.shares_memory(rows.columns, given.indices)


@pytest.mark.parametrize("sizes", [[60], [16, 44], [5] * 12, [1, 59]])
def test_blocks_of_sparse_rows_train_as_one_array(sizes):
    x, ends = matrix(), np.cumsum(sizes)
    given, nets = sparse.csr_array(x), [network([nn.Dense(7)]) for _ in range(3)]
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, "shuffle": False}

    def blocks():
        for size, end in zip(sizes, ends):
            yield given[end - size : end], Y[end - size : end]

    nets[0].fit(x, Y, **options)
    nets[1].fit(blocks, **options)
    nets[2].partial_fit(given, Y, batch_size=8, shuffle=False)
    nets[2].partial_fit(given, Y, batch_size=8, shuffle=False)
    assert nets[0].memory.tobytes() == nets[1].memory.tobytes() == nets[2].memory.tobytes()
    with pytest.raises(ValueError, match=r"block 2 .*x is float32, and sparse_float32 in block 1"):
        nets[1].fit([(given, Y), (x, Y)], verbose=0)


def test_lbfgs_ensembles_profiles_and_advice_take_sparse_rows():
    x = matrix()
    given, nets = sparse.csr_array(x), [network([nn.Dense(4)]) for _ in range(2)]
    for net, one in zip(nets, (x, given)):
        net.fit(one, Y, optimizer=nn.LBFGS(), batch_size=None, epochs=3, verbose=0)
    assert nets[0].memory.tobytes() == nets[1].memory.tobytes()
    both = nn.Ensemble([network([nn.Dense(4)], penalty=nn.L2(k)) for k in (0.1, 0.2)])
    assert (both.predict_classes(given) == both.predict_classes(x)).all()
    assert both.evaluate(given, Y) == both.evaluate(x, Y)
    assert "Inputs" in str(nets[0].profile(given, Y))
    net = nn.Sequential([nn.Dense(1)], 12)
    with pytest.raises(nn.DivergenceError, match=r"x spans .*nn.Standardize"):
        net.fit(given * 1e4, Y * 1.0, optimizer=nn.SGD(1e9), verbose=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("layers", "features"), [([nn.Dense(7)], 12), (SPLIT, 400)])
def test_the_reference_engine_agrees(layers, features, dtype):
    x = sparse.csr_array(matrix(20, features, dtype))
    net, y = network([nn.Rescale(0.5), *layers], features, dtype="float64"), Y[:20]
    loss = nn.CrossEntropy()
    close(net.predict(x), reference_predict(net, x), 1e-12)
    close(net.gradient(x[:9], y[:9]), reference_gradient(net, x[:9], y[:9], loss)[0], 1e-12)
    params, _, losses = reference_fit(net, x, y, loss, nn.SGD(0.1), 9, 1)
    history = net.fit(x, y, optimizer=nn.SGD(0.1), batch_size=9, verbose=0).history
    close(net.memory, params, 1e-12)
    close(history["loss"], losses, 1e-12)


RARE_CASES = {
    "float32": ([nn.Dense(7, "tanh")], {}, True),
    "float64": ([nn.Dense(70)], {"dtype": "float64"}, True),
    "no bias": ([nn.Dense(7, bias=False)], {"dtype": "float64"}, True),
    "rescale": ([nn.Rescale(-0.5), nn.Dense(140)], {"dtype": "float64"}, True),
    "one output": ([nn.Dense(1)], {}, False),
    "not first": ([nn.Standardize(), nn.Dense(7)], {}, False),
}


@pytest.mark.parametrize("case", RARE_CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_prediction_multiplies_the_few_stored_elements_alone(case, dtype):
    layers, options, alone = RARE_CASES[case]
    x, net = matrix(60, 200, dtype, density=0.03), network(layers, 200, **options)
    for built in net.layers:
        if "bias" in built.parameters:
            built.parameters["bias"][:] = GENERATOR.normal(size=built.parameters["bias"].shape)
    given = sparse.csr_array(x)
    for rows in (given, given[20:37], given[:1], given[7:8]):  # row 7 is empty
        assert net.predict(rows).tobytes() == net.predict(rows.toarray()).tobytes()
    few, many = (
        data.inference_layout(validation.check_inputs(sparse.csr_array(one), (200,), net.dtype))
        for one in (x, x + 1)
    )
    assert (few, many) == (f"rare_sparse_{dtype}", f"sparse_{dtype}")
    assert (net.executors.inference_ops(few)[0].name == "Dense") == alone
    rounding = 1e-11 if options.get("dtype") else 1e-5
    close(net.predict(given), reference_predict(net, given), rounding)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gpu_agrees(dtype):
    pytest.importorskip("numba_cuda")
    x = sparse.csr_array(matrix(14, dtype=dtype))
    rare = sparse.csr_array(matrix(14, dtype=dtype, density=0.03))
    nets = [network([nn.Dense(5)], dtype="float64", device=device) for device in ("cpu", "cuda")]
    for net in nets:
        net.fit(x, Y[:14], batch_size=8, verbose=0)
    close(nets[1].memory, nets[0].memory, 1e-11)
    close(nets[1].predict(x), nets[0].predict(x), 1e-11)
    close(nets[1].predict(rare), nets[0].predict(rare), 1e-11)


def test_a_large_sparse_matrix_never_becomes_dense():
    rows = GENERATOR.integers(0, 30_000, 300_000), GENERATOR.integers(0, 5_000, 300_000)
    x = sparse.csr_array((np.ones(300_000, "float32"), rows), shape=(30_000, 5_000))  # 600 MB
    y = GENERATOR.integers(0, 3, 30_000)
    net = network([nn.Standardize(), nn.Dense(4)], 5_000)
    net.adapt(x[:100])
    net.fit(x[:200], y[:200], verbose=0)
    tracemalloc.start()
    net.fit(x, y, batch_size=128, validation_split=0.1, verbose=0)
    net.evaluate(x, y)
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_estimators_gather_sparse_rows_too():
    estimators = pytest.importorskip("numbanet.sklearn")
    rows = GENERATOR.integers(0, 30_000, 300_000), GENERATOR.integers(0, 2_000, 300_000)
    x = sparse.csr_array((np.ones(300_000, "float32"), rows), shape=(30_000, 2_000))  # 240 MB
    y = GENERATOR.integers(0, 3, 30_000)
    perceptron = estimators.MLPClassifier((4,), max_iter=1, batch_size=128, early_stopping=True)
    for one in (perceptron, estimators.NetworkClassifier([nn.Dense(4)], epochs=1)):
        tracemalloc.start()
        assert one.fit(x, y).predict(x).shape == y.shape
        assert tracemalloc.get_traced_memory()[1] < 60e6
        tracemalloc.stop()


def damaged(name, values, canonical=True):
    x = sparse.csr_array(matrix())
    setattr(x, name, np.asarray(values, x.indices.dtype))
    if canonical:
        x.has_canonical_format = True
    return x


def with_value(value, dtype="float32"):
    x = sparse.lil_array((60, 12), dtype=dtype)
    x[0, 2], x[41, 5] = 1, value
    return x.tocsr()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (sparse.csr_array(matrix(features=11)), ValueError, r"sparse .* \(samples, 12\), got \(60"),
        (sparse.coo_array(np.ones(12)), ValueError, r"must have shape \(samples, 12\), got \(12,"),
        (sparse.csr_array((0, 12)), ValueError, "x has no samples"),
        (with_value(np.nan), ValueError, r"x has NaN at \[41, 5\]"),
        (with_value(-np.inf), ValueError, r"x has infinity at \[41, 5\]"),
        (
            with_value(1e39, "float64"),
            ValueError,
            r"x has 1e\+39 at \[41, 5\], too large for float",
        ),
        (
            with_value(1j, "complex64"),
            TypeError,
            "sparse and must hold real numbers, got complex64",
        ),
        (damaged("indices", [99] * 5), ValueError, "x is a damaged sparse matrix"),
        (damaged("indptr", [0] * 60), ValueError, "x is a damaged sparse matrix"),
        (damaged("indptr", [0] * 60 + [10**6]), ValueError, "x is a damaged sparse matrix"),
        (
            damaged("indptr", [0, 5, 1] + [5] * 58, canonical=False),
            ValueError,
            "x is a damaged sparse matrix",
        ),
    ],
)
def test_what_is_refused(x, error, message):
    net = network([nn.Dense(7)])
    before = net.memory.copy()
    for use in (lambda: net.predict(x), lambda: net.fit(x, Y[: x.shape[0]], verbose=0)):
        with pytest.raises(error, match=message):
            use()
    assert (net.memory == before).all()


def test_many_networks_at_once_refuse_sparse_rows():
    x, net = sparse.csr_array(matrix()), network([nn.Dense(4)])
    with pytest.raises(TypeError, match="x is sparse; many networks at once read arrays"):
        nn.Population(net, 2).fit(x, Y)
    with pytest.raises(TypeError, match="x is sparse; many networks at once read arrays"):
        nn.evaluate_parameters(net, net.parameters[None], x, Y)


def test_what_is_examined_is_an_array():
    x, net = sparse.csr_array(matrix()), network([nn.Dense(4)])
    for use in (
        lambda: net.diagnose(x, Y),
        lambda: nn.diagnostics.activations(net, x),
        lambda: nn.diagnostics.importance(net, x, Y),
    ):
        with pytest.raises(TypeError, match=r"x is sparse; what it holds is examined: pass x.toar"):
            use()


def test_indices_and_targets_are_not_sparse():
    x = sparse.csr_array(np.eye(4, dtype="float32"))
    net = nn.Sequential([nn.Embedding(3, 2), nn.Flatten(), nn.Dense(2)], 4)
    with pytest.raises(TypeError, match=r"x is sparse, and Embedding reads indices; pass x.toarr"):
        net.predict(x)
    with pytest.raises(TypeError, match=r"y is a sparse matrix; pass y.toarray\(\)"):
        nn.Sequential([nn.Dense(4)], 4).fit(x, x, verbose=0)
