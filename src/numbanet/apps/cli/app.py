"""The command line: numbanet train, evaluate, predict, plot, diagnose, export, info, warmup, bench.

An error is reported in one line, with exit code 2.
"""

import errno
import io
import math
import os
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np

import numbanet
from numbanet import datasets, plotting
from numbanet.apps import bench
from numbanet.apps.cli import experiment, options
from numbanet.apps.system_info import show_versions
from numbanet.backend.cuda.driver import CudaError
from numbanet.io import safetensors, tabular, validation
from numbanet.network.ensemble import Ensemble
from numbanet.network.sequential import Sequential
from numbanet.network.serialization import load
from numbanet.training.callbacks import checkpoints


class CommandError(click.ClickException):
    """An error of the user's: one line on stderr, exit code 2."""

    exit_code = 2

    def __init__(self, error: BaseException):
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        super().__init__(" ".join(text.split()) or type(error).__name__)


class Commands(click.Group):
    """Commands that report an error in one line."""

    def make_context(self, *args, **kwargs):
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _one_line_usage(error) from None

    def invoke(self, ctx):
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except click.UsageError as error:
            raise _one_line_usage(error) from None
        except KeyboardInterrupt:
            click.echo("\nstopped; nothing was saved", err=True)
            ctx.exit(130)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise CommandError(error) from None
        except (
            ValueError,
            TypeError,
            ArithmeticError,
            ImportError,
            MemoryError,
            CudaError,
        ) as error:
            raise CommandError(error) from None


def _show_warning(message, *_, **__) -> None:
    """Print a warning as a line of its own."""
    click.echo(f"warning: {message}", err=True)


def _one_line_usage(error: click.UsageError) -> click.ClickException:
    """The error without the usage text; a request for help stays as it is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return error
    return click.UsageError(" ".join(error.format_message().split()))


@click.group(cls=Commands)
@click.version_option(numbanet.__version__, prog_name="numbanet")
def cli() -> None:
    """Neural networks on flat arrays, compiled by Numba."""


_device = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    callback=lambda ctx, option, value: options.check_device(value),
    help="Where to compute: cuda is an NVIDIA GPU.",
)


_CSV_OPTIONS = (
    click.option("--target", help="The column of y in a CSV file, by name or number from 1."),
    click.option(
        "--columns",
        help="The columns of x in a CSV file, names or numbers from 1 between commas; by default "
        "all others.",
    ),
    click.option(
        "--delimiter",
        help="Between cells of a CSV file: a character, tab or space; by default what fits of "
        "comma, semicolon and tab.",
    ),
    click.option(
        "--decimal",
        type=click.Choice([".", ","]),
        help="Decimal sign in a CSV file; by default what fits.",
    ),
    click.option(
        "--missing",
        type=click.Choice(list(tabular.MISSING)),
        help="What to do about missing cells in a CSV file: by default an error; drop the row, or "
        "fill by the column's mean or median in this file.",
    ),
)


def _csv_options(command):
    """Add the options that say how a CSV file is read."""
    for option in reversed(_CSV_OPTIONS):
        command = option(command)
    return command


# --- train ----------------------------------------------------------------------------------------


@cli.command()
@click.argument("data")
@click.option(
    "--layers",
    help='Units of the hidden layers, such as "30,10", or "none"; '
    "the output layer follows from the data.",
)
@click.option(
    "--model",
    help="Instead of --layers: lenet5, vgg_small, lstm, gru, or nielsen1 … nielsen21, "
    "a row of the book with its recipe.",
)
@click.option(
    "--augment",
    help='Random changes of the images: "shift=1,rotation=10,zoom=0.1,flip_horizontal", …',
)
@click.option("--activation", help="Of the hidden layers: relu, tanh, sigmoid, leaky_relu, …")
@click.option("--loss", help="By default the one that belongs to the targets.")
@click.option("--optimizer", help="sgd, adagrad, rmsprop, adam or adamw.")
@click.option("--learning-rate", type=float)
@click.option(
    "--schedule",
    type=click.Choice(["constant", "cosine"]),
    help="The learning rate: constant, or falling to 0 along a cosine.",
)
@click.option("--momentum", type=float, help="For sgd and rmsprop.")
@click.option("--batch-size", help='Samples per step, or "all".')
@click.option("--epochs", type=int, help="Passes over the data.")
@click.option("--l1", type=float, help="Strength of the penalty s Σ|w|.")
@click.option("--l2", type=float, help="Strength of the penalty s/2 Σ w².")
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of initial parameters, order of the samples and split.",
)
@click.option("--threads", type=int, help="Most threads to use.")
@_device
@click.option(
    "--task",
    type=click.Choice(["classes", "regression"]),
    help="What y of a file means; by default it is decided.",
)
@click.option(
    "--output", type=click.Path(), help="The network's file; by default NAME.safetensors."
)
@click.option("--json", "json_file", type=click.Path(), help="A file for the metrics.")
@click.option(
    "--checkpoint",
    type=click.Path(),
    help="A folder for the state after every epoch, and within long ones; the last three are kept.",
)
@click.option("--resume", is_flag=True, help="Go on from the newest state in --checkpoint.")
@_csv_options
@click.option("--force", is_flag=True, help="Replace files that exist.")
def train(
    data, seed, threads, device, task, output, json_file, checkpoint, resume, force, **given
) -> None:
    """Train a network on DATA and save it.

    DATA is digits, breast_cancer, mnist, houses, cats, or a file: FILE.npz with the arrays x and y,
    or FILE.csv, numbers with y in the last column, which may hold names. A fifth of a file is held
    out for the metrics at the end.
    """
    if validation.check_int(seed, "--seed", 0) >= 2**63:
        raise ValueError(f"--seed must be below 2^63, got {seed}")
    given = {name: value for name, value in given.items() if value is not None}
    csv = options.take_csv(given)
    if "layers" in given:
        given["layers"] = options.parse_layers(given["layers"])
    if "batch_size" in given:
        given["batch_size"] = options.parse_batch_size(given["batch_size"])
    chosen = experiment.resolve_settings(data, given)
    validation.check_int(chosen["epochs"], "--epochs", 0)
    optimizer = experiment.build_optimizer(chosen)
    experiment.parse_augmentation(chosen.get("augment"))
    experiment.check_checkpoint(checkpoint, resume)
    instead = ""
    if not output:
        plain = _default_output(data)
        output = plain if force else _unused(plain)
        instead = "" if output == plain else f" ({plain} exists; --force replaces it)"
    options.check_writable(output, force, "--output", (data,))
    if Path(output).suffix.lower() in (".csv", ".npz"):
        raise ValueError(
            f"--output {output}: that is the name of a table; the network's file is "
            "NAME.safetensors"
        )
    if json_file:
        if os.path.realpath(json_file) == os.path.realpath(output):
            raise ValueError(f"--json and --output are both {output}")
        options.check_writable(json_file, force, "--json", (data,))
    d = experiment.prepare_data(experiment.read_data(data, seed, task, **csv), chosen)
    net = experiment.build_network(d, chosen, seed, threads, device)
    net.class_names, net.feature_names = d.class_names, d.feature_names
    net.target_name = d.target_name
    _say(f"{d}\n\n{net.summary()}\n")
    batch = "all samples" if chosen["batch_size"] is None else f"batches of {chosen['batch_size']}"
    _say(
        f"{type(net.resolve_loss(chosen['loss'])).__name__}, {optimizer}, "
        f"{chosen['epochs']} epochs of {batch}, seed {seed}"
    )
    if resume and (files := checkpoints(checkpoint)):
        _say(f"going on from {files[-1]}")
    start = time.perf_counter()
    try:
        history = experiment.train(net, d, chosen, checkpoint, resume)
    except KeyboardInterrupt:
        if checkpoint is None:
            raise
        click.echo(f"\nstopped; --resume goes on from {checkpoint}", err=True)
        click.get_current_context().exit(130)
    seconds = time.perf_counter() - start
    found = experiment.compute_metrics(net, d.x_test, d.y_test)
    net.save(output)
    if json_file:
        record = {
            "data": data,
            "model": output,
            "task": "classes" if d.classes else "regression",
            **found,
            "unit": d.unit,
            "seconds": seconds,
            "seed": seed,
            "device": device,
            "settings": chosen,
            "history": history.history,
        }
        options.write_json(json_file, record)
    _say(f"trained in {seconds:.1f} s\nheld out: {experiment.format_metrics(found, d.unit)}")
    rest = ["--held-out"] if experiment.is_file(data) else []
    rest += [word for name, value in options.given_csv(csv) for word in (name, value)]
    command = shlex.join(["numbanet", "evaluate", output, data, *rest])
    _say(f"saved {output}{instead}; the metrics again:\n{command}")
    if warning := experiment.result_warning(found, d, history.history.get("loss", [])):
        click.echo(warning, err=True)


def _say(text: str) -> None:
    """Print a line of a command whose work goes on where nobody reads it, as after `| head`."""
    try:
        click.echo(text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _default_output(data: str) -> str:
    """The name of the network's file for a data set or a file."""
    name = Path(data).stem if experiment.is_file(data) else data.lower().replace("-", "_")
    return f"{name}.safetensors"


def _unused(path: str) -> str:
    """The path, or the first of NAME-2, NAME-3, … where it exists."""
    chosen, number = Path(path), 2
    while chosen.exists():
        chosen = Path(path).with_stem(f"{Path(path).stem}-{number}")
        number += 1
    return str(chosen)


# --- evaluate, predict ----------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.argument("data")
@click.option("--held-out", is_flag=True, help="Of a file, only the fifth that train held out.")
@_device
@click.option("--json", "json_file", type=click.Path(), help="A file for the metrics.")
@_csv_options
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def evaluate(model, data, held_out, device, json_file, force, **csv) -> None:
    """Say how good MODEL is on DATA: the held-out part of a named data set, or a file."""
    if json_file:
        options.check_writable(json_file, force, "--json", (model, data))
    net = experiment.to_device(load(model), device)
    x, y, unit, lengths = _evaluation_data(data, net, held_out, options.take_csv(csv))
    found = experiment.compute_metrics(net, x, y, f"{data}: ", lengths)
    if json_file:
        options.write_json(json_file, {"data": data, "model": model, **found, "unit": unit})
    click.echo(experiment.format_metrics(found, unit))


def _evaluation_data(data: str, net, held_out: bool, csv) -> tuple:
    """x, y, the unit of y and lengths or None: the held-out part of a named data set, or a file."""
    if not experiment.is_file(data):
        d = experiment.read_data(data, net.seed, **csv)
        return d.x_test, d.y_test, d.unit, None
    table = experiment.read_table(data, **experiment.by_name(net, data, csv))
    _tell_dropped(data, table)
    x, y = table.x, experiment.labels_for(net, table, data)
    chosen = datasets.split_indices(len(x), net.seed)[1] if held_out else slice(None)
    lengths = experiment.lengths_for(net, table.lengths, len(x), data)
    lengths = None if lengths is None else lengths[chosen]
    return experiment.reshape_for(x[chosen], net), y[chosen], "", lengths


def _tell_dropped(path: str, table: tabular.Table) -> None:
    """Say on stderr which rows of a table were left out."""
    if n := len(table.dropped):
        lines = ", ".join(map(str, table.dropped[:10])) + (", …" if n > 10 else "")
        click.echo(f"{path}: {n} rows with a missing cell left out, lines {lines}", err=True)


@cli.command()
@click.argument("model")
@click.argument("file")
@_device
@click.option(
    "--output", type=click.Path(), help="A CSV file for the outputs; by default they are printed."
)
@_csv_options
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def predict(model, file, device, output, force, **given) -> None:
    """Print MODEL's outputs for the samples in FILE.csv (numbers) or FILE.npz (the array x) as CSV.

    Outputs for every step of a sequence have a row each. FILE.npz may have the array lengths. A CSV
    file may still have its last column, y, or --target; it is left out. Images of bytes are read
    from an .npz file, as uint8.
    """
    csv = options.take_csv(given)
    if output:
        options.check_writable(output, force, "--output", (model, file))
    net = experiment.to_device(load(model), device)
    x, lengths = _inputs(file, net, csv)
    x = validation.check_inputs(
        experiment.reshape_for(x, net),
        net.input_shape,
        net.dtype,
        f"{file}: x",
    )
    lengths = experiment.lengths_for(net, lengths, len(x), file)
    rows = experiment.prediction_rows(net, x, lengths)
    text = options.csv_text(rows)
    if output:
        options.write_text(output, text)
        click.echo(f"wrote {len(rows) - 1} rows to {output}", err=True)
    else:
        click.echo(text, nl=False)


def _inputs(path: str, net: Sequential, csv: dict[str, Any]) -> tuple:
    """The inputs in a file, which may still hold the targets, and lengths or None."""
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        file = tabular.CsvFile(path, csv.get("delimiter"), csv.get("decimal"))
        n, target = math.prod(net.input_shape), None
        names = experiment.first_network(net).feature_names
        if names and file.has_header and "columns" not in csv:
            table = file.read(
                [file.index(name) for name in names], None, csv.get("missing", "error")
            )
            _tell_dropped(path, table)
            return table.x, None
        if "target" in csv:
            target = file.index(csv["target"])
        elif file.n_columns == n + 1 and "columns" not in csv:
            click.echo(f"{path}: the last of {n + 1} columns is taken for y and left out", err=True)
            target = n
        chosen = [j for j in range(file.n_columns) if j != target]
        if "columns" in csv:
            chosen = [file.index(column) for column in csv["columns"]]
        table = file.read(chosen, None, csv.get("missing", "error"))
        _tell_dropped(path, table)
        return table.x, None
    if suffix != ".npz":
        raise ValueError(
            f"{path}: inputs come from a .csv or a .npz file; evaluate takes data sets by name"
        )
    if csv:
        raise ValueError(f"{experiment.option_names(csv)}: for CSV files, not for {path}")
    x, lengths = tabular.read_npz(path, "x", optional=("lengths",))
    return experiment.read_inputs(path, x), lengths


# --- plot -----------------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.argument("data")
@click.option("--filters", type=click.Path(), help="A file for the weights of the first layer.")
@click.option(
    "--features",
    type=click.Path(),
    help="A file for what the first convolution makes of the first sample.",
)
@click.option("--mistakes", type=click.Path(), help="A file for samples in a wrong class.")
@click.option(
    "--confusion", type=click.Path(), help="A file for how often each class was taken for which."
)
@click.option("--held-out", is_flag=True, help="Of a file, only the fifth that train held out.")
@_csv_options
@click.option("--force", is_flag=True, help="Replace files that exist.")
def plot(model, data, held_out, force, **given) -> None:
    """Draw MODEL and its predictions for DATA into files .png, .svg or .pdf."""
    csv = options.take_csv(given)
    paths = {name: path for name, path in given.items() if path}
    if not paths:
        raise ValueError(
            "plot draws --filters, --features, --mistakes or --confusion; "
            "give a file for one of them"
        )
    for name, path in paths.items():
        options.check_writable(path, force, f"--{name}", (model, data))
    net = load(model)
    x, y, *_ = _evaluation_data(data, net, held_out, csv)
    first = experiment.first_network(net)
    draw = {
        "filters": lambda: plotting.filters(first),
        "features": lambda: plotting.feature_maps(first, x[0]),
        "mistakes": lambda: plotting.mistakes(net, x, y),
        "confusion": lambda: plotting.confusion(net, x, y),
    }
    for name, path in paths.items():
        _write_figure(path, draw[name]())
        click.echo(f"wrote {path}")


def _write_figure(path: str, figure) -> None:
    """Write a figure in the format that its file's suffix names, by default .png."""
    content = io.BytesIO()
    figure.savefig(content, format=Path(path).suffix[1:].lower() or "png", dpi=150)
    safetensors.write_atomic(path, [content.getvalue()])


def _check_figure(path: str, force: bool, reads: tuple[str, ...] = ()) -> None:
    """ValueError for a --plot that cannot be written; ImportError without matplotlib."""
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot {path}: give a separate .png, .svg or .pdf file")
    options.check_writable(path, force, "--plot", reads)
    plotting.new_figure(1, 1)


# --- diagnose -------------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.argument("data")
@_device
@click.option("--loss", help="That of the training; by default what belongs to the last layer.")
@click.option(
    "--plot", "plot_file", type=click.Path(), help="A file .png, .svg or .pdf for the figures."
)
@_csv_options
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def diagnose(model, data, device, loss, plot_file, force, **csv) -> None:
    """Say what is wrong with MODEL, which was trained on DATA, and what to try.

    The network is examined on the part of DATA that train took; the part that it held out shows
    overfitting.
    """
    if plot_file:
        _check_figure(plot_file, force, (model, data))
    net = load(model)
    if isinstance(net, Ensemble):
        raise ValueError(f"{model} holds an ensemble; save one of its networks, and diagnose that")
    net.to(device)
    x, y, held_out = _split_data(data, net, options.take_csv(csv))
    click.echo(net.diagnose(x, y, loss=loss, validation_data=held_out))
    if plot_file:
        _write_figure(plot_file, plotting.diagnosis(net, x, y, loss))
        click.echo(f"wrote {plot_file}")


def _split_data(data: str, net, csv) -> tuple[np.ndarray, np.ndarray, tuple | None]:
    """x and y that train took, and the pair that it held out, if it is not empty."""
    if not experiment.is_file(data):
        d = experiment.read_data(data, net.seed, **csv)
        held_out = experiment.reshape_for(d.x_test, net), d.y_test
        return experiment.reshape_for(d.x, net), d.y, held_out
    table = experiment.read_table(data, **experiment.by_name(net, data, csv))
    _tell_dropped(data, table)
    x, y = experiment.reshape_for(table.x, net), experiment.labels_for(net, table, data)
    train, test = datasets.split_indices(len(x), net.seed)
    return x[train], y[train], (x[test], y[test]) if len(test) else None


# --- export ---------------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.option("--c", "source", type=click.Path(), required=True, help="A C source, such as net.c.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def export(model, source, force) -> None:
    """Write MODEL as C99 source and, beside it, its header."""
    for path in (source, str(Path(source).with_suffix(".h"))):
        options.check_writable(path, force, "--c")
    net = load(model)
    if isinstance(net, Ensemble):
        raise ValueError(f"{model} holds an ensemble; save one of its networks, and export that")
    for path in net.export_c(source):
        click.echo(f"wrote {path}")


# --- info -----------------------------------------------------------------------------------------


@cli.command()
@click.argument("model", required=False)
@click.option(
    "--system", is_flag=True, help="Versions, processor, threads, cache and GPU instead of a model."
)
def info(model, system) -> None:
    """Describe the network in MODEL, or with --system where it would run."""
    if bool(model) == system:
        raise ValueError("info needs a MODEL or --system, one of them")
    lines = [*show_versions(), ("gpu", options.gpu_description())] if system else _model(model)
    for name, value in lines:
        click.echo(f"{name:<12}{value}" if name else value)


def _model(path: str) -> list[tuple[str, Any]]:
    net = load(path)
    if isinstance(net, Ensemble):
        return [("", net.summary()), ("", ""), ("file", f"{os.path.getsize(path):,} bytes")]
    state = "no state kept; a new training starts afresh"
    if net.optimizer:
        state = f"{net.optimizer}, {net.optimizer_steps} steps"
    return [
        ("", net.summary()),
        ("", ""),
        ("input", net.input_shape),
        ("output", net.output_shape),
        ("classes", ", ".join(net.class_names) or "without names"),
        ("dtype", net.dtype),
        ("seed", net.seed),
        ("penalty", ", ".join(map(str, net.penalty)) or "none"),
        ("epochs", f"{net.epoch} trained"),
        ("optimizer", state),
        ("file", f"{os.path.getsize(path):,} bytes"),
    ]


# --- warmup ---------------------------------------------------------------------------------------


@cli.command()
@click.option(
    "--models",
    help="Only what these need, such as lenet5,nielsen17; by default all layers, losses, "
    "optimisers.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(["float32", "float64", "both"]),
    default="float32",
    show_default=True,
    help="Of the networks.",
)
def warmup(models, dtypes) -> None:
    """Compile for this machine's CPU ahead: later processes read it from the cache."""
    names = () if models is None else [name.strip() for name in models.split(",")]
    if "" in names:
        raise ValueError(f"--models names networks between commas, got {models!r}")
    chosen = ["float32", "float64"] if dtypes == "both" else [dtypes]
    try:
        numbanet.warmup(names, chosen, _say)
    except KeyboardInterrupt:
        click.echo("\nstopped; what is compiled is kept, and another warmup goes on", err=True)
        click.get_current_context().exit(130)


# --- bench ----------------------------------------------------------------------------------------


@cli.command("bench")
@click.option(
    "--seconds", type=float, default=1.0, show_default=True, help="Of measuring, for each line."
)
@_device
@click.option("--json", "json_file", type=click.Path(), help="A file for the metrics.")
@click.option(
    "--plot", "plot_file", type=click.Path(), help="A file .png, .svg or .pdf for a bar chart."
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
def bench_command(seconds, device, json_file, plot_file, force) -> None:
    """Measure how fast this machine trains and predicts, on random data.

    The repository's benchmarks.peers compares libraries.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"--seconds must be a number above 0, got {seconds}")
    if json_file:
        options.check_writable(json_file, force, "--json")
    if plot_file:
        if plot_file == json_file:
            raise ValueError(f"--plot {plot_file}: give a separate .png, .svg or .pdf file")
        _check_figure(plot_file, force)
    on_device: dict[str, str] = {} if device == "cpu" else {"device": device}
    peak, found = bench.Peak(bench.peak_flops(**on_device)), []
    click.echo(f"{bench.environment_line(device)}\n{bench.peak_text(peak.first, device)}\n")
    click.echo(bench.header())
    for speed in bench.measure(seconds, peak, **on_device):
        click.echo(bench.format_row(speed))
        found.append(speed)
    if peak.note:
        click.echo(f"\n{peak.note}")
    if json_file:
        options.write_json(json_file, bench.record(found, peak, device))
    if plot_file:
        _write_figure(plot_file, bench.bar_chart(found))
