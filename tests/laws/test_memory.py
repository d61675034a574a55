"""A kernel writes its own slot, all of it and nothing else.

No number is read before it was written.
"""

import numpy as np
import pytest
from checkers import KernelHarness, StepHarness, close, stray_writes

import numbanet as nn
from examples import (
    LOSSES,
    OPTIMIZERS,
    TRAINABLE,
    example_named,
    inputs,
    loss_named,
    network,
    targets,
)
from numbanet.backend.intrinsics import CACHE_LINE
from numbanet.engine.cpu import executor
from numbanet.plan.columns import ACCUMULATE, BACKWARD, FORWARD, GRADIENT

LOSS = loss_named("mean squared error")
DTYPES = ["float32", "float64"]
RANGES = [(0, 9), (0, 1), (2, 7), (8, 9)]


def verbs(harness):
    """(op, row, verb, kernel) for every kernel that the plan calls."""
    for op, row in harness.rows.items():
        for verb, column in (
            ("forward", FORWARD),
            ("backward", BACKWARD),
            ("accumulate_gradient", ACCUMULATE),
            ("gradient", GRADIENT),
        ):
            if row[column] and getattr(op, verb) is not None:
                yield op, row, verb, getattr(op, verb)


def ranges(op, verb):
    """Samples, or units of parameters."""
    return (
        RANGES
        if verb != "gradient"
        else [
            (0, op.param_rows),
            (op.param_rows // 3, op.param_rows),
            (0, 1),
            (op.param_rows - 1, op.param_rows),
        ]
    )


def harness(example, loss, dtype):
    width = 5
    net = network(example, loss, width=width, dtype=dtype)
    y = targets(loss, 9, width)
    return KernelHarness(
        net,
        inputs(example, 9, dtype=dtype),
        y if loss.targets == "labels" else y.astype(dtype),
        loss.loss,
    )


CASES = [(example, LOSS) for example in TRAINABLE] + [
    (example_named("dense"), loss) for loss in LOSSES
]
IDS = [f"{example.name}, {loss.name}" for example, loss in CASES]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_kernel_writes_nothing_outside_its_slot(case, dtype):
    here = harness(*case, dtype)
    for op, row, verb, kernel in verbs(here):
        for lo, hi in ranges(op, verb):
            here.place(
                *((lo, hi) if verb != "gradient" else (0, here.samples)), filled=verb != "forward"
            )
            assert stray_writes(here, kernel, row, verb, lo, hi) == {}, (
                f"{op.name}.{verb}({lo}, {hi})"
            )


def together(here, op, verb):
    """The op, then those in place that work on the same slot: they may fill the rest of it."""
    ops = list(here.rows)
    k, found = ops.index(op), [op]
    for other in {"forward": ops[k + 1 :], "backward": ops[:k][::-1]}.get(verb, []):
        if not (other.in_place or other.side_output):
            break
        found += [other] * other.in_place
    return found


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_kernel_fills_its_slot(case):
    here = harness(*case, "float64")
    for op, row, verb, _ in verbs(here):
        if op.in_place or verb == "accumulate_gradient":  # they add to what is there
            continue
        for lo, hi in ranges(op, verb):
            here.place(*((lo, hi) if verb != "gradient" else (0, here.samples)))
            memory, numbers = here.slot(row, verb, lo, hi)
            slot = here.memories()[memory]
            kept = slot.copy()
            slot[sorted(numbers)] = np.nan
            for one in together(here, op, verb):
                here.call(getattr(one, verb), here.rows[one], lo, hi)
            assert np.isfinite(slot).all(), f"{op.name}.{verb}({lo}, {hi})"
            slot[:] = kept


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_kernel_does_what_its_reference_does_on_any_range(case):
    agrees_with_its_references(harness(*case, "float64"))


def agrees_with_its_references(here):
    """Whether every kernel of a plan does what its reference does; returns their names."""
    called = set()
    for op, row, verb, kernel in verbs(here):
        called.add(kernel.__name__)
        for lo, hi in ranges(op, verb):
            here.place(*((lo, hi) if verb != "gradient" else (0, here.samples)))
            expected = here.call_reference(kernel, row, lo, hi)
            here.call(kernel, row, lo, hi)
            for name, memory in here.memories().items():
                if name == "acts":
                    memory[here.scratch(row)] = expected[name][here.scratch(row)] = 0
                close(memory, expected[name], 1e-13)
    return called


CELLS = {
    "tanh_step": [nn.RNN(19)],
    "relu_step": [nn.RNN(5, activation="relu")],
    "lstm_step": [nn.LSTM(19)],
    "gru_step": [nn.LSTM(3, return_sequences=True), nn.GRU(18)],
}
"""Layers whose cells have these kernels for a step; some are wider than a vector register."""


@pytest.mark.parametrize("kernel", CELLS)
def test_a_step_does_what_its_reference_does_on_any_range(kernel):
    net = nn.Sequential([*CELLS[kernel], nn.Dense(2)], (4, 3), "float64", seed=3)
    x = np.random.default_rng(2).normal(size=(9, 3))
    assert kernel in agrees_with_its_references(StepHarness(net, x))


def test_an_empty_range_changes_nothing():
    here = harness(example_named("dense"), LOSS, "float64")
    here.place(0, here.samples)
    for _, row, _, kernel in verbs(here):
        assert not any(here.call(kernel, row, 4, 4).values())


# --- whole runs --------------------------------------------------------------------------------


@pytest.fixture
def fenced(monkeypatch):
    """Let the engine's memories begin as NaN and lie between guards.

    The fence tells whether a guard was touched.
    """
    guards = []

    def fence(n, dtype):
        whole = np.full(n + 256, np.nan, dtype)
        whole[:128] = whole[-128:] = 0.625
        guards.append(whole)
        return whole[128 : 128 + n]

    monkeypatch.setattr(executor, "allocate", fence)
    return lambda: (
        len(guards) > 0
        and all((whole[:128] == 0.625).all() and (whole[-128:] == 0.625).all() for whole in guards)
    )


def everything(example, loss, threads):
    """What a network gives in prediction, evaluation, gradient and training, as bytes."""
    net, x, y = (
        network(example, loss, dtype="float32", penalty=nn.L2(0.1)),
        inputs(example, 37),
        targets(loss, 37),
    )
    found = [
        net.predict(x, threads=threads).tobytes(),
        net.gradient(x, y, loss.loss, threads=threads).tobytes(),
        repr(net.evaluate(x, y, loss=loss.loss, threads=threads)),
    ]
    net.fit(x, y, loss=loss.loss, optimizer=nn.Adam(), batch_size=16, epochs=2, threads=threads)
    return [*found, net.parameters.tobytes()]


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_runs_stay_in_their_memories_and_read_nothing_unwritten(case, threads, request):
    expected = everything(*case, threads)
    intact = request.getfixturevalue("fenced")
    assert everything(*case, threads) == expected
    assert intact()


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if OPTIMIZERS[name].around])
def test_what_is_kept_for_an_update_is_written_before_it_is_read(optimizer, request):
    example, found = example_named("two dense layers"), []
    x, y = inputs(example, 37), targets(LOSS, 37)
    for fence in (False, True):
        intact = request.getfixturevalue("fenced") if fence else lambda: True
        net = network(example, LOSS, dtype="float32", penalty=nn.L2(0.1))
        options = {"optimizer": OPTIMIZERS[optimizer], "batch_size": 8, "epochs": 2, "threads": 2}
        net.fit(x, y, loss=LOSS.loss, **options)
        found.append((net.parameters.tobytes(), net.optimizer_state.tobytes()))
        assert intact()
    assert found[0] == found[1]


def test_a_step_leaves_inputs_and_targets_alone():
    net, x, y = (
        network(example_named("dense"), LOSS),
        inputs(example_named("dense"), 37),
        targets(LOSS, 37),
    )
    before = x.tobytes(), y.tobytes()
    net.fit(x, y, loss=LOSS.loss, batch_size=5, epochs=2)
    net.predict(x)
    assert (x.tobytes(), y.tobytes()) == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 77, 1 << 20])
def test_a_memory_begins_with_a_cache_line(n, dtype):
    memory = executor.allocate(n, dtype)
    assert memory.shape == (n,) and memory.dtype == dtype and not memory.any()
    assert n == 0 or memory.ctypes.data % CACHE_LINE == 0
