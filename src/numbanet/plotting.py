"""Figures by matplotlib: filters, feature maps, mistakes, history, learning rates, diagnostics.

    figure = plotting.mistakes(network, data.x_test, data.y_test)
    figure.savefig("mistakes.png", dpi=150)

Every function returns a new figure; none uses pyplot or any other global state. matplotlib is
imported when one is called: pip install numbanet[plot].
"""

import math
from typing import Any

import numpy as np

from numbanet import diagnostics
from numbanet.io import validation
from numbanet.network.built_layer import BuiltLayer
from numbanet.network.sequential import Sequential
from numbanet.nn import metrics
from numbanet.nn.layers import Activation, Conv1D, Conv2D, Dense
from numbanet.nn.layers.base import Shape, size

MAX_TILES = 64
"""Most filters or maps in a figure."""
MAX_CHANNELS = 16
"""Most channels of a filter that are drawn."""
WIDTH_INCHES = 7.0
"""Width of a figure."""
GREY, RED = "0.45", "#c22525"


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure in inches; ImportError with a hint without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib; pip install numbanet[plot]") from error
    figure: Any = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return figure


def image_shape(shape: Shape) -> Shape:
    """Return (height, width, channels) for a sample of that shape.

    A vector is taken as a square image of one or three channels.
    Raises ValueError for a shape that is none of an image.
    """
    if len(shape) in (2, 3):
        return (*shape, 1)[:3]
    for channels in (1, 3):
        side = math.isqrt(size(shape) // channels)
        if len(shape) == 1 and side > 1 and channels * side * side == shape[0]:
            return side, side, channels
    raise ValueError(
        f"samples of shape {shape} are not images; (height, width), (height, width, channels), "
        "or the elements of a square image are"
    )


def _hide_axes(axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _columns(n: int, ideal: float) -> int:
    """The number of columns, near the ideal one, that leaves the fewest tiles empty."""
    near = range(max(1, math.ceil(0.6 * ideal)), max(1, math.floor(1.4 * ideal)) + 1)
    return min(
        near, key=lambda columns: (-n % columns, abs(columns - ideal)), default=max(1, round(ideal))
    )


def _montage(
    tiles: np.ndarray, columns: int, gap: int, head: int = 0
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Arrange tiles (n, height, width[, 3]) in rows of one image.

    Between the tiles is NaN, and above each one are `head` more rows.
    Returns the image, and (left, top) of every tile.
    """
    n, height, width = tiles.shape[:3]
    rows = -(-n // columns)
    whole = np.full(
        (
            max(1, rows * (height + gap + head) - gap),
            columns * (width + gap) - gap,
            *tiles.shape[3:],
        ),
        np.nan,
    )
    places = []
    for i, tile in enumerate(tiles):
        left, top = i % columns * (width + gap), i // columns * (height + gap + head) + head
        whole[top : top + height, left : left + width] = tile
        places.append((left, top))
    return whole, places


def _to_display(images: np.ndarray) -> np.ndarray:
    """Scale images (n, height, width, channels) to 0 … 1; without colours (n, height, width)."""
    images = images.astype(np.float64)
    low, high = images.min(), images.max()
    images = (images - low) / (high - low or 1)
    return images if images.shape[-1] == 3 else images.mean(axis=-1)


def _draw(axes, whole: np.ndarray, **options):
    """Show a montage: colours as they are with white between them, else by a colour map."""
    if whole.ndim == 3:
        whole = np.where(np.isnan(whole), 1, whole)
    _hide_axes(axes)
    return axes.imshow(np.ma.masked_invalid(whole), interpolation="nearest", **options)


# --- inside a network -----------------------------------------------------------------------------


def _weighted_layer_index(network: Sequential, layer: int) -> int:
    """The index in network.specs of the layer that is number `layer` of those with weights."""
    weighted = (Conv1D, Conv2D, Dense)
    places = [i for i, spec in enumerate(network.specs) if isinstance(spec, weighted)]
    if not -len(places) <= validation.check_int(layer, "layer", -len(places)) < len(places):
        raise ValueError(
            f"layer {layer}: the network has {len(places)} layers of weights, numbered from 0"
        )
    return places[layer]


def filters(network: Sequential, layer: int = 0, count: int = MAX_TILES):
    """Draw the weights of a convolution by filter, or of a dense layer on images by neuron.

    layer   its number among the layers with weights, convolutional or dense
    count   at most so many filters
    Filters of several channels are columns, with a channel in each row; three channels of an image
    are colours.
    Raises ValueError for a dense layer behind other layers, whose inputs are no image.
    """
    spec = network.specs[_weighted_layer_index(network, layer)]
    built = next(built for built in network.layers if built.layer is spec)
    weights = _filter_weights(network, built, layer)[:count]
    n, height, width, channels = weights.shape
    limit = np.abs(weights).max() or 1.0
    gap = max(1, min(height, width) // 8)
    colours = channels == 3 and built.offset == 0
    if colours or channels == 1:
        columns = _columns(n, math.sqrt(1.8 * n * height / width))
        tiles = 0.5 + 0.5 * weights / limit if colours else weights[..., 0]
    else:
        columns, rows = n, min(channels, MAX_CHANNELS)
        tiles = weights.transpose(3, 0, 1, 2)[:rows].reshape(-1, height, width)
    whole, _ = _montage(tiles, columns, gap)
    figure = new_figure(
        WIDTH_INCHES, min(9.0, WIDTH_INCHES * 0.9 * whole.shape[0] / whole.shape[1] + 0.6)
    )
    axes = figure.add_subplot()
    drawn = _draw(axes, whole, cmap="RdBu_r", vmin=-limit, vmax=limit)
    if not colours:
        _colour_bar(figure, axes, drawn)
    if not colours and channels > 1:
        axes.set_ylabel(f"{channels if rows == channels else f'{rows} of {channels}'} channels")
    shown = _shown_of(n, built.output_shape[-1])
    kind = "neurons" if isinstance(spec, Dense) else "filters"
    axes.set_title(f"{type(spec).__name__}, {shown} {kind}, {height}×{width}", fontsize=11)
    return figure


def _filter_weights(network: Sequential, built: BuiltLayer, layer: int) -> np.ndarray:
    """The weights of a layer as filters (n, height, width, channels), float64."""
    weights = built.parameters["weights"].astype(np.float64)
    if isinstance(built.layer, Dense):
        if size(built.input_shape) != size(network.input_shape) or built.offset > 0:
            raise ValueError(
                f"layer {layer} is dense and does not see the image itself; "
                "filters draws convolutions and the first layer"
            )
        weights = weights.reshape(*image_shape(network.input_shape), -1)
    elif weights.ndim == 3:
        weights = weights[None]
    return weights.transpose(3, 0, 1, 2)


def _colour_bar(figure, axes, drawn) -> None:
    bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, shrink=0.8)
    bar.outline.set_visible(False)


def _shown_of(shown: int, total: int) -> str:
    return f"{total}" if shown == total else f"{shown} of {total}"


def _prefix_network(network: Sequential, layer: int) -> Sequential:
    """A network of the layers up to that one and the activations after it, same parameters."""
    last = _weighted_layer_index(network, layer) + 1
    while last < len(network.specs) and isinstance(network.specs[last], Activation):
        last += 1
    part = Sequential(network.specs[:last], network.input_shape, network.dtype)
    for ours, theirs in zip(part.layers, network.layers, strict=False):
        for name, values in {**theirs.parameters, **theirs.buffers}.items():
            setattr(ours, name, values)
    return part


def feature_maps(network: Sequential, x_one, layer: int = 0, count: int = MAX_TILES):
    """Draw the feature maps of a convolution for one image: the image, and the maps beside it.

    The maps are those after the activation.
    x_one   one sample, (height, width, channels) or as a vector
    layer   number of the convolution among the layers with weights
    Raises ValueError for a layer whose output is no image.
    """
    part = _prefix_network(network, layer)
    if len(part.output_shape) != 3:
        raise ValueError(
            f"layer {layer} gives {part.output_shape}, not maps (height, width, channels); "
            "choose a convolution"
        )
    x_one = np.asarray(x_one)
    if size(x_one.shape) == size(network.input_shape):
        x_one = x_one.reshape(network.input_shape)
    maps = part.predict(x_one[None])[0].astype(np.float64).transpose(2, 0, 1)[:count]
    n, height, width = maps.shape
    columns = _columns(n, math.sqrt(1.6 * n * height / width))
    whole, _ = _montage(maps, columns, max(1, width // 8))
    figure = new_figure(
        WIDTH_INCHES + 1, max(2.2, 0.62 * WIDTH_INCHES * whole.shape[0] / whole.shape[1] + 0.6)
    )
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.6))
    _draw(left, _to_display(x_one[None])[0], cmap="gray_r")
    left.set_title("×".join(map(str, network.input_shape)), fontsize=11)
    drawn = _draw(right, whole, cmap="magma", vmin=min(0.0, maps.min()))
    _colour_bar(figure, right, drawn)
    shown = _shown_of(n, part.output_shape[2])
    right.set_title(f"{shown} maps, {height}×{width}", fontsize=11)
    return figure


# --- predictions ----------------------------------------------------------------------------------


def _labels(network, x, y) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True labels, predicted ones, and how sure each was: the output of the predicted class."""
    x = validation.check_inputs(x, network.input_shape, network.dtype)
    y, classes = validation.check_targets(y, len(x), size(network.output_shape), network.dtype)
    if not classes:
        raise ValueError("y has real targets; this figure is for classes")
    outputs, given = network.predict(x).reshape(len(x), -1), network.predict_classes(x)
    true = y if y.ndim == 1 else y.argmax(axis=1) if y.shape[1] > 1 else y[:, 0].astype(np.int64)
    if outputs.shape[1] > 1:
        return true, given, outputs[np.arange(len(x)), given]
    return true, given, np.abs(outputs[:, 0] - 0.5) + 0.5


def mistakes(network, x, y, count: int = 24, names=None):
    """Draw images in a wrong class, the surest mistakes first, with true class → predicted class.

    names   of the classes; by default their indices
    Raises ValueError for samples that are no images or targets that are no classes.
    """
    true, given, sure = _labels(network, x, y)
    wrong = np.flatnonzero(true != given)
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")][: validation.check_int(count, "count")]
    height, width, channels = image_shape(network.input_shape)
    columns, head = max(4, _columns(len(chosen), min(8, len(chosen)))), math.ceil(0.28 * width)
    tiles = np.zeros((0, height, width))
    if len(chosen):
        tiles = _to_display(np.asarray(x)[chosen].reshape(-1, height, width, channels))
    whole, places = _montage(tiles, columns, max(1, width // 7), head)
    figure = new_figure(WIDTH_INCHES, 0.6 + (WIDTH_INCHES - 0.2) * whole.shape[0] / whole.shape[1])
    axes = figure.add_subplot()
    axes.set_title(
        f"{len(wrong):,} mistakes in {len(true):,} samples"
        + (", the surest first: true → given" if len(wrong) else ""),
        fontsize=11,
    )
    _draw(axes, whole, cmap="gray_r", vmin=0, vmax=1)
    for i, (left, top) in zip(chosen, places, strict=True):
        labels = [
            str(label) if names is None else str(names[label]) for label in (true[i], given[i])
        ]
        _write_labels(axes, labels, left + (width - 1) / 2, top - 0.5 - head / 2, width)
    return figure


def _write_labels(axes, labels: list[str], x: float, y: float, width: int) -> None:
    """Write true class → predicted class above a tile of that width."""
    style = {"fontsize": 10 if sum(map(len, labels)) < 8 else 7, "va": "center"}
    axes.text(x - 0.09 * width, y, labels[0], ha="right", color="black", **style)
    axes.text(x, y, "→", ha="center", color=GREY, **style)
    axes.text(x + 0.09 * width, y, labels[1], ha="left", color=RED, **style)


def confusion(network, x, y, names=None):
    """Draw how often each true class (row) was predicted as each class (column).

    Colour counts mistakes only.
    Raises ValueError for targets that are no classes.
    """
    true, given, _ = _labels(network, x, y)
    counts = metrics.confusion_matrix(true, given)
    n = max(len(counts), len(names or ()))
    counts = np.pad(counts, (0, n - len(counts)))
    labels = [str(label) for label in (range(n) if names is None else names)]
    wrong = np.where(np.eye(n, dtype=bool), 0, counts)
    figure = new_figure(max(4.8, 1.6 + 0.48 * n), 1.5 + 0.42 * max(n, 4))
    axes = figure.add_subplot()
    axes.imshow(wrong, cmap="Reds", vmin=0, vmax=1.4 * max(1, wrong.max()), aspect="auto")
    for i in range(n):
        for j in range(n):
            right = i == j
            if right or counts[i, j]:
                axes.text(
                    j,
                    i,
                    f"{counts[i, j]:,}",
                    ha="center",
                    va="center",
                    fontsize=9 if n < 20 else 6,
                    color=GREY if right else "black",
                    fontweight="normal" if right else "bold",
                )
    axes.set_xticks(range(n), labels, rotation=0 if max(map(len, labels)) < 4 else 45)
    axes.set_yticks(range(n), labels)
    axes.set_xticks(np.arange(0.5, n - 1), minor=True)
    axes.set_yticks(np.arange(0.5, n - 1), minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("class given")
    axes.set_ylabel("true class")
    accuracy = np.trace(counts) / counts.sum()
    axes.set_title(
        f"accuracy {accuracy:.2%}, {wrong.sum():,} mistakes in {counts.sum():,} samples",
        fontsize=11,
    )
    return figure


def history(history):
    """Draw the loss of every epoch, and the accuracy if there is one, from what `fit` returns.

    history   a History or its dict
    Raises ValueError for a history without an epoch.
    """
    series = getattr(history, "history", history)
    if not series or not len(next(iter(series.values()))):
        raise ValueError("the history has no epochs to draw")
    kinds = [kind for kind in ("loss", "accuracy") if kind in series or f"val_{kind}" in series]
    figure = new_figure(4.2 * len(kinds), 3.2)
    for axes, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds))), kinds, strict=True):
        scale = 100 if kind == "accuracy" else 1
        for name, label, colour in ((kind, "training", "0.55"), (f"val_{kind}", "validation", RED)):
            if name in series:
                values = scale * np.asarray(series[name])
                axes.plot(
                    np.arange(1, len(values) + 1),
                    values,
                    color=colour,
                    label=label,
                    marker="o" if len(values) < 25 else "",
                    markersize=3,
                )
        axes.set_xlabel("epoch")
        axes.set_title("accuracy, %" if kind == "accuracy" else "loss", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(axis="x", integer=True)
        axes.legend(frameon=False)
    return figure


def learning_rates(found):
    """Draw the losses of growing learning rates, from what `find_learning_rate` returns.

    Raises ValueError where no step had a finite loss.
    """
    if not len(found.rates):
        raise ValueError("the first step had no finite loss: there is nothing to draw")
    figure = new_figure(WIDTH_INCHES / 1.6, 3.2)
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="0.8", label="loss of a batch")
    axes.plot(found.rates, found.smoothed, color="0.3", label="mean of neighbours")
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color=RED, label=f"suggestion {found.suggestion:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_title("loss", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


# --- diagnostics ----------------------------------------------------------------------------------


def _plain_axes(axes, title: str, xlabel: str = "") -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(axes, x, columns, names) -> None:
    """Draw columns (points, lines) from dark to light, with a legend."""
    for k, name in enumerate(names):
        shade = 0.85 * k / max(1, len(names) - 1)
        axes.plot(x, columns[:, k], color=_shade(shade), label=name, marker="o", markersize=3)
    axes.legend(frameon=False, fontsize=8)


def _shade(value: float):
    from matplotlib import colormaps

    return colormaps["viridis"](value)


def _spans_decade(values) -> bool:
    """Whether a logarithmic axis has labels apart: over less they would stand one on another."""
    found = values[np.isfinite(values) & (values > 0)]
    return found.size > 0 and bool(found.max() >= 10 * found.min())


def _bars(axes, names, values, colour=GREY) -> None:
    """Draw a horizontal bar for each name, the first on top."""
    axes.barh(range(len(names)), values, color=colour)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()


def learning_speed(record):
    """Draw how fast each layer learns over the epochs, from a `diagnostics.LearningSpeed`.

    Left the norm of each layer's gradient, right its change in an epoch in units of its weights.
    Raises ValueError for one that has recorded nothing.
    """
    if not len(record.epochs):
        raise ValueError("nothing was recorded; pass the LearningSpeed to fit as a callback")
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = record.update / record.weight
    _lines(left, record.epochs, record.gradient, record.names)
    _lines(right, record.epochs, ratio, record.names)
    for axes, values in ((left, record.gradient), (right, ratio)):
        if _spans_decade(values):
            axes.set_yscale("log")
        axes.locator_params(axis="x", integer=True)
    _plain_axes(left, "norm of the gradient", "epoch")
    _plain_axes(right, "update in an epoch : weights", "epoch")
    return figure


def distributions(found):
    """Draw a histogram for each Distribution, or for the outputs of each Activity.

    found   what `diagnostics.weights` or `diagnostics.activations` returned
    """
    found = [getattr(one, "outputs", one) for one in found]
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure = new_figure(2.4 * columns + 0.6, 1.9 * rows + 0.4)
    for axes, one in zip(
        np.ravel(figure.subplots(rows, columns, squeeze=False)), found, strict=False
    ):
        axes.stairs(one.counts, one.edges, fill=True, color=GREY)
        axes.set_yticks([])
        _plain_axes(axes, f"{one.name}\n{one.mean:.3g} ± {one.std:.3g}")
        axes.title.set_fontsize(9)
    for axes in figure.axes[len(found) :]:
        axes.remove()
    return figure


def activity(found):
    """Draw which part of each layer is dead or saturated, from `diagnostics.activations`."""
    figure = new_figure(WIDTH_INCHES, 0.9 + 0.28 * len(found))
    _draw_activity(figure.add_subplot(), found)
    return figure


def _draw_activity(axes, found) -> None:
    dead = [100 * one.dead.mean() if one.dead.size else 0 for one in found]
    saturated = [0 if np.isnan(one.saturated) else 100 * one.saturated for one in found]
    places = np.arange(len(found))
    axes.barh(places - 0.2, dead, 0.4, color=RED, label="units dead")
    axes.barh(places + 0.2, saturated, 0.4, color=GREY, label="outputs saturated")
    axes.set_yticks(places, [one.outputs.name for one in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.legend(frameon=False, fontsize=8)
    _plain_axes(axes, "dead and saturated", "%")


def importance(found, count: int = 20):
    """Draw an Importance: bars of the first `count` units, or an image for pixels."""
    if found.values.ndim == 2:
        figure = new_figure(5.0, 4.4)
        axes = figure.add_subplot()
        limit = np.abs(found.values).max() or 1.0
        drawn = _draw(axes, found.values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        _colour_bar(figure, axes, drawn)
    else:
        chosen = found.order[: validation.check_int(count, "count")]
        figure = new_figure(WIDTH_INCHES, 0.9 + 0.24 * len(chosen))
        axes = figure.add_subplot()
        _bars(axes, [found.units[k] for k in chosen], found.values[chosen])
        axes.errorbar(
            found.values[chosen], range(len(chosen)), xerr=found.std[chosen], fmt="none", color=RED
        )
        _plain_axes(axes, "")
    rise = found.by if found.by == "weights" else f"rise of the loss by {found.by}"
    axes.set_title(f"{found.name}: {rise}", fontsize=11)
    return figure


def excitation(found):
    """Draw the input of an Excitation: an image, or bars of a vector that is none."""
    figure = new_figure(4.6, 4.2)
    axes = figure.add_subplot()
    try:
        height, width, channels = image_shape(found.input.shape)
    except ValueError:
        axes.bar(range(found.input.size), found.input.ravel(), color=GREY)
        _plain_axes(axes, "")
    else:
        image = found.input.reshape(height, width, channels).astype(np.float64)
        if channels == 3:
            _draw(axes, _to_display(image[None])[0])
        else:
            limit = np.abs(image).max() or 1.0
            drawn = _draw(axes, image.mean(axis=-1), cmap="RdBu_r", vmin=-limit, vmax=limit)
            _colour_bar(figure, axes, drawn)
    axes.set_title(f"{found.name}, unit {found.unit}: {found.output:.3g}", fontsize=11)
    return figure


def learning_curve(curve):
    """Draw the losses of a training with its best epoch and its verdict.

    curve   a `diagnostics.LearningCurve`; a History or its dict is judged first
    Raises ValueError for a history without an epoch.
    """
    if not isinstance(curve, diagnostics.LearningCurve):
        curve = diagnostics.learning_curve(curve)
    figure = new_figure(6.0, 3.4)
    axes = figure.add_subplot()
    for values, label, colour in (
        (curve.training, "training", GREY),
        (curve.validation, "validation", RED),
    ):
        if len(values):
            axes.plot(np.arange(1, len(values) + 1), values, color=colour, label=label)
    axes.axvline(curve.best, color="0.8", linestyle="--", label=f"best epoch, {curve.best}")
    axes.legend(frameon=False)
    axes.locator_params(axis="x", integer=True)
    _plain_axes(axes, curve.verdict, "epoch")
    return figure


def initialization(found):
    """Draw what initialisers do, from `diagnostics.initializations`.

    Both of the layers with parameters: left the deviation of their outputs, before an activation,
    right the norm of their gradients.
    """
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    deviation = found.deviation[:, found.trained]
    for axes, values in ((left, deviation), (right, found.gradient)):
        _lines(axes, found.trained, values.T, found.initializers)
        if _spans_decade(values):
            axes.set_yscale("log")
        axes.locator_params(axis="x", integer=True)
    _plain_axes(left, "deviation of the outputs", "layer")
    _plain_axes(right, "norm of the gradient", "layer")
    return figure


def calibration(found):
    """Draw the reliability diagram of a `diagnostics.Calibration`."""
    figure = new_figure(4.6, 4.2)
    axes = figure.add_subplot()
    seen = found.counts > 0
    axes.plot([0, 1], [0, 1], color="0.8", linestyle="--")
    axes.plot(found.confidence[seen], found.accuracy[seen], color=RED, marker="o")
    for x, y, n in zip(
        found.confidence[seen], found.accuracy[seen], found.counts[seen], strict=True
    ):
        axes.annotate(f"{n:,}", (x, y), (4, -10), textcoords="offset points", fontsize=7)
    axes.set_ylabel("right, fraction")
    _plain_axes(axes, f"calibration error {found.error:.3f}", "confidence")
    return figure


def diagnosis(network, x, y, loss=None):
    """Draw what the doctor looks at, layer by layer.

    The gradient in units of the weights, the deviation of the outputs, and which part of a layer is
    dead or saturated. Raises ValueError for data that do not fit.
    """
    speeds, found = diagnostics.speeds(network, x, y, loss), diagnostics.activations(network, x)
    figure = new_figure(11.0, 1.2 + 0.3 * max(4, len(found)))
    left, middle, right = figure.subplots(1, 3)
    _bars(left, speeds.names, speeds.relative)
    deviation = np.array([one.outputs.std for one in found])
    _bars(middle, [one.outputs.name for one in found], deviation)
    for axes, values in ((left, speeds.relative), (middle, deviation)):
        if _spans_decade(values):
            axes.set_xscale("log")
    _plain_axes(left, "gradient : weights")
    _plain_axes(middle, "deviation of the outputs")
    _draw_activity(right, found)
    return figure
