"""Whatever way the numbers lie in memory, a network sees the numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbanet as nn
from examples import LAYERS, inputs, loss_named, network, targets

NETWORKS: dict = {}
quick = settings(max_examples=60, deadline=None, derandomize=True)


def net_for(n_in, n_out, dtype="float32"):
    """A classifier of n_in inputs and n_out outputs, made once."""
    if (n_in, n_out, dtype) not in NETWORKS:
        layers = [
            nn.Dense(4, activation="tanh"),
            nn.Dense(n_out, activation="softmax" if n_out > 1 else "sigmoid"),
        ]
        NETWORKS[n_in, n_out, dtype] = nn.Sequential(layers, n_in, dtype, seed=n_in)
    return NETWORKS[n_in, n_out, dtype]


def whole_numbers(samples, n_in, seed=0):
    """Small integers: every type of array can hold them."""
    return np.random.default_rng([seed, samples, n_in]).integers(0, 9, (samples, n_in))


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def spread(x):
    wide = np.full((2 * len(x), 3 * x.shape[1]), 99, x.dtype)
    wide[::2, 1::3] = x
    return wide[::2, 1::3]


def unaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)
    moved = raw[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    return moved


FORMS = {
    "a plain copy": lambda x: x.copy(),
    "every second row of every third column": spread,
    "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "read-only": read_only,
    "read-only and spread": lambda x: spread(read_only(x)),
    "Fortran order": np.asfortranarray,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "unaligned": unaligned,
    "a list of lists": lambda x: x.tolist(),
}
TYPES = [
    "float32",
    "float64",
    "float16",
    "longdouble",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint16",
    "uint32",
    "uint64",
]


@quick
@given(
    samples=st.integers(1, 17),
    n_in=st.integers(1, 17),
    n_out=st.integers(1, 5),
    form=st.sampled_from(sorted(FORMS)),
    dtype=st.sampled_from(TYPES),
    kind=st.sampled_from(["float32", "float64"]),
)
def test_any_form_of_an_array_gives_the_same_predictions(samples, n_in, n_out, form, dtype, kind):
    net, x = net_for(n_in, n_out, kind), whole_numbers(samples, n_in)
    given_x = FORMS[form](x.astype(dtype))
    before = np.array(given_x)
    expected = net.predict(x.astype("float64"))
    assert expected.shape == (samples, n_out)
    assert net.predict(given_x).tobytes() == expected.tobytes()
    assert (np.array(given_x) == before).all()


@quick
@given(
    samples=st.integers(1, 17),
    n_in=st.integers(1, 17),
    form=st.sampled_from(sorted(set(FORMS) - {"a list of lists"})),
)
def test_bytes_in_any_form_are_the_numbers_they_hold(samples, n_in, form):
    net, x = net_for(n_in, 3, "float64"), whole_numbers(samples, n_in).astype("uint8") * 31
    assert net.predict(FORMS[form](x)).tobytes() == net.predict(x.astype(float)).tobytes()


@quick
@given(
    samples=st.integers(1, 17),
    n_in=st.integers(1, 9),
    n_out=st.integers(2, 5),
    form=st.sampled_from(sorted(FORMS)),
    dtype=st.sampled_from([*TYPES, "bool"]),
)
def test_labels_rows_and_a_column_of_labels_are_the_same_targets(samples, n_in, n_out, form, dtype):
    net, x = net_for(n_in, n_out, "float64"), whole_numbers(samples, n_in)
    labels = np.random.default_rng([samples, n_out]).integers(
        0, 2 if dtype == "bool" else n_out, samples
    )
    rows = np.eye(n_out)[labels]
    expected = net.evaluate(x, labels), net.gradient(x, labels).tobytes()
    column = FORMS[form](labels[:, None].astype(dtype))
    for y in (labels.astype(dtype), column, labels.tolist(), rows, FORMS[form](rows.astype(dtype))):
        assert (net.evaluate(x, y), net.gradient(x, y).tobytes()) == expected


@quick
@given(
    samples=st.integers(1, 17),
    form=st.sampled_from(sorted(FORMS)),
    dtype=st.sampled_from([*TYPES, "bool"]),
)
def test_a_single_output_takes_bits_in_a_row_or_a_column(samples, form, dtype):
    net, x = net_for(3, 1, "float64"), whole_numbers(samples, 3)
    bits = np.random.default_rng(samples).integers(0, 2, samples)
    expected = net.evaluate(x, bits)
    assert {"loss", "accuracy", "mistakes"} == expected.keys()
    assert net.evaluate(x, FORMS[form](bits[:, None].astype(dtype))) == expected
    assert net.evaluate(x, bits.astype(dtype)) == expected


@quick
@given(
    samples=st.integers(1, 17),
    n_in=st.integers(1, 17),
    units=st.integers(1, 17),
    seed=st.integers(0, 99),
)
def test_a_dense_layer_is_a_matrix_product_for_any_shape(samples, n_in, units, seed):
    generator = np.random.default_rng(seed)
    net = nn.Sequential([nn.Dense(units)], n_in, "float64", seed=seed)
    net.layers[0].bias = generator.normal(size=units)
    x, y = generator.normal(size=(samples, n_in)), generator.normal(size=(samples, units))
    outputs = x @ net.layers[0].weights + net.layers[0].bias
    np.testing.assert_allclose(net.predict(x), outputs, rtol=0, atol=1e-13)
    found = net.gradient(x, y, "quadratic").reshape(n_in + 1, units)
    np.testing.assert_allclose(found[:-1], x.T @ (outputs - y) / samples, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[-1], (outputs - y).mean(axis=0), rtol=0, atol=1e-12)


@quick
@given(
    samples=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    threads=st.integers(1, 5),
    n_in=st.integers(1, 9),
)
def test_any_batch_size_and_any_threads_train_to_the_same_bits(samples, batch_size, threads, n_in):
    x, y = whole_numbers(samples, n_in) / 4, np.random.default_rng(samples).integers(0, 3, samples)
    results = []
    for number in (1, threads):
        net = nn.Sequential(
            [nn.Dense(5, activation="relu"), nn.Dense(3, activation="softmax")], n_in, seed=samples
        )
        net.fit(x, y, batch_size=batch_size, optimizer="adam", epochs=2, threads=number)
        results.append(net.parameters.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "form",
    sorted(
        set(FORMS)
        - {
            "a list of lists",
            "every second row of every third column",
            "read-only and spread",
            "backwards",
        }
    ),
)
def test_training_sees_the_numbers_too(form):
    x, y = whole_numbers(23, 5).astype("float32"), whole_numbers(23, 3, seed=1).astype("float64")

    def trained(x, y):
        net = nn.Sequential([nn.Dense(3, activation="tanh")], 5, seed=1)
        net.fit(x, y, batch_size=4, optimizer=nn.SGD(0.01), epochs=2)
        return net.parameters.tobytes()

    assert trained(FORMS[form](x), FORMS[form](y)) == trained(x, y)


@pytest.mark.parametrize(
    "example", [one for one in LAYERS if len(one.input_shape) > 1], ids=lambda one: one.name
)
def test_an_image_may_come_as_a_flat_row_or_in_fortran_order(example):
    net, x = network(example, loss_named("quadratic")), inputs(example, 9)
    expected = net.predict(x).tobytes()
    assert net.predict(x.reshape(9, -1)).tobytes() == expected
    assert net.predict(np.asfortranarray(x)).tobytes() == expected
    assert net.predict(np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0)).tobytes() == expected
    assert np.isfinite(
        net.loss(x, targets(loss_named("quadratic"), 9), loss_named("quadratic").loss)
    )
