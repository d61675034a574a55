"""The matrix product against NumPy in every small size, its edges, and on lower processors."""

import json
import os
import platform
import re
import subprocess
import sys

import numba
import numpy as np
import pytest
from checkers import KernelHarness

import numbanet as nn
from numbanet.backend import intrinsics
from numbanet.backend.intrinsics import VECTOR_BYTES, data_pointer, ptr_add
from numbanet.backend.intrinsics.gemm import NR_GEMV, brgemm_strided
from numbanet.backend.intrinsics.pointers import prefetch, prefetch_write
from numbanet.backend.jit import entry_point
from numbanet.nn import data
from numbanet.nn.layers import dense

GUARD = 70
"""Numbers around each operand: NaN around what is read, a marked value around what is written."""
MARK = 12345.0


@entry_point
def product(m, n, k, batch, a, lda, a_k, stride_a, b, ldb, stride_b, beta, c0, ldc0, c, ldc):
    brgemm_strided(
        m,
        n,
        k,
        batch,
        ptr_add(data_pointer(a), GUARD),
        lda,
        a_k,
        stride_a,
        ptr_add(data_pointer(b), GUARD),
        ldb,
        stride_b,
        beta,
        ptr_add(data_pointer(c0), GUARD),
        ldc0,
        ptr_add(data_pointer(c), GUARD),
        ldc,
    )


def guarded(values, around):
    return np.concatenate(
        [np.full(GUARD, around), np.ravel(values), np.full(GUARD, around)]
    ).astype(np.asarray(values).dtype)


def random(generator, shape, dtype):
    return generator.uniform(0.5, 1.5, shape).astype(dtype) * generator.choice(
        [-1, 1], shape
    ).astype(dtype)


def check(m, n, k, batch, beta, dtype, gap=3, shared_row=False):
    """One product with rows of C `gap` apart: right to rounding, and gaps and guards keep marks."""
    data.inputs_float32.address(
        dtype
    )  # any kernel: with the first, the product becomes known to compiled code
    generator = np.random.default_rng([m, n, k, batch, beta])
    a, b = random(generator, (m, batch, k), dtype), random(generator, (batch, k, n), dtype)
    c0 = random(generator, (1 if shared_row else m, n), dtype)
    c = np.full((m, n + gap), MARK, dtype)
    start = guarded(
        c0 if beta else np.full_like(c0, np.nan), np.nan
    )  # C₀ that is not read may hold anything
    target = guarded(c, MARK)
    product(
        m,
        n,
        k,
        batch,
        guarded(a, np.nan),
        batch * k,
        1,
        k,
        guarded(b, np.nan),
        n,
        k * n,
        beta,
        start,
        0 if shared_row else n,
        target,
        n + gap,
    )
    inside = target[GUARD:-GUARD].reshape(m, n + gap)
    exact = np.einsum("rok,okj->rj", a.astype(np.float64), b.astype(np.float64)) + (
        c0.astype(np.float64) if beta else 0
    )
    bound = np.einsum("rok,okj->rj", abs(a).astype(np.float64), abs(b).astype(np.float64)) + 2
    assert (np.abs(inside[:, :n] - exact) <= np.finfo(dtype).eps * (k * batch + 2) * bound).all(), (
        m,
        n,
        k,
        batch,
        beta,
    )
    assert (
        (inside[:, n:] == MARK).all()
        and (target[:GUARD] == MARK).all()
        and (target[-GUARD:] == MARK).all()
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m", range(1, 18))
def test_every_small_size_is_right_and_stays_within_its_edges(m, dtype):
    for n in range(1, 50):
        check(m, n, 1 + (7 * m + 3 * n) % 11, 1, 0, dtype)
        check(m, n, 1 + (5 * m + n) % 9, 1, 1, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", range(1, 2 * NR_GEMV + 1))
def test_a_single_row_of_any_width_is_right(width, dtype):
    vector = VECTOR_BYTES // np.dtype(dtype).itemsize
    for n in (width * vector - 1, width * vector, width * vector + 1):
        check(1, n, 5, 1, 0, dtype)
        check(1, n, 4, 2, 1, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [1, 2, 3, 16, 97])
def test_products_of_any_length_are_right(k, dtype):
    for m, n in ((1, 1), (1, 33), (8, 32), (9, 17), (17, 40), (13, 70)):
        check(m, n, k, 1, 0, dtype)
        check(m, n, k, 1, 1, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("beta", [0, 1])
def test_a_batch_of_products_is_one_sum(beta, dtype):
    for m, n in ((1, 5), (7, 16), (8, 33), (11, 39)):
        for k, batch in ((1, 4), (3, 5), (5, 2), (25, 3)):
            check(m, n, k, batch, beta, dtype)


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
    product(
        9, 21, 6, 1, guarded(a, np.nan), 6, 1, 0, guarded(b, np.nan), 21, 0, 1, both, 21, both, 21
    )
    np.testing.assert_allclose(
        both[GUARD:-GUARD].reshape(9, 21),
        c + a @ b,
        rtol=0,
        atol=1e-5 if dtype == "float32" else 1e-14,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_element_is_the_same_bits_however_the_matrix_is_cut(dtype):
    generator = np.random.default_rng(6)
    a, b = random(generator, (17, 29), dtype), random(generator, (29, 40), dtype)

    def run(rows, columns):
        part = guarded(np.zeros((len(rows), len(columns)), dtype), MARK)
        product(
            len(rows),
            len(columns),
            29,
            1,
            guarded(a[rows], np.nan),
            29,
            1,
            0,
            guarded(b[:, columns], np.nan),
            len(columns),
            0,
            0,
            part,
            0,
            part,
            len(columns),
        )
        return part[GUARD:-GUARD].reshape(len(rows), len(columns))

    whole = run(range(17), range(40))
    parts = [
        (range(3, 4), range(40)),
        (range(17), range(39, 40)),
        (range(2, 15), range(5, 38)),
        (range(5), range(16)),
    ]
    for rows, columns in parts:
        assert (run(rows, columns) == whole[np.ix_(rows, columns)]).all()


def test_transposed_operands_are_a_matter_of_strides():
    generator = np.random.default_rng(7)
    a, b = (
        random(generator, (23, 9), "float64"),
        random(generator, (23, 21), "float64"),
    )  # A is used transposed
    c = guarded(np.zeros((9, 21)), MARK)
    product(9, 21, 23, 1, guarded(a, np.nan), 1, 9, 0, guarded(b, np.nan), 21, 0, 0, c, 0, c, 21)
    np.testing.assert_allclose(c[GUARD:-GUARD].reshape(9, 21), a.T @ b, rtol=0, atol=1e-13)


@entry_point
def every_form(m, n, k, batch, use_bias, a, a_t, b, b_t, bias, c):
    """Every form of the product of the same matrices; C of each follows the one before in c."""
    a, a_t, b, b_t = data_pointer(a), data_pointer(a_t), data_pointer(b), data_pointer(b_t)
    bias, c, size, one, two = data_pointer(bias), data_pointer(c), m * n, m * k, k * n
    intrinsics.gemm(m, n, k, a, k, b, n, use_bias, c, n)
    intrinsics.gemm_tn(m, n, k, a_t, m, b, n, use_bias, ptr_add(c, size), n)
    intrinsics.gemm_nt(m, n, k, a, k, b_t, k, use_bias, ptr_add(c, 2 * size), n)
    intrinsics.gemm_bias(m, n, k, a, k, b, n, bias, use_bias, ptr_add(c, 3 * size), n)
    intrinsics.brgemm(m, n, k, batch, a, k, one, b, n, two, use_bias, ptr_add(c, 4 * size), n)
    intrinsics.brgemm_tn(m, n, k, batch, a_t, m, one, b, n, two, use_bias, ptr_add(c, 5 * size), n)
    intrinsics.brgemm_nt(m, n, k, batch, a, k, one, b_t, k, two, use_bias, ptr_add(c, 6 * size), n)
    intrinsics.brgemm_bias(
        m, n, k, batch, a, k, one, b, n, two, bias, use_bias, ptr_add(c, 7 * size), n
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 3, 4, 5, 16, 18, 33, 36, 37, 100])
def test_a_gradient_has_the_same_bits_whether_it_is_taken_or_added_to_nought(width, dtype):
    net = nn.Sequential([nn.Dense(width)], 45, dtype, seed=1)
    samples, generator = 40, np.random.default_rng(width)
    x, y = (generator.normal(size=(samples, n)).astype(dtype) for n in (45, width))
    harness = KernelHarness(net, x, y, nn.MeanSquaredError())
    (op,) = (op for op in harness.plan.ops if op.name == "Dense")
    row, grads = harness.rows[op], harness.memories()["grads"]
    harness.place(0, samples)
    for lo, hi in ((0, 8), (8, 33), (33, 46)):
        changed = harness.call(dense.gradient, row, lo, hi)
        assert changed["grads"] == set(range(lo * width, hi * width))
    taken = grads.copy()
    grads[:] = 0
    harness.call(dense.accumulate_gradient, row, 0, samples)
    assert taken.tobytes() == grads.tobytes()


def test_a_prefetch_says_whether_the_line_will_be_written():
    def fetch(x):
        prefetch(data_pointer(x))
        prefetch_write(data_pointer(x))

    compiled = numba.njit(fetch)
    compiled(np.zeros(1, np.float32))
    (code,) = compiled.inspect_llvm().values()
    written = re.findall(r"call void @llvm\.prefetch\.p0\(.*?, i32 (\d), ", code)
    assert set(written) == {"0", "1"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("used", [0, 1])
def test_every_form_of_the_product_is_what_its_name_says(used, dtype):
    data.inputs_float32.address(dtype)
    generator = np.random.default_rng(8)
    m, n, k, batch = 7, 19, 11, 3
    a, b = random(generator, (batch, m, k), dtype), random(generator, (batch, k, n), dtype)
    bias, c = random(generator, n, dtype), random(generator, (8, m, n), dtype)
    before = c.astype(np.float64) if used else np.full(c.shape, 0.0)
    before[[3, 7]] = bias if used else 0
    if not used:
        c[:] = np.nan  # not read
    transposed = [np.ascontiguousarray(x.transpose(0, 2, 1)) for x in (a, b)]
    every_form(
        m,
        n,
        k,
        batch,
        used,
        a.ravel(),
        transposed[0].ravel(),
        b.ravel(),
        transposed[1].ravel(),
        bias,
        c.reshape(-1),
    )
    products = a.astype(np.float64) @ b.astype(np.float64)
    expected = before + np.array([products[0]] * 4 + [products.sum(axis=0)] * 4)
    np.testing.assert_allclose(c, expected, rtol=0, atol=2e-5 if dtype == "float32" else 1e-13)


# --- lower processors --------------------------------------------------------------------------

TRAIN = """
import json
import numpy as np
import numbanet as nn
from numbanet.backend import intrinsics

found = {"bytes": intrinsics.VECTOR_BYTES}
for dtype in ("float32", "float64"):
    layers = [nn.Dense(37, activation="tanh"), nn.Dense(11, activation="relu")]
    layers.append(nn.Dense(3, activation="softmax"))
    net = nn.Sequential(layers, 19, dtype, seed=3, penalty=nn.L2(1e-3))
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(45, 19)), generator.integers(0, 3, 45)
    history = net.fit(x, y, optimizer=nn.Adam(0.01), batch_size=10, epochs=4, threads=1)
    found[dtype] = {"loss": history.history["loss"], "parameters": net.parameters.tolist(),
                    "outputs": net.predict(x).tolist()}
print(json.dumps(found))
"""

PROCESSORS = {
    "SSE2 alone": ("x86-64", "", 16),
    "AVX2 and FMA": (
        "haswell",
        "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2,+f16c",
        32,
    ),
}


def trained(**environment):
    run = subprocess.run(
        [sys.executable, "-c", TRAIN],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
    )
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
            np.testing.assert_allclose(
                found[dtype][figure], expected, rtol=tolerance, atol=tolerance
            )
