"""Whether a classifier is as sure as it is right."""

from dataclasses import dataclass

import numpy as np

from numbanet.io.validation import check_int
from numbanet.network.insight.layerwise import checked


@dataclass(frozen=True, eq=False)
class Calibration:
    """How often predictions of a confidence were right.

    edges        (bins + 1,) of the confidences, 0 … 1
    counts       (bins,) samples
    confidence   (bins,) their mean confidence, the output of the predicted class; NaN without one
    accuracy     (bins,) the fraction of them that were right; NaN without one
    error        the expected calibration error: the mean of |accuracy − confidence| over samples,
                 bin by bin. With few samples in a bin it is above 0 by chance alone
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(network, x, y, bins: int = 10) -> Calibration:
    """Compare how sure a classifier is with how often it is right.

    Source   Guo, Pleiss, Sun, Weinberger 2017
    Raises ValueError for targets that are no classes, and outputs that are no probabilities.
    """
    bins = check_int(bins, "bins")
    x, y, classes = checked(network, x, y, network.resolve_loss(None))
    outputs = network.predict(x).reshape(len(x), -1).astype(np.float64)
    single = outputs.shape[1] == 1
    if not classes:
        raise ValueError("y has real targets; calibration is for classes")
    sums = outputs.sum(axis=1)
    if outputs.min() < 0 or outputs.max() > 1 or not (single or np.allclose(sums, 1, atol=1e-3)):
        raise ValueError(
            "the outputs are no probabilities; end the network with softmax, "
            "or sigmoid for a single output"
        )
    true = y if y.ndim == 1 else y.argmax(axis=1) if not single else y[:, 0].astype(np.int64)
    given = network.predict_classes(x)
    sure = outputs.max(axis=1) if not single else np.abs(outputs[:, 0] - 0.5) + 0.5
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.digitize(sure, edges) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, sure, bins) / counts
        accuracy = np.bincount(place, given == true, bins) / counts
    gaps = np.nan_to_num(np.abs(accuracy - confidence))
    error = float((counts * gaps).sum() / len(x))
    return Calibration(edges, counts, confidence, accuracy, error)
