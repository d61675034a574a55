"""What CUDA twins share: the block's size, the tiled matrix product, sums, the walk over a row's elements.

Everything here is run by all threads of a row of blocks at once (`_simd/grid.py` numbers them).
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
"""Whether kernels run in Numba's simulator, where a thread costs about 0.1 ms: blocks and tiles are smaller there."""
BLOCK_M, BLOCK_N, TILE_K = (2, 4, 4) if SIMULATED else (16, 16, 16)
"""A tile's threads, one below the other and side by side, and how many products of a sum are brought in at a time."""
THREAD_M, THREAD_N = 2, 4
"""Numbers of a tile that one thread works out, kept in registers."""
BLOCK_THREADS = BLOCK_M * BLOCK_N
"""Threads in a block."""
TILE_M, TILE_N = BLOCK_M * THREAD_M, BLOCK_N * THREAD_N
LD_A, LD_B = TILE_M + 1, TILE_N + 1
"""Numbers from one k to the next in the block's own memory; the odd one keeps threads from waiting for the same bank."""
A_ELEMENTS, TILES_ELEMENTS, THREAD_ELEMENTS = TILE_K * LD_A, TILE_K * (LD_A + LD_B), THREAD_M * THREAD_N
SMALL = 8
"""Rows or columns below which a tile would be mostly empty: then each thread works out whole numbers of the result."""


@noinline
def gemm_cuda(start, start_row, a, a_row, a_step, ones, b, b_step, b_column, c, c_row, rows, wide, depth, starting):
    """c[i, j] = start[i, j] + Σ_k a[i, k] b[k, j], for `rows` by `wide` numbers and k < depth.

    start[i start_row + j], where `starting` is not 0 · a[i a_row + k a_step], 1 in row `ones` · b[k b_step + j b_column]
    c[i c_row + j]; start may be c
    """
    if rows < SMALL or wide < SMALL:
        gemm_naive(start, start_row, a, a_row, a_step, ones, b, b_step, b_column, c, c_row, rows, wide, depth, starting)
        return
    side = div_u32(wide + TILE_N - 1, TILE_N)
    for tile in range(block_in_group(), side * div_u32(rows + TILE_M - 1, TILE_M), blocks_per_group()):
        above = div_u32(tile, side) * TILE_M
        left = (tile - div_u32(tile, side) * side) * TILE_N
        _gemm_tile(start, start_row, a, a_row, a_step, ones, b, b_step, b_column, c, c_row, rows, wide, depth, starting, above, left)


@inline
def gemm_naive(start, start_row, a, a_row, a_step, ones, b, b_step, b_column, c, c_row, rows, wide, depth, starting):
    """`product` without tiles: each thread works out whole numbers of the result."""
    for e in range(thread_rank(), rows * wide, num_threads()):
        i = div_u32(e, wide)
        j = e - i * wide
        total = start[i * start_row + j] if starting else const_like(c, 0)
        if i == ones:
            for k in range(depth):
                total += b[k * b_step + j * b_column]
        else:
            for k in range(depth):
                total += a[i * a_row + k * a_step] * b[k * b_step + j * b_column]
        c[i * c_row + j] = total


@inline
def _gemm_tile(start, start_row, a, a_row, a_step, ones, b, b_step, b_column, c, c_row, rows, wide, depth, starting, above, left):
    """The tile whose first number is c[above, left]."""
    tiles, sums = shared_array(c, TILES_ELEMENTS), local_array(c, THREAD_ELEMENTS)
    me = thread_in_block()
    down = div_u32(me, BLOCK_N)
    across = me - down * BLOCK_N
    for r in range(THREAD_M):
        for s in range(THREAD_N):
            sums[r * THREAD_N + s] = const_like(c, 0)
    for first in range(0, depth, TILE_K):
        for e in range(me, TILE_M * TILE_K, BLOCK_THREADS):
            # Neighbouring threads read neighbouring numbers, whichever way they lie.
            i, k = (div_u32(e, TILE_K), e % TILE_K) if a_step == 1 else (e % TILE_M, div_u32(e, TILE_M))
            value = const_like(c, 0)
            if above + i < rows and first + k < depth:
                value = const_like(c, 1) if above + i == ones else a[(above + i) * a_row + (first + k) * a_step]
            tiles[k * LD_A + i] = value
        for e in range(me, TILE_N * TILE_K, BLOCK_THREADS):
            j, k = (e % TILE_N, div_u32(e, TILE_N)) if b_column == 1 else (div_u32(e, TILE_K), e % TILE_K)
            value = const_like(c, 0)
            if left + j < wide and first + k < depth:
                value = b[(first + k) * b_step + (left + j) * b_column]
            tiles[A_ELEMENTS + k * LD_B + j] = value
        syncthreads()
        for k in range(min(TILE_K, depth - first)):
            for r in range(THREAD_M):
                one = tiles[k * LD_A + down + r * BLOCK_M]
                for s in range(THREAD_N):
                    sums[r * THREAD_N + s] += one * tiles[A_ELEMENTS + k * LD_B + across + s * BLOCK_N]
        syncthreads()
    for r in range(THREAD_M):
        i = above + down + r * BLOCK_M
        for s in range(THREAD_N):
            j = left + across + s * BLOCK_N
            if i < rows and j < wide:
                total = sums[r * THREAD_N + s]
                c[i * c_row + j] = start[i * start_row + j] + total if starting else total


@noinline
def block_sum(room, values, n):
    """The sum of n numbers, the same in every run, for lane 0 of a block; `room` gives the type of the sum."""
    sums = shared_array(room, BLOCK_THREADS)
    me = thread_in_block()
    mine = const_like(room, 0)
    for i in range(me, n, BLOCK_THREADS):
        mine += values[i]
    sums[me] = mine
    syncthreads()
    step = BLOCK_THREADS // 2
    while step:
        if me < step:
            sums[me] += sums[me + step]
        syncthreads()
        step //= 2
    return sums[0]
