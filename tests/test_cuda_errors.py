"""Errors of a GPU say what, where and what to do, and the parameters of the network survive."""

import importlib.util
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import numbanet as nn
from numbanet.backend.cuda import driver
from numbanet.plan.columns import W
from numbanet.plan.op import Op

cuda = pytest.importorskip("numba.cuda")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda"
)

X, Y = np.random.default_rng(0).normal(size=(9, 4)), np.arange(9) % 3


def network(device="cuda", **kwargs):
    return nn.Sequential(
        [nn.Dense(6, activation="tanh"), nn.Dense(3, activation="softmax")],
        4,
        "float64",
        device=device,
        **kwargs,
    )


# --- no GPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["gpu", "cuda:0", None, 0])
def test_a_wrong_device_is_named(device):
    with pytest.raises(ValueError, match='device is "cpu" or "cuda", not'):
        network(device)
    with pytest.raises(ValueError, match='device is "cpu" or "cuda", not'):
        network("cpu").to(device)


def without_simulator(code):
    """Run Python without the simulator; there is no GPU, or it is hidden."""
    environment = os.environ | {
        "NUMBA_ENABLE_CUDASIM": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )


def test_no_driver_is_said_with_the_way_out_and_the_network_is_left_as_it_was():
    done = without_simulator("""
import logging
import numbanet as nn
logging.getLogger("numbanet").setLevel("ERROR")  # not that it compiles
net = nn.Sequential([nn.Dense(2)], 3)
for attempt in (lambda: net.to("cuda"), lambda: nn.Sequential([nn.Dense(2)], 3, device="cuda"),
                lambda: net.compiled(device="cuda")):
    try:
        attempt()
    except nn.CudaError as error:
        print(error)
print(net.device, net.predict([[1.0, 2.0, 3.0]]).shape)
""")
    *errors, last = done.stdout.splitlines()
    assert done.stderr == "" and last == "cpu (1, 2)" and len(errors) == 3
    for error in errors:
        assert (
            "no usable NVIDIA driver or GPU" in error
            and "nvidia-smi" in error
            and 'device="cpu" needs none' in error
        )


def test_a_missing_package_is_said_with_the_command_that_installs_it():
    done = without_simulator("""
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba_cuda" else find(name, *rest)
import numbanet as nn
try:
    nn.Sequential([nn.Dense(2)], 3, device="cuda")
except nn.CudaError as error:
    print(error)
""")
    assert (
        done.stderr == ""
        and 'pip install "numbanet[cuda]"' in done.stdout
        and 'device="cpu" needs nothing' in done.stdout
    )


class OldGPU:
    compute_capability, name = (6, 1), b"GeForce GTX 1080"


def test_a_gpu_that_is_too_old_is_named(monkeypatch):
    class Module:
        get_current_device = OldGPU

    monkeypatch.setattr(driver, "SIMULATED", False)
    monkeypatch.setattr(driver, "module", lambda: Module)
    driver.require_gpu.cache_clear()
    with pytest.raises(
        nn.CudaError, match=r"GeForce GTX 1080 has compute capability 6\.1; 7\.0 or newer"
    ):
        driver.require_gpu()
    driver.require_gpu.cache_clear()


# --- no room -----------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_says_how_much_is_needed_and_free(monkeypatch):
    net, before = network(), network().parameters.copy()
    monkeypatch.setattr(driver, "free_bytes", lambda: 1000)
    with pytest.raises(
        nn.CudaError,
        match=r"batches of 9 needs [\d,]+ bytes of the GPU's memory, 1,000 are free; choose",
    ):
        net.fit(X, Y, batch_size=9)
    assert (net.parameters == before).all()


def test_data_that_do_not_fit_say_how_much_is_needed_and_free(monkeypatch):
    net = network()
    net.fit(X, Y, batch_size=3)  # the executor is made
    before = net.parameters.copy()
    monkeypatch.setattr(driver, "free_bytes", lambda: 100)
    with pytest.raises(
        nn.CudaError,
        match=r"data of shape \(9, 4\) needs 288 bytes of the GPU's memory, 100 are free",
    ):
        net.fit(X, Y, batch_size=3)
    assert (net.parameters == before).all()


def test_a_compiled_network_that_does_not_fit_a_thread_is_refused():
    with pytest.raises(ValueError, match=r"one sample needs [\d,]+ bytes between the layers"):
        nn.Sequential([nn.Dense(3)], 100_000).compiled(device="cuda")


# --- errors on the GPU -------------------------------------------------------------------------


@nn.kernel
def lonely(op, params, grads, acts, deltas, lo, hi):
    """A kernel that has no CUDA kernel."""


@nn.kernel(independent=True)
def astray(op, params, grads, acts, deltas, lo, hi):
    """Reads beyond the parameters."""
    for i in range(lo, hi):
        acts[i] = params[op[W] + 10**9]


class Lonely(nn.Layer):
    def ops(self, shape):
        return [Op("Lonely", 6, 6, lonely, lonely)]


class Astray(nn.Layer):
    def ops(self, shape):
        return [Op("Astray", 6, 6, astray, astray)]


def with_layer(layer):
    return nn.Sequential(
        [nn.Dense(6), layer, nn.Dense(3, activation="softmax")], 4, "float64", device="cuda"
    )


def test_a_kernel_without_a_cuda_kernel_is_named():
    with pytest.raises(
        nn.CudaError, match=r"lonely> has no CUDA kernel; write one \(`@lonely\.cuda`\)"
    ):
        with_layer(Lonely()).predict(X)


@pytest.mark.skipif(not driver.SIMULATED, reason="a real GPU would be lost to this process")
@pytest.mark.parametrize("named", [False, True])
def test_an_error_on_the_gpu_is_reported_with_the_op_and_leaves_the_parameters(monkeypatch, named):
    from numbanet.engine.cuda import launch
    from numbanet.engine.cuda.launch import LaunchMode

    monkeypatch.setattr(launch, "SYNC_EVERY_OP", named)
    monkeypatch.setattr(launch, "choose_launch_mode", lambda *_: LaunchMode.FUSED)
    net = with_layer(Astray())
    before = net.parameters.copy()
    with pytest.raises(
        nn.CudaError,
        match=r"the GPU reported an error in .*Astray.*The network's parameters are those",
    ) as raised:
        net.fit(X, Y, batch_size=3)
    assert ("error in Astray:" in str(raised.value)) == named
    assert ("NUMBANET_CUDA_SYNC=1" in str(raised.value)) == (not named)
    assert (net.parameters == before).all()
    assert np.isfinite(net.to("cpu").parameters).all()


def test_divergence_stops_and_keeps_the_last_finite_parameters():
    net = nn.Sequential([nn.Dense(3)], 4, "float64", device="cuda")
    before = net.parameters.copy()
    with pytest.raises(nn.DivergenceError, match="epoch 1, batch"):
        net.fit(1e200 * X, 1e200 * X[:, :3], optimizer=nn.SGD(1e10), batch_size=3, epochs=3)
    assert (net.parameters == before).all()
    net.fit(X, X[:, :3], optimizer=nn.SGD(0.01), batch_size=3)


def test_an_interrupted_epoch_keeps_what_was_learned(monkeypatch):
    from numbanet.engine.cuda import executor

    net, before = network(), network().parameters.copy()
    steps, calls = executor.TrainingExecutor.steps, []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return steps(self, *args)

    monkeypatch.setattr(executor.TrainingExecutor, "steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, batch_size=3, optimizer=nn.Adam(0.1))
    assert np.isfinite(net.parameters).all() and not (net.parameters == before).any()
    assert net.optimizer_steps == calls[0][4]
    monkeypatch.undo()
    net.fit(X, Y, batch_size=3, optimizer=nn.Adam(0.1))


# --- one network, two devices ------------------------------------------------------------------


def test_a_network_moves_between_devices_and_files(tmp_path):
    net = network()
    net.fit(X, Y, batch_size=4, epochs=2, optimizer=nn.Adam(0.05))
    net.save(tmp_path / "net.safetensors")
    loaded = nn.load(tmp_path / "net.safetensors")
    assert loaded.device == "cpu"
    assert np.allclose(loaded.predict(X), net.predict(X), rtol=0, atol=1e-14)
    copy = pickle.loads(pickle.dumps(net))
    assert copy.device == "cuda"
    for one in (loaded, net.to("cpu"), copy, loaded.to("cuda")):
        one.fit(X, Y, batch_size=4, epochs=1, optimizer=nn.Adam(0.05))
    assert np.allclose(copy.parameters, net.parameters, rtol=0, atol=1e-12)
    assert net.to("cuda") is net and net.device == "cuda"


def test_writing_parameters_between_calls_is_seen_on_the_gpu():
    net = network()
    net.predict(X)
    net.layers[0].weights[:] = 0
    assert np.allclose(net.predict(X), net.to("cpu").predict(X), rtol=0, atol=1e-14)


def test_a_compiled_network_is_called_by_each_thread():
    net = nn.Sequential(
        [
            nn.Conv2D(3, 3, activation="relu"),
            nn.MaxPool2D(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Dense(9, activation="tanh"),
            nn.Dense(3, activation="softmax"),
        ],
        (8, 8, 1),
        "float64",
    )
    predict_row, x = (
        net.compiled(device="cuda"),
        np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), np.uint8),
    )

    @cuda.jit
    def kernel(x, out):
        i = cuda.grid(1)
        if i < len(out):
            predict_row(x[i], out[i])

    out = np.zeros((5, 3))
    kernel[1, 8](x, out)
    assert np.allclose(out, net.predict(x), rtol=0, atol=1e-14)
    net.layers[-2].weights[:] = 0  # later changes do not reach it
    again = np.zeros((5, 3))
    kernel[1, 8](x, again)
    assert (again == out).all()
