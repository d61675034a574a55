"""What CUDA kernels share: the size of a block, the tiled matrix product, the sum over a block.

    gemm_cuda        C = β C + A·B          A (m, k) · B (k, n) · C (m, n) · β is 0 or 1
    gemm_tn_cuda     C = β C + Aᵀ·B         A is stored (k, m), perhaps with a row of ones
    gemm_nt_cuda     C = β C + A·Bᵀ         B is stored (n, k)
    gemm_bias_cuda   C = b + A·B            b (n,) is the same for every row

The arguments are those of the products on the CPU (intrinsics/gemm.py), and `ones`. Every function
here is called by all threads of a block group at once (intrinsics/cuda_threads.py gives their
ranks).
"""

import os

from numbanet.backend.intrinsics import (
    block_in_group,
    blocks_per_group,
    const_like,
    div_u32,
    local_array,
    num_threads,
    shared_array,
    syncthreads,
    thread_in_block,
    thread_rank,
)
from numbanet.backend.jit import inline, noinline

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
"""Whether kernels run in Numba's simulator.

A thread costs about 0.1 ms there, so blocks and tiles are smaller.
"""
BLOCK_M, BLOCK_N, TILE_K = (2, 4, 4) if SIMULATED else (16, 16, 16)
"""Threads of a tile along m and n, and how many products of a sum are loaded at a time."""
THREAD_M, THREAD_N = 2, 4
"""Elements of a tile that one thread computes, in registers."""
BLOCK_THREADS = BLOCK_M * BLOCK_N
"""Threads in a block."""
TILE_M, TILE_N = BLOCK_M * THREAD_M, BLOCK_N * THREAD_N
LD_A, LD_B = TILE_M + 1, TILE_N + 1
"""Leading dimensions of the tiles in shared memory; odd ones avoid bank conflicts."""
A_ELEMENTS, TILES_ELEMENTS = TILE_K * LD_A, TILE_K * (LD_A + LD_B)
THREAD_ELEMENTS = THREAD_M * THREAD_N
SMALL = 8
"""Rows or columns below which tiles would be mostly empty, and threads do whole elements."""


@inline
def gemm_cuda(m, n, k, a, lda, b, ldb, beta, c, ldc):
    """C = β C + A·B."""
    gemm_strided_cuda(m, n, k, a, lda, 1, -1, b, ldb, 1, beta, c, ldc, c, ldc)


@inline
def gemm_tn_cuda(m, n, k, a, lda, b, ldb, beta, c, ldc, ones):
    """C = β C + Aᵀ·B, with A stored (k, m); row `ones` of Aᵀ is not read but counts as ones.

    So a weight gradient gets its bias as one more row; -1 where there is none.
    """
    gemm_strided_cuda(m, n, k, a, 1, lda, ones, b, ldb, 1, beta, c, ldc, c, ldc)


@inline
def gemm_nt_cuda(m, n, k, a, lda, b, ldb, beta, c, ldc):
    """C = β C + A·Bᵀ, with B stored (n, k)."""
    gemm_strided_cuda(m, n, k, a, lda, 1, -1, b, 1, ldb, beta, c, ldc, c, ldc)


@inline
def gemm_bias_cuda(m, n, k, a, lda, b, ldb, bias, use_bias, c, ldc):
    """C = bias + A·B, or A·B where `use_bias` is 0."""
    gemm_strided_cuda(m, n, k, a, lda, 1, -1, b, ldb, 1, use_bias, bias, 0, c, ldc)


@noinline
def gemm_strided_cuda(m, n, k, a, lda, a_k, ones, b, ldb, b_j, beta, c0, ldc0, c, ldc):
    """C = β C₀ + A·B with every stride free.

    c[i, j] = β c0[i·ldc0 + j] + Σ_p a[i·lda + p·a_k] · b[p·ldb + j·b_j],  0 ≤ p < k
    Row `ones` of A counts as ones; c0 may be c.
    """
    if m < SMALL or n < SMALL:
        gemm_naive(m, n, k, a, lda, a_k, ones, b, ldb, b_j, beta, c0, ldc0, c, ldc)
        return
    tiles_n = div_u32(n + TILE_N - 1, TILE_N)
    tiles = tiles_n * div_u32(m + TILE_M - 1, TILE_M)
    for tile in range(block_in_group(), tiles, blocks_per_group()):
        row0 = div_u32(tile, tiles_n) * TILE_M
        col0 = (tile - div_u32(tile, tiles_n) * tiles_n) * TILE_N
        _gemm_tile(row0, col0, m, n, k, a, lda, a_k, ones, b, ldb, b_j, beta, c0, ldc0, c, ldc)


@inline
def gemm_naive(m, n, k, a, lda, a_k, ones, b, ldb, b_j, beta, c0, ldc0, c, ldc):
    """`gemm_strided_cuda` without tiles: each thread computes whole elements of the result."""
    for e in range(thread_rank(), m * n, num_threads()):
        i = div_u32(e, n)
        j = e - i * n
        total = c0[i * ldc0 + j] if beta else const_like(c, 0)
        if i == ones:
            for p in range(k):
                total += b[p * ldb + j * b_j]
        else:
            for p in range(k):
                total += a[i * lda + p * a_k] * b[p * ldb + j * b_j]
        c[i * ldc + j] = total


@inline
def _gemm_tile(row0, col0, m, n, k, a, lda, a_k, ones, b, ldb, b_j, beta, c0, ldc0, c, ldc):
    """Compute the tile of C whose first element is c[row0, col0]."""
    tiles, sums = shared_array(c, TILES_ELEMENTS), local_array(c, THREAD_ELEMENTS)
    tid = thread_in_block()
    tid_m = div_u32(tid, BLOCK_N)
    tid_n = tid - tid_m * BLOCK_N
    for r in range(THREAD_M):
        for s in range(THREAD_N):
            sums[r * THREAD_N + s] = const_like(c, 0)
    for k0 in range(0, k, TILE_K):
        for e in range(tid, TILE_M * TILE_K, BLOCK_THREADS):
            # Neighbouring threads read neighbouring elements, however A and B are stored.
            i, p = div_u32(e, TILE_K), e % TILE_K
            if a_k != 1:
                i, p = e % TILE_M, div_u32(e, TILE_M)
            value = const_like(c, 0)
            if row0 + i == ones and k0 + p < k:
                value = const_like(c, 1)
            elif row0 + i < m and k0 + p < k:
                value = a[(row0 + i) * lda + (k0 + p) * a_k]
            tiles[p * LD_A + i] = value
        for e in range(tid, TILE_N * TILE_K, BLOCK_THREADS):
            j, p = e % TILE_N, div_u32(e, TILE_N)
            if b_j != 1:
                j, p = div_u32(e, TILE_K), e % TILE_K
            value = const_like(c, 0)
            if col0 + j < n and k0 + p < k:
                value = b[(k0 + p) * ldb + (col0 + j) * b_j]
            tiles[A_ELEMENTS + p * LD_B + j] = value
        syncthreads()
        for p in range(min(TILE_K, k - k0)):
            for r in range(THREAD_M):
                a_value = tiles[p * LD_A + tid_m + r * BLOCK_M]
                for s in range(THREAD_N):
                    b_value = tiles[A_ELEMENTS + p * LD_B + tid_n + s * BLOCK_N]
                    sums[r * THREAD_N + s] += a_value * b_value
        syncthreads()
    for r in range(THREAD_M):
        i = row0 + tid_m + r * BLOCK_M
        for s in range(THREAD_N):
            j = col0 + tid_n + s * BLOCK_N
            if i < m and j < n:
                total = sums[r * THREAD_N + s]
                c[i * ldc + j] = c0[i * ldc0 + j] + total if beta else total


@noinline
def block_sum(dtype_of, values, n):
    """The sum of n values, bit-identical in every run, for thread 0 of a block.

    `dtype_of` points to elements of the type of the sum.
    """
    total = const_like(dtype_of, 0)
    for i in range(thread_in_block(), n, BLOCK_THREADS):
        total += values[i]
    return _sum_over_threads(dtype_of, total)


@inline
def block_square_sum(dtype_of, values, first, last):
    """The same for the squares of values first ≤ i < last."""
    total = const_like(dtype_of, 0)
    for i in range(first + thread_in_block(), last, BLOCK_THREADS):
        value = const_like(dtype_of, values[i])
        total += value * value
    return _sum_over_threads(dtype_of, total)


@inline
def _sum_over_threads(dtype_of, total):
    """The sum of what every thread of a block has, for thread 0."""
    sums, tid = shared_array(dtype_of, BLOCK_THREADS), thread_in_block()
    sums[tid] = total
    syncthreads()
    stride = BLOCK_THREADS // 2
    while stride:
        if tid < stride:
            sums[tid] += sums[tid + stride]
        syncthreads()
        stride //= 2
    return sums[0]
