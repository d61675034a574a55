"""Compile every CUDA kernel for every architecture, without a GPU; ptxas reports on it, as JSON.

    python tests/gate_ptx.py [part of how many]

One line for each kernel, precision and architecture: registers, bytes spilled, of stack
and of shared memory, or the error. Run in a process of its own with the simulator off. The kernels
are: each CUDA kernel alone, the engine's kernels for whole networks in every launch mode, and
networks compiled for single threads.
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
from numbanet.backend.intrinsics import as_pointer  # noqa: E402
from numbanet.engine.cuda import executor  # noqa: E402
from numbanet.engine.cuda import launch as launch_modes  # noqa: E402
from numbanet.engine.cuda.launch import LaunchMode  # noqa: E402

ALL_ARCHITECTURES = ((7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0))
ARCHITECTURES = (
    ALL_ARCHITECTURES
    if os.environ.get("NUMBANET_ALL_ARCHITECTURES")
    else (ALL_ARCHITECTURES[0], ALL_ARCHITECTURES[-1])
)
"""Those that kernels are compiled for: the oldest and the newest, or all."""
MATRIX = types.Array(types.float32, 2, "C")
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
    yield (
        "lenet5",
        nn.models.lenet5(dtype="float64"),
        8,
        "cross_entropy",
        nn.RMSprop(),
        LaunchMode.SINGLE_BLOCK,
    )
    steered = {"clip_norm": 1.0, "accumulate": 2, "average": 0.9}
    for mode in LaunchMode:
        net = nn.Sequential([nn.Dense(30, activation="tanh"), nn.Dense(1)], 8)
        net.layers[0].weight_decay = 0.1
        yield "steered", net, 64, "mean_squared_error", nn.Adam(**steered), mode


def of_network(name, net, batch, loss, optimizer, mode):
    """Rows for the launches of a whole network."""
    launch_modes.choose_launch_mode = lambda ops, batch, training: mode
    chosen = net.resolve_loss(loss)
    classes = loss == "cross_entropy"
    targets = np.dtype("int64" if classes else "float32")
    ops, last, correct = net.loss_ops(chosen, np.dtype("float32"), targets, classes, 1000, 10, True)
    trainer = executor.TrainingExecutor(
        ops,
        net.dtype,
        batch=batch,
        threads=1,
        loss_op=last,
        correct_op=correct,
        optimizer=optimizer,
    )
    if mode is LaunchMode.SINGLE_BLOCK:
        found = {"steps": trainer.single_block}
    else:
        found = {f"region {k}": launch for k, (launch, _, _) in enumerate(trainer.launches)}
        found |= {"gradients": trainer.gradients, "updates": trainer.updates}
        if trainer.norm:
            found |= {"squares": trainer.square_sums, "factor": trainer.gradient_factor}
    for part, launch in found.items():
        yield from of_launch(f"{name} {part}", net.dtype, launch)


def of_launch(name, kind, launch, architectures=ARCHITECTURES):
    """Rows for a launch."""
    arguments = (types.int64,) * launch.n_args
    return compiled(name, kind, launch.function, arguments, architectures)


def of_kernel(name, kernel, kind, architectures):
    """Rows for a CUDA kernel alone, whose arguments are addresses."""
    verb = driver.cuda_kernel(kernel)

    def work(op, params, grads, acts, deltas, lo, hi):
        op, params, grads = (
            as_pointer(op, np.int64),
            as_pointer(params, kind),
            as_pointer(grads, kind),
        )
        verb(op, params, grads, as_pointer(acts, kind), as_pointer(deltas, kind), lo, hi)

    return of_launch(name, kind, driver.CudaKernel(work, 7), architectures)


def for_threads(net):
    """Rows for a network compiled for single threads, with the bytes of stack that it needs."""
    predict_row = net.compiled(device="cuda")

    def kernel(x, out):
        i = cuda.grid(1)
        if i < len(out):
            predict_row(x[i], out[i])

    arguments = types.Array(types.float32, 1 + len(net.input_shape), "C"), MATRIX
    for row in compiled("compiled for threads", np.float32, kernel, arguments, ARCHITECTURES):
        yield row | {"needed": predict_row.n_local * 4}


def derivatives(net):
    """Rows for the functions of a handle, each called by single threads; hvp needs most stack."""
    options = {"loss": "mean_squared_error", "optimizer": "adam", "hvp": True, "rows": 2}
    model = net.handle(device="cuda", **options)
    for name, kernel in functions_of(model).items():
        rows = compiled(f"{name} in threads", np.float32, kernel, (MATRIX,) * 7, ARCHITECTURES)
        for row in rows:
            yield row | ({"needed": model.n_local * 4} if name == "hvp" else {})


def functions_of(model):
    """Kernels whose threads call a function of a handle each, or draw random numbers."""
    forward, vjp, jvp, hvp = model.forward, model.vjp, model.jvp, model.hvp
    loss_gradient, update = model.loss_gradient, model.update

    def forward_(params, x, y, grads, drow, out, state):
        i = cuda.grid(1)
        if i < len(x):
            forward(params[i], x[i], out[i])

    def vjp_(params, x, y, grads, drow, out, state):
        i = cuda.grid(1)
        if i < len(x):
            vjp(params[i], x[i], y[i], grads[i], drow[i])

    def jvp_(params, x, y, grads, drow, out, state):
        i = cuda.grid(1)
        if i < len(x):
            jvp(params[i], x[i], drow[i], out[i, :0], out[i], y[i])

    def hvp_(params, x, y, grads, drow, out, state):
        i = cuda.grid(1)
        if i < len(x):
            g = grads[i]
            hvp(params[i], x[i], out[i], drow[i], g, out[i, :0], state[i, : g.size])

    def step(params, x, y, grads, drow, out, state):
        i = cuda.grid(1)
        if i < len(x):
            y[i, 0] = loss_gradient(params[i], x[i], y[i], grads[i])
            c.clip_by_norm(grads[i], 1.0)
            update(params[i], grads[i], state[i], 1)
            update(params[i], grads[i], state[i], 2, 0.001)

    def random(params, x, y, grads, drow, out, state):
        i = cuda.grid(1)
        if i < len(x):
            key = c.new_key(3, i)
            x[i, 0] = c.uniform(key, 0) + c.normal(key, 1)
            x[i, 1] = c.categorical(key, 2, out[i])

    kernels = forward_, vjp_, jvp_, hvp_, step, random
    return {kernel.__name__.rstrip("_"): kernel for kernel in kernels}


def everything():
    """Functions that return rows; those that take longest come first."""
    for network in whole_networks():
        yield partial(of_network, *network)
    for layers, shape in (
        ([nn.Dense(16, activation="tanh"), nn.LayerNorm(), nn.Dense(3)], (4,)),
        ([nn.GRU(5), nn.Dense(3)], (6, 4)),
    ):
        yield partial(derivatives, nn.Sequential(layers, shape))
    yield partial(for_threads, nn.Sequential([nn.Dense(64, activation="tanh"), nn.Dense(1)], 8))
    yield partial(for_threads, nn.models.lenet5())
    for name, kernel in kernels().items():
        if not name.startswith("numbanet.network.profiler"):  # it measures the CPU
            yield partial(of_kernel, name, kernel, np.float32, ARCHITECTURES)
            yield partial(
                of_kernel, name, kernel, np.float64, ARCHITECTURES[:: len(ARCHITECTURES) - 1]
            )


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
    for k, rows_of in enumerate(everything()):
        if k % of == part:
            rows += rows_of()
    with contextlib.suppress(BrokenPipeError):
        json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
