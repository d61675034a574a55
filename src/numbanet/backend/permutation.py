"""Random permutations, drawn by compiled code: those that NumPy draws, several times as fast.

    permutation(samples, low, high, first)
        = Generator(Philox(counter=first, key=[low, high])).permutation(samples)
    permute(order, orders, state)
        = order[:] = order[state.permutation(len(order))], once for each of orders

Fisher's and Yates' shuffle: for i = samples − 1 … 1, elements i and j ≤ i change places, where j is
the next word of the generator, cut to as many bits as i has, that is not above i. The loop has no
branch on a random number, which a processor would guess wrong: where a word is above i, element i
changes places with itself, and i stays.

Source   Fisher, Yates 1938; NumPy's Generator.permutation
"""

import ctypes

import numpy as np
from numba.core import types

from numbanet.backend.ahead import Unit
from numbanet.backend.intrinsics import (
    as_pointer,
    data_pointer,
    local_array,
    next_word,
    philox,
    ptr_add,
)
from numbanet.backend.jit import entry_point, inline

WORDS, BLOCK = 1024, 8
"""Words that are drawn at a time, and those that one counter gives."""


def permutation(samples: int, low: int, high: int, first: int = 0) -> np.ndarray:
    """Return 0 … samples − 1 in a random order, int64, a function of the key and the counter.

    samples     at most 2³²
    low, high   the key, below 2⁶³
    first       the counter after which the generator begins
    Raises ValueError for more samples.
    """
    if samples > 2**32:
        raise ValueError(f"{samples} samples are more than 2³²; pass shuffle=False")
    order = np.arange(samples, dtype=np.int64)
    _shuffle(order, low, high, first)
    return order


@inline
def _exchange(elements, i, mask, word):
    """One place of the shuffle, if the word fits; the next i, and as many bits as i has."""
    while mask >> 1 >= max(i, 1):
        mask >>= 1
    j = np.int64(word) & mask
    fits = j <= i
    j = j if fits else i
    elements[i], elements[j] = elements[j], elements[i]
    return i - (fits and i > 0), mask


@entry_point
def _shuffle(order, low, high, first):
    """Shuffle the elements of `order`, int64."""
    elements, words = data_pointer(order), local_array(as_pointer(0, np.uint32), WORDS)
    i, mask, counter = order.size - 1, 2**32 - 1, first
    while i > 0:
        drawn = min(WORDS, i // BLOCK * BLOCK + BLOCK)
        for k in range(0, drawn, BLOCK):
            counter += 1
            philox(ptr_add(words, k), low, high, counter)
        for k in range(drawn):
            i, mask = _exchange(elements, i, mask, words[k])


def shuffle_unit() -> Unit:
    """Return what has to be compiled for `permutation`."""
    return _shuffle.unit((types.Array(types.int64, 1, "C"), types.int64, types.int64, types.int64))


def permute(order: np.ndarray, orders: np.ndarray, state: np.random.RandomState) -> None:
    """Shuffle `order` again and again by a RandomState, and write down each of its orders.

    order    int64 (samples,), at most 2³² of them; the last of the orders afterwards
    orders   int64 (times, samples), which is overwritten
    """
    generator = state._bit_generator
    words = generator.ctypes
    function = ctypes.cast(words.next_uint32, ctypes.c_void_p).value
    with generator.lock:
        _permute(order, orders, function, words.state_address)


@entry_point
def _permute(order, orders, function, state):
    """Fill all orders, and leave the last one in `order`; `function` draws a word from `state`."""
    elements, samples = data_pointer(order), order.size
    for k in range(len(orders)):
        drawn = ptr_add(data_pointer(orders), k * samples)
        for i in range(samples):
            drawn[i] = i
        i, mask = samples - 1, 2**32 - 1
        while i > 0:
            i, mask = _exchange(drawn, i, mask, next_word(function, state))
        for i in range(samples):
            drawn[i] = elements[drawn[i]]
        for i in range(samples):
            elements[i] = drawn[i]
