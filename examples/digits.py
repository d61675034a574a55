"""Learn handwritten digits, look at the mistakes, save the network and load it again.

    python examples/digits.py

The images come with scikit-learn: pip install "numbanet[sklearn]".
"""

import tempfile
from pathlib import Path

import numpy as np

import numbanet as nn


def main(epochs: int = 40) -> float:
    """Train, save, load; the accuracy on images that were held out."""
    data = nn.datasets.digits()
    network = nn.Sequential(
        [nn.Dense(64, activation="relu"), nn.Dense(10, activation="softmax")], input_shape=64
    )
    print(network.summary())
    network.fit(
        data.x,
        data.y,
        optimizer=nn.Adam(0.003),
        batch_size=32,
        epochs=epochs,
        validation_data=(data.x_test, data.y_test),
        verbose=0,
    )
    found = network.evaluate(data.x_test, data.y_test)
    print(f"accuracy {found['accuracy']:.4f}, {found['mistakes']} mistakes in {len(data.x_test)}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.safetensors"
        network.save(path)
        again = nn.load(path)
    assert np.array_equal(again.predict(data.x_test), network.predict(data.x_test))
    return found["accuracy"]


if __name__ == "__main__":
    main()
