"""exp, log, tanh, sigmoid, softplus and power, for float32 and float64, scalars and registers.

Each is free of branches, stays within a few units in the last place (tests/test_math.py holds the
bounds) and propagates NaN. The same lines serve both precisions; where float32 needs fewer terms,
a branch on a compile-time constant leaves the rest out. The coefficients are those of the Taylor
series, which suffice after the reduction to |r| ≤ ln 2 / 2 (exp) and |s| ≤ 0.172 (log); for exp in
float32 those of the polynomial with the least error there, 1.4e-8 of eʳ − 1.
"""

import math

from numbanet.backend.intrinsics import (
    const_like,
    exp2_of_bits,
    exponent,
    is_float32,
    mantissa,
    where_greater,
)
from numbanet.backend.jit import inline_strict

_LOG2_E = 1 / math.log(2)
_LN2_HIGH_SINGLE = 0.693359375
"""ln 2 in few bits: its product with a small integer is exact in float32."""
_LN2_LOW_SINGLE = -2.1219444005469057e-4
_LN2_HIGH_DOUBLE = float.fromhex("0x1.62e42fee00000p-1")
_LN2_LOW_DOUBLE = 1.9082149292705877e-10
_ROUNDER_SINGLE = 1.5 * 2**23 + 127
_ROUNDER_DOUBLE = 1.5 * 2**52 + 1023
_ROOT2 = math.sqrt(2)
_LN2 = math.log(2)


@inline_strict
def _reduce(x):
    """2ⁿ and r with x = n ln 2 + r, |r| ≤ ln 2 / 2 and n the integer nearest to x / ln 2.

    Numbers near the rounder are integers apart, so adding it rounds; the last bits of the sum are
    then those of n and, as the rounder ends with the bias of the exponent, the exponent of 2ⁿ.
    """
    if is_float32(x):
        rounder = const_like(x, _ROUNDER_SINGLE)
        shifted = x * const_like(x, _LOG2_E) + rounder
        n = shifted - rounder
        r = (x - n * const_like(x, _LN2_HIGH_SINGLE)) - n * const_like(x, _LN2_LOW_SINGLE)
    else:
        rounder = const_like(x, _ROUNDER_DOUBLE)
        shifted = x * const_like(x, _LOG2_E) + rounder
        n = shifted - rounder
        r = (x - n * const_like(x, _LN2_HIGH_DOUBLE)) - n * const_like(x, _LN2_LOW_DOUBLE)
    return exp2_of_bits(shifted), r


@inline_strict
def _expm1_reduced(r):
    """eʳ − 1 for |r| ≤ ln 2 / 2, without cancellation near zero.

    r + r² p(r); in float32 p is summed by powers of r², which shortens the chain of operations that
    wait for one another.
    """
    r2 = r * r
    if is_float32(r):
        low = const_like(r, 0.1666654348) * r + const_like(r, 0.5)
        high = const_like(r, 0.0083666109) * r + const_like(r, 0.0416662805)
        p = (const_like(r, 0.0013946497) * r2 + high) * r2 + low
    else:
        p = const_like(r, 1 / 6227020800)
        p = p * r + const_like(r, 1 / 479001600)
        p = p * r + const_like(r, 1 / 39916800)
        p = p * r + const_like(r, 1 / 3628800)
        p = p * r + const_like(r, 1 / 362880)
        p = p * r + const_like(r, 1 / 40320)
        p = p * r + const_like(r, 1 / 5040)
        p = p * r + const_like(r, 1 / 720)
        p = p * r + const_like(r, 1 / 120)
        p = p * r + const_like(r, 1 / 24)
        p = p * r + const_like(r, 1 / 6)
        p = p * r + const_like(r, 1 / 2)
    return p * r2 + r


@inline_strict
def _clamp(x, bound):
    """x clamped to ±bound; NaN stays."""
    high, low = const_like(x, bound), const_like(x, -bound)
    x = where_greater(x, high, high, x)
    return where_greater(low, x, low, x)


@inline_strict
def exp(x):
    """eˣ; beyond ±87 (float32) or ±708 (float64) the value there, so never 0 and never infinite."""
    x = _clamp(x, 87.0) if is_float32(x) else _clamp(x, 708.0)
    power, r = _reduce(x)
    return power * (_expm1_reduced(r) + const_like(x, 1))


@inline_strict
def tanh(x):
    """The hyperbolic tangent, from e²ˣ − 1."""
    y = _clamp(x + x, 20.0) if is_float32(x) else _clamp(x + x, 40.0)
    power, r = _reduce(y)
    expm1 = power * _expm1_reduced(r) + (power - const_like(x, 1))
    return expm1 / (expm1 + const_like(x, 2))


@inline_strict
def sigmoid(x):
    """1 / (1 + e⁻ˣ)."""
    one = const_like(x, 1)
    return one / (one + exp(const_like(x, 0) - x))


@inline_strict
def log(x):
    """The natural logarithm of a positive normal number; −∞ below the smallest, NaN below zero."""
    one = const_like(x, 1)
    m, e = mantissa(x), exponent(x)
    root = const_like(x, _ROOT2)
    e = where_greater(m, root, e + one, e)
    m = where_greater(m, root, m * const_like(x, 0.5), m)
    s = (m - one) / (m + one)
    q = s * s
    if is_float32(x):
        p = const_like(x, 2 / 11)
    else:
        p = const_like(x, 2 / 23)
        p = p * q + const_like(x, 2 / 21)
        p = p * q + const_like(x, 2 / 19)
        p = p * q + const_like(x, 2 / 17)
        p = p * q + const_like(x, 2 / 15)
        p = p * q + const_like(x, 2 / 13)
        p = p * q + const_like(x, 2 / 11)
    p = p * q + const_like(x, 2 / 9)
    p = p * q + const_like(x, 2 / 7)
    p = p * q + const_like(x, 2 / 5)
    p = p * q + const_like(x, 2 / 3)
    if is_float32(x):
        value = e * const_like(x, _LN2_HIGH_SINGLE) + (
            (s + s) + (e * const_like(x, _LN2_LOW_SINGLE) + s * q * p)
        )
    else:
        value = e * const_like(x, _LN2_HIGH_DOUBLE) + (
            (s + s) + (e * const_like(x, _LN2_LOW_DOUBLE) + s * q * p)
        )
    smallest = (
        const_like(x, 1.17549435e-38) if is_float32(x) else const_like(x, 2.2250738585072014e-308)
    )
    value = where_greater(smallest, x, const_like(x, -math.inf), value)
    value = where_greater(const_like(x, 0), x, const_like(x, math.nan), value)
    return where_greater(const_like(x, math.inf), x, value, x)


@inline_strict
def softplus(x):
    """log(1 + eˣ), without overflow: max(x, 0) + log(1 + e^−|x|)."""
    zero = const_like(x, 0)
    minus_abs = where_greater(x, zero, zero - x, x)
    return where_greater(x, zero, x, zero) + log1p_unit(exp(minus_abs))


@inline_strict
def log1p_unit(t):
    """log(1 + t) for 0 ≤ t ≤ 1, exact to rounding for small t as well."""
    one = const_like(t, 1)
    u = one + t
    error = t - (u - one)
    return log(u) + error / u


@inline_strict
def power(x, p):
    """xᵖ for x ≥ 0 and a scalar p ≥ 0, as exp(p log x), and exact for p = 0, 1, 2 and 1/2.

    Otherwise the relative error grows with |p log x|; a subnormal x counts as 0, and a result
    beyond the range of `exp` becomes 0 or ∞.
    """
    if p == 0:
        return const_like(x, 1)
    if p == 1:
        return x
    if p == 2:
        return x * x
    if p == 0.5:
        return math.sqrt(x)
    t, zero = const_like(x, p) * log(x), const_like(x, 0)
    bound = const_like(x, 87.0) if is_float32(x) else const_like(x, 708.0)
    value = where_greater(zero - bound, t, zero, exp(t))
    return where_greater(t, bound, const_like(x, math.inf), value)


@inline_strict
def maximum(a, b):
    """The larger of two scalars or vectors, a where equal."""
    return where_greater(b, a, b, a)
