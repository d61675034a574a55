"""Forecast sunspots with intervals: a recurrent network learns quantiles of what comes.

    python examples/forecast.py

A GRU reads four years of monthly means and says, for the next month and those in half a year and in
a year, below which number of sunspots the mean will lie with a probability of 10, 50 and 90 %. It
learns until 1920. The years after that show whether 80 % of the means lie between the outer two.

Source   sunspots.csv: monthly means 1749 to 2008, World Data Center for the Sunspot Index, Brussels
         (version 1), by NOAA's National Geophysical Data Center, public domain
"""

from pathlib import Path

import numpy as np

import numbanet as nn

STEPS, LEADS, LEVELS = 48, (1, 6, 12), (0.1, 0.5, 0.9)
"""Months that are read, how many months later the forecasts are, and their quantiles."""
LAST_YEAR = 1920
"""The last year to learn from."""


def windows() -> tuple[np.ndarray, np.ndarray, int]:
    """Roots of the means (samples, STEPS, 1), those to forecast (samples, LEADS), the samples to
    learn from.

    The root of a count varies about as much where counts are large as where they are small.
    """
    table = np.loadtxt(Path(__file__).with_name("sunspots.csv"), delimiter=",", skiprows=1)
    months = np.sqrt(table[:, 1:].ravel())
    x = np.lib.stride_tricks.sliding_window_view(months, STEPS)[: -LEADS[-1], :, None]
    last = np.arange(STEPS - 1, STEPS - 1 + len(x))
    learned = 12 * int(LAST_YEAR + 1 - table[0, 0]) - STEPS + 1 - LEADS[-1]
    return x, months[last[:, None] + LEADS], learned


def main(epochs: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Train and measure: for each lead, the fraction of means in the interval, and the mean error
    of the median over that of the last month's mean.
    """
    x, y, learned = windows()
    layers = [nn.Standardize(), nn.GRU(16), nn.Dense(len(LEADS) * len(LEVELS))]
    network = nn.Sequential(layers, x.shape[1:], seed=1)
    network.fit(
        x[:learned],
        np.repeat(y[:learned], len(LEVELS), axis=1),
        loss=nn.Quantile(LEVELS),
        optimizer=nn.Adam(nn.schedules.Cosine(0.01)),
        epochs=epochs,
        scale_targets=True,
        verbose=0,
    )
    held_out = slice(learned + LEADS[-1], None)  # what is forecast there was not learned
    quantiles = network.predict(x[held_out]).clip(0).reshape(-1, len(LEADS), len(LEVELS)) ** 2
    true, now = y[held_out] ** 2, x[held_out, -1] ** 2
    low, median, high = np.moveaxis(quantiles, 2, 0)
    inside = ((true >= low) & (true <= high)).mean(axis=0)
    error, naive = abs(true - median).mean(axis=0), abs(true - now).mean(axis=0)
    print(f"learned from {learned} windows until {LAST_YEAR}, checked on {len(true)} after that")
    for k, lead in enumerate(LEADS):
        print(
            f"{lead:2d} months ahead: {inside[k]:.1%} in the interval of 80 %, its mean width "
            f"{(high - low)[:, k].mean():.1f}; mean error {error[k]:.1f}, of the last month's "
            f"mean {naive[k]:.1f}"
        )
    return inside, error / naive


if __name__ == "__main__":
    main()
