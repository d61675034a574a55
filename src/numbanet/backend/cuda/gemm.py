"""What CUDA twins share: the block's size, the tiled matrix product, sums, the walk over a row's elements.

Everything here is run by all threads of a row of blocks at once (`_simd/grid.py` numbers them).
"""

import os

from numbanet.backend.intrinsics import column, columns, lane, like, quotient, shared, stack, sync, thread, threads
from numbanet.backend.jit import inline, routine

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
"""Whether kernels run in Numba's simulator, where a thread costs about 0.1 ms: blocks and tiles are smaller there."""
DOWN, ACROSS, DEPTH = (2, 4, 4) if SIMULATED else (16, 16, 16)
"""A tile's threads, one below the other and side by side, and how many products of a sum are brought in at a time."""
EACH_DOWN, EACH_ACROSS = 2, 4
"""Numbers of a tile that one thread works out, kept in registers."""
LANES = DOWN * ACROSS
"""Threads in a block."""
TILE_ROWS, TILE_COLUMNS = DOWN * EACH_DOWN, ACROSS * EACH_ACROSS
LINE_A, LINE_B = TILE_ROWS + 1, TILE_COLUMNS + 1
"""Numbers from one k to the next in the block's own memory; the odd one keeps threads from waiting for the same bank."""
SIZE_A, SIZE_TILES, SIZE_EACH = DEPTH * LINE_A, DEPTH * (LINE_A + LINE_B), EACH_DOWN * EACH_ACROSS
FEW = 8
"""Rows or columns below which a tile would be mostly empty: then each thread works out whole numbers of the result."""


@routine
def product(start, start_row, a, a_row, a_step, ones, b, b_step, b_column, c, c_row, rows, wide, depth, starting):
    """c[i, j] = start[i, j] + Σ_k a[i, k] b[k, j], for `rows` by `wide` numbers and k < depth.

    start[i start_row + j], where `starting` is not 0 · a[i a_row + k a_step], 1 in row `ones` · b[k b_step + j b_column]
    c[i c_row + j]; start may be c
    """
    if rows < FEW or wide < FEW:
        numbers(start, start_row, a, a_row, a_step, ones, b, b_step, b_column, c, c_row, rows, wide, depth, starting)
        return
    side = quotient(wide + TILE_COLUMNS - 1, TILE_COLUMNS)
    for tile in range(column(), side * quotient(rows + TILE_ROWS - 1, TILE_ROWS), columns()):
        above = quotient(tile, side) * TILE_ROWS
        left = (tile - quotient(tile, side) * side) * TILE_COLUMNS
        _tile(start, start_row, a, a_row, a_step, ones, b, b_step, b_column, c, c_row, rows, wide, depth, starting, above, left)


@inline
def numbers(start, start_row, a, a_row, a_step, ones, b, b_step, b_column, c, c_row, rows, wide, depth, starting):
    """`product` without tiles: each thread works out whole numbers of the result."""
    for e in range(thread(), rows * wide, threads()):
        i = quotient(e, wide)
        j = e - i * wide
        total = start[i * start_row + j] if starting else like(c, 0)
        if i == ones:
            for k in range(depth):
                total += b[k * b_step + j * b_column]
        else:
            for k in range(depth):
                total += a[i * a_row + k * a_step] * b[k * b_step + j * b_column]
        c[i * c_row + j] = total


@inline
def _tile(start, start_row, a, a_row, a_step, ones, b, b_step, b_column, c, c_row, rows, wide, depth, starting, above, left):
    """The tile whose first number is c[above, left]."""
    tiles, sums = shared(c, SIZE_TILES), stack(c, SIZE_EACH)
    me = lane()
    down = quotient(me, ACROSS)
    across = me - down * ACROSS
    for r in range(EACH_DOWN):
        for s in range(EACH_ACROSS):
            sums[r * EACH_ACROSS + s] = like(c, 0)
    for first in range(0, depth, DEPTH):
        for e in range(me, TILE_ROWS * DEPTH, LANES):
            # Neighbouring threads read neighbouring numbers, whichever way they lie.
            i, k = (quotient(e, DEPTH), e % DEPTH) if a_step == 1 else (e % TILE_ROWS, quotient(e, TILE_ROWS))
            value = like(c, 0)
            if above + i < rows and first + k < depth:
                value = like(c, 1) if above + i == ones else a[(above + i) * a_row + (first + k) * a_step]
            tiles[k * LINE_A + i] = value
        for e in range(me, TILE_COLUMNS * DEPTH, LANES):
            j, k = (e % TILE_COLUMNS, quotient(e, TILE_COLUMNS)) if b_column == 1 else (quotient(e, DEPTH), e % DEPTH)
            value = like(c, 0)
            if left + j < wide and first + k < depth:
                value = b[(first + k) * b_step + (left + j) * b_column]
            tiles[SIZE_A + k * LINE_B + j] = value
        sync()
        for k in range(min(DEPTH, depth - first)):
            for r in range(EACH_DOWN):
                one = tiles[k * LINE_A + down + r * DOWN]
                for s in range(EACH_ACROSS):
                    sums[r * EACH_ACROSS + s] += one * tiles[SIZE_A + k * LINE_B + across + s * ACROSS]
        sync()
    for r in range(EACH_DOWN):
        i = above + down + r * DOWN
        for s in range(EACH_ACROSS):
            j = left + across + s * ACROSS
            if i < rows and j < wide:
                total = sums[r * EACH_ACROSS + s]
                c[i * c_row + j] = start[i * start_row + j] + total if starting else total


@routine
def total(room, values, n):
    """The sum of n numbers, the same in every run, for lane 0 of a block; `room` gives the type of the sum."""
    sums = shared(room, LANES)
    me = lane()
    mine = like(room, 0)
    for i in range(me, n, LANES):
        mine += values[i]
    sums[me] = mine
    sync()
    step = LANES // 2
    while step:
        if me < step:
            sums[me] += sums[me + step]
        sync()
        step //= 2
    return sums[0]
