"""Trainings that are stopped, killed and interrupted.

python tests/interruptions.py     the long form: 30 stops, 60 kills, 20 interrupts
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scale import Scale

import numbanet as nn
from numbanet.training.callbacks import Callback, Checkpoint, checkpoints

X = np.random.default_rng(0).normal(size=(60, 4, 4, 1)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 60)
OPTIONS = {
    "optimizer": nn.AdamW(nn.schedules.Cosine(0.01, epochs=12)),
    "batch_size": 7,
    "augment": nn.Augment(shift=1, noise=0.1),
    "validation_data": (X[:9], Y[:9]),
    "verbose": 0,
}
STEPS = 9
"""Steps of an epoch."""


def network(units=5):
    layers = [
        Scale(),
        nn.Flatten(),
        nn.Dense(units, activation="tanh"),
        nn.BatchNorm(),
        nn.Dropout(0.3),
        nn.Dense(3, activation="softmax"),
    ]
    return nn.Sequential(layers, (4, 4, 1), seed=4)


def state(net):
    """All that training changes."""
    return net.memory.tobytes(), net.optimizer_state.tobytes(), net.optimizer_steps, net.epoch


# --- stops --------------------------------------------------------------------------------------


class Stop(Exception):
    pass


class StopAt(Callback):
    """Raise Stop after so many steps of a fit."""

    def __init__(self, steps):
        self.every_steps = steps

    def on_step_end(self, step, logs, network):
        raise Stop


def stopped_and_resumed(folder, at, every_steps, epochs=6, **options):
    """The network and the last epoch's metrics of a training that stopped after `at` steps."""
    options = {**OPTIONS, **options}
    try:
        callbacks = [Checkpoint(folder, every_steps=every_steps), StopAt(at)]
        network().fit(X, Y, epochs=epochs, callbacks=callbacks, **options)
    except Stop:
        pass
    net = network()
    history = net.fit(X, Y, epochs=epochs, resume=folder, **options).history
    return net, {name: values[-1] for name, values in history.items()}


def differing_stops(count, seed=0):
    """Random stops after which a resumed training is not the uninterrupted one."""
    whole, generator, wrong = network(), np.random.default_rng(seed), []
    history = whole.fit(X, Y, epochs=6, **OPTIONS).history
    for _ in range(count):
        at, every = int(generator.integers(1, 6 * STEPS)), int(generator.integers(1, 12))
        with tempfile.TemporaryDirectory() as folder:
            net, last = stopped_and_resumed(folder, at, every)
        if state(net) != state(whole) or last != {k: v[-1] for k, v in history.items()}:
            wrong.append((at, every))
    return wrong


# --- kills --------------------------------------------------------------------------------------

TRAINING = """
import sys
sys.path.insert(0, {tests!r})
from interruptions import *
saver = Checkpoint({folder!r}, keep=2, every_steps=1)
network().fit(X, Y, epochs=10**6, callbacks=saver, resume={folder!r}, **OPTIONS)
"""


def _child(code):
    code = code.replace("{tests!r}", repr(os.path.dirname(__file__)))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _place(path):
    """Epochs and batches of a checkpoint, from its name."""
    parts = [int(part) for part in path.stem.split("-")[1:]]
    return (parts[0], 0) if len(parts) == 1 else (parts[0] - 1, parts[1])


def states_after_kills(folder, count, seed=0):
    """Where the newest checkpoint stands after each of so many kills; each loads, or it raises."""
    generator, places = np.random.default_rng(seed), []
    code = TRAINING.replace("{folder!r}", repr(str(folder)))
    for _ in range(count):
        child, before = _child(code), set(checkpoints(folder))
        end = time.monotonic() + 120
        while time.monotonic() < end and child.poll() is None:
            if set(checkpoints(folder)) - before:
                break
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.02))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        newest = checkpoints(folder)[-1]
        net = nn.load(newest, {"Scale": Scale})
        batches = net.unfinished.batches if net.unfinished else 0
        assert (net.epoch, batches) == _place(newest)
        places.append((net.epoch, batches))
    return places


# --- Ctrl-C -------------------------------------------------------------------------------------

WAITING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may ignore it
sys.path.insert(0, {tests!r})
import numpy as np
import numbanet as nn
x = np.random.default_rng(0).normal(size=(20_000, 784)).astype("float32")
y = np.arange(20_000) % 10
layers = [nn.Dense(100, activation="relu"), nn.Dense(10, activation="softmax")]
net = nn.Sequential(layers, 784)
net.fit(x, y, verbose=0)
for _ in range({count}):
    try:
        print("ready", flush=True)
        net.fit(x, y, epochs=10**6, verbose=0)
    except KeyboardInterrupt:
        print(time.monotonic(), flush=True)
"""


def seconds_to_stop(count, seed=0):
    """Seconds from SIGINT to the KeyboardInterrupt that fit lets through, for each of `count`."""
    generator, found = np.random.default_rng(seed), []
    child = _child(WAITING.replace("{count}", str(count)))
    for _ in range(count):
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.05 + generator.uniform(0, 0.2))
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        found.append(float(child.stdout.readline()) - sent)
    child.communicate()
    return found


if __name__ == "__main__":
    wrong = differing_stops(30)
    print(f"30 random stops: {30 - len(wrong)} resumed bit for bit {wrong or ''}")
    with tempfile.TemporaryDirectory() as folder:
        states = states_after_kills(Path(folder) / "run", 60)
    print(f"60 kills: {len(states)} loadable states, {len(set(states))} different")
    seconds = sorted(1000 * one for one in seconds_to_stop(20))
    print(f"Ctrl-C, 20 times: median {seconds[10]:.0f} ms, worst {seconds[-1]:.0f} ms")
