"""How much one launch on a GPU does.

    SINGLE_BLOCK   one block takes many steps: forward, backward and update of a small network
    FUSED          a launch for each phase, each block group on its chunk of the batch; then one
                   for the gradients and one for the updates
    PER_OP         one launch for each op, so that many blocks compute the product of a large layer

The thresholds are estimates; they have not been measured on a GPU yet.
"""

import os
from enum import Enum

from numbanet.backend.cuda.driver import multiprocessors
from numbanet.backend.cuda.gemm import TILE_M


class LaunchMode(Enum):
    """What one launch does."""

    SINGLE_BLOCK = "single block"
    FUSED = "fused"
    PER_OP = "per op"


SINGLE_BLOCK_FLOPS = 3_000_000
"""Operations of a step up to which one block alone is expected to be faster than three launches."""
FUSED_WEIGHT_READS = 32_000_000
"""Weights that the groups of a fused launch may read together: every group reads all of them."""
SMALL_SAMPLE_FLOPS = 200_000
"""Operations of a sample below which a block group takes eight samples at least."""

SYNC_EVERY_OP = os.environ.get("NUMBANET_CUDA_SYNC", "0") not in ("", "0")
"""Wait after every op, so that an error on the GPU is reported with the op that made it; slow."""


def choose_launch_mode(ops, batch: int, training: bool) -> LaunchMode:
    """The launch mode for these ops and batch size."""
    if training and 3 * batch * sum(op.flops for op in ops) <= SINGLE_BLOCK_FLOPS:
        return LaunchMode.SINGLE_BLOCK
    reads = sum(op.n_weights for op in ops) * fused_groups(ops, batch)
    return LaunchMode.FUSED if reads <= FUSED_WEIGHT_READS else LaunchMode.PER_OP


def fused_groups(ops, batch: int) -> int:
    """Block groups of a fused launch: two for each multiprocessor, fewer for little work."""
    at_once = 8 if sum(op.flops for op in ops) < SMALL_SAMPLE_FLOPS else 1
    return max(1, min(-(-batch // at_once), 2 * multiprocessors()))


def grid_shape(ops, batch: int, mode: LaunchMode) -> tuple[int, int]:
    """(groups, blocks in a group) for a mode."""
    if mode is LaunchMode.SINGLE_BLOCK:
        return 1, 1
    if mode is LaunchMode.FUSED:
        return fused_groups(ops, batch), 1
    groups = max(1, min(-(-batch // TILE_M), 4 * multiprocessors()))
    return groups, max(1, min(64, -(-4 * multiprocessors() // groups)))
