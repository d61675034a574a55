"""Read handwritten digits row by row with recurrent layers, in one direction and in both.

    python examples/row_by_row.py

The images come with scikit-learn: pip install "numbanet[sklearn]".
"""

import numbanet as nn

ROWS = (8, 8)
"""The steps of a sequence, and the pixels of each."""


def accuracy(layer: nn.Layer, epochs: int) -> float:
    """Train the layer and a softmax; the accuracy on images that were held out."""
    data = nn.datasets.digits()
    x, x_test = data.x.reshape(-1, *ROWS), data.x_test.reshape(-1, *ROWS)
    network = nn.Sequential([layer, nn.Dense(10, activation="softmax")], ROWS)
    print(network.summary())
    optimizer = nn.Adam(nn.schedules.Cosine(0.01))
    network.fit(x, data.y, optimizer=optimizer, batch_size=32, epochs=epochs, verbose=0)
    found = network.evaluate(x_test, data.y_test)
    print(f"accuracy {found['accuracy']:.4f}, {found['mistakes']} mistakes in {len(x_test)}")
    return found["accuracy"]


def main(epochs: int = 40) -> float:
    """The lower of the two accuracies."""
    layers = nn.GRU(64), nn.Bidirectional(nn.LSTM(32))
    return min(accuracy(layer, epochs) for layer in layers)


if __name__ == "__main__":
    main()
