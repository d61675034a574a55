"""The schedule of a step: which verb of which op runs in which phase. Engines replay it.

    split-K     partial products of the inputs' features, where the first product is cut by them
    samples     forward … loss … backward, with the gradients that are accumulated during it

A phase ends, and all threads wait for one another, where an op needs statistics of the whole batch
(forward) or the sum of its partial gradients (backward). Elsewhere a gradient is accumulated after
the op's backward pass, so it may read the deltas of the op's input as well.
"""

import numpy as np

from numbanet.plan.columns import ACCUMULATE, BACKWARD, FORWARD, SPLIT_K, STATISTICS
from numbanet.plan.plan import OVER_FEATURES, OVER_SAMPLES, PHASE_SIZE, STEP_SIZE, ZERO_GRADS


def schedule(verbs_by_row: dict[int, set[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(schedule, phases) of a plan, from the verbs that each row has, in the order of the ops."""
    split = [(SPLIT_K, row) for row, verbs in verbs_by_row.items() if SPLIT_K in verbs]
    accumulated = [row for row, verbs in verbs_by_row.items() if ACCUMULATE in verbs]
    parts: list[list[tuple[int, int]]] = [[(ZERO_GRADS, row) for row in accumulated]]
    for row, verbs in verbs_by_row.items():
        if STATISTICS in verbs:
            parts[-1].append((STATISTICS, row))
            parts.append([])
        if FORWARD in verbs:
            parts[-1].append((FORWARD, row))
    for row, verbs in reversed(verbs_by_row.items()):
        backward = [(BACKWARD, row)] if BACKWARD in verbs else []
        accumulate = [(ACCUMULATE, row)] if ACCUMULATE in verbs else []
        if STATISTICS in verbs and backward:
            parts[-1] += accumulate
            parts.append(backward)
        else:
            parts[-1] += backward + accumulate
    kinds = [OVER_FEATURES] * bool(split) + [OVER_SAMPLES] * len(parts)
    steps: list[tuple[int, int]] = []
    phases = []
    for kind, part in zip(kinds, [split, *parts] if split else parts, strict=True):
        phases.append((kind, len(steps), len(steps) + len(part)))
        steps += part
    return (
        np.array(steps, np.int64).reshape(-1, STEP_SIZE),
        np.array(phases, np.int64).reshape(-1, PHASE_SIZE),
    )
