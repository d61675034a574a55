"""The random numbers: known values of the hash functions, and compiled code against Python.

Permutations against NumPy's.
"""

import numpy as np
import pytest

from numbanet.backend.intrinsics import data_pointer, fold_in, store, uniform, uniform_scalar
from numbanet.backend.intrinsics.random import Word, fold_in_python, murmur, uniform_python
from numbanet.backend.jit import entry_point
from numbanet.backend.permutation import WORDS, permutation, permute

COUNTERS = [0, 1, 77, 2**32 - 9]
KEYS = [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF]


@entry_point
def compiled(key, counter, vector):
    store(data_pointer(vector), uniform(data_pointer(vector), key, counter), vector.size)
    return fold_in(key, counter), uniform_scalar(key, counter)


def test_keys_are_splitmix64():
    """The first outputs of the published generator for the seed 1234567."""
    outputs = [fold_in_python(1234567, k) % 2**64 for k in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_finaliser_is_that_of_murmurhash3():
    assert int(murmur(Word(1, 32))) == 0x514E28B7 and int(murmur(Word(0, 32))) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_compiled_code_draws_what_the_python_copy_draws(dtype):
    for key in KEYS:
        for counter in COUNTERS:
            vector = np.full(5, np.nan, dtype)
            folded, scalar = compiled(key, counter, vector)
            assert (folded, scalar) == (fold_in_python(key, counter), uniform_python(key, counter))
            drawn = [uniform_python(key, counter + k) for k in range(2)]
            assert (
                vector[:2].tolist() == drawn and (vector[:2] >= 0).all() and (vector[:2] < 1).all()
            )


@pytest.mark.parametrize("samples", [0, 1, 2, 3, 8, 9, 64, 65, WORDS - 1, WORDS + 1, 5 * WORDS])
def test_a_permutation_is_the_one_that_numpy_draws(samples):
    for low, high, first in [(0, 0, 0), (3, 5, 0), (3, 5, 77), (2**62 + 1, 2**40, 2**50)]:
        generator = np.random.Generator(np.random.Philox(counter=first, key=[low, high]))
        drawn = permutation(samples, low, high, first)
        assert drawn.dtype == np.int64
        np.testing.assert_array_equal(drawn, generator.permutation(samples))


@pytest.mark.parametrize("generator", [np.random.MT19937, np.random.PCG64])
@pytest.mark.parametrize("samples", [1, 2, 3, 64, 65, 1000])
def test_orders_are_those_that_a_random_state_draws(samples, generator):
    ours, theirs = (np.random.RandomState(generator(5)) for _ in range(2))
    order, expected = np.arange(samples)[::-1].copy(), np.arange(samples)[::-1].copy()
    orders = np.full((4, samples), -1)
    permute(order, orders, ours)
    for drawn in orders:
        expected = expected[theirs.permutation(samples)]
        np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(order, expected)
    assert ours.randint(2**30) == theirs.randint(2**30)
