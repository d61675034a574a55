"""What the command line does: read data, choose a task, build, train and measure a network.

The options are defined in `app`, which needs click; this file does not.

The network takes values as in the file and predicts in their unit: inputs from a table pass through
a Standardize layer, bytes of images through Rescale(1 / 255), and real targets are scaled by fit.
"""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from numbanet import datasets
from numbanet.datasets import Table
from numbanet.io import tabular, validation
from numbanet.io.registry import lookup
from numbanet.network import zoo
from numbanet.network.sequential import Sequential
from numbanet.nn import losses, metrics, optimizers
from numbanet.nn.augment import Augment, shift_copies
from numbanet.nn.layers import Dense, Flatten, Layer, Rescale, Standardize
from numbanet.nn.layers.base import size
from numbanet.nn.regularizers import L1, L2
from numbanet.nn.schedules import Cosine
from numbanet.plotting import image_shape
from numbanet.training.callbacks import Checkpoint, checkpoints

DATA_SETS: dict[str, dict[str, Any]] = {
    "digits": {"layers": (64,), "epochs": 60},
    "breast_cancer": {"layers": (16,), "epochs": 100, "l2": 0.01},
    "mnist": {
        "layers": (300,),
        "epochs": 15,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "batch_size": 100,
    },
    "houses": {"layers": (32, 16), "epochs": 60},
    "cats": {"epochs": 300, "optimizer": "sgd", "learning_rate": 0.01, "l2": 0.03},
}
"""The data sets by name, and where their settings differ from the ordinary ones."""
DEFAULTS: dict[str, Any] = {
    "layers": (32,),
    "activation": "relu",
    "loss": None,
    "optimizer": "adam",
    "learning_rate": None,
    "schedule": "constant",
    "momentum": None,
    "batch_size": 32,
    "epochs": 100,
    "l1": 0.0,
    "l2": 0.0,
}
LEARNING_RATES = {"sgd": 0.1}
"""Learning rates of optimisers whose default is too small for data of this size."""
NAMED_MODELS: dict[str, dict[str, Any]] = {
    "lenet5": {"learning_rate": 0.002, "schedule": "cosine", "batch_size": 64, "epochs": 10},
    "vgg_small": {"learning_rate": 0.001, "schedule": "cosine", "batch_size": 64, "epochs": 15},
    **{
        name: {"learning_rate": 0.004, "schedule": "cosine", "batch_size": 32, "epochs": 40}
        for name in ("lstm", "gru")
    },
    **{
        f"nielsen{row}": {
            "optimizer": "sgd",
            "loss": found.recipe.loss,
            "learning_rate": found.recipe.learning_rate,
            "batch_size": found.recipe.batch_size,
            "epochs": found.recipe.epochs,
        }
        for row, found in zoo.BOOK_ROWS.items()
        if found.networks == 1
    },
}
"""Networks by name, with their settings."""
LOST = 1e6
"""A training loss above it is that of a training that diverged: guessing has one near 1, and
penalties add hundreds at most."""
MAX_CLASSES = 50
CLASS_OUTPUTS = ("Softmax", "Sigmoid", "Step")
"""Last activations whose outputs name a class."""


# --- data -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Data:
    """Unscaled inputs and targets, for training and held out.

    classes       the number of classes, 0 for real targets
    decision      why they were taken for classes or for real targets
    class_names   empty where the labels have no names
    dropped       how many rows of a table were left out for a missing cell
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    standardize: bool
    unit: str = ""
    decision: str = ""
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    target_name: str = ""
    dropped: int = 0

    def __str__(self):
        targets = f"{size(self.y.shape[1:])} real target(s)"
        if self.classes:
            targets = f"{self.classes} classes"
        scaled = " and targets" if not self.classes else ""
        scaling = f"; inputs{scaled} are standardised" if self.standardize else ""
        dropped = f"; {self.dropped} rows with a missing cell left out" if self.dropped else ""
        return (
            f"{self.name}: {len(self.x)} samples for training, {len(self.x_test)} held out; "
            f"{size(self.x.shape[1:])} inputs, {targets}{self.decision}{dropped}{scaling}"
        )


def is_file(source: str) -> bool:
    """Whether the source is a file; ValueError if it is neither a file nor a data set."""
    if Path(source).suffix.lower() in (".csv", ".npz") or os.path.exists(source):
        return True
    lookup("data set", source, DATA_SETS)
    return False


def read_data(source: str, seed: int, task: str | None = None, **csv: Any) -> Data:
    """Read a data set by name, or a table of which a fifth is held out.

    csv   the options of `read_table`
    """
    if is_file(source):
        table = read_table(source, **csv)
        x, y = table.x, table.y
        assert y is not None
        if table.lengths is not None:
            raise ValueError(
                f"{source} has lengths of sequences, which train does not read; leave that array "
                "out, or train in Python: network.fit(x, y, lengths=lengths)"
            )
        train, test = datasets.split_indices(len(x), seed)
        if len(test) == 0:
            raise ValueError(
                f"{source}: {len(x)} samples; at least 3 are needed to hold a fifth out"
            )
        y, classes, decision, class_names = infer_task(source, y, task, table.class_names)
        return Data(
            source,
            x[train],
            y[train],
            x[test],
            y[test],
            classes,
            x.dtype != np.uint8,
            decision=decision,
            class_names=class_names,
            feature_names=header(source, table),
            target_name=table.target_name,
            dropped=len(table.dropped),
        )
    name = source.lower().replace("-", "_")
    if task is not None:
        raise ValueError(f"--task is for files; {name} has its own")
    if csv:
        raise ValueError(f"{option_names(csv)}: for CSV files, not for {name}")
    if name == "houses":
        d = datasets.houses(seed, standardize=False)
        x, y, x_test, y_test = (part.astype(np.float64) for part in (d.x, d.y, d.x_test, d.y_test))
        return Data(name, x, y, x_test, y_test, 0, True, "dollars")
    d = getattr(datasets, name)(**({"seed": seed} if name in ("digits", "breast_cancer") else {}))
    x, x_test = (
        (d.x, d.x_test)
        if d.x_scaling is None
        else (d.x_scaling.invert(d.x), d.x_scaling.invert(d.x_test))
    )
    plain = d.names == tuple(map(str, range(len(d.names))))
    return Data(
        name,
        x,
        d.y,
        x_test,
        d.y_test,
        len(d.names),
        d.x_scaling is not None,
        class_names=() if plain else d.names,
    )


def option_names(csv: dict[str, Any]) -> str:
    """The options of a CSV file as the command line has them: "--missing, --target"."""
    return ", ".join(f"--{name}" for name in csv)


def read_table(path: str, **csv: Any) -> Table:
    """Read x (uint8, or else float64) and y of a file; a single column of y becomes a vector.

    csv   options of `datasets.read_csv`, for a CSV file
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        return datasets.read_csv(path, **csv)
    if suffix != ".npz":
        raise ValueError(f"{path}: a table is a .npz or a .csv file, got {suffix!r}")
    if csv:
        raise ValueError(f"{option_names(csv)}: for CSV files, not for {path}")
    x, y, lengths = tabular.read_npz(path, "x", "y", optional=("lengths",))
    if x.ndim and not len(x):
        raise ValueError(f"{path}: x has no samples: its shape is {x.shape}")
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise ValueError(
            f"{path}: x and y need the same number of samples, got x {x.shape} and y {y.shape}"
        )
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    names: tuple[str, ...] = ()
    if y.dtype.kind == "U" and y.ndim == 1:
        found, y = np.unique(y, return_inverse=True)
        names = tuple(map(str, found))
    return Table(read_inputs(path, x), y, class_names=names, lengths=lengths)


def read_inputs(path: str, x: np.ndarray) -> np.ndarray:
    """Inputs (samples, …), checked."""
    x = x[:, None] if x.ndim == 1 else x
    dtype = np.uint8 if x.dtype == np.uint8 else np.float64
    return validation.check_inputs(x, x.shape[1:], np.float64, f"{path}: x").astype(dtype)


def infer_task(
    source: str, y: np.ndarray, task: str | None, class_names: tuple[str, ...] = ()
) -> tuple[np.ndarray, int, str, tuple[str, ...]]:
    """Decide whether y holds labels or real targets.

    class_names   where y held names: y is made of places in them
    Returns y as training takes it, the number of classes (0 for real targets), the reason, and the
    classes' names. Integers that are not 0 … k − 1 become labels in their order, with themselves
    for names.
    """
    if class_names:
        return y, _check_classes(source, class_names, task), " (y holds names)", class_names
    width = y.shape[1] if y.ndim == 2 else 1
    validation.check_targets(
        y, len(y), size(y.shape[1:]), np.float64, f"{source}: y", f"{source}: x"
    )
    if (
        y.ndim == 2
        and task != "regression"
        and ((y == 0) | (y == 1)).all()
        and (y.sum(axis=1) == 1).all()
    ):
        return y.argmax(axis=1), width, " (y has rows with a single one: classes)", ()
    different, labels = np.unique(y, return_inverse=True)
    integers = bool((different == np.floor(different)).all())
    few = width == 1 and integers and len(different) <= MAX_CLASSES
    if task == "regression" or (task is None and not few):
        why = " (y is not made of few integers: regression; --task classes decides otherwise)"
        return y.astype(np.float64).reshape(len(y), -1), 0, "" if task else why, ()
    if width > 1 or not integers:
        raise ValueError(
            f"{source}: y must hold one integer per sample to name classes; drop --task classes"
        )
    why = (
        f" (y has {len(different)} different integers: classes; "
        "--task regression decides otherwise)"
    )
    if not (different == np.arange(len(different))).all():
        class_names = tuple(str(int(value)) for value in different)
        _check_classes(source, class_names, "classes")
    return labels.reshape(-1), max(2, len(different)), "" if task else why, class_names


def _check_classes(source: str, names: tuple[str, ...], task: str | None) -> int:
    """The number of classes; ValueError for a single one, or names that are unlikely classes."""
    if task == "regression":
        raise ValueError(f"{source}: y holds names such as {names[0]!r}; drop --task regression")
    if len(names) == 1:
        raise ValueError(f"{source}: y has the one class {names[0]!r}; there must be two or more")
    if task is None and len(names) > MAX_CLASSES:
        raise ValueError(
            f"{source}: y holds {len(names)} different names, such as {names[0]!r}; choose another "
            "column with --target, or pass --task classes"
        )
    return len(names)


def header(source: str, table: Table) -> tuple[str, ...]:
    """The names of a table's inputs; empty, with a warning, where two of them are the same."""
    names = table.feature_names
    if all(re.fullmatch(r"column \d+", name) for name in names):
        return ()
    if twice := [name for name in names if names.count(name) > 1]:
        warnings.warn(
            f"{source}: the header has {twice[0]!r} more than once, so the network finds columns "
            "by their order, not by their names; name them differently",
            stacklevel=2,
        )
        return ()
    return names


def first_network(net) -> Sequential:
    """The network, or the first one of an ensemble."""
    return getattr(net, "networks", [net])[0]


def by_name(net, path: str, csv: dict[str, Any]) -> dict[str, Any]:
    """The options to read a CSV file with the columns that the network was trained on."""
    known = first_network(net)
    if not known.feature_names or Path(path).suffix.lower() != ".csv":
        return csv
    return {"columns": list(known.feature_names), "target": known.target_name, **csv}


def labels_for(net, table: Table, source: str) -> np.ndarray:
    """The targets of a table as the network takes them: names become its labels."""
    y, names = table.y, net.class_names
    assert y is not None
    if table.class_names:
        given = [table.class_names[k] for k in y]
    elif names and y.ndim == 1 and all(name.lstrip("-").isdigit() for name in names):
        given = [f"{value:.0f}" if value == np.floor(value) else str(value) for value in y]
    else:
        return y
    places = {name: k for k, name in enumerate(names)}
    unknown = next((name for name in given if name not in places), None)
    if unknown is not None:
        known = ", ".join(names) or "without names"
        raise ValueError(f"{source}: y has the class {unknown!r}; the network's are {known}")
    return np.array([places[name] for name in given], np.int64)


# --- the network ----------------------------------------------------------------------------------


def resolve_settings(source: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a training: those given, else the data set's, else the defaults."""
    own = {} if is_file(source) else DATA_SETS[source.lower().replace("-", "_")]
    if "model" in given:
        own = lookup("model", given["model"], NAMED_MODELS)
        given = {**given, "model": given["model"].lower().replace("-", "_")}
        for name in ("layers", "activation"):
            if name in given:
                raise ValueError(
                    f"--{name} is for networks without a name; drop it, "
                    f"or drop --model {given['model']}"
                )
    chosen = {**DEFAULTS, **own, **given}
    kind = lookup("optimizer", chosen["optimizer"], optimizers.NAMES)
    default = own.get("optimizer", DEFAULTS["optimizer"])
    if kind is not lookup("optimizer", default, optimizers.NAMES):
        chosen |= {name: given.get(name) for name in ("learning_rate", "momentum")}
    if chosen["learning_rate"] is None:
        chosen["learning_rate"] = LEARNING_RATES.get(chosen["optimizer"].lower())
    return chosen


def build_optimizer(chosen: dict[str, Any]) -> optimizers.Optimizer:
    """The optimiser with its learning rate and momentum."""
    kind = lookup("optimizer", chosen["optimizer"], optimizers.NAMES)
    values = {
        name: chosen[name] for name in ("learning_rate", "momentum") if chosen[name] is not None
    }
    if "momentum" in values and "momentum" not in {f.name for f in fields(kind)}:
        raise ValueError(
            f"{kind.__name__} has no momentum; drop --momentum, "
            "or choose --optimizer sgd or rmsprop"
        )
    if chosen["schedule"] == "cosine":
        rate = values.get(
            "learning_rate", {f.name: f for f in fields(kind)}["learning_rate"].default
        )
        values["learning_rate"] = Cosine(rate)
    return kind(**values)


def parse_augmentation(text: str | None) -> Augment | None:
    """The Augment for "shift=1,rotation=10,flip_horizontal".

    Raises ValueError for an unknown name, or an amount that is no number.
    """
    amounts: dict[str, Any] = {}
    known = {f.name: f for f in fields(Augment)}
    for part in text.split(",") if text else ():
        name, equals, amount = (piece.strip() for piece in part.partition("="))
        field = lookup("augmentation", name, known)
        kind = type(field.default)
        try:
            value = True if kind is bool and not equals else kind(float(amount))
            exact = value == float(amount or 1)
        except (ValueError, OverflowError):
            exact = False
        if not exact:
            needed = {bool: "no amount", int: "an integer", float: "a number"}[kind]
            raise ValueError(
                f"--augment: {field.name} needs {needed}, "
                'as in "shift=1,rotation=10,flip_horizontal"; '
                f"got {part.strip()!r}"
            )
        amounts[field.name] = value
    return Augment(**amounts) if amounts else None


def prepare_data(data: Data, chosen: dict[str, Any]) -> Data:
    """Make the data images where a named network or --augment needs them.

    For a network of the book they are cut or expanded as there.
    """
    name = chosen.get("model")
    if not name and not chosen.get("augment"):
        return data
    if name and (data.standardize or not data.classes):
        found = "real targets"
        if data.classes:
            found = "columns that are standardised; save images as x of type uint8 in an .npz file"
        raise ValueError(f"--model {name} is for images in classes, and {data.name} has {found}")
    shape = image_shape(data.x.shape[1:])
    x, y = data.x.reshape(-1, *shape), data.y
    if name and name.startswith("nielsen"):
        if shape != zoo.DIGIT or data.classes != 10:
            raise ValueError(
                f"--model {name} is for 10 classes of images {zoo.DIGIT}, "
                f"{data.name} has {data.classes} of {shape}"
            )
        row = zoo.BOOK_ROWS[int(name[7:])]
        recipe, shape = row.recipe, row.input_shape
        x, y = x[: recipe.examples].reshape(-1, *shape), y[: recipe.examples]
        x, y = shift_copies(x, y) if recipe.expanded else (x, y)
    return replace(data, x=x, y=y, x_test=data.x_test.reshape(-1, *shape))


def input_layers(data: Data) -> list[Layer]:
    """The layers that bring the data near 0 ± 1."""
    if data.standardize:
        return [Standardize()]
    return [Rescale(1 / 255)] if data.x.dtype == np.uint8 else []


def build_named_model(data: Data, chosen: dict[str, Any], **options) -> Sequential:
    """The network with that name, for the data's images and classes."""
    penalty = [kind(chosen[name]) for kind, name in ((L1, "l1"), (L2, "l2")) if chosen[name]]
    options |= {"penalty": penalty} if penalty else {}
    options["before"] = input_layers(data)
    name = chosen["model"]
    if name.startswith("nielsen"):
        return zoo.nielsen(int(name[7:]), **options)[0]
    return getattr(zoo, name)(data.classes, data.x.shape[1:], **options)


def build_network(
    data: Data, chosen: dict[str, Any], seed: int, threads: int | None, device: str = "cpu"
) -> Sequential:
    """The network for the data: a named one, or the chosen hidden layers.

    The output layer follows from the targets.
    """
    if "model" in chosen:
        return build_named_model(data, chosen, seed=seed, threads=threads, device=device)
    outputs, last = size(data.y.shape[1:]), "identity"
    after = losses.loss(chosen["loss"]).fused_activation if chosen["loss"] else ""
    if after == "Exp":
        last = "exp"
    elif after and not data.classes:
        raise ValueError(
            f"{chosen['loss']} is a loss for classes, but {data.name} has real targets; "
            "choose mean_squared_error, mean_absolute_error, huber or quadratic"
        )
    if data.classes:
        binary = data.classes == 2 and after != "Softmax"
        outputs = 1 if binary else data.classes
        last = "sigmoid" if binary or (chosen["loss"] and after != "Softmax") else "softmax"
    penalty = [kind(chosen[name]) for kind, name in ((L1, "l1"), (L2, "l2")) if chosen[name]]
    hidden = [Dense(units, activation=chosen["activation"]) for units in chosen["layers"]]
    flat = [Flatten()] if data.x.ndim > 2 else []
    return Sequential(
        [*flat, *input_layers(data), *hidden, Dense(outputs, activation=last)],
        data.x.shape[1:],
        "float64" if data.standardize else "float32",
        seed,
        penalty or None,
        threads,
        device,
    )


def to_device(net, device: str):
    """The network or ensemble, computing on that device."""
    for network in getattr(net, "networks", [net]):
        network.to(device)
    return net


SAVE_MINUTES = 5
"""Minutes after which a checkpoint is written within an epoch."""


def check_checkpoint(folder: str | None, resume: bool) -> None:
    """ValueError for --resume without a folder, or a folder with another training's checkpoints."""
    if folder is None:
        if resume:
            raise ValueError("--resume goes on from the files in --checkpoint FOLDER; give both")
    elif os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"--checkpoint {folder} is no folder")
    elif not resume and checkpoints(folder):
        raise ValueError(
            f"--checkpoint {folder} holds the checkpoints of a training: --resume goes on with it; "
            "or choose another folder"
        )


def train(
    net: Sequential,
    data: Data,
    chosen: dict[str, Any],
    folder: str | None = None,
    resume: bool = False,
):
    """Train the network, with checkpoints in a folder if there is one, and return the history."""
    return net.fit(
        data.x.reshape(len(data.x), *net.input_shape),
        data.y,
        loss=chosen["loss"],
        optimizer=build_optimizer(chosen),
        batch_size=chosen["batch_size"],
        epochs=chosen["epochs"],
        scale_targets=data.standardize and not data.classes,
        augment=parse_augmentation(chosen.get("augment")),
        callbacks=Checkpoint(folder, every_minutes=SAVE_MINUTES) if folder else (),
        resume=folder if resume else None,
    )


def reshape_for(x: np.ndarray, net) -> np.ndarray:
    """Give x the network's input shape where it lacks the channel axis, or is to be a vector."""
    shape = x.shape[1:]
    if shape != net.input_shape and size(shape) == size(net.input_shape):
        if len(net.input_shape) == 1 or (len(shape) == 2 and image_shape(shape) == net.input_shape):
            return x.reshape(-1, *net.input_shape)
    return x


def lengths_for(net, lengths, samples: int, source: str) -> np.ndarray | None:
    """The lengths in a file, checked for the network, or None where it has none."""
    return first_network(net).check_lengths(lengths, samples, f"{source}: lengths")


# --- metrics --------------------------------------------------------------------------------------


def is_classifier(net: Sequential) -> bool:
    """Whether the outputs of the network, or of an ensemble, stand for classes."""
    return type(first_network(net).layers[-1].layer).__name__ in CLASS_OUTPUTS


def compute_metrics(
    net: Sequential, x: np.ndarray, y: np.ndarray, where: str = "", lengths=None
) -> dict[str, Any]:
    """Measure a network on x and y.

    Returns samples, accuracy (0 … 1) and mistakes for classes, and by name the samples and mistakes
    of "classes" that have names; samples, rmse (in the target's unit) and r2 for real targets. Of
    a network with a target for every step, steps too, which are what is counted.

    lengths   of sequences, or None
    """
    first = first_network(net)
    if first.output_steps:
        measured = net.evaluate(x, y, lengths=lengths)
        steps = len(x) * first.output_steps if lengths is None else int(np.sum(lengths))
        return {"samples": len(x), "steps": steps, **measured}
    x = validation.check_inputs(x, net.input_shape, net.dtype, f"{where}x")
    y, labels = validation.check_targets(
        y, len(x), size(net.output_shape), net.dtype, f"{where}y", f"{where}x"
    )
    if labels and (is_classifier(net) or y.ndim == 1):
        wrong = metrics.mistakes(y, predicted := net.predict_classes(x, lengths=lengths))
        found: dict[str, Any] = {
            "samples": len(x),
            "accuracy": 1 - wrong / len(x),
            "mistakes": wrong,
        }
        if net.class_names:
            true = y.argmax(axis=1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1)
            found["classes"] = {
                name: {
                    "samples": int((true == k).sum()),
                    "mistakes": int(((true == k) & (predicted != k)).sum()),
                }
                for k, name in enumerate(net.class_names)
            }
        return found
    outputs = net.predict(x, lengths=lengths).reshape(len(x), -1)
    return {"samples": len(x), "rmse": metrics.rmse(y, outputs), "r2": metrics.r2(y, outputs)}


def format_metrics(found: dict[str, Any], unit: str = "") -> str:
    """The metrics as text: a line, and one with the mistakes of classes that have names."""
    counted = f"{found['samples']} samples"
    if "steps" in found:
        counted = f"{found['steps']} steps of {counted}"
    if "accuracy" in found:
        accuracy, mistakes = f"{100 * found['accuracy']:.2f} %", found["mistakes"]
        text = f"accuracy {accuracy}, {mistakes} mistakes in {counted}"
        if "classes" not in found:
            return text
        classes = (f"{n}: {c['mistakes']} of {c['samples']}" for n, c in found["classes"].items())
        return f"{text}\nmistakes by class: {', '.join(classes)}"
    rmse = f"{found['rmse']:,.6g}{' ' + unit if unit else ''}"
    return f"rmse {rmse}, r2 {found['r2']:.4f}, {counted}"


def prediction_rows(net, x: np.ndarray, lengths=None) -> list[list[str]]:
    """The outputs as cells of a table with a header: a row for every sample.

    Of a network that gives outputs at every step, a row for every step up to the length, with the
    numbers of sample and step in front. A classifier's label stands before its outputs.
    """
    first, outputs = first_network(net), net.predict(x, lengths=lengths)
    steps = first.output_steps
    outputs = outputs.reshape(len(x), steps or 1, -1)
    names = net.class_names if outputs.shape[2] > 1 else ()
    head = [f"output_{name}" for name in names or range(outputs.shape[2])]
    labels = None
    if is_classifier(net):
        labels = net.predict_classes(x, lengths=lengths).reshape(outputs.shape[:2])
        head = ["label", *head]
    rows = [["sample", "step", *head] if steps else head]
    for i, sample in enumerate(outputs):
        for s, values in enumerate(sample[: None if lengths is None or not steps else lengths[i]]):
            cells = [str(value) for value in values]
            if labels is not None:
                k = labels[i, s]
                cells = [str(net.class_names[k] if net.class_names else k), *cells]
            rows.append([str(i), str(s), *cells] if steps else cells)
    return rows


def result_warning(found: dict[str, Any], data: Data, losses: Sequence[float]) -> str:
    """A warning where training diverged, or is no better than guessing, else nothing.

    found    the metrics on the data that were held out
    losses   of the training's epochs
    """
    if losses and max(losses) > LOST and found.get("r2", 0.0) <= 0:
        return (
            f"warning: the training loss reached {max(losses):.3g}: training diverged; "
            "lower --learning-rate"
        )
    way = "lower --learning-rate, or change --epochs or --layers"
    if "--task regression" in data.decision:
        way += f"; where y is a quantity, not one of {data.classes} classes, pass --task regression"
    if "accuracy" in found:
        most = int(np.unique(data.y_test, return_counts=True)[1].max())
        right = found["samples"] - found["mistakes"]
        if right > most or found["mistakes"] == 0:
            return ""
        return (
            f"warning: {right} of {found['samples']} right is no better than always naming the "
            f"most frequent class, {most} of {found['samples']}; {way}"
        )
    if found["r2"] > 0:
        return ""
    return f"warning: r2 {found['r2']:.4f} is no better than always predicting the mean; {way}"
