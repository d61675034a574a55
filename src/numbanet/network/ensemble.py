"""Ensemble: several networks that are asked together.

    predict            p = 1/m Σᵢ pᵢ                      the mean of the members' outputs
    predict_classes    mean: argmax p;  vote: the class that most members name, of equal ones the one with the larger Σᵢ pᵢ

Source   Nielsen, Neural Networks and Deep Learning, chapter 6 (the vote of five networks); Hansen, Salamon 1990
"""

from typing import Any

import numpy as np

from numbanet.io import validation
from numbanet.network.sequential import Sequential
from numbanet.nn import metrics
from numbanet.nn.layers import Identity, Sigmoid, Softmax
from numbanet.nn.layers.base import size


class Ensemble:
    """Networks with the same input and output shapes, trained one after the other and asked together.

    networks   Sequentials; their layers may differ
    combine    "mean" of the outputs, or the majority's "vote"

    Raises ValueError for less than one network, the same one twice, or shapes that differ.
    """

    def __init__(self, networks, combine: str = "mean"):
        self.networks: list[Sequential] = list(networks)
        if combine not in ("mean", "vote"):
            raise ValueError(f'combine is "mean" or "vote", not {combine!r}')
        if not self.networks:
            raise ValueError("an ensemble needs at least one network")
        for i, network in enumerate(self.networks):
            if not isinstance(network, Sequential):
                raise TypeError(f"an ensemble is made of Sequentials, got {network!r} at place {i}")
            if any(network is other for other in self.networks[:i]):
                raise ValueError(f"network {i} stands in the ensemble twice; build each one anew")
            ours, theirs = (self.input_shape, self.output_shape), (network.input_shape, network.output_shape)
            if ours != theirs:
                raise ValueError(f"network 0 takes {ours[0]} and gives {ours[1]}, network {i} takes {theirs[0]} and gives "
                                 f"{theirs[1]}; an ensemble needs the same shapes")
        self.combine = combine

    @classmethod
    def from_builder(cls, build, members: int = 5, seeds=None, combine: str = "mean") -> "Ensemble":
        """Build the networks by `build(seed)`, for seeds 0 … members − 1 or the ones given."""
        chosen = range(validation.check_int(members, "members")) if seeds is None else [validation.check_int(seed, "a seed", 0) for seed in seeds]
        return cls([build(seed) for seed in chosen], combine)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.networks[0].input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's output."""
        return self.networks[0].output_shape

    @property
    def dtype(self) -> np.dtype:
        """The wider of the networks' dtypes, that of the outputs."""
        return np.result_type(*(network.dtype for network in self.networks))

    @property
    def seed(self) -> int:
        """The first network's seed."""
        return self.networks[0].seed

    def fit(self, x, y, **options) -> list:
        """Train every network with the options of `Sequential.fit`, and return their histories; callbacks begin anew with each.

        Raises ValueError for two networks with the same seed and parameters, which would remain the same; else as Sequential.fit.
        """
        for i, network in enumerate(self.networks):
            for k, other in enumerate(self.networks[:i]):
                if network.seed == other.seed and np.array_equal(network.parameters, other.parameters):
                    raise ValueError(f"networks {k} and {i} have the same seed, {network.seed}, and the same parameters, so they "
                                     "would learn the same; give each a seed of its own")
        return [network.fit(x, y, **options) for network in self.networks]

    def _outputs(self, x, threads: int | None) -> list[np.ndarray]:
        return [network.predict(x, threads=threads) for network in self.networks]

    def _mean(self, outputs) -> np.ndarray:
        return np.mean(outputs, axis=0, dtype=np.float64).astype(self.dtype)

    def _classes(self, outputs) -> np.ndarray:
        total = np.sum(outputs, axis=0, dtype=np.float64).reshape(len(outputs[0]), -1)
        single = total.shape[1] == 1
        if single:  # both classes of a single output: 1 − p, p
            total = np.hstack([len(outputs) - total, total])
        if self.combine == "mean":
            return total.argmax(axis=1)
        rows = [one.reshape(len(one), -1) for one in outputs]
        named = np.stack([(one[:, 0] > 0.5).astype(np.int64) if single else one.argmax(axis=1) for one in rows])
        votes = (named[:, :, None] == np.arange(total.shape[1])).sum(axis=0)
        return np.where(votes == votes.max(axis=1, keepdims=True), total, -np.inf).argmax(axis=1)

    def predict(self, x, *, threads: int | None = None) -> np.ndarray:
        """Return the mean of the networks' outputs (samples, *output_shape), whatever `combine` is."""
        return self._mean(self._outputs(x, threads))

    def predict_classes(self, x, *, threads: int | None = None) -> np.ndarray:
        """Return labels (samples,) from the mean of the outputs or by vote, as `combine` says."""
        return self._classes(self._outputs(x, threads))

    def evaluate(self, x, y, *, loss=None, threads: int | None = None) -> dict[str, float]:
        """Return {"loss", "accuracy", "mistakes"} for classes, {"loss", "rmse", "r2"} for other targets, as Sequential does.

        The loss is that of the mean outputs. A cross-entropy takes an output of exactly 0 or 1 for the nearest number beside it.
        """
        first = self.networks[0]
        chosen = first.resolve_loss(loss)
        _, y, classes = first.check_data(x, y, chosen)
        for network in self.networks if chosen.fused_activation else ():
            if type(network.layers[-1].layer).__name__ != chosen.fused_activation:
                raise ValueError(f"{type(chosen).__name__} needs networks that all end in {chosen.fused_activation.lower()}, one ends in "
                                 f"{type(network.layers[-1].layer).__name__}; pass another loss")
        outputs = self._outputs(x, threads)
        mean = self._mean(outputs).reshape(len(outputs[0]), -1)
        value = _loss(mean, y, chosen)
        if classes:
            wrong = metrics.mistakes(y, self._classes(outputs))
            return {"loss": value, "accuracy": 1 - wrong / len(mean), "mistakes": wrong}
        return {"loss": value, "rmse": metrics.rmse(y, mean), "r2": metrics.r2(y, mean)}

    def save(self, path) -> None:
        """Write all networks to one file, whole or not at all; `load` reads it."""
        from numbanet.network.serialization import save

        save(self, path)

    def summary(self) -> str:
        """Return the networks' tables, a single one where they are all the same, and the number of all parameters."""
        tables = [network.summary() for network in self.networks]
        total = sum(network.parameters.size for network in self.networks)
        count = f"{len(tables)} networks" if len(tables) > 1 else "1 network"
        shown = tables[:1] if len(set(tables)) == 1 else tables
        return "\n\n".join([*shown, f"{count}, {self.combine}: {total:,} parameters"])

    def __repr__(self):
        return f"<Ensemble of {len(self.networks)}, {self.combine}: {self.input_shape} → {self.output_shape}>"


def _loss(outputs: np.ndarray, y, loss) -> float:
    """The mean loss of outputs (samples, n): where the loss takes z for a, it gets a z that has these outputs."""
    a = outputs.astype(np.float64)
    tiny, small = np.finfo(outputs.dtype).tiny, np.finfo(outputs.dtype).epsneg
    last: Any = Identity
    if loss.fused_activation == "Softmax":
        last, a = Softmax, np.log(np.maximum(a, tiny))
    elif loss.fused_activation == "Sigmoid":
        a = np.clip(a, tiny, 1 - small)
        last, a = Sigmoid, np.log(a) - np.log1p(-a)
    return Sequential([last()], size(a.shape[1:]), "float64").evaluate(a, y, loss=loss)["loss"]
