"""Compile every CUDA kernel for every architecture, without a GPU; ptxas reports on it, as JSON.

    python tests/gate_ptx.py [part of how many]

One line for each kernel, precision and architecture: registers, bytes spilled, of stack
and of shared memory, or the error. Run in a process of its own with the simulator off. The kernels
are: each CUDA kernel alone (as for a launch per op), the engine's kernels for whole networks in
every launch mode, and networks compiled for single threads.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path

os.environ["NUMBA_ENABLE_CUDASIM"] = "0"
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "src")]

import numpy as np  # noqa: E402
from numba import cuda  # noqa: E402
from numba.core import types  # noqa: E402
from numba.cuda import compiler, dispatcher  # noqa: E402
from reference import kernels  # noqa: E402

import numbanet as nn  # noqa: E402
from numbanet import compiled as c  # noqa: E402
from numbanet.backend.cuda import driver  # noqa: E402
from numbanet.engine.cuda import executor  # noqa: E402
from numbanet.engine.cuda import kernels as engine  # noqa: E402
from numbanet.engine.cuda import launch as launch_modes  # noqa: E402
from numbanet.engine.cuda.launch import LaunchMode  # noqa: E402
from numbanet.plan.columns import FORWARD  # noqa: E402

ALL_ARCHITECTURES = ((7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0))
ARCHITECTURES = (
    ALL_ARCHITECTURES
    if os.environ.get("NUMBANET_ALL_ARCHITECTURES")
    else (ALL_ARCHITECTURES[0], ALL_ARCHITECTURES[-1])
)
"""Those that kernels are compiled for: the oldest and the newest, or all."""
REPORT = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


class NoGPU:
    """What Numba asks for when it compiles a device function."""

    compute_capability = ARCHITECTURES[0]


class NoBuffer:
    """Device memory without a GPU.

    Its address must not be the null pointer, which compilers take for a mistake.
    """

    def __init__(self, count, dtype):
        self.address = 1 << 20

    def upload(self, values):
        pass


def ptxas():
    """The assembler that comes with numba-cuda's extra."""
    found = list(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/bin/ptxas"))
    if not found:
        raise FileNotFoundError('no ptxas: pip install "numba-cuda[cu12]"')
    return str(found[0])


def assembled(name, kind, ptx, capability, assembler=[]):  # noqa: B006
    """What ptxas says about a kernel."""
    if not assembler:
        assembler.append(ptxas())
    row = {
        "kernel": name,
        "dtype": np.dtype(kind).name,
        "architecture": f"sm_{capability[0]}{capability[1]}",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [assembler[0], "-v", f"-arch={row['architecture']}", str(path), "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return row | {"error": done.stderr}
    frames = REPORT.findall(done.stderr)
    return row | {
        "registers": max(map(int, re.findall(r"Used (\d+) registers", done.stderr))),
        "spilled": sum(int(stores) + int(loads) for _, stores, loads in frames),
        "stack": max(int(stack) for stack, _, _ in frames),
        "shared": sum(map(int, re.findall(r"(\d+) bytes smem", done.stderr))),
    }


def compiled(name, kind, function, arguments, architectures):
    """A row for each architecture; Numba's part is done once, NVVM's and ptxas's for each."""
    try:
        library, _ = compiler._compile_pyfunc_with_fixup(
            function, arguments, device=False, cc=architectures[0], abi="numba"
        )
        for capability in architectures:
            (ptx,) = library.get_asm_strs(cc=capability)
            yield assembled(name, kind, ptx, capability)
    except Exception as error:
        yield {
            "kernel": name,
            "dtype": np.dtype(kind).name,
            "architecture": "all",
            "error": f"{type(error).__name__}: {error}",
        }


def whole_networks():
    """(name, network, batch size, loss, optimiser, launch mode) whose kernels are compiled."""
    dense = [
        nn.Dense(30, activation="sigmoid"),
        nn.Dropout(0.2),
        nn.Dense(10, activation="softmax"),
    ]
    deep = [
        nn.Dense(64, activation="tanh"),
        nn.BatchNorm(),
        nn.Dense(64, activation="tanh"),
        nn.Dense(1),
    ]
    yield (
        "dense",
        nn.Sequential(dense, 784),
        10,
        "cross_entropy",
        nn.SGD(0.1, momentum=0.9),
        LaunchMode.SINGLE_BLOCK,
    )
    yield (
        "dense",
        nn.Sequential(deep, 8),
        1 << 14,
        "mean_squared_error",
        nn.Adam(),
        LaunchMode.FUSED,
    )
    yield "lenet5", nn.models.lenet5(), 128, "cross_entropy", nn.Adam(), LaunchMode.FUSED
    steered = {"clip_norm": 1.0, "accumulate": 2, "average": 0.9}
    for mode in LaunchMode.SINGLE_BLOCK, LaunchMode.FUSED:
        net = nn.Sequential([nn.Dense(30, activation="tanh"), nn.Dense(1)], 8)
        net.layers[0].weight_decay = 0.1
        yield "steered", net, 64, "mean_squared_error", nn.Adam(**steered), mode
    yield (
        "lenet5",
        nn.models.lenet5(dtype="float64"),
        8,
        "cross_entropy",
        nn.RMSprop(),
        LaunchMode.SINGLE_BLOCK,
    )


def launches():
    """(name, dtype, launch) for whole networks."""
    for name, net, batch, loss, optimizer, mode in whole_networks():
        launch_modes.choose_launch_mode = lambda ops, batch, training, mode=mode: mode
        chosen = net.resolve_loss(loss)
        classes = loss == "cross_entropy"
        targets = np.dtype("int64" if classes else "float32")
        ops, last, correct = net.loss_ops(
            chosen, np.dtype("float32"), targets, classes, 1000, 10, True
        )
        trainer = executor.TrainingExecutor(
            ops,
            net.dtype,
            batch=batch,
            threads=1,
            loss_op=last,
            correct_op=correct,
            optimizer=optimizer,
        )
        if mode == LaunchMode.SINGLE_BLOCK:
            yield f"{name} steps", net.dtype, trainer.single_block
        else:
            for k, (launch, _, _) in enumerate(trainer.launches):
                yield f"{name} region {k}", net.dtype, launch
            yield f"{name} gradients", net.dtype, trainer.gradients
            yield f"{name} updates", net.dtype, trainer.updates
            if trainer.norm:
                yield f"{name} squares", net.dtype, trainer.square_sums
                yield f"{name} factor", net.dtype, trainer.gradient_factor


def alone(kernel, kind):
    """The launch of a single kernel."""
    return engine.forward_backward(engine.one_step(FORWARD, kernel), kind)


def everything():
    """(name, dtype, what makes the launch, architectures)."""
    for name, kernel in kernels().items():
        if not name.startswith("numbanet.network.profiler"):  # it measures the CPU
            for kind, architectures in (
                (np.float32, ARCHITECTURES),
                (np.float64, (ARCHITECTURES[0], ARCHITECTURES[-1])),
            ):
                yield name, kind, partial(alone, kernel, kind), architectures
    for name, kind, launch in launches():
        yield name, kind, lambda launch=launch: launch, ARCHITECTURES


def for_threads():
    """Rows for networks compiled for single threads, with the bytes that must be on their stack."""
    for net in (
        nn.Sequential([nn.Dense(64, activation="tanh"), nn.Dense(1)], 8),
        nn.models.lenet5(),
    ):
        predict_row = net.compiled(device="cuda")

        def kernel(x, out):
            i = cuda.grid(1)
            if i < len(out):
                predict_row(x[i], out[i])  # noqa: B023

        arguments = (
            types.Array(types.float32, 1 + len(net.input_shape), "C"),
            types.Array(types.float32, 2, "C"),
        )
        for row in compiled("compiled for threads", np.float32, kernel, arguments, ARCHITECTURES):
            yield row | {"needed": predict_row.n_local * 4}
    for layers, shape in (
        ([nn.Dense(16, activation="tanh"), nn.LayerNorm(), nn.Dense(3)], (4,)),
        ([nn.GRU(5), nn.Dense(3)], (6, 4)),
    ):
        net = nn.Sequential(layers, shape)
        options = {"loss": "mean_squared_error", "optimizer": "adam", "hvp": True, "rows": 2}
        model = net.handle(device="cuda", **options)
        arguments = (types.Array(types.float32, 2, "C"),) * 7
        for row in compiled(
            "derivatives in threads", np.float32, all_functions(model), arguments, ARCHITECTURES
        ):
            yield row | {"needed": model.n_local * 4}


def all_functions(model):
    """A kernel whose threads call every function of a handle, and draw random numbers."""
    forward, vjp, jvp, hvp = model.forward, model.vjp, model.jvp, model.hvp
    loss_gradient, update = model.loss_gradient, model.update

    def kernel(params, x, y, grads, drow, out, state):
        i = cuda.grid(1)
        if i < len(x):
            p, g, none = params[i], grads[i], out[i, :0]
            key = c.new_key(3, i)
            x[i, 0] = c.uniform(key, 0) + c.normal(key, 1)
            x[i, 1] = c.categorical(key, 2, out[i])
            forward(p, x[i], out[i])
            vjp(p, x[i], y[i], g, drow[i])
            jvp(p, x[i], drow[i], none, out[i], y[i])
            hvp(p, x[i], out[i], drow[i], g, none, state[i, : g.size])
            y[i, 0] = loss_gradient(p, x[i], y[i], g)
            c.clip_by_norm(g, 1.0)
            update(p, g, state[i], 1)
            update(p, g, state[i], 2, 0.001)

    return kernel


def main(part=0, of=1):
    dispatcher.get_current_device = compiler.get_current_device = lambda: NoGPU
    driver.require_gpu, driver.free_bytes, driver.DeviceBuffer, executor.DeviceBuffer = (
        lambda: None,
        lambda: 1 << 60,
        NoBuffer,
        NoBuffer,
    )
    launch_modes.multiprocessors = lambda: 132
    rows = []
    for k, (name, kind, make, architectures) in enumerate(everything()):
        if k % of == part:
            launch = make()
            rows += compiled(
                name, kind, launch.function, (types.int64,) * launch.n_args, architectures
            )
    if part == 0:
        rows += for_threads()
    with contextlib.suppress(BrokenPipeError):
        json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
