"""exp, log, tanh, sigmoid, softplus and power: errors of at most 4 ulp, and NaN passes through."""

import numpy as np
import pytest

from numbanet.backend import elementary
from numbanet.backend.jit import entry_point

ULP = 4
DTYPES = [np.float32, np.float64]
pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than double here"
)


@entry_point
def exps(x, y):
    for i in range(len(x)):
        y[i] = elementary.exp(x[i])


@entry_point
def logs(x, y):
    for i in range(len(x)):
        y[i] = elementary.log(x[i])


@entry_point
def tanhs(x, y):
    for i in range(len(x)):
        y[i] = elementary.tanh(x[i])


@entry_point
def sigmoids(x, y):
    for i in range(len(x)):
        y[i] = elementary.sigmoid(x[i])


@entry_point
def softpluses(x, y):
    for i in range(len(x)):
        y[i] = elementary.softplus(x[i])


def values(function, x):
    y = np.empty_like(x)
    function(x, y)
    return y


def around(low, high, dtype, n=200_003):
    """Evenly spaced values, logarithmically spaced values of either sign, and zero."""
    even = np.linspace(low, high, n)
    small = np.geomspace(1e-30, max(abs(low), abs(high)), n // 4)
    every = np.concatenate([even, small, -small, [0.0, -0.0]])
    every = every[(every >= low) & (every <= high)]
    return every.astype(dtype)


def ulps(found, exact):
    """Errors in units in the last place of the exact value."""
    unit = np.spacing(np.abs(exact).astype(found.dtype)).astype(np.longdouble)
    return np.abs(found.astype(np.longdouble) - exact) / unit


def holds(function, exact, x):
    found = values(function, x)
    assert found.dtype == x.dtype
    errors = ulps(found, exact(x.astype(np.longdouble)))
    worst = errors.argmax()
    assert errors[worst] <= ULP, (
        f"{float(errors[worst]):.2f} units off at {x[worst]!r}: {found[worst]!r}"
    )


def exact_softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def exact_sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_is_within_four_units(dtype):
    bound = 86.9 if dtype == np.float32 else 707.9
    holds(exps, np.exp, around(-bound, bound, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_is_within_four_units(dtype):
    holds(tanhs, np.tanh, around(-30, 30, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_is_within_four_units(dtype):
    holds(sigmoids, exact_sigmoid, around(-86 if dtype == np.float32 else -700, 100, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_softplus_is_within_four_units(dtype):
    holds(softpluses, exact_softplus, around(-86 if dtype == np.float32 else -700, 100, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_is_within_four_units(dtype):
    limits = np.finfo(dtype)
    wide = np.exp(np.linspace(np.log(limits.tiny) * 0.9999, np.log(limits.max) * 0.9999, 100_003))
    near_one = 1 + np.concatenate(
        [np.geomspace(limits.eps, 0.5, 20_001), -np.geomspace(limits.eps, 0.5, 20_001)]
    )
    holds(
        logs,
        np.log,
        np.concatenate([wide, near_one, [limits.tiny, limits.max, 1, 2, 0.5, np.sqrt(2)]]).astype(
            dtype
        ),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [exps, logs, tanhs, sigmoids, softpluses])
def test_nan_passes_through_and_spoils_no_neighbour(function, dtype):
    x = np.linspace(0.5, 2, 37).astype(dtype)
    clean = values(function, x)
    for place in (0, 5, 17, 36):
        spoilt = x.copy()
        spoilt[place] = np.nan
        found = values(function, spoilt)
        assert np.isnan(found[place])
        assert (np.delete(found, place) == np.delete(clean, place)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_far_out_the_functions_saturate(dtype):
    far = np.array([-np.inf, -1e30, -1e4, 1e4, 1e30, np.inf], dtype)
    limits = np.finfo(dtype)
    assert values(tanhs, far).tolist() == [-1, -1, -1, 1, 1, 1]
    low, high = values(sigmoids, far)[:3], values(sigmoids, far)[3:]
    assert (high == 1).all() and (low > 0).all() and (low < 4 * limits.tiny).all()
    grown = values(exps, far)
    assert (grown[:3] > 0).all() and (grown[:3] < 4 * limits.tiny).all()
    assert np.isfinite(grown).all() and (grown[3:] > limits.max / 16).all()
    assert (values(softpluses, far)[3:] == far[3:]).all()
    assert (values(softpluses, far)[:3] < 4 * limits.tiny).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_has_its_limits(dtype):
    found = values(logs, np.array([0, -0.0, -1, -np.inf, np.inf, 1], dtype))
    assert np.array_equal(
        found, np.array([-np.inf, -np.inf, np.nan, np.nan, np.inf, 0], dtype), equal_nan=True
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [exps, tanhs, sigmoids, softpluses, logs])
def test_a_value_is_the_same_bits_at_any_place_in_an_array(function, dtype):
    x = np.random.default_rng(3).uniform(0.01, 9, 67).astype(dtype)
    together = values(function, x)
    assert all(values(function, x[i : i + 1])[0] == together[i] for i in range(67))


@pytest.mark.parametrize("dtype", DTYPES)
def test_symmetric_functions_are_symmetric_and_rising_ones_rise(dtype):
    x = np.linspace(0, 12, 5001).astype(dtype)
    assert np.abs(ulps(values(tanhs, -x), -values(tanhs, x).astype(np.longdouble))).max() <= ULP
    assert (np.diff(values(exps, x)) > 0).all()
    assert values(tanhs, np.array([0.0], dtype))[0] == 0
    assert values(exps, np.array([0.0], dtype))[0] == 1
    assert values(sigmoids, np.array([0.0], dtype))[0] == 0.5


# --- powers ---------------------------------------------------------------------------------------


@entry_point
def powers(x, p, y):
    for i in range(len(x)):
        y[i] = elementary.power(x[i], p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 1 / 3, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_power(p, dtype):
    """The error of log is multiplied by p; small whole powers and the root are exact."""
    x = np.geomspace(1e-9, 1e9, 20_001).astype(dtype)
    y = np.empty_like(x)
    powers(x, p, y)
    exact = x.astype(np.longdouble) ** np.longdouble(p)
    steps = 0 if p in (0.0, 0.5, 1.0, 2.0) else np.abs(p * np.log(x.astype(float)))
    assert (ulps(y, exact) <= ULP * (1 + steps)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("x", "p", "exact"),
    [
        (0.0, 3.0, 0.0),
        (0.0, 0.0, 1.0),
        (1e30, 40.0, np.inf),
        (1e-30, 40.0, 0.0),
        (np.nan, 3.0, np.nan),
    ],
)
def test_power_at_the_ends(x, p, exact, dtype):
    y = np.empty(1, dtype)
    powers(np.array([x], dtype), p, y)
    np.testing.assert_equal(y[0], dtype(exact))
