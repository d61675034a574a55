"""A character model: an LSTM learns to continue Python's documentation, beside PyTorch.

    python examples/characters.py

The text is that of `help()` on keywords and topics, which comes with Python (`pydoc_data`). At
every step the network gives the probabilities of the next character. It is measured in bits per
character on the last tenth, which it has not seen: log₂ 1/p on average. Where torch is installed,
the same network learns there, from the same parameters and on the same batches.
"""

import importlib.util
import math
import time
from pydoc_data.topics import topics
from typing import Any

import numpy as np

import numbanet as nn

STEPS, BATCH, RATE = 64, 32, 0.003
"""Characters of a sequence, sequences of a batch, and Adam's learning rate."""


def documentation() -> tuple[str, list[str]]:
    """The text, and its characters in their order: the vocabulary."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return text, sorted(set(text))


def sequences(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sequences (n, STEPS) one behind the other, and the character after each of theirs."""
    n = (len(codes) - 1) // STEPS
    return codes[: n * STEPS].reshape(n, STEPS), codes[1 : n * STEPS + 1].reshape(n, STEPS)


def build(vocabulary: int, units: int, dtype: str = "float32") -> nn.Sequential:
    """Characters become vectors, an LSTM reads them, a softmax at every step says what follows."""
    layers = [
        nn.Embedding(vocabulary, 32),
        nn.LSTM(units, return_sequences=True),
        nn.Dense(vocabulary, activation="softmax"),
    ]
    return nn.Sequential(layers, STEPS, dtype, seed=1)


def train(network: nn.Sequential, x: np.ndarray, y: np.ndarray, epochs: int) -> None:
    """Train on the sequences in their order."""
    optimizer = nn.Adam(RATE)
    network.fit(
        x, y, optimizer=optimizer, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0
    )


class InTorch:
    """The same network in PyTorch, with the same parameters.

    PyTorch adds a second bias to the LSTM's, which stays zero here.
    """

    def __init__(self, network: nn.Sequential):
        import torch

        self.torch, (embedding, lstm, dense) = torch, network.layers[:3]
        (vocabulary, size), units = embedding.weights.shape, len(lstm.recurrent_weights)
        self.modules = torch.nn.ModuleList(
            [
                torch.nn.Embedding(vocabulary, size),
                torch.nn.LSTM(size, units, batch_first=True),
                torch.nn.Linear(units, vocabulary),
            ]
        ).to(getattr(torch, str(network.dtype)))
        values = [embedding.weights, lstm.weights.T, lstm.recurrent_weights.T, lstm.bias]
        values += [np.zeros_like(lstm.bias), dense.weights.T, dense.bias]
        with torch.no_grad():
            for parameter, value in zip(self.modules.parameters(), values, strict=True):
                parameter.copy_(torch.tensor(value.copy()))
        self.modules[1].bias_hh_l0.requires_grad_(False)

    def loss(self, x: np.ndarray, y: np.ndarray) -> Any:
        """The mean cross-entropy of the characters."""
        embedding, lstm, dense = self.modules
        logits = dense(lstm(embedding(self.torch.tensor(x)))[0])
        labels = self.torch.tensor(y).flatten()
        return self.torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels)

    def train(self, x: np.ndarray, y: np.ndarray, epochs: int) -> None:
        """Train as `train` does."""
        optimizer = self.torch.optim.Adam(self.modules.parameters(), RATE)
        for first in [*range(0, len(x), BATCH)] * epochs:
            optimizer.zero_grad()
            self.loss(x[first : first + BATCH], y[first : first + BATCH]).backward()
            optimizer.step()

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> float:
        """The mean cross-entropy without a gradient."""
        with self.torch.no_grad():
            return float(self.loss(x, y))


def sample(
    network: nn.Sequential, vocabulary: list[str], start: str, length: int, temperature: float
) -> str:
    """Continue a text by so many characters, drawn from pᵏ / Σ pᵏ with k = 1 / temperature."""
    codes = [vocabulary.index(one) for one in start]
    stream, generator = network.stream(), np.random.default_rng(1)
    for code in codes[:-1]:
        stream.step(code)
    for _ in range(length):
        p = stream.step(codes[-1]).astype(np.float64)
        p = (p / p.max()) ** (1 / temperature)
        codes.append(int(generator.choice(len(p), p=p / p.sum())))
    return "".join(vocabulary[code] for code in codes)


def measured(name: str, train, evaluate) -> float:
    """Train and print how it went; the bits per character of held-out text."""
    began = time.perf_counter()
    train()
    seconds = time.perf_counter() - began
    bits = evaluate() / math.log(2)
    print(f"{name:9} {bits:.3f} bits per character of held-out text, trained in {seconds:.1f} s")
    return bits


def main(
    epochs: int = 4,
    units: int = 64,
    part: float = 1.0,
    length: int = 300,
    beside: bool = importlib.util.find_spec("torch") is not None,
) -> float:
    """Learn from that part of the text, beside PyTorch or alone, and write; the bits per character
    of held-out text.
    """
    text, vocabulary = documentation()
    codes = np.searchsorted(vocabulary, list(text[: int(part * len(text))]))
    cut = len(codes) * 9 // 10
    (x, y), held_out = sequences(codes[:cut]), sequences(codes[cut:])
    order = np.random.default_rng(1).permutation(len(x))
    x, y, network = x[order], y[order], build(len(vocabulary), units)
    print(f"{len(x)} sequences of {STEPS}, {epochs} epochs")
    theirs = InTorch(network) if beside else None
    train(network[:], x[:BATCH], y[:BATCH], 1)  # compiles
    bits = measured(
        "numbanet",
        lambda: train(network, x, y, epochs),
        lambda: network.evaluate(*held_out)["loss"],
    )
    if theirs is not None:
        measured("PyTorch", lambda: theirs.train(x, y, epochs), lambda: theirs.evaluate(*held_out))
    for temperature in (0.5, 1.0):
        written = sample(network, vocabulary, "The class ", length, temperature)
        print(f"\ntemperature {temperature}: {written}")
    return bits


if __name__ == "__main__":
    main()
