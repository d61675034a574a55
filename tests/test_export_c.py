"""A network exported to C gives what the network gives."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
from checkers import close

import numbanet as nn
from examples import LAYERS, inputs, loss_named, named, network
from numbanet import compiled as c

LOSS = loss_named("mean squared error")
COMPILER = shutil.which("cc")
FLAGS = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror"]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


def build(source, *options):
    """Compile a source; the path of the result."""
    result = source.with_suffix(".so" if "-shared" in options else ".out")
    command = [COMPILER, *FLAGS, *options, str(source), "-o", str(result), "-lm"]
    subprocess.run(command, check=True, timeout=120)
    return result


UNKNOWN = "neuron", "list", "rnn", "lstm", "gru", "recurrent", "embedding", "directions"


def exportable(example):
    """Whether C code is known: not for layers of the tests' own, nor for those of UNKNOWN."""
    return not any(word in example.name for word in UNKNOWN)


def net_of(example, dtype):
    """The example's layers and a dense one, without the tests' own layer in front."""
    net = nn.Sequential([*example.layers(), nn.Flatten(), nn.Dense(3)], example.input_shape, dtype)
    generator = np.random.default_rng(5)
    net.parameters += generator.uniform(-0.3, 0.3, net.parameters.size)
    for built in net.layers:
        for values in built.buffers.values():
            values[...] = generator.uniform(0.5, 1.5, values.shape)
    return net


EXPORTABLE = [example for example in LAYERS if exportable(example)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("example", EXPORTABLE, ids=named(EXPORTABLE))
def test_the_c_code_gives_what_the_network_gives(example, dtype, tmp_path):
    net, tolerance = net_of(example, dtype), 1e-13 if dtype == "float64" else 2e-6
    source, header = net.export_c(tmp_path / "net.c")
    library = ctypes.CDLL(str(build(source, "-shared", "-fPIC")))
    assert f"#define NET_PARAMETERS {net.parameters.size}" in header.read_text()
    x, out = inputs(example, 1, dtype=dtype), np.empty((1, 3), dtype)
    work = np.full(1_000_000, np.nan, dtype)
    arrays = [one.ctypes.data_as(ctypes.c_void_p) for one in (net.memory, x, out, work)]
    library.net_forward(*arrays)
    close(out, net.predict(x), tolerance)
    assert hasattr(library, "net_vjp") == example.trains
    if example.trains:
        dout = np.random.default_rng(1).normal(size=3).astype(dtype)
        found, expected = ([np.ones_like(net.parameters), np.empty_like(x)] for _ in range(2))
        work[:] = np.nan
        arrays = [net.memory, x, dout, *found, work]
        library.net_vjp(*(one.ctypes.data_as(ctypes.c_void_p) for one in arrays))
        model = net.handle()
        c.vjp(model, net.memory, x, dout, *expected, np.zeros(c.work_size(model), dtype))
        for one, other in zip(found, expected, strict=True):
            close(one, other, 10 * tolerance)


def test_the_self_test_passes_and_sees_another_parameter(tmp_path):
    net = nn.Sequential([nn.Dense(6, activation="tanh"), nn.BatchNorm(), nn.Dense(2)], 3)
    source, _ = net.export_c(tmp_path / "net.c")
    assert subprocess.run([build(source, "-DNET_SELF_TEST")], timeout=60).returncode == 0
    text = source.read_text()
    first = float(net.parameters[0]).hex()
    source.write_text(text.replace(first, float(net.parameters[0] + 0.1).hex(), 1))
    assert subprocess.run([build(source, "-DNET_SELF_TEST")], timeout=60).returncode == 7


def test_what_is_not_exported(tmp_path):
    own = network(LAYERS[0], LOSS)  # begins with a layer of the tests' own
    with pytest.raises(ValueError, match="no C code for Scale"):
        own.export_c(tmp_path / "net.c")
    for example in LAYERS:
        if not exportable(example):
            with pytest.raises(ValueError, match="export_c has no C code for"):
                net_of(example, "float32").export_c(tmp_path / "net.c")
    net = nn.Sequential([nn.Dense(2)], 3)
    for name in ("net.txt", "2net.c", "my-net.c"):
        with pytest.raises(ValueError, match=r"an identifier and ends in \.c"):
            net.export_c(tmp_path / name)
    assert not list(tmp_path.iterdir())
