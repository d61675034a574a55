"""The CUDA engine and the CPU engine agree, to rounding.

The CUDA engine runs on a GPU where there is one, else in Numba's simulator.

A simulated launch has at most 2,048 threads; blocks and tiles are small there, so that a few
samples already fill several of them.
"""

import numpy as np
import pytest
from checkers import close, penalty_of_an_epoch
from reference import kernels

import numbanet as nn
from examples import (
    LAYERS,
    LOSSES,
    OPTIMIZERS,
    PENALTY,
    TRAINABLE,
    TWO_PENALTIES,
    example_named,
    inputs,
    loss_named,
    named,
    network,
    set_groups,
    targets,
)
from numbanet.backend.cuda import driver
from numbanet.backend.intrinsics import as_pointer, shared_array, syncthreads, thread_in_block
from numbanet.plan import columns

pytest.importorskip("numba_cuda")
launch = pytest.importorskip("numbanet.engine.cuda.launch")

ROUNDING = 1e-11
LOSS = loss_named("quadratic")
MODES = list(launch.LaunchMode)


def force_mode(monkeypatch, mode):
    """Run everything in this launch mode.

    What does not train cannot be run by one block, and is fused.
    """

    def choose(ops, batch, training):
        return (
            mode if training or mode != launch.LaunchMode.SINGLE_BLOCK else launch.LaunchMode.FUSED
        )

    monkeypatch.setattr(launch, "choose_launch_mode", choose)
    # several chunks, some of them empty in the last batch
    monkeypatch.setattr(launch, "fused_groups", lambda ops, batch: min(batch, 4))


@pytest.fixture(params=MODES)
def mode(request, monkeypatch):
    force_mode(monkeypatch, request.param)
    return request.param


def twice(example, *args, **kwargs):
    """The network of an example on the CPU and on the GPU."""
    return network(example, *args, **kwargs), network(example, *args, **kwargs).to("cuda")


@pytest.mark.parametrize("example", LAYERS, ids=named(LAYERS))
@pytest.mark.parametrize("mode", [launch.LaunchMode.FUSED, launch.LaunchMode.PER_OP], indirect=True)
def test_outputs_agree(example, mode):
    cpu, cuda = twice(example)
    x = inputs(example, 7)
    close(cuda.predict(x), cpu.predict(x), ROUNDING)


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
@pytest.mark.parametrize("mode", [launch.LaunchMode.FUSED, launch.LaunchMode.PER_OP], indirect=True)
def test_gradients_agree_for_every_layer(example, mode):
    cpu, cuda = twice(example, LOSS, penalty=TWO_PENALTIES)
    x, y = inputs(example, 5), targets(LOSS, 5)
    close(cuda.gradient(x, y, LOSS.loss), cpu.gradient(x, y, LOSS.loss), ROUNDING)


def test_gradients_in_training_mode_agree(mode):
    layers = [nn.Dense(5), nn.BatchNorm(), nn.Dropout(0.4), nn.Dense(3)]
    nets = [nn.Sequential(layers, 4, "float64", device=device) for device in ("cpu", "cuda")]
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(7, 4)), generator.normal(size=(7, 3))
    memory = nets[1].memory.copy()
    for net in nets:
        net.epoch = 3
    close(*(net.gradient(x, y, training=True) for net in nets), ROUNDING)
    close(*(net.loss(x, y, training=True) for net in nets), ROUNDING)
    np.testing.assert_array_equal(nets[1].memory, memory)


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_two_steps_agree_for_every_layer(example, mode):
    nets, x, y = twice(example, LOSS, penalty=nn.L2(0.1)), inputs(example, 7), targets(LOSS, 7)
    histories = [
        net.fit(x, y, loss=LOSS.loss, optimizer=OPTIMIZERS["momentum"], batch_size=4).history
        for net in nets
    ]
    close(nets[1].memory, nets[0].memory, ROUNDING)
    close(histories[1]["loss"], histories[0]["loss"], ROUNDING)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "mode", [launch.LaunchMode.SINGLE_BLOCK, launch.LaunchMode.FUSED], indirect=True
)
def test_steps_agree_for_every_optimizer(optimizer, mode):
    example = example_named("dense with a list of activations")
    nets, x, y = twice(example, LOSS, penalty=PENALTY), inputs(example, 9), targets(LOSS, 9)
    before = nets[0].memory.copy()
    for net in nets:
        net.fit(x, y, loss=LOSS.loss, optimizer=OPTIMIZERS[optimizer], batch_size=6, epochs=2)
    close(nets[1].memory - before, nets[0].memory - before, 1e-9)
    close(nets[1].optimizer_state, nets[0].optimizer_state, 1e-10)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw, all of it"])
def test_layers_with_rates_and_decays_of_their_own_agree(optimizer, mode):
    example, chosen = example_named("two dense layers"), OPTIMIZERS[optimizer]
    nets, x, y = twice(example, LOSS, penalty=PENALTY), inputs(example, 9), targets(LOSS, 9)
    before = nets[0].memory.copy()
    for net in nets:
        set_groups(net)
        net.fit(x, y, loss=LOSS.loss, optimizer=chosen, batch_size=3, epochs=2)
    close(nets[1].memory - before, nets[0].memory - before, 1e-9)
    close(nets[1].optimizer_state, nets[0].optimizer_state, 1e-10)


def test_what_penalties_add_to_the_loss_is_the_norm_before_every_step(mode):
    close(*penalty_of_an_epoch("cuda", nn.SGD(0.3, clip_norm=0.1, accumulate=2)), ROUNDING)


def test_weighted_samples_agree(mode):
    example = example_named("dense")
    nets, x, y = twice(example, LOSS, penalty=PENALTY), inputs(example, 7), targets(LOSS, 7)
    weights = np.random.default_rng(4).uniform(0, 3, 7)
    options = {"loss": LOSS.loss, "sample_weight": weights}
    for net in nets:
        net.fit(x, y, batch_size=4, **options)
    close(nets[1].memory, nets[0].memory, ROUNDING)
    found, expected = (list(net.evaluate(x, y, **options).values()) for net in nets)
    close(found, expected, ROUNDING)
    close(*(net.gradient(x, y, **options) for net in nets), ROUNDING)


def test_missing_targets_agree(mode):
    example, generator = example_named("dense"), np.random.default_rng(4)
    loss = next(one for one in LOSSES if one.loss.neutral is not None)
    nets, x, y = twice(example, loss, penalty=PENALTY), inputs(example, 7), targets(loss, 7)
    y = np.ma.array(y, mask=generator.uniform(size=y.shape) < 0.4)
    weights = generator.uniform(0, 3, 7)
    for net in nets:
        net.fit(x, y, loss=loss.loss, batch_size=4, sample_weight=weights)
    close(nets[1].memory, nets[0].memory, ROUNDING)


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
def test_losses_correct_answers_and_gradients_agree(loss):
    example = example_named("dense")
    cpu, cuda = twice(example, loss, width=5)
    x, y = inputs(example, 11), targets(loss, 11, 5)
    found, expected = (net.evaluate(x, y, loss=loss.loss) for net in (cuda, cpu))
    assert found.keys() == expected.keys()
    close(list(found.values()), list(expected.values()), ROUNDING)
    close(cuda.gradient(x, y, loss.loss), cpu.gradient(x, y, loss.loss), ROUNDING)


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
def test_targets_over_time_agree(loss):
    layers = [nn.RNN(2, return_sequences=True), nn.Dense(4, activation=loss.activation)]
    cpu, cuda = (nn.Sequential(layers, (3, 2), "float64", device=d) for d in ("cpu", "cuda"))
    x, lengths = np.random.default_rng(0).normal(size=(5, 3, 2)), np.array([3, 1, 2, 3, 2])
    y = targets(loss, 15, 4)
    options = {"loss": loss.loss, "lengths": lengths}
    y = y.reshape(5, 3, *y.shape[1:])
    found, expected = (net.evaluate(x, y, **options) for net in (cuda, cpu))
    close(list(found.values()), list(expected.values()), ROUNDING)
    close(cuda.gradient(x, y, **options), cpu.gradient(x, y, **options), ROUNDING)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_inputs_of_every_type_agree(dtype):
    cpu, cuda = twice(example_named("dense wide"), LOSS)
    x = np.random.default_rng(6).integers(0, 256, (5, 3)).astype(dtype)
    y = targets(LOSS, 5).astype("float32")
    close(cuda.predict(x), cpu.predict(x), ROUNDING)
    close(cuda.gradient(x, y, LOSS.loss), cpu.gradient(x, y, LOSS.loss), ROUNDING)


def test_single_precision_agrees():
    nets = [
        nn.Sequential(
            [nn.Dense(20, activation="tanh"), nn.Dense(3, activation="softmax")], 13, device=device
        )
        for device in ("cpu", "cuda")
    ]
    x = np.random.default_rng(3).normal(size=(24, 13)).astype("float32")
    for net in nets:
        net.fit(x, np.arange(24) % 3, optimizer=nn.Adam(0.01), batch_size=12, epochs=2)
    close(nets[1].parameters, nets[0].parameters, 1e-5)


def test_a_product_of_many_tiles_agrees(mode):
    nets = [
        nn.Sequential([nn.Dense(37, activation="relu"), nn.Dense(21)], 19, "float64", device=device)
        for device in ("cpu", "cuda")
    ]
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(23, 19)), generator.normal(size=(23, 21))
    for net in nets:
        net.fit(x, y, optimizer=nn.SGD(0.1), batch_size=None, epochs=2)
    close(nets[1].parameters, nets[0].parameters, ROUNDING)


@pytest.mark.parametrize(
    "mode", [launch.LaunchMode.SINGLE_BLOCK, launch.LaunchMode.FUSED], indirect=True
)
def test_images_are_changed_alike(mode):
    augment = nn.Augment(
        shift=1,
        rotation=20,
        zoom=0.1,
        shear=0.1,
        flip_horizontal=True,
        brightness=0.2,
        noise=0.1,
        cutout=2,
    )
    nets = [
        nn.Sequential([nn.Flatten(), nn.Dense(2)], (5, 4, 2), "float64", device=device)
        for device in ("cpu", "cuda")
    ]
    x, y = np.random.default_rng(5).uniform(size=(6, 5, 4, 2)), np.ones((6, 2))
    for net in nets:
        net.fit(x, y, optimizer=nn.SGD(0.1), batch_size=3, augment=augment)
    close(nets[1].parameters, nets[0].parameters, ROUNDING)


def test_every_kernel_has_a_cuda_kernel():
    for name, kernel in kernels().items():
        if name.startswith("numbanet.network.profiler"):  # it measures the CPU
            continue
        assert kernel.cuda_kernel is not None or kernel.independent, (
            f"{name} has no CUDA kernel and does not say independent=True"
        )
        if kernel.cuda_kernel is not None:
            assert kernel.cuda_kernel.__name__ == kernel.function.__name__
            assert (
                kernel.cuda_kernel.__code__.co_varnames[:7]
                == kernel.function.__code__.co_varnames[:7]
            )


# --- what the simulator finds --------------------------------------------------------------------

simulated = pytest.mark.skipif(not driver.SIMULATED, reason="a GPU does not find it by itself")


def rotated(with_barrier):
    """The elements of an array, each moved by one place through memory that the block shares."""

    def work(address):
        numbers, k = as_pointer(address, np.int64), thread_in_block()
        shared = shared_array(numbers, driver.BLOCK_THREADS)
        shared[k] = numbers[k]
        if with_barrier:
            syncthreads()
        numbers[(k + 1) % driver.BLOCK_THREADS] = shared[k - 1 if k else driver.BLOCK_THREADS - 1]

    buffer = driver.DeviceBuffer(driver.BLOCK_THREADS, np.int64)
    buffer.upload(np.arange(1, driver.BLOCK_THREADS + 1))
    driver.CudaKernel(work, 1)(1, 1, buffer.address)
    return buffer.array.tolist()


@simulated
def test_a_barrier_that_is_missing_is_seen():
    n = driver.BLOCK_THREADS
    assert rotated(with_barrier=True) == [n - 1, n, *range(1, n - 1)]
    for _ in range(20):
        assert rotated(with_barrier=False) != rotated(with_barrier=True)


@simulated
def test_a_thread_that_fails_ends_its_block():
    def work(address):
        if thread_in_block() == 3:
            as_pointer(address, np.int64)[1] = 0
        syncthreads()

    buffer = driver.DeviceBuffer(1, np.int64)
    with pytest.raises(IndexError, match=r"tid=\[3, 0, 0\].*element 1 of an array of 1"):
        driver.CudaKernel(work, 1)(1, 1, buffer.address)


@simulated
def test_the_simulator_sees_what_lies_outside_a_memory(monkeypatch):
    force_mode(monkeypatch, launch.LaunchMode.FUSED)
    net = network(example_named("dense")).to("cuda")
    x = inputs(example_named("dense"), 3)
    net.predict(x)
    (executor,) = net.executors.executors.values()
    executor.plan.tables[:, :, columns.W] += 1_000_000
    executor.tables_written = False
    with pytest.raises(nn.CudaError, match=r"Dense.*of an array of"):
        net.predict(x)
