"""Networks of ordinary size on a GPU learn what the CPU learns; limits of the GPU are reported.

In Numba's simulator, where `pytest.mark.gpu` skips them, the same tests would pass with the tiny
sizes below.
"""

import os

import numpy as np
import pytest
from checkers import close

import numbanet as nn
from numbanet.backend.cuda import driver

pytest.importorskip("numba_cuda")
from numbanet.engine.cuda import executor, launch
from numbanet.engine.cuda.launch import LaunchMode

cuda = driver.module()

pytestmark = pytest.mark.gpu

TINY = driver.SIMULATED
SIDE = 16 if TINY else 28
"""Height and width of the images."""
HIDDEN = (6, 5) if TINY else (512, 512)
BATCH, STEPS, ROWS = (3, 2, 10) if TINY else (32, 20, 10_000)
"""Samples of a step, steps after which parameters are compared, rows of a large prediction."""
FREE, DATA = (1 << 16, 1 << 17) if TINY else (1 << 29, 1 << 30)
"""Bytes that are left free on a full GPU, and bytes of data that do not fit."""
ROUNDING = 1e-3
"""What float32 parameters may be apart after STEPS steps, of the largest in their array."""


def dense(**options):
    """784-512-512-10, for images."""
    layers = [
        nn.Flatten(),
        *(nn.Dense(n, activation="relu") for n in HIDDEN),
        nn.Dense(10, activation="softmax"),
    ]
    return nn.Sequential(layers, (SIDE, SIDE, 1), **options)


def lenet(**options):
    return nn.models.lenet5(10, (SIDE, SIDE, 1), **options)


NETWORKS = [
    pytest.param(lenet, nn.Adam(1e-3), id="LeNet-5"),
    pytest.param(dense, nn.SGD(0.1), id="784-512-512-10"),
]


@pytest.fixture(scope="module")
def digits():
    """x, y for training, x, y for the accuracy, epochs.

    MNIST, or digits of 8×8 pixels with each made larger, or random ones.
    """
    if TINY:
        generator = np.random.default_rng(0)
        x, y = (
            generator.integers(0, 256, (2 * BATCH, SIDE, SIDE, 1), np.uint8),
            np.arange(2 * BATCH) % 10,
        )
        return x, y, x, y, 1
    if os.environ.get("NUMBANET_DATA"):
        d = nn.datasets.mnist(flat=False)
        return d.x[:20_000], d.y[:20_000], d.x_test, d.y_test, 5
    pytest.importorskip("sklearn")
    d = nn.datasets.digits()
    x, y = np.concatenate([d.x, d.x_test]), np.concatenate([d.y, d.y_test])
    pixels = np.kron(x.reshape(-1, 8, 8), np.ones((1, 3, 3), np.float32))
    images = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[..., None]
    return images[: len(d.x)], d.y, images, y, 15


def trained(build, x, y, device="cuda", **options):
    """A new network after a training, and what the training measured."""
    net = build(device=device)
    return net, net.fit(x, y, **{"batch_size": BATCH, "verbose": 0, **options}).history


def arrays(net):
    return [values for built in net.layers for values in built.parameters.values()]


def same_parameters(one, other):
    for found, expected in zip(arrays(one), arrays(other), strict=True):
        close(found, expected, ROUNDING)


@pytest.mark.parametrize(("build", "optimizer"), NETWORKS)
def test_the_gpu_learns_what_the_cpu_learns(build, optimizer, digits):
    x, y, x_test, y_test, epochs = digits
    nets = [
        trained(build, x, y, device, optimizer=optimizer, epochs=epochs)
        for device in ("cuda", "cpu")
    ]
    there, here = (net.evaluate(x_test, y_test)["accuracy"] for net in nets)
    assert abs(there - here) <= 0.005
    assert TINY or here > 0.95
    assert (
        nets[0].evaluate(x_test, y_test)["mistakes"]
        == nets[0].to("cpu").evaluate(x_test, y_test)["mistakes"]
    )


@pytest.mark.parametrize(("build", "optimizer"), NETWORKS)
@pytest.mark.parametrize(
    "way", [None, LaunchMode.SINGLE_BLOCK, LaunchMode.FUSED, LaunchMode.PER_OP]
)
def test_parameters_agree_after_some_steps(build, optimizer, way, digits, monkeypatch):
    """In the way that is chosen, and in each of the three."""
    x, y, n = *digits[:2], BATCH * STEPS
    here, expected = trained(build, x[:n], y[:n], "cpu", optimizer=optimizer)
    if way is not None:
        monkeypatch.setattr(launch, "choose_launch_mode", lambda *_: way)
    there, history = trained(build, x[:n], y[:n], optimizer=optimizer)
    same_parameters(there, here)
    close(there.optimizer_state, here.optimizer_state, ROUNDING)
    close(history["loss"], expected["loss"], ROUNDING)


@pytest.mark.parametrize(("build", "optimizer"), NETWORKS)
def test_two_runs_give_the_same_bits(build, optimizer, digits):
    x, y, n = *digits[:2], BATCH * STEPS
    runs = [trained(build, x[:n], y[:n], optimizer=optimizer, epochs=2) for _ in range(2)]
    (first, history), (second, repeated) = runs
    assert first.parameters.tobytes() == second.parameters.tobytes()
    assert history == repeated
    assert first.predict(x[:n]).tobytes() == second.predict(x[:n]).tobytes()


@pytest.mark.parametrize(("build", "optimizer"), NETWORKS)
def test_a_large_prediction_equals_that_of_the_cpu(build, optimizer, monkeypatch):
    if TINY:  # several batches
        monkeypatch.setattr(executor.InferenceExecutor, "evaluation_batch", 4)
    x = np.random.default_rng(1).random((ROWS, SIDE, SIDE, 1), np.float32)
    close(build(device="cuda").predict(x), build().predict(x), 1e-4)


def test_data_larger_than_the_free_memory_are_refused(monkeypatch):
    """The GPU is filled up first: the data of the test shall fit the host's memory."""
    free, ballast = driver.free_bytes(), None
    if TINY:
        monkeypatch.setattr(driver, "free_bytes", lambda: FREE)
    else:
        ballast = driver.DeviceBuffer(max(0, free - FREE), np.uint8)
    net = nn.Sequential([nn.Dense(2)], 1024, device="cuda")
    before = net.parameters.copy()
    x = np.zeros((DATA // 1024, 1024), np.uint8)
    try:
        for attempt in (
            lambda: net.fit(x, np.zeros((len(x), 2)), verbose=0),
            lambda: net.predict(x),
        ):
            with pytest.raises(
                nn.CudaError, match=r"needs [\d,]+ bytes of the GPU's memory, [\d,]+ are free"
            ):
                attempt()
    finally:
        del ballast
        if not TINY:
            driver.module().current_context().deallocations.clear()
    monkeypatch.undo()
    assert np.array_equal(net.parameters, before)
    assert net.predict(x[:BATCH]).shape == (BATCH, 2)


@pytest.mark.parametrize(("build", "optimizer"), NETWORKS)
def test_a_compiled_network_inside_a_kernel(build, optimizer):
    net, rows = build(), BATCH if TINY else 1000
    predict_row = net.compiled(device="cuda")
    x = np.random.default_rng(2).random((rows, SIDE, SIDE, 1), np.float32)
    outputs = cuda.to_device(np.zeros((rows, 10), np.float32))

    @cuda.jit
    def every(x, outputs):
        i = cuda.grid(1)
        if i < x.shape[0]:
            predict_row(x[i], outputs[i])

    threads = 2 if TINY else 64
    every[-(-rows // threads), threads](cuda.to_device(x), outputs)
    close(outputs.copy_to_host(), net.predict(x), 1e-4)


@pytest.mark.parametrize(("there", "here"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_file_goes_from_one_device_to_the_other(there, here, digits, tmp_path):
    x, y, n = *digits[:2], BATCH * STEPS
    net, _ = trained(lenet, x[:n], y[:n], there, optimizer=nn.Adam(1e-3))
    net.save(tmp_path / "net")
    loaded = nn.load(tmp_path / "net").to(here)
    assert loaded.parameters.tobytes() == net.parameters.tobytes()
    close(loaded.predict(x[:BATCH]), net.predict(x[:BATCH]), 1e-4)
    for one in (net, loaded):  # the optimiser's state came along
        one.fit(x[:n], y[:n], optimizer=nn.Adam(1e-3), batch_size=BATCH, verbose=0)
    same_parameters(loaded, net)


def test_an_estimator_learns_on_the_gpu_what_it_learns_on_the_cpu():
    ours = pytest.importorskip("numbanet.sklearn")
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(24, 3)), generator.integers(0, 3, 24)
    options = {"solver": "sgd", "learning_rate": "invscaling", "class_weight": "balanced"}
    options |= {"dropout": 0.2, "batch_norm": True, "early_stopping": True}
    found, expected = (
        ours.MLPClassifier(
            (4,), max_iter=3, batch_size=8, random_state=0, device=device, **options
        ).fit(x, y)
        for device in ("cuda", "cpu")
    )
    np.testing.assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-9)
    np.testing.assert_allclose(
        found.validation_loss_curve_, expected.validation_loss_curve_, rtol=1e-9
    )
    np.testing.assert_allclose(found.predict_proba(x), expected.predict_proba(x), rtol=1e-9)
