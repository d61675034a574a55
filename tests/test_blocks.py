"""Data that do not fit: blocks from an iterator, memory-mapped arrays, one part after the other."""

import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc

import numpy as np
import pytest

import numbanet as nn
from numbanet.training import stream
from numbanet.training.callbacks import Callback, Checkpoint

X = np.random.default_rng(0).normal(size=(100, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 100)
W = np.random.default_rng(2).uniform(0.1, 2, 100)
W[30:50] = 0
SIZES = [[100], [16, 48, 36], [1] * 100, [7, 50, 43], [40, 60], [99, 1]]
OPTIONS = {"optimizer": nn.Adam(0.01), "batch_size": 8, "epochs": 3, "verbose": 0}


@pytest.fixture(params=[1, 1 << 20], ids=["small pieces", "joined"])
def least_bytes(request, monkeypatch):
    monkeypatch.setattr(stream, "LEAST_BYTES", request.param)


def network(*layers, **options):
    layers = layers or (nn.Dense(7, "tanh"), nn.Dropout(0.3))
    return nn.Sequential([*layers, nn.Dense(3, activation="softmax")], 6, seed=3, **options)


def blocks_of(sizes, *arrays):
    arrays = arrays or (X, Y)
    ends = np.cumsum(sizes)

    def blocks():
        for size, end in zip(sizes, ends, strict=True):
            yield tuple(array[end - size : end] for array in arrays)

    return blocks


def same(one, other):
    return (
        one.memory.tobytes() == other.memory.tobytes()
        and one.optimizer_state.tobytes() == other.optimizer_state.tobytes()
        and (one.epoch, one.optimizer_steps) == (other.epoch, other.optimizer_steps)
    )


# --- an iterator of blocks ----------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)} blocks")
@pytest.mark.parametrize("arrays", [(X, Y), (X, Y, W)], ids=["plain", "weighted"])
def test_blocks_train_as_one_array_does(sizes, arrays, least_bytes):
    whole, parts = network(penalty=nn.L2(0.1)), network(penalty=nn.L2(0.1))
    weights = {} if len(arrays) == 2 else {"sample_weight": W}
    expected = whole.fit(X, Y, shuffle=False, **weights, **OPTIONS).history
    found = parts.fit(blocks_of(sizes, *arrays), shuffle=False, **OPTIONS).history
    assert same(parts, whole) and found == expected


@pytest.mark.parametrize("accumulate", [2, 3])
def test_gradients_are_accumulated_across_blocks(accumulate, least_bytes):
    optimizer = nn.Adam(0.01, accumulate=accumulate, average=0.9, clip_norm=1.0)
    options = {**OPTIONS, "optimizer": optimizer, "shuffle": False}
    nets = [network() for _ in range(4)]
    nets[0].fit(X, Y, **options)
    for net, sizes in zip(nets[1:], ([100], [16, 48, 36], [7, 50, 43]), strict=True):
        net.fit(blocks_of(sizes), **options)
        assert same(net, nets[0])


def test_masked_targets_may_come_in_blocks(least_bytes):
    y = np.ma.masked_invalid(np.where(X[:, :3] > 1, np.nan, X[:, :3]))
    nets = [nn.Sequential([nn.Dense(3)], 6) for _ in range(2)]
    nets[0].fit(X, y, shuffle=False, **OPTIONS)
    nets[1].fit(blocks_of([60, 40], X, y), shuffle=False, **OPTIONS)
    assert same(*nets)
    plain = X[:, :3]
    with pytest.raises(ValueError, match="block 2 of the data: y has masked targets, and that of"):
        nets[0].fit([(X, plain), (X, y)], **OPTIONS)


def test_images_are_augmented_as_in_one_array(least_bytes):
    x = X[:, :4].reshape(100, 2, 2, 1)
    options = {**OPTIONS, "shuffle": False, "augment": nn.Augment(shift=1, noise=0.2)}
    layers = [nn.Flatten(), nn.Dense(3, activation="softmax")]
    whole, parts = (nn.Sequential(layers, (2, 2, 1)) for _ in range(2))
    whole.fit(x, Y, **options)
    parts.fit(blocks_of([30, 70], x, Y), **options)
    assert same(parts, whole)


def test_blocks_on_a_gpu_train_as_on_the_cpu():
    pytest.importorskip("numba_cuda")
    options = {**OPTIONS, "batch_size": 16, "epochs": 1}
    nets = [network(dtype="float64", device=device) for device in ("cpu", "cuda")]
    for net in nets:
        net.fit(blocks_of([40, 24], X[:64], Y[:64]), **options)
    np.testing.assert_allclose(nets[1].memory, nets[0].memory, rtol=1e-9)


def test_an_array_after_blocks_begins_with_its_first_sample(least_bytes):
    net = network()
    net.fit(blocks_of([100]), steps_per_epoch=13, **OPTIONS)
    other = pickle.loads(pickle.dumps(net))  # without the executors
    for one in (net, other):
        one.fit(X, Y, **OPTIONS)
    assert same(net, other)


def test_shuffled_blocks_are_a_function_of_seed_and_epoch(least_bytes):
    nets = [network(), network(), network()]
    for net, shuffle in zip(nets, (True, True, False), strict=True):
        net.fit(blocks_of([50, 50]), shuffle=shuffle, **OPTIONS)
    assert same(nets[0], nets[1]) and not same(nets[0], nets[2])


def test_any_iterable_of_blocks_serves():
    expected = network()
    expected.fit(blocks_of([60, 40]), **OPTIONS)
    as_list = list(blocks_of([60, 40])())
    for given in (as_list, tuple(as_list), [list(block) for block in as_list]):
        net = network()
        net.fit(given, **OPTIONS)
        assert same(net, expected)
    torch = pytest.importorskip("torch")
    tensors = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    net = network()
    net.fit(torch.utils.data.DataLoader(tensors, batch_size=20), **OPTIONS)
    assert same(net, expected)
    once = network()
    once.fit(blocks_of([60, 40])(), **{**OPTIONS, "epochs": 1})
    assert once.epoch == 1


def test_an_epoch_of_so_many_steps_goes_on_in_the_blocks(least_bytes):
    endless, whole = network(), network()

    def forever():
        while True:
            yield from blocks_of([30, 25, 45])()

    options = {**OPTIONS, "shuffle": False, "steps_per_epoch": 5}
    endless.fit(forever(), **options)
    again = network()
    again.fit(blocks_of([30, 25, 45]), **options)
    rows = np.arange(120) % 100
    for k in range(3):
        part = rows[40 * k : 40 * k + 40]
        whole.fit(X[part], Y[part], **{**OPTIONS, "epochs": 1, "shuffle": False})
    assert same(again, endless) and same(whole, endless) and endless.optimizer_steps == 15


@pytest.mark.parametrize("at", [1, 12, 13, 20, 39])
@pytest.mark.parametrize("steps", [None, 13])
def test_a_training_on_blocks_goes_on_where_it_stopped(at, steps, tmp_path, least_bytes):
    class Stop(Callback):
        every_steps = at

        def on_step_end(self, step, logs, network):
            raise InterruptedError

    options = {**OPTIONS, "steps_per_epoch": steps}
    whole, net = network(), network()
    expected = whole.fit(blocks_of([30, 25, 45]), **options).history
    with pytest.raises(InterruptedError):
        saver = Checkpoint(tmp_path, every_steps=3)
        network().fit(blocks_of([30, 25, 45]), callbacks=[saver, Stop()], **options)
    found = net.fit(blocks_of([30, 25, 45]), resume=tmp_path, **options).history
    assert same(net, whole)
    assert found["loss"][-1] == expected["loss"][-1]


def test_a_thread_reads_ahead_while_the_network_is_trained():
    threads, read, seen = set(), [], []

    def blocks():
        for k in range(6):
            threads.add(threading.current_thread())
            read.append(k)
            yield np.tile(X, (500, 1)), np.tile(Y, 500)

    class Look(Callback):
        def on_step_end(self, step, logs, network):
            if step % 6250 == 5:
                time.sleep(0.1)
                seen.append(len(read))

    network().fit(blocks, callbacks=Look(), **{**OPTIONS, "epochs": 1})
    assert threading.current_thread() in threads and len(threads) == 2
    assert seen[0] >= 2 and max(b - a for a, b in enumerate(seen)) <= 5
    assert threading.active_count() == len(threading.enumerate())


def test_an_iterator_may_use_its_memory_again(least_bytes):
    def blocks():
        x, y, w = np.empty((10, 6), "float32"), np.empty(10, "int64"), np.empty(10)
        for k in range(0, 100, 10):
            x[:], y[:], w[:] = X[k : k + 10], Y[k : k + 10], W[k : k + 10]
            yield x, y, w
            x[:] = y[:] = w[:] = 0

    whole, parts = network(), network()
    whole.fit(X, Y, sample_weight=W, shuffle=False, **OPTIONS)
    parts.fit(blocks, shuffle=False, **OPTIONS)
    assert same(parts, whole)


def test_an_error_in_the_iterator_is_the_users_to_see_and_nothing_is_half_done():
    def blocks():
        yield X, Y
        if broken:
            raise KeyError("disk")

    for broken, at_once in ((True, True), (False, False)):
        net = network()
        if not at_once:
            net.fit(blocks, **OPTIONS)
            broken = True
        before = net.memory.copy(), net.optimizer_state.copy(), net.optimizer_steps, net.epoch
        with pytest.raises(KeyError, match="disk") as caught:
            net.fit(blocks, **OPTIONS)
        lines = traceback.format_tb(caught.value.__traceback__)
        assert any("in blocks" in line and "raise KeyError" in line for line in lines)
        after = net.memory, net.optimizer_state, net.optimizer_steps, net.epoch
        assert np.array_equal(before[0], after[0]) and before[2:] == after[2:]
        assert not before[1].any() or np.array_equal(before[1], after[1])
        broken = False
        net.fit(blocks, **OPTIONS)
    assert all("numbanet" not in one.name for one in threading.enumerate())


def later(block):
    """Blocks of which the second is another."""

    def blocks():
        yield X, Y
        yield block

    return blocks


def once():
    gone = iter([(X, Y)])
    return lambda: gone


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (lambda: later((X[:, :5], Y)), {}, r"block 2 of the data: x must have shape \(samples, 6"),
        (lambda: later((X, Y[:9])), {}, "block 2 of the data: x has 100 samples and y has 9"),
        (lambda: later((X.astype(float), Y)), {}, "block 2 .*x is float64, and float32 in block"),
        (lambda: later((X, Y, W)), {}, "block 2 .*length is 3, and 2 in block 1"),
        (lambda: later((X, Y + 2)), {}, "block 2 .*label 3"),
        (
            lambda: later(X),
            {},
            r"block 2 .*must be \(x, y\) or \(x, y, sample_weight\), got an arr",
        ),
        (lambda: later((X * np.nan, Y)), {}, r"block 2 .*x has NaN at \[0, 0\]"),
        (lambda: [], {}, "the data have no blocks"),
        (lambda: lambda: iter(()), {}, "the data have no blocks"),
        (once, {}, "the data of epoch 2 ended before a sample; .* pass a function that returns"),
        (lambda: blocks_of([50, 50])(), {}, "a generator is read only once, and there are 3 epo"),
        (lambda: blocks_of([50, 50])(), {"steps_per_epoch": 9}, "ended 6 batches before the end o"),
        (lambda: blocks_of([50, 50]), {"batch_size": None}, "batch_size=None is all samples"),
        (lambda: blocks_of([50, 50]), {"sample_weight": W}, "sample_weight belongs to x and y"),
        (lambda: blocks_of([50, 50]), {"validation_split": 0.1}, "validation_split belongs to x"),
        (lambda: blocks_of([50, 50]), {"lengths": Y}, "lengths belongs to x and y"),
        (
            lambda: blocks_of([50, 50]),
            {"class_weight": "balanced"},
            "class_weight belongs to x and",
        ),
        (lambda: blocks_of([50, 50]), {"optimizer": nn.LBFGS()}, "L-BFGS needs all samples"),
        (lambda: blocks_of([50, 50]), {"scale_targets": True}, "scale_targets measures all targ"),
        (
            lambda: blocks_of([50, 50]),
            {"optimizer": nn.SGD(nn.schedules.Cosine(0.1))},
            "needs to know how many steps an epoch has; pass steps_per_epoch",
        ),
        (lambda: blocks_of([50, 50]), {"steps_per_epoch": 0}, "steps_per_epoch must be an integer"),
    ],
)
def test_what_blocks_cannot_be(given, options, message, least_bytes):
    net = network()
    with pytest.raises(ValueError, match=message):
        net.fit(given(), **{**OPTIONS, **options})
    fresh, clean = network(), (net.epoch, net.optimizer_steps) == (0, 0)
    assert not clean or net.memory.tobytes() == fresh.memory.tobytes()
    assert clean or "epoch 2" in message or "6 batches" in message
    net.fit(blocks_of([50, 50]), **OPTIONS)


def test_other_data_without_targets_are_refused():
    for given, message in [
        (X, "y must hold numbers in an array, got None"),
        (3, r"fit takes x and y, or a function or an iterable that gives blocks \(x, y\); got 3"),
        ("x", r"block 1 of the data: it must be \(x, y\)"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            network().fit(given, **OPTIONS)
    with pytest.raises(ValueError, match="steps_per_epoch is for data in blocks"):
        network().fit(X, Y, steps_per_epoch=3, **OPTIONS)
    with pytest.raises(ValueError, match=r"L2\(.*per='sample'\): data in blocks"):
        network(penalty=nn.L2(1, per="sample")).fit(blocks_of([100]), **OPTIONS)


def test_scalings_are_measured_before():
    layers = nn.Standardize(), nn.Dense(7, "tanh")
    whole, parts = network(*layers), network(*layers)
    with pytest.raises(ValueError, match=r"layer 0 \(Standardize\) measures .* network.adapt"):
        parts.fit(blocks_of([50, 50]), **OPTIONS)
    parts.adapt(X)
    parts.fit(blocks_of([50, 50]), shuffle=False, **OPTIONS)
    whole.fit(X, Y, shuffle=False, **OPTIONS)
    assert same(parts, whole)


# --- one part after the other -------------------------------------------------------------------


def test_partial_fits_go_on_with_optimizer_and_epochs():
    net, other = network(), network()
    for part in (slice(0, 50), slice(50, 100), slice(20, 60)):
        found = net.partial_fit(X[part], Y[part], batch_size=8, optimizer=nn.Adam(0.01))
        history = other.fit(X[part], Y[part], **{**OPTIONS, "epochs": 1}).history
        assert found == {name: values[-1] for name, values in history.items()}
    assert same(net, other) and net.epoch == 3 and net.optimizer_steps == 19
    assert set(net.partial_fit(blocks_of([50, 50]), batch_size=8)) == {"loss", "accuracy"}
    with pytest.raises(TypeError, match="partial_fit takes one pass over the data; drop epochs"):
        net.partial_fit(X, Y, epochs=2)


def test_an_ensemble_trains_each_network_on_the_blocks():
    members = [[network(), network()] for _ in range(2)]
    for pair in members:
        pair[1].initialize(8)
    nn.Ensemble(members[0]).fit(blocks_of([50, 50]), **OPTIONS)
    for net in members[1]:
        net.fit(blocks_of([50, 50]), **OPTIONS)
    assert all(same(one, other) for one, other in zip(*members, strict=True))


# --- memory-mapped arrays -----------------------------------------------------------------------


def test_indices_are_checked_in_pieces():
    x = np.zeros((100_000, 50), "float32")
    layer = nn.Embedding(5, 2)
    tracemalloc.start()
    layer.check_inputs(x, "x")
    assert tracemalloc.get_traced_memory()[1] < x.nbytes / 10
    tracemalloc.stop()
    x[70_000, 3] = 5
    with pytest.raises(ValueError, match=r"x has 5.0 at \[70000, 3\]; Embedding takes integers"):
        layer.check_inputs(x, "x")


MAPPED = """
import resource, sys
import numpy as np
import numbanet as nn

x = np.load(sys.argv[1], mmap_mode="r")
y = np.load(sys.argv[2])
layers = [nn.Dense(8, activation="relu"), nn.Dense(3, activation="softmax")]
net = nn.Sequential(layers, x.shape[1])
net.fit(x[:1000], y[:1000], verbose=0)  # compiles
net.predict(x[:9000]), net.evaluate(x[:9000], y[:9000])
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + (96 << 20), -1))
net.fit(x, y, epochs=1, batch_size=256, validation_split=0.1, verbose=0)
net.partial_fit(lambda: ((x[k : k + 9000], y[k : k + 9000]) for k in range(0, len(x), 9000)))
net.evaluate(x, y)
assert net.predict(x).shape == (len(x), 3)
try:
    x + 1
except MemoryError:
    print("fine")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit counts otherwise elsewhere")
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_mapped_file_larger_than_memory_is_read_where_it_lies(dtype, tmp_path):
    shape = (90_000, 784) if dtype == "float32" else (360_000, 784)
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=dtype, shape=shape)
    x[:] = np.random.default_rng(0).integers(0, 2, shape[1], np.uint8)
    x.flush()
    np.save(tmp_path / "y.npy", np.arange(shape[0]) % 3)
    path = os.pathsep.join(sys.path)
    child = subprocess.run(
        [sys.executable, "-c", MAPPED, tmp_path / "x.npy", tmp_path / "y.npy"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (child.returncode, child.stdout) == (0, "fine\n"), child.stderr
