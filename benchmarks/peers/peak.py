"""What the processor could do at most: multiply-adds on full vector registers, without memory."""

import time
from concurrent.futures import ThreadPoolExecutor

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbanet.backend.intrinsics import VECTOR_BYTES

CHAINS = 12
"""Sums at once: two units times a latency of four to six cycles; they fit sixteen registers."""
UNROLLED = 4
LANES = VECTOR_BYTES // 4


@intrinsic
def _burst(typingctx, count):
    """`count` times UNROLLED multiply-adds on each of CHAINS registers of float32."""

    def codegen(context, builder, signature, args):
        whole, single = ir.IntType(64), ir.FloatType()
        vector = ir.VectorType(single, LANES)
        name = f"llvm.fmuladd.v{LANES}f32"
        kind = ir.FunctionType(vector, [vector] * 3)
        multiply_add = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        slope, step = (
            ir.Constant(vector, [ir.Constant(single, value)] * LANES) for value in (0.999, 0.001)
        )
        before, head, after = (
            builder.block,
            builder.append_basic_block("head"),
            builder.append_basic_block("after"),
        )
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(whole)
        index.add_incoming(whole(0), before)
        sums = [builder.phi(vector) for _ in range(CHAINS)]
        following = sums
        for k, one in enumerate(sums):
            one.add_incoming(ir.Constant(vector, [ir.Constant(single, float(k))] * LANES), before)
        for _ in range(UNROLLED):
            following = [builder.call(multiply_add, [one, slope, step]) for one in following]
        for one, new in zip(sums, following, strict=True):
            one.add_incoming(new, head)
        count_up = builder.add(index, whole(1))
        index.add_incoming(count_up, head)
        builder.cbranch(builder.icmp_signed("<", count_up, args[0]), head, after)
        builder.position_at_end(after)
        total = following[0]
        for one in following[1:]:
            total = builder.fadd(total, one)
        return builder.extract_element(total, ir.IntType(32)(0))

    return types.float32(types.int64), codegen


@numba.njit(nogil=True)
def burst(count):
    return _burst(count)


def peak(threads: int, seconds: float = 0.01) -> float:
    """Floating-point operations per second of that many threads together; the best of three."""
    count, operations = 10_000, 2 * LANES * CHAINS * UNROLLED
    burst(count)
    began = time.perf_counter()
    burst(count)
    count = max(count, int(count * seconds / (time.perf_counter() - began)))
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            began = time.perf_counter()
            list(pool.map(burst, [count] * threads))
            best = max(best, operations * count * threads / (time.perf_counter() - began))
    return best
