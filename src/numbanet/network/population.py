"""Population: many networks trained at once, each with data, an optimiser and an end of its own.

    one native call:   a worker takes a network, carries it through some batches, takes the next

No network waits for another, and one that has stopped costs nothing. Each has the numbers of a fit
of its own on x, bit for bit. With rows of its own the same holds for a network without Dropout,
whose masks go by a sample's index in x. Where all have the same layers, their parameters are one
matrix.
"""

import copy
import time
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from typing import Any

import numba
import numpy as np

from numbanet.engine.cpu.executor import SURE_FLOPS, allocate
from numbanet.engine.cpu.kernels import CALL, infer, train
from numbanet.engine.cpu.members import Members
from numbanet.engine.cpu.tuner import CALL_SECONDS
from numbanet.io import arrays, fields, validation
from numbanet.io.attributes import KnownArguments, KnownAttributes, known_arguments
from numbanet.network.ensemble import Ensemble
from numbanet.network.sequential import Sequential
from numbanet.nn import optimizers
from numbanet.plan.columns import EPOCH, INPUTS, PERMUTATION, RATES, SEED, TARGETS
from numbanet.training.averages import Snapshot, measured_network, refresh, restore, snapshot
from numbanet.training.data import check_last_batch
from numbanet.training.epoch import epoch_permutation, go_back, reuse_optimizer_state
from numbanet.training.history import History
from numbanet.training.lbfgs import is_lbfgs
from numbanet.training.progress import VERBOSE, Progress

STEPS_PER_VISIT = 8
"""Steps for which it is worth to bring a network's parameters into a core's cache."""


class Population(KnownArguments, KnownAttributes):
    """Networks with the same input and output shapes, trained at the same time.

    networks   Sequentials of one dtype, on the CPU; their layers, penalties and seeds may differ.
               Or one Sequential, of which `size` copies are made: the first as it is, the others
               drawn anew with the next seeds, except for frozen layers
    size       how many copies

    Raises ValueError or TypeError that says which network is wrong.
    """

    networks: list[Sequential]
    histories: list[History]
    stopped: list[str]
    _matrix: np.ndarray | None

    def __init__(self, networks, size: int | None = None):
        if isinstance(networks, Sequential):
            networks = _copies(networks, validation.check_int(2 if size is None else size, "size"))
        elif size is not None:
            raise ValueError("size says how many copies to make of one network; leave it out")
        self.networks = list(networks)
        self._check_networks()
        self.histories = [History() for _ in self.networks]
        self.stopped = [""] * len(self)
        self._share_memory()

    def _check_networks(self) -> None:
        """ValueError or TypeError for networks that cannot be trained together."""
        if not self.networks:
            raise ValueError("a population needs at least one network")
        for k, network in enumerate(self.networks):
            if not isinstance(network, Sequential):
                raise TypeError(
                    f"a population is made of Sequentials, got {fields.shown(network)} at place {k}"
                )
        Ensemble(self.networks)  # checks the rest of what they have in common
        for k, network in enumerate(self.networks):
            if network.dtype != self.dtype:
                raise ValueError(f"network 0 is of {self.dtype}, network {k} of {network.dtype}")
            if network.is_stateful:
                raise ValueError(
                    f"network {k} is stateful, and those of a population begin every sequence "
                    "anew; take layers without stateful=True, or fit it by itself"
                )
            if network.device != "cpu":
                raise ValueError(f"network {k} is on {network.device!r}; a population is on 'cpu'")

    def _share_memory(self) -> None:
        """Make the networks' memories rows of one matrix, where they are equally long."""
        self._matrix = None
        sizes = {(network.parameters.size, network.memory.size) for network in self.networks}
        if len(sizes) > 1:
            return
        ((_, n_elements),) = sizes
        per_line = 64 // self.dtype.itemsize
        stride = -(-n_elements // per_line) * per_line
        matrix = allocate(len(self) * stride, self.dtype).reshape(len(self), stride)
        for network, row in zip(self.networks, matrix, strict=True):
            network.move_memory(row[:n_elements])
        self._matrix = matrix

    @classmethod
    def from_builder(cls, build, members: int = 5, seeds=None) -> "Population":
        """Build the networks by `build(seed)`, for seeds 0 … members − 1 or the given `seeds`.

        Raises ValueError where other seeds do not make another network.
        """
        made = Ensemble.from_builder(build, members, seeds).networks
        seeds = range(len(made)) if seeds is None else list(seeds)
        for seed, network in zip(seeds, made, strict=True):
            alike = network.seed == made[0].seed and seed != seeds[0]
            if alike and np.array_equal(network.memory, made[0].memory):
                raise ValueError(
                    f"build({seeds[0]}) and build({seed}) made the same network; let build pass "
                    "its seed on to Sequential"
                )
        return cls(made)

    def __len__(self) -> int:
        return len(self.networks)

    def __getitem__(self, k: int) -> Sequential:
        return self.member(k)

    def __iter__(self):
        return iter(self.networks)

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_matrix"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._share_memory()

    @property
    def dtype(self) -> np.dtype:
        """The networks' dtype."""
        return self.networks[0].dtype

    @property
    def parameters(self) -> np.ndarray:
        """All parameters (networks, parameters), a view.

        Raises ValueError where the networks' sizes differ, or one has left the population's memory:
        it was put into another population, or replaced in `networks`.
        """
        matrix = self._matrix
        if matrix is None:
            raise ValueError("the networks have different layers; see member(i).parameters")
        if len(matrix) != len(self):
            raise ValueError(
                f"{len(self)} networks, where the population was made of {len(matrix)}; make a "
                "Population of them anew"
            )
        for k, (network, row) in enumerate(zip(self.networks, matrix, strict=True)):
            if network.memory.ctypes.data != row.ctypes.data:
                raise ValueError(
                    f"network {k} does not lie in this population's memory: it was replaced, or "
                    "put into another one; make a Population of the networks anew, or see "
                    f"member({k}).parameters"
                )
        return matrix[:, : self.networks[0].parameters.size]

    # --- training ---

    @known_arguments(
        {
            "callbacks": "networks of a population take no callbacks: see patience, histories",
            "validation_split": "pass validation_rows",
            "sample_weight": "pass rows, which may name a sample several times",
            "class_weight": "pass rows, which may name a sample several times",
            "metrics": "see evaluate(x, y, metrics=…)",
            "augment": "the networks of a population train on x as it is",
            "lengths": "the networks of a population take whole sequences",
        }
    )
    def fit(
        self,
        x,
        y,
        *,
        loss=None,
        optimizer=None,
        batch_size=32,
        epochs=1,
        shuffle: bool = True,
        rows=None,
        validation_data=None,
        validation_rows=None,
        scale_targets: bool = False,
        patience=None,
        min_delta: float = 0.0,
        restore_best: bool = True,
        verbose: int = 0,
        threads: int | None = None,
    ) -> list[History]:
        """Train all networks on inputs x and targets y, and return the history of each.

        What a network may have of its own is given once for all, or as a list, one for each:

        optimizer         a name or Optimizer; by default that of the last fit, at first Adam
        batch_size        samples per step, None for all
        epochs            passes over its samples, at most
        patience          stop when it has not improved for so many epochs, and take the parameters
                          of the best one (`restore_best`); None: never. What counts is the loss on
                          the validation data where there are any, else on the samples; an
                          improvement is more than `min_delta`
        rows              a list: for each network the indices of its samples in x, int64, also
                          several times the same; or "bootstrap": as many as there are, drawn with
                          replacement, a function of its seed; None: all. The masks of Dropout go by
                          these indices: a sample that is named twice has one mask in an epoch
        validation_rows   a list: for each network the indices of its validation samples in x

        loss, shuffle, validation_data, scale_targets, verbose and threads are those of a network's
        own fit.

        `stopped[k]` says afterwards why network k ended before its epochs: "patience", "diverged"
        (it is back at its parameters from before that epoch, and a warning names it), "schedule"
        (its learning rate has come to its end), or "".
        Raises ValueError or TypeError before training starts, and says which network is wrong.
        """
        self._check_networks()
        validation.check_dense(x, "many networks at once read arrays")
        threads = validation.check_threads(threads) or numba.get_num_threads()
        settings = {
            "optimizer": self._each(optimizer),
            "batch_size": self._each(batch_size),
            "epochs": self._each(epochs),
            "patience": self._each(patience),
            "rows": self._rows(rows, "rows", len(x)),
            "validation_rows": self._rows(validation_rows, "validation_rows", len(x)),
        }
        for name, values in settings.items():
            if len(values) != len(self):
                raise ValueError(f"{name}: {len(values)} for {len(self)} networks")
        if validation_data is not None and validation_rows is not None:
            raise ValueError("pass validation_data or validation_rows, not both")
        verbose = VERBOSE(int(verbose) if isinstance(verbose, bool) else verbose, "verbose")
        shuffle = fields.Flag()(shuffle, "shuffle")
        scale_targets = fields.Flag()(scale_targets, "scale_targets")
        watch = {
            "min_delta": fields.Real(0)(min_delta, "min_delta"),
            "restore_best": fields.Flag()(restore_best, "restore_best"),
        }
        loss = self.networks[0].resolve_loss(loss)
        with ExitStack() as at_end:
            for network in self.networks:
                at_end.enter_context(network.in_training())
            with ExitStack() as undoing:
                undos = []
                for network in self.networks:
                    undos.append(undoing.enter_context(network.undo_scalings()))
                    network.learn_names(x, y)
                x, targets, classes = self._check_data(x, y, loss, ("x", "y"))
                validation_x, validation_targets = x, targets
                if validation_data is not None:
                    names = "validation x", "validation y"
                    validation_x, validation_targets, _ = self._check_data(
                        *_pair(validation_data), loss, names
                    )
                runs = []
                for k, network in enumerate(self.networks):
                    given = {name: values[k] for name, values in settings.items()}
                    with _naming(k):
                        runs.append(_prepare(network, x, targets[k], loss, scale_targets, given))
                    runs[k].undo = undos[k]
                classes = classes and not any(network.scales_targets for network in self.networks)
                validated = validation_data is not None or validation_rows is not None
                metrics = ["loss", "accuracy"] if classes else ["loss"]
                metrics += [f"val_{name}" for name in metrics] if validated else []
                for k, run in enumerate(runs):
                    with _naming(k):  # a metric that a schedule asks for and that is not there
                        run.observe(dict.fromkeys(metrics, 0.0), ())
                        run.rates()
                training = _Training(runs, x, classes, loss, threads)
                evaluation = None
                if validated:
                    scaled = [
                        network.scale_targets(one) if scale else one
                        for network, one, scale in zip(
                            self.networks,
                            validation_targets,
                            [run.scaled_now for run in runs],
                            strict=True,
                        )
                    ]
                    evaluation = _evaluation(runs, validation_x, scaled, classes, loss, threads)
            for run in runs:
                run.network.unfinished = None
                reuse_optimizer_state(run.network, run.optimizer)
                if validated:
                    run.measured = measured_network(run.network, run.optimizer)
            longest = max(run.end - run.network.epoch for run in runs)
            progress = Progress(longest, sum(run.samples for run in runs), verbose)
            _train(training, evaluation, classes, shuffle, progress, **watch)
        self.histories = [run.history for run in runs]
        self.stopped = [run.stopped for run in runs]
        wrong = [k for k, reason in enumerate(self.stopped) if reason == "diverged"]
        if wrong:
            warnings.warn(
                f"the loss of networks {', '.join(map(str, wrong))} was no longer finite; they are "
                "back at their parameters from before; lower their learning rates",
                RuntimeWarning,
                stacklevel=2,
            )
        return self.histories

    def _check_data(self, x, y, loss, labels) -> tuple[np.ndarray, list[np.ndarray], bool]:
        """Checked inputs, the targets of every network, and whether they name classes."""
        shared, found = None, []
        for k, network in enumerate(self.networks):
            if shared is None or network.reads_data_its_own_way:
                with _naming(k):
                    found.append(network.check_data(x, y, loss, labels))
                shared = None if network.scales_targets else found[-1]
            else:
                found.append(shared)
        x, _, classes = found[-1]
        return x, [targets for _, targets, _ in found], classes

    def _each(self, given) -> list:
        """A setting for each network."""
        return list(given) if _several(given) else [given] * len(self)

    def _rows(self, given, name: str, samples: int) -> list:
        """Indices of samples, or None, for each network."""
        if given is None:
            return [None] * len(self)
        if name == "rows" and isinstance(given, str) and given == "bootstrap":
            return [bootstrap(network.seed, samples) for network in self.networks]
        if not _several(given):
            either = ', or "bootstrap"' if name == "rows" else ""
            raise ValueError(
                f"{name} is a list with the indices of each network's samples{either}, "
                f"not {fields.shown(given)}"
            )
        return [
            None if one is None else _check_rows(one, samples, f"{name} of network {k}")
            for k, one in enumerate(given)
        ]

    # --- what came out ---

    def member(self, k: int) -> Sequential:
        """Return network k, also as population[k]; its parameters are a part of the population's.

        k   an integer, negative from the end. Raises IndexError where there is none.
        """
        if isinstance(k, slice):
            raise TypeError(
                "a population gives one network at a time, population[k]; population.networks is "
                "the list of all, of which there are slices"
            )
        try:
            return self.networks[k]
        except IndexError:
            raise IndexError(f"network {k} of {len(self)}: there are 0 … {len(self) - 1}") from None

    def predict(self, x, *, threads: int | None = None) -> np.ndarray:
        """Return all networks' outputs for inputs x: (networks, samples, *output_shape)."""
        return np.stack([network.predict(x, threads=threads) for network in self.networks])

    @known_arguments({"lengths": "the networks of a population take whole sequences"})
    def evaluate(
        self,
        x,
        y,
        *,
        loss=None,
        metrics=(),
        sample_weight=None,
        class_weight=None,
        threads: int | None = None,
    ) -> list[dict[str, float]]:
        """Return what each network's own evaluate does for these data: its loss and metrics."""
        options = {
            "loss": loss,
            "metrics": metrics,
            "sample_weight": sample_weight,
            "class_weight": class_weight,
            "threads": threads,
        }
        return [network.evaluate(x, y, **options) for network in self.networks]

    def scores(self, metric: str | None = None) -> np.ndarray:
        """Return each network's best value of a metric of its history: (networks,).

        metric   by default the loss on the validation data, else the loss; NaN where there is none
        """
        if not any(history.history for history in self.histories):
            ended = [text for text in self.stopped if text]
            reason = f"the training of all ended at once: {ended[0]}" if ended else "call fit first"
            raise ValueError(f"no network has trained an epoch; {reason}")
        names = {name for history in self.histories for name in history.history}
        metric = metric or ("val_loss" if "val_loss" in names else "loss")
        if metric not in names:
            raise ValueError(f"no metric {metric!r}; there are {', '.join(sorted(names))}")
        best = max if metric.endswith("accuracy") else min
        values = [history.history.get(metric) for history in self.histories]
        return np.array([best(one) if one else np.nan for one in values])

    def best(self, metric: str | None = None) -> Sequential:
        """Return the network with the best of `scores(metric)`."""
        return self.networks[self.ranking(metric)[0]]

    def ranking(self, metric: str | None = None) -> np.ndarray:
        """Return the networks' numbers, the best of `scores(metric)` first."""
        found = self.scores(metric)
        larger_is_better = metric is not None and metric.endswith("accuracy")
        return np.argsort(-found if larger_is_better else found, kind="stable")

    def ensemble(self, members: int | None = None, combine: str = "mean") -> Ensemble:
        """Return copies of the best `members` networks (all by default) as an Ensemble."""
        numbers = range(len(self)) if members is None else self.ranking()[:members]
        return Ensemble([copy.deepcopy(self.networks[k]) for k in numbers], combine)

    def __repr__(self):
        return f"<Population of {len(self)}, the first {self.networks[0]!r}>"


@known_arguments(
    {
        "batch_size": "all samples count",
        **dict.fromkeys(
            ("sample_weight", "class_weight", "metrics"), "network.evaluate takes it, for one row"
        ),
    }
)
def evaluate_parameters(
    network: Sequential, parameters, x, y, *, loss=None, threads: int | None = None
) -> np.ndarray:
    """Return the mean loss of x and y for every row of `parameters` (n, parameters), as float64.

    For evolution strategies and other searches without a gradient. Buffers, such as running means,
    are the network's; it is not changed. Penalties are left out.
    Raises ValueError where the matrix does not fit or has no row, TypeError for what is not real
    numbers.
    """
    parameters = arrays.as_numbers(parameters, "parameters").astype(network.dtype, copy=False)
    if parameters.ndim != 2 or parameters.shape[1] != network.parameters.size:
        raise ValueError(
            f"parameters must have shape (n, {network.parameters.size}), got {parameters.shape}"
        )
    if not len(parameters):
        raise ValueError("parameters has no row; pass at least one vector of parameters")
    validation.assert_all_finite(parameters, "parameters", network.dtype)
    validation.check_dense(x, "many networks at once read arrays")
    loss = network.resolve_loss(loss)
    x, y, classes = network.check_data(x, y, loss)
    n = len(parameters)
    buffers = network.memory[parameters.shape[1] :]
    memories = np.hstack([parameters, np.broadcast_to(buffers, (n, buffers.size))])
    threads = validation.check_threads(threads) or numba.get_num_threads()
    with network.executors.lock:
        missing = validation.has_missing(y)
        executor = network.executors.evaluation(
            loss, x.dtype, y.dtype, classes, len(x), 1, missing=missing
        )
        evaluation = _Evaluation([executor] * n, x, [y] * n, [None] * n, threads)
    return evaluation(range(n), memories)[:, 0]


# --- one network's part -----------------------------------------------------------------------


@dataclass
class MemberRun:
    """One network's training.

    rows, validation_rows   indices of its samples, or None for all
    y, scaled_now           its targets, scaled where the network scales them, and whether it does
                            so from this training on
    batch, samples          samples in a step, and in an epoch
    patience                epochs without an improvement after which it stops, or None
    end                     its epoch when all are done
    best, since             its best loss, and the epochs since then
    undo                    puts its scalings and names back
    measured                the network that validation data are measured on, where there are any
    """

    network: Sequential
    optimizer: optimizers.Optimizer
    rows: np.ndarray | None
    validation_rows: np.ndarray | None
    y: np.ndarray
    scaled_now: bool
    batch: int
    samples: int
    patience: int | None
    end: int
    history: History = field(default_factory=History)
    stopped: str = ""
    best: float = np.inf
    since: int = 0
    best_snapshot: Snapshot | None = None
    undo: Any = None
    measured: Any = None

    @property
    def batches(self) -> int:
        """Steps in an epoch."""
        return -(-self.samples // self.batch)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do; `stopped` then says why, if that is before its end."""
        schedule = self.optimizer.schedule
        if schedule is not None and schedule.has_ended(self.network.schedule_state):
            self.stopped = self.stopped or "schedule"
        return bool(self.stopped) or self.network.epoch >= self.end

    def rates(self) -> np.ndarray | None:
        """The learning rates of the steps of this epoch, or None for a constant one."""
        network = self.network
        before = getattr(network.optimizer, "learning_rate", None)
        state = network.schedule_state if before == self.optimizer.learning_rate else ()
        return self.optimizer.rates(network.epoch, self.batches, self.end, state)

    def order(self, shuffle: bool) -> np.ndarray | None:
        """The indices of the samples of this epoch in their order, or None for all as they are."""
        if not shuffle:
            return self.rows
        order = epoch_permutation(self.network.seed, self.network.epoch, self.samples)
        return order if self.rows is None else self.rows[order]

    def observe(self, logs: dict[str, float], state: tuple) -> tuple:
        """The state of its schedule after an epoch with these metrics, if it has a schedule."""
        schedule = self.optimizer.schedule
        return () if schedule is None else schedule.observe(state, logs)

    def stop_if_stuck(self, value: float, min_delta: float, restore_best: bool) -> None:
        """Count epochs without an improvement."""
        if self.patience is None:
            return
        if value < self.best - (min_delta if np.isfinite(self.best) else 0):
            self.best, self.since = value, 0
            self.best_snapshot = snapshot(self.network) if restore_best else None
        else:
            self.since += 1
        if self.since >= self.patience and self.since:
            self.stopped = "patience"


def _prepare(network, x, y, loss, scale_targets, given) -> MemberRun:
    """Check one network's settings and measure its scalings."""
    if is_lbfgs(given["optimizer"]):
        raise ValueError(
            "L-BFGS takes no mini-batches, and the networks of a population do; fit the network by "
            "itself, member(k).fit(…, batch_size=None)"
        )
    optimizer = optimizers.optimizer(given["optimizer"] or network.optimizer or "adam")
    epochs = validation.check_int(given["epochs"], "epochs", 0)
    patience, size, rows = given["patience"], given["batch_size"], given["rows"]
    patience = None if patience is None else validation.check_int(patience, "patience", 0)
    samples = len(x) if rows is None else len(rows)
    batch = samples if size is None else min(validation.check_int(size, "batch_size"), samples)
    check_last_batch(network, samples, batch)
    chosen = slice(None) if rows is None else rows
    scaled_now = bool(epochs) and network.learn_scalings(x[chosen], y[chosen], loss, scale_targets)
    return MemberRun(
        network,
        optimizer,
        rows,
        given["validation_rows"],
        network.scale_targets(y) if scaled_now else y,
        scaled_now,
        batch,
        samples,
        patience,
        network.epoch + epochs,
    )


def _executors(runs: list[MemberRun], training: bool, build) -> list:
    """The executor of each network by `build(run)`; networks that need the same plan share one.

    The caller holds the networks' locks.
    """
    found: dict[tuple, Any] = {}
    executors = []
    for number, run in enumerate(runs):
        rows = None if run.validation_rows is None else len(run.validation_rows)
        kind = type(run.optimizer), run.optimizer.update, *run.optimizer.around.items()
        key = _ops_key(run, training), (run.batch, run.samples, *kind) if training else rows
        if key not in found:
            with _naming(number):
                found[key] = build(run)
        executors.append(found[key])
    return executors


def _ops_key(run: MemberRun, training: bool) -> tuple:
    """What the ops of a network are made of: kernels and numbers, in the order of the layers."""
    network = run.network
    ops = network.layer_ops(samples=run.samples, batches=run.batches, training=training)
    numbers = {id(op): k for k, op in enumerate(ops)}
    parts = []
    for op in ops:
        values = {one.name: getattr(op, one.name) for one in fields_of(op)}
        values["aux"] = numbers.get(id(op.aux))
        for name in ("embedded_verbs", "row_verbs"):
            values[name] = tuple(values[name].items())
        parts.append(tuple(values.values()))
    last = type(network.layers[-1].layer)
    return tuple(parts), network.input_scale(), last, network.scales_targets


@contextmanager
def _locked(networks):
    """A context in which no other thread uses the networks' executors."""
    with ExitStack() as locks:
        for network in networks:
            locks.enter_context(network.executors.lock)
        yield


# --- training together ------------------------------------------------------------------------


class _Training:
    """The epochs of all networks."""

    def __init__(self, runs: list[MemberRun], x, classes: bool, loss, threads: int):
        self.runs, self.x = runs, x

        def build(run):
            return run.network.executors.training(
                loss,
                run.optimizer,
                x,
                run.y,
                classes,
                batch=run.batch,
                samples=run.samples,
                batches=run.batches,
                threads=1,
            )

        with _locked([run.network for run in runs]):
            executors = _executors(runs, True, build)
            self.members = Members(executors, train, threads, [run.optimizer for run in runs])
        self.addresses = np.array([run.network.memory.ctypes.data for run in runs])
        self.flops = np.array([3.0 * run.network.executors.flops * run.batch for run in runs])
        self.seconds_per_flop, self.calls = 1 / SURE_FLOPS, 0
        for k, run in enumerate(runs):
            self.members.bind(k, INPUTS, x.ctypes.data)
            self.members.bind(k, TARGETS, run.y.ctypes.data)
        self.kept: dict[tuple[int, int], np.ndarray] = {}

    def bind(self, k: int, column: int, array: np.ndarray | None) -> None:
        """Let network k read an array, which is kept."""
        if array is not None:
            self.kept[k, column] = array
        self.members.bind(k, column, 0 if array is None else array.ctypes.data)

    def epoch(self, active: list[int], shuffle: bool, progress: Progress) -> list[int]:
        """Train the networks `active` for an epoch; those whose loss is no longer finite."""
        for k in active:
            run, network = self.runs[k], self.runs[k].network
            self.bind(k, PERMUTATION, run.order(shuffle))
            self.bind(k, RATES, run.rates())
            self.members.bind(k, EPOCH, network.epoch)
            self.members.bind(k, SEED, network.seed)
            self.members.calls[k, CALL.state] = network.optimizer_state.ctypes.data
        self.members.sums[active] = 0
        snapshots = {k: self.runs[k].network.memory.copy() for k in active}
        total = sum(self.runs[k].batches for k in active)
        batches = np.array([run.batches for run in self.runs])
        done, pending, diverged = np.zeros(len(self.runs), np.int64), list(active), []
        while pending:
            chosen, last = self._share(pending, done, batches)
            reached = self._call(chosen, done[chosen], last)
            for k, was, now, wanted in zip(chosen, done[chosen], reached, last, strict=True):
                run = self.runs[k]
                updates = [run.optimizer.updates(int(n), run.batches) for n in (was, now)]
                run.network.optimizer_steps += updates[1] - updates[0]
                if now < wanted:
                    diverged.append(k)
            done[chosen] = last
            taken = set(chosen)
            waiting = [k for k in pending if k not in taken]
            pending = waiting + [k for k in chosen if done[k] < batches[k] and k not in diverged]
            progress.step(min(1.0, float(done[active].sum()) / total))
        for k in active:
            network = self.runs[k].network
            if k not in diverged and not np.isfinite(network.parameters).all():
                diverged.append(k)
        for k in diverged:
            go_back(self.runs[k].network, snapshots[k])
        return diverged

    def _share(self, pending, done, batches) -> tuple[list[int], np.ndarray]:
        """Which networks the next call takes how far, so that it lasts about CALL_SECONDS.

        A call ends with an update: gradients are not kept for another one.
        """
        budget = CALL_SECONDS * self.members.workers
        chosen, last, planned = [], [], 0.0
        for k in pending:
            step = self.flops[k] * self.seconds_per_flop
            steps = max(STEPS_PER_VISIT, int(budget / len(pending) / step))
            accumulate = self.runs[k].optimizer.accumulate
            steps = -(-int(min(steps, max(1, budget / step))) // accumulate) * accumulate
            steps = int(min(steps, batches[k] - done[k]))
            chosen.append(k)
            last.append(done[k] + steps)
            planned += steps * step
            if planned >= budget:
                break
        return chosen, np.array(last)

    def _call(self, chosen: list[int], first: np.ndarray, last: np.ndarray) -> np.ndarray:
        runs = [self.runs[k] for k in chosen]
        self.members.calls[chosen, CALL.steps_done] = [
            run.network.optimizer_steps - now // run.optimizer.accumulate
            for run, now in zip(runs, first, strict=True)
        ]
        samples = [run.samples for run in runs]
        began = time.perf_counter()
        reached = self.members.run(chosen, self.addresses[chosen], samples, first, last)
        seconds = (time.perf_counter() - began) * min(self.members.workers, len(chosen))
        flops = float(self.flops[chosen] @ (reached - first))
        self.calls += 1
        if self.calls > 1 and flops:  # the first one compiles
            self.seconds_per_flop = max(seconds / flops, 1e-13)
        return reached


class _Evaluation:
    """Loss, and accuracy for classes, of all networks on data that the training does not change."""

    def __init__(self, executors, x, targets, rows, threads: int):
        self.members = Members(executors, infer, threads)
        self.samples = np.array([len(x) if one is None else len(one) for one in rows])
        self.batches = -(-self.samples // [executor.plan.batch for executor in executors])
        self.kept = x, targets, rows
        for k, (y, one) in enumerate(zip(targets, rows, strict=True)):
            self.members.bind(k, INPUTS, x.ctypes.data)
            self.members.bind(k, TARGETS, y.ctypes.data)
            self.members.bind(k, PERMUTATION, 0 if one is None else one.ctypes.data)

    def __call__(self, chosen, memories) -> np.ndarray:
        """Mean loss and part of correct answers of networks `chosen`: (chosen, 2).

        memories   the parameters and buffers of each of them
        """
        chosen = list(chosen)
        addresses = np.array([memory.ctypes.data for memory in memories])
        self.members.sums[chosen] = 0
        samples, last = self.samples[chosen], self.batches[chosen]
        self.members.run(chosen, addresses, samples, np.zeros_like(last), last)
        return self.members.sums[chosen] / samples[:, None]


def _evaluation(
    runs: list[MemberRun], x, targets, classes: bool, loss, threads: int
) -> _Evaluation:
    """What measures all networks on inputs x, each on targets of its own and its rows."""

    def build(run):
        samples = len(x if run.validation_rows is None else run.validation_rows)
        kinds = x.dtype, targets[0].dtype
        return run.network.executors.evaluation(
            loss, *kinds, classes, samples, 1, missing=validation.has_missing(targets[0])
        )

    rows = [run.validation_rows for run in runs]
    with _locked([run.network for run in runs]):
        return _Evaluation(_executors(runs, False, build), x, targets, rows, threads)


def _train(
    training: _Training,
    evaluation: _Evaluation | None,
    classes: bool,
    shuffle: bool,
    progress: Progress,
    *,
    min_delta: float,
    restore_best: bool,
) -> None:
    """Train epoch by epoch until all have ended."""
    runs = training.runs
    samples = np.array([[run.samples] for run in runs])
    active = [k for k, run in enumerate(runs) if not run.ended]
    try:
        while active:
            start = time.perf_counter()
            for k in training.epoch(active, shuffle, progress):
                runs[k].stopped = "diverged"
                if not runs[k].history.seconds:
                    runs[k].undo()
            active = [k for k in active if not runs[k].stopped]
            if not active:
                break
            for k in active:
                runs[k].network.epoch += 1
            measured = {"": training.members.sums[active] / samples[active]}
            if evaluation is not None:
                for k in active:
                    refresh(runs[k].measured, runs[k].network)
                memories = [runs[k].measured.memory for k in active]
                measured["val_"] = evaluation(active, memories)
            seconds = time.perf_counter() - start
            for place, k in enumerate(active):
                run = runs[k]
                penalty, logs = run.network.penalty_value(run.samples, run.batches), {}
                for prefix, values in measured.items():
                    if prefix and run.measured is not run.network:
                        penalty = run.measured.penalty_value(run.samples, run.batches)
                    logs[prefix + "loss"] = float(values[place, 0]) + penalty
                    if classes:
                        logs[prefix + "accuracy"] = float(values[place, 1])
                run.history.add(logs, seconds)
                run.network.schedule_state = run.observe(logs, run.network.schedule_state)
                run.stop_if_stuck(logs.get("val_loss", logs["loss"]), min_delta, restore_best)
            progress.epoch(logs)
            active = [k for k in active if not runs[k].ended]
    finally:
        progress.close()
        for run in runs:
            if run.best_snapshot is not None:
                restore(run.network, run.best_snapshot)


# --- checks -----------------------------------------------------------------------------------


def _several(given) -> bool:
    return isinstance(given, (list, tuple, np.ndarray))


def _pair(validation_data) -> tuple[Any, Any]:
    if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
        raise ValueError("validation_data must be a pair (x, y)")
    validation.check_dense(validation_data[0], "many networks at once read arrays", "validation x")
    return validation_data[0], validation_data[1]


def _copies(network: Sequential, size: int) -> list[Sequential]:
    """Copies of a network with its seed and the next ones; all but the first begin anew.

    Frozen layers keep their parameters in all of them.
    """
    copies = [copy.deepcopy(network) for _ in range(size)]
    frozen = [k for k, built in enumerate(network.layers) if not built.trainable]
    for k, one in enumerate(copies):
        if k:
            one.initialize(network.seed + k)
            one.copy_weights(network, frozen)
    return copies


def bootstrap(seed: int, samples: int) -> np.ndarray:
    """As many indices of samples as there are, drawn with replacement; int64 (samples,)."""
    return np.random.Generator(np.random.Philox(key=[seed, samples])).integers(0, samples, samples)


def _check_rows(given, samples: int, name: str) -> np.ndarray:
    """Indices of samples as int64; a boolean mask of all samples is taken as its indices."""
    rows = np.asarray(given)
    if rows.dtype == bool and rows.shape == (samples,):
        rows = np.flatnonzero(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
        raise ValueError(
            f"{name} must be indices of samples, at least one integer, "
            f"got shape {rows.shape} of {rows.dtype}"
        )
    wrong = np.flatnonzero((rows < 0) | (rows >= samples))
    if len(wrong):
        raise ValueError(f"{name} has {rows[wrong[0]]} at [{wrong[0]}], of {samples} samples")
    return np.ascontiguousarray(rows, np.int64)


@contextmanager
def _naming(k: int):
    """Errors of one network say which it is."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"network {k}: {error}") from error
