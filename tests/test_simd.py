"""The matrix product: every small size against NumPy, nothing written or read beyond the edges, and on lower processors."""

import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from numbanet.backend.intrinsics import brgemm_strided, data_pointer, ptr_add
from numbanet.backend.jit import entry_point
from numbanet.nn import data

GUARD = 70
"""Numbers around each operand: NaN around what is read, a marked value around what is written."""
MARK = 12345.0


@entry_point
def product(s, s_row, a, a_row, a_in, a_out, b, b_in, b_out, c, c_row, m, n, k_in, k_out, started):
    brgemm_strided(ptr_add(data_pointer(s), GUARD), s_row, ptr_add(data_pointer(a), GUARD), a_row, a_in, a_out, ptr_add(data_pointer(b), GUARD), b_in, b_out,
             ptr_add(data_pointer(c), GUARD), c_row, m, n, k_in, k_out, started)


def guarded(values, around):
    return np.concatenate([np.full(GUARD, around), np.ravel(values), np.full(GUARD, around)]).astype(np.asarray(values).dtype)


def random(generator, shape, dtype):
    return generator.uniform(0.5, 1.5, shape).astype(dtype) * generator.choice([-1, 1], shape).astype(dtype)


def check(m, n, k_in, k_out, started, dtype, gap=3, shared_row=False):
    """One product with rows of C `gap` apart: the values are right to rounding and the gaps and guards keep their marks."""
    data.inputs_float32.address(dtype)  # any kernel: with the first, the product becomes known to compiled code
    generator = np.random.default_rng([m, n, k_in, k_out, started])
    a, b = random(generator, (m, k_out, k_in), dtype), random(generator, (k_out, k_in, n), dtype)
    s = random(generator, (1 if shared_row else m, n), dtype)
    c = np.full((m, n + gap), MARK, dtype)
    start = guarded(s if started else np.full_like(s, np.nan), np.nan)  # S that is not read may hold anything
    target = guarded(c, MARK)
    product(start, 0 if shared_row else n, guarded(a, np.nan), k_out * k_in, 1, k_in, guarded(b, np.nan), n, k_in * n, target,
            n + gap, m, n, k_in, k_out, started)
    inside = target[GUARD:-GUARD].reshape(m, n + gap)
    wide = np.einsum("rok,okj->rj", a.astype(np.float64), b.astype(np.float64)) + (s.astype(np.float64) if started else 0)
    bound = np.einsum("rok,okj->rj", abs(a).astype(np.float64), abs(b).astype(np.float64)) + 2
    assert (np.abs(inside[:, :n] - wide) <= np.finfo(dtype).eps * (k_in * k_out + 2) * bound).all(), (m, n, k_in, k_out, started)
    assert (inside[:, n:] == MARK).all() and (target[:GUARD] == MARK).all() and (target[-GUARD:] == MARK).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m", range(1, 18))
def test_every_small_size_is_right_and_stays_within_its_edges(m, dtype):
    for n in range(1, 41):
        check(m, n, 1 + (7 * m + 3 * n) % 11, 1, 0, dtype)
        check(m, n, 1 + (5 * m + n) % 9, 1, 1, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [1, 2, 3, 16, 97])
def test_products_of_any_length_are_right(k, dtype):
    for m, n in ((1, 1), (1, 33), (8, 32), (9, 17), (17, 40), (13, 70)):
        check(m, n, k, 1, 0, dtype)
        check(m, n, k, 1, 1, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("started", [0, 1])
def test_two_levels_of_k_are_one_sum(started, dtype):
    for m, n in ((1, 5), (7, 16), (8, 33), (11, 39)):
        for k_in, k_out in ((1, 4), (3, 5), (5, 2), (25, 3)):
            check(m, n, k_in, k_out, started, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_row_may_start_from_the_same_row(dtype):
    for m, n in ((1, 5), (9, 16), (10, 37)):
        check(m, n, 6, 1, 1, dtype, shared_row=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_empty_product_is_nought_or_what_it_started_from(dtype):
    for m, n in ((3, 5), (9, 37)):
        check(m, n, 0, 1, 0, dtype)
        check(m, n, 4, 0, 1, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_product_may_be_added_to_itself(dtype):
    generator = np.random.default_rng(5)
    a, b, c = (random(generator, shape, dtype) for shape in ((9, 6), (6, 21), (9, 21)))
    both = guarded(c, MARK)
    product(both, 21, guarded(a, np.nan), 6, 1, 0, guarded(b, np.nan), 21, 0, both, 21, 9, 21, 6, 1, 1)
    np.testing.assert_allclose(both[GUARD:-GUARD].reshape(9, 21), c + a @ b, rtol=0, atol=1e-5 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_element_is_the_same_bits_however_the_matrix_is_cut(dtype):
    generator = np.random.default_rng(6)
    a, b = random(generator, (17, 29), dtype), random(generator, (29, 40), dtype)

    def run(rows, columns):
        part = guarded(np.zeros((len(rows), len(columns)), dtype), MARK)
        product(part, 0, guarded(a[rows], np.nan), 29, 1, 0, guarded(b[:, columns], np.nan), len(columns), 0, part, len(columns),
                len(rows), len(columns), 29, 1, 0)
        return part[GUARD:-GUARD].reshape(len(rows), len(columns))

    whole = run(range(17), range(40))
    parts = [(range(3, 4), range(40)), (range(17), range(39, 40)), (range(2, 15), range(5, 38)), (range(5), range(16))]
    for rows, columns in parts:
        assert (run(rows, columns) == whole[np.ix_(rows, columns)]).all()


def test_transposed_operands_are_a_matter_of_strides():
    generator = np.random.default_rng(7)
    a, b = random(generator, (23, 9), "float64"), random(generator, (23, 21), "float64")  # A is used transposed
    c = guarded(np.zeros((9, 21)), MARK)
    product(c, 0, guarded(a, np.nan), 1, 9, 0, guarded(b, np.nan), 21, 0, c, 21, 9, 21, 23, 1, 0)
    np.testing.assert_allclose(c[GUARD:-GUARD].reshape(9, 21), a.T @ b, rtol=0, atol=1e-13)


# --- lower processors -------------------------------------------------------------------------------------------------

TRAIN = """
import json
import numpy as np
import numbanet as nn
from numbanet.backend import intrinsics

found = {"bytes": intrinsics.VECTOR_BYTES}
for dtype in ("float32", "float64"):
    net = nn.Sequential([nn.Dense(37, activation="tanh"), nn.Dense(11, activation="relu"), nn.Dense(3, activation="softmax")], 19,
                        dtype, seed=3, penalty=nn.L2(1e-3))
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(45, 19)), generator.integers(0, 3, 45)
    history = net.fit(x, y, optimizer=nn.Adam(0.01), batch_size=10, epochs=4, threads=1)
    found[dtype] = {"loss": history.history["loss"], "parameters": net.parameters.tolist(), "outputs": net.predict(x).tolist()}
print(json.dumps(found))
"""

PROCESSORS = {
    "SSE2 alone": ("x86-64", "", 16),
    "AVX2 and FMA": ("haswell", "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2,+f16c", 32),
}


def trained(**environment):
    run = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, timeout=300,
                         env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment})
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def full():
    return trained()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86 processor")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_a_lower_processor_trains_to_the_same_numbers(processor, full):
    name, features, width = PROCESSORS[processor]
    if width > full["bytes"]:
        pytest.skip("this processor is lower still")
    found = trained(NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    assert found["bytes"] == width
    for dtype, tolerance in (("float32", 2e-4), ("float64", 1e-11)):
        for figure, expected in full[dtype].items():
            np.testing.assert_allclose(found[dtype][figure], expected, rtol=tolerance, atol=tolerance)
