"""Ensemble: several networks whose predictions are combined.

    predict            p = 1/m Σᵢ pᵢ               the mean of the members' outputs
    predict_classes    mean: argmax p
                       vote: the class that most members name; of equal ones that with larger Σᵢ pᵢ

Source   Nielsen, Neural Networks and Deep Learning, chapter 6 (the vote of five networks);
         Hansen, Salamon 1990
"""

from typing import Any

import numpy as np

from numbanet.io import registry, validation
from numbanet.io.attributes import KnownArguments, KnownAttributes
from numbanet.io.tables import Text
from numbanet.network import config, serialization
from numbanet.network.sequential import Sequential
from numbanet.nn import metrics as measures
from numbanet.nn.layers import Exp, Identity, Sigmoid, Softmax
from numbanet.nn.layers.base import size
from numbanet.training.callbacks import Checkpoint, as_callbacks


@registry.register("ensemble")
class Ensemble(KnownArguments, KnownAttributes):
    """Networks with the same input and output shapes, trained one after the other.

    networks   Sequentials; their layers may differ
    combine    "mean" of the outputs, or the majority's "vote"

    Raises ValueError for no network, the same one twice, or shapes that differ.
    """

    networks: list[Sequential]
    combine: str

    def __init__(self, networks, combine: str = "mean"):
        self.networks = list(networks)
        if combine not in ("mean", "vote"):
            raise ValueError(f'combine is "mean" or "vote", not {combine!r}')
        if not self.networks:
            raise ValueError("an ensemble needs at least one network")
        for i, network in enumerate(self.networks):
            if not isinstance(network, Sequential):
                raise TypeError(f"an ensemble is made of Sequentials, got {network!r} at place {i}")
            if any(network is other for other in self.networks[:i]):
                raise ValueError(f"network {i} stands in the ensemble twice; build each one anew")
            ours = self.input_shape, self.output_shape
            theirs = network.input_shape, network.output_shape
            if ours != theirs:
                raise ValueError(
                    f"network 0 takes {ours[0]} and gives {ours[1]}, "
                    f"network {i} takes {theirs[0]} and gives {theirs[1]}; "
                    "an ensemble needs the same shapes"
                )
        self.combine = combine

    @classmethod
    def from_builder(cls, build, members: int = 5, seeds=None, combine: str = "mean") -> "Ensemble":
        """Build the networks by `build(seed)`, for seeds 0 … members − 1 or the given `seeds`."""
        if seeds is None:
            seeds = range(validation.check_int(members, "members"))
        else:
            seeds = [validation.check_int(seed, "a seed", 0) for seed in seeds]
        return cls([build(seed) for seed in seeds], combine)

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
        """The dtype of the outputs: the wider of the networks' dtypes."""
        return np.result_type(*(network.dtype for network in self.networks))

    @property
    def seed(self) -> int:
        """The first network's seed."""
        return self.networks[0].seed

    @property
    def class_names(self) -> tuple[str, ...]:
        """The first network's names of the classes."""
        return self.networks[0].class_names

    def fit(self, x, y=None, **options) -> list:
        """Train every network with the options of `Sequential.fit` and return their histories.

        Callbacks start again with each network, and so do data in blocks.
        Raises ValueError for two networks with the same seed and parameters, which would remain
        the same, and for a Checkpoint or `resume` with several networks, whose files would have the
        same names; else as Sequential.fit.
        """
        options["callbacks"] = as_callbacks(options.get("callbacks"))
        saved = any(isinstance(one, Checkpoint) for one in options["callbacks"])
        if len(self.networks) > 1 and (saved or options.get("resume") is not None):
            raise ValueError(
                "an ensemble's networks need a folder each for their checkpoints; fit them one by "
                "one, network k of ensemble.networks with callbacks=Checkpoint(f'{folder}/{k}') "
                "and resume=f'{folder}/{k}'"
            )
        for i, network in enumerate(self.networks):
            for k, other in enumerate(self.networks[:i]):
                same_seed = network.seed == other.seed
                if same_seed and np.array_equal(network.parameters, other.parameters):
                    raise ValueError(
                        f"networks {k} and {i} have the same seed, {network.seed}, and the same "
                        "parameters, so they would learn the same; give each a seed of its own"
                    )
        return [network.fit(x, y, **options) for network in self.networks]

    def _outputs(self, x, lengths, threads: int | None) -> list[np.ndarray]:
        given = {"lengths": lengths, "threads": threads}
        return [network.predict(x, **given) for network in self.networks]

    def _mean(self, outputs) -> np.ndarray:
        return np.mean(outputs, axis=0, dtype=np.float64).astype(self.dtype)

    def _classes(self, outputs) -> np.ndarray:
        """The class of every sample, or of every step, from the members' outputs."""
        if self.networks[0].output_steps:
            shape = outputs[0].shape
            return self._of_samples([one.reshape(-1, shape[-1]) for one in outputs]).reshape(
                shape[:-1]
            )
        return self._of_samples(outputs)

    def _of_samples(self, outputs) -> np.ndarray:
        """The class of every sample."""
        total = np.sum(outputs, axis=0, dtype=np.float64).reshape(len(outputs[0]), -1)
        binary = total.shape[1] == 1
        if binary:  # both classes of a single output: 1 − p, p
            total = np.hstack([len(outputs) - total, total])
        if self.combine == "mean":
            return total.argmax(axis=1)
        rows = [member.reshape(len(member), -1) for member in outputs]
        if binary:
            labels = np.stack([(member[:, 0] > 0.5).astype(np.int64) for member in rows])
        else:
            labels = np.stack([member.argmax(axis=1) for member in rows])
        votes = (labels[:, :, None] == np.arange(total.shape[1])).sum(axis=0)
        most = votes.max(axis=1, keepdims=True)
        return np.where(votes == most, total, -np.inf).argmax(axis=1)

    def predict(self, x, *, lengths=None, threads: int | None = None) -> np.ndarray:
        """Return the mean of the networks' outputs (samples, *output_shape), for any `combine`."""
        return self._mean(self._outputs(x, lengths, threads))

    def reset_state(self) -> None:
        """Let the next batch begin with sequences, where networks are stateful."""
        for network in self.networks:
            network.reset_state()

    def predict_classes(self, x, *, lengths=None, threads: int | None = None) -> np.ndarray:
        """Return labels (samples,) from the mean of the outputs or by vote, as `combine` says."""
        return self._classes(self._outputs(x, lengths, threads))

    def evaluate(
        self,
        x,
        y,
        *,
        lengths=None,
        loss=None,
        metrics=(),
        sample_weight=None,
        class_weight=None,
        threads: int | None = None,
    ) -> dict[str, float]:
        """Return what `Sequential.evaluate` returns, for the combined predictions.

        The loss is that of the mean outputs. A cross-entropy replaces an output of exactly 0 or 1
        by the nearest value beside it.
        """
        first = self.networks[0]
        chosen = first.resolve_loss(loss)
        _, y, classes = first.check_data(x, y, chosen, lengths=lengths, weighs=True)
        lengths = first.check_lengths(lengths, len(y))
        weights = first.check_weights(y, classes, sample_weight, class_weight, lengths)
        self._check_last_layers(chosen)
        outputs = self._outputs(x, lengths, threads)
        true, mean, each = first.answers(y, self._mean(outputs), lengths, weights)
        mean = mean.reshape(len(mean), -1)
        targets = true if first.output_steps else y
        found = {"loss": _loss_of_outputs(first.scale_targets(mean), targets, chosen, each)}
        wanted = measures.metrics(metrics)
        if classes:
            given = self._classes(outputs)
            _, given, _ = first.answers(y, given, lengths)
            found["accuracy"] = measures.accuracy(true, given, each)
            found["mistakes"] = measures.mistakes(true, given)
        else:
            wanted = measures.metrics(["rmse", "r2"]) | wanted
        return found | measures.measure(wanted, true, mean, each) | found

    def _check_last_layers(self, loss) -> None:
        """ValueError where a network does not end in the activation that the loss needs."""
        needed = loss.fused_activation
        for network in self.networks if needed else ():
            last = type(network.layers[-1].layer).__name__
            if last != needed:
                raise ValueError(
                    f"{type(loss).__name__} needs networks that all end in {needed.lower()}, "
                    f"one ends in {last}; pass another loss"
                )

    def save(self, path) -> None:
        """Write all networks to one file, completely or not at all; `load` reads it."""
        serialization.save(self, path)

    def to_config(self) -> dict[str, Any]:
        """Return what describes the networks besides their tensors, as JSON holds it."""
        networks = [network.to_config() for network in self.networks]
        return {"combine": self.combine, "networks": networks}

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors of all networks by their names in a file: "2/0.weights"."""
        return {
            f"{i}/{name}": values
            for i, network in enumerate(self.networks)
            for name, values in network.tensors().items()
        }

    @classmethod
    def from_config(cls, content, tensors, classes: dict[str, Any], where: str) -> "Ensemble":
        """Build the networks that `to_config` described; see `Sequential.from_config`."""
        config.check_keys(where, content, "ensemble", {"combine", "networks"})
        described = content["networks"]
        if not isinstance(described, list):
            found = type(described).__name__
            raise ValueError(f"{where}: the ensemble's networks must be a list, got {found}")
        parts: dict[str, dict[str, np.ndarray]] = {str(i): {} for i in range(len(described))}
        for name, values in tensors.items():
            number, _, rest = name.partition("/")
            if number not in parts:
                raise ValueError(
                    f"{where}: tensor {name!r} belongs to none of the {len(described)} networks"
                )
            parts[number][rest] = values
        networks = [
            Sequential.from_config(one, parts[str(i)], classes, f"{where}, network {i}")
            for i, one in enumerate(described)
        ]
        try:
            return cls(networks, content["combine"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def summary(self) -> Text:
        """Return the networks' tables, a single one if all are the same, and the total number."""
        tables = [network.summary() for network in self.networks]
        total = sum(network.parameters.size for network in self.networks)
        count = f"{len(tables)} networks" if len(tables) > 1 else "1 network"
        shown = tables[:1] if len(set(tables)) == 1 else tables
        return Text("\n\n".join([*shown, f"{count}, {self.combine}: {total:,} parameters"]))

    def __repr__(self):
        shapes = f"{self.input_shape} → {self.output_shape}"
        return f"<Ensemble of {len(self.networks)}, {self.combine}: {shapes}>"


def _loss_of_outputs(outputs: np.ndarray, y, loss, weights) -> float:
    """The mean loss, weighted where there are `weights`, of outputs (samples, n).

    A loss that takes z instead of a = activation(z) gets a z that has these outputs.
    """
    a = outputs.astype(np.float64)
    tiny, small = np.finfo(outputs.dtype).tiny, np.finfo(outputs.dtype).epsneg
    last: Any = Identity
    if loss.fused_activation == "Softmax":
        last, a = Softmax, np.log(np.maximum(a, tiny))
    elif loss.fused_activation == "Sigmoid":
        a = np.clip(a, tiny, 1 - small)
        last, a = Sigmoid, np.log(a) - np.log1p(-a)
    elif loss.fused_activation == "Exp":
        last, a = Exp, np.log(np.maximum(a, tiny))
    network = Sequential([last()], size(a.shape[1:]), "float64")
    known = np.ma.masked_invalid(y)
    return network.evaluate(a, known, loss=loss, sample_weight=weights)["loss"]
