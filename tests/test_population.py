"""Populations: many networks trained at once, each as if it were alone."""

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import numbanet as nn

RANDOM = np.random.default_rng(3)
X = RANDOM.standard_normal((90, 6)).astype("float32")
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
TARGETS = (40 * X[:, :1] + 1000 + RANDOM.standard_normal((90, 1))).astype("float32")
IMAGES = RANDOM.standard_normal((40, 6, 6, 1)).astype("float32")


def network(seed=0, hidden=8, layers=(), outputs=3, **options):
    last = nn.Dense(outputs, activation="softmax") if outputs > 1 else nn.Dense(1)
    return nn.Sequential(
        [*layers, nn.Dense(hidden, activation="tanh"), last], 6, seed=seed, **options
    )


def image_network(seed=0):
    layers = [nn.Conv2D(4, 3, activation="relu"), nn.BatchNorm(), nn.MaxPool2D(2), nn.Flatten()]
    return nn.Sequential([*layers, nn.Dense(3, activation="softmax")], (6, 6, 1), seed=seed)


def same(ours, alone):
    assert np.array_equal(ours.memory, alone.memory)
    assert np.array_equal(ours.optimizer_state, alone.optimizer_state)
    assert (ours.epoch, ours.optimizer_steps) == (alone.epoch, alone.optimizer_steps)
    assert (ours.optimizer, ours.schedule_state) == (alone.optimizer, alone.schedule_state)


BUILDERS = {
    "one architecture": lambda: [network(seed) for seed in range(5)],
    "several": lambda: [network(0, 4), network(1, 16), network(2, 4), network(3, 300)],
    "penalties": lambda: [network(k, penalty=nn.L2(0.1 * k) if k else None) for k in range(3)],
    "dropout and norms": lambda: [
        network(k, layers=[nn.Standardize(), nn.LayerNorm(), nn.Dropout(0.3)]) for k in range(3)
    ],
    "float64": lambda: [network(k, dtype="float64") for k in range(3)],
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_each_network_learns_as_if_it_were_alone(build, threads):
    settings = [
        (nn.Adam(0.01), 16, 3),
        (nn.Adam(0.002), 7, 5),
        (nn.SGD(0.1, momentum=0.5), 90, 4),
        ("rmsprop", None, 2),
        (nn.Adam(nn.schedules.Cosine(0.01)), 16, 3),
    ]
    population = nn.Population(build())
    used = settings[: len(population)]
    histories = population.fit(
        X,
        LABELS,
        optimizer=[one[0] for one in used],
        batch_size=[one[1] for one in used],
        epochs=[one[2] for one in used],
        threads=threads,
    )
    for k, alone in enumerate(build()):
        optimizer, batch_size, epochs = settings[k]
        history = alone.fit(
            X, LABELS, optimizer=optimizer, batch_size=batch_size, epochs=epochs, verbose=0
        )
        same(population.member(k), alone)
        assert histories[k].history == history.history


STEERED = [
    nn.SGD(0.2, clip_value=0.05),
    nn.SGD(0.1, momentum=0.9, clip_norm=0.2),
    nn.SGD(0.1, momentum=0.9, clip_norm=0.4),
    nn.Adam(0.02, accumulate=4),
    nn.AdamW(nn.schedules.Exponential(0.02, 0.9), clip_norm=0.1, accumulate=5, average=0.9),
    nn.Adam(0.02, average=0.8),
    nn.Adam(0.02),
]


@pytest.mark.parametrize("threads", [1, 2])
def test_what_happens_around_an_update_is_that_of_a_network_alone(threads, monkeypatch):
    monkeypatch.setattr(nn.network.population, "CALL_SECONDS", 1e-9)
    monkeypatch.setattr(nn.network.population, "STEPS_PER_VISIT", 1)

    def build():
        networks = [network(k, penalty=nn.L2(0.1)) for k in range(len(STEERED))]
        for k in (0, 6):
            networks[k].layers[0].learning_rate_factor = 0.5
            networks[k].layers[2].weight_decay = 0.1
        return networks

    options = {"validation_data": (X[:30], LABELS[:30]), "epochs": 6, "batch_size": 8}
    population, patience = nn.Population(build()), [None, None, None, 2, 2, 2, 2]
    histories = population.fit(
        X, LABELS, optimizer=STEERED, patience=patience, threads=threads, **options
    )
    for k, alone in enumerate(build()):
        stop = nn.callbacks.EarlyStopping(patience=2) if patience[k] else None
        history = alone.fit(X, LABELS, optimizer=STEERED[k], callbacks=stop, verbose=0, **options)
        same(population.member(k), alone)
        for name, values in history.history.items():
            assert histories[k].history[name] == pytest.approx(values, rel=1e-6)


def test_evaluate_gives_what_each_network_does():
    population, weights = nn.Population(network(), 3), np.linspace(0.1, 2, len(X))
    for options in ({}, {"metrics": "f1", "sample_weight": weights}, {"loss": "mse"}):
        found = population.evaluate(X, LABELS, **options)
        assert found == [one.evaluate(X, LABELS, **options) for one in population]
    assert len({one["loss"] for one in found}) == 3
    with pytest.raises(TypeError, match="take whole sequences"):
        population.evaluate(X, LABELS, lengths=np.ones(len(X), int))


def test_images_and_further_epochs():
    population, labels = nn.Population([image_network(k) for k in range(3)]), np.arange(40) % 3
    population.fit(IMAGES, labels, epochs=2, batch_size=8)
    population.fit(IMAGES, labels, epochs=[1, 0, 2], batch_size=8, shuffle=False)
    for k in range(3):
        alone = image_network(k)
        alone.fit(IMAGES, labels, epochs=2, batch_size=8, verbose=0)
        if k != 1:
            more = {"epochs": 1 + k // 2, "shuffle": False}
            alone.fit(IMAGES, labels, batch_size=8, verbose=0, **more)
        same(population.member(k), alone)


def test_rows_of_the_data():
    rows = [np.arange(0, 60), np.arange(30, 90), [5, 5, 5, 80, 2]]
    held_out = [np.arange(60, 90), np.arange(30), np.arange(6, 9)]
    population = nn.Population([network(k) for k in range(3)])
    histories = population.fit(
        X, LABELS, rows=rows, validation_rows=held_out, epochs=3, batch_size=8
    )
    for k in range(3):
        alone = network(k)
        alone.class_names = population.member(k).class_names
        validation = X[held_out[k]], LABELS[held_out[k]]
        history = alone.fit(
            X[rows[k]],
            LABELS[rows[k]],
            validation_data=validation,
            epochs=3,
            batch_size=8,
            verbose=0,
        )
        same(population.member(k), alone)
        for name, values in history.history.items():
            assert histories[k].history[name] == pytest.approx(values, rel=1e-6)


def test_a_penalty_per_sample_counts_the_rows():
    penalty, rows = nn.L2(3.0, per="sample"), np.arange(20)
    population = nn.Population([network(k, penalty=penalty) for k in range(2)])
    population.fit(X, LABELS, rows=[rows, None], epochs=2, batch_size=8)
    for k, part in enumerate((rows, slice(None))):
        alone = network(k, penalty=penalty)
        alone.class_names = population.member(k).class_names
        alone.fit(X[part], LABELS[part], epochs=2, batch_size=8, verbose=0)
        same(population.member(k), alone)


def test_masks_of_dropout_go_by_the_index_of_a_sample():
    population = nn.Population([network(k, layers=[nn.Dropout(0.5)]) for k in range(2)])
    everything = np.arange(len(X))
    population.fit(X, LABELS, rows=[everything, everything], epochs=2)
    for k in range(2):
        alone = network(k, layers=[nn.Dropout(0.5)])
        alone.fit(X, LABELS, epochs=2, verbose=0)
        same(population.member(k), alone)
    twice = nn.Population([network(0, layers=[nn.Dropout(0.5)])])
    twice.fit(X, LABELS, rows=[[4, 4]], batch_size=2, optimizer=nn.SGD(0.5))
    once = nn.Population([network(0, layers=[nn.Dropout(0.5)])])
    once.fit(X, LABELS, rows=[[4]], batch_size=1, optimizer=nn.SGD(0.5))
    assert once.parameters == pytest.approx(twice.parameters, rel=1e-5)


def test_bootstrap_is_a_function_of_the_seed():
    population = nn.Population(network(), 3)
    population.fit(X, LABELS, rows="bootstrap", epochs=2)
    again = nn.Population(network(), 3)
    again.fit(X, LABELS, rows="bootstrap", epochs=2, threads=1)
    assert np.array_equal(population.parameters, again.parameters)
    assert [one.seed for one in population.networks] == [0, 1, 2]
    drawn = nn.bootstrap(1, 90)
    alone = network(1)
    alone.fit(X[drawn], LABELS[drawn], epochs=2, verbose=0)
    assert np.array_equal(population.parameters[1], alone.parameters)


def test_patience_stops_one_and_not_the_others():
    population = nn.Population([network(k) for k in range(3)])
    population.fit(
        X,
        LABELS,
        validation_data=(X, LABELS),
        optimizer=[nn.Adam(0.01), nn.SGD(0.0), nn.Adam(0.01)],
        epochs=8,
        patience=[None, 2, 2],
    )
    assert population.stopped == ["", "patience", ""]
    assert [len(history.seconds) for history in population.histories] == [8, 3, 8]
    for k in range(3):
        alone = network(k)
        stop = nn.callbacks.EarlyStopping(patience=2) if k else None
        optimizer = nn.SGD(0.0) if k == 1 else nn.Adam(0.01)
        options = {"validation_data": (X, LABELS), "epochs": 8, "verbose": 0}
        alone.fit(X, LABELS, optimizer=optimizer, callbacks=stop, **options)
        same(population.member(k), alone)


def test_a_schedule_of_one_depends_on_its_own_metrics():
    plateau = nn.schedules.ReduceOnPlateau(
        0.01, "val_loss", factor=0.5, patience=1, min_delta=9, stop_at=0.25
    )
    optimizers = [nn.Adam(plateau), nn.Adam(0.01), nn.Adam(plateau)]
    nets, epochs = [network(k) for k in range(3)], [9, 4, 2]
    population = nn.Population(copy.deepcopy(nets))
    options = {"validation_data": (X[:20], LABELS[:20])}
    population.fit(X, LABELS, optimizer=optimizers, epochs=epochs, **options)
    assert population.stopped == ["schedule", "", ""]
    for k, alone in enumerate(nets):
        alone.fit(X, LABELS, optimizer=optimizers[k], epochs=epochs[k], verbose=0, **options)
        same(population.member(k), alone)
    assert nets[0].epoch == 3 and nets[0].schedule_state[0] == 2
    missing = np.ma.array(TARGETS, mask=X[:, :1] > 1)
    real = [network(k, outputs=1) for k in range(2)]
    population = nn.Population(copy.deepcopy(real))
    options = {"scale_targets": True, "validation_data": (X[:20], missing[:20])}
    population.fit(X, missing, epochs=2, **options)
    for k, alone in enumerate(real):
        alone.fit(X, missing, epochs=2, verbose=0, **options)
        same(population.member(k), alone)


def test_one_that_diverges_does_not_stop_the_others():
    population = nn.Population([network(k, outputs=1) for k in range(3)])
    rates = [nn.SGD(1e-5), nn.SGD(1e30), nn.SGD(1e-5)]
    with pytest.warns(RuntimeWarning, match="the loss of networks 1 was no longer finite"):
        population.fit(X, TARGETS, optimizer=rates, epochs=3)
    assert population.stopped == ["", "diverged", ""]
    assert np.array_equal(population.member(1).parameters, network(1, outputs=1).parameters)
    assert population.member(0).epoch == 3 and population.member(1).epoch == 0
    assert np.isnan(population.scores()[1]) and population.ranking()[-1] == 1


@pytest.mark.parametrize("n", [1, 2])
def test_all_may_diverge(n):
    population = nn.Population([network(k, outputs=1) for k in range(n)])
    with pytest.warns(RuntimeWarning, match="was no longer finite"):
        population.fit(X, TARGETS, optimizer=nn.SGD(1e30), epochs=3, validation_data=(X, TARGETS))
    assert population.stopped == ["diverged"] * n
    assert not any(history.seconds for history in population.histories)


def test_one_that_diverges_at_once_keeps_no_scalings():
    build = [network(k, layers=[nn.Standardize()], outputs=1) for k in range(2)]
    population = nn.Population(build)
    rates = [nn.SGD(1e30), nn.SGD(0.01)]
    with pytest.warns(RuntimeWarning, match="networks 0 was"):
        population.fit(X, TARGETS, optimizer=rates, epochs=2, scale_targets=True)
    first, second = population.networks
    assert (first.scales_targets, second.scales_targets) == (False, True)
    assert (first.layers[0].adapted, second.layers[0].adapted) == (0, 1)
    population.fit(X, TARGETS, optimizer=nn.SGD(0.01), scale_targets=True)
    alone = network(0, layers=[nn.Standardize()], outputs=1)
    alone.fit(X, TARGETS, optimizer=nn.SGD(0.01), scale_targets=True, verbose=0)
    assert np.array_equal(first.memory, alone.memory)


def test_a_refused_fit_leaves_everything():
    population = nn.Population([network(k) for k in range(2)])
    population.fit(X, LABELS)
    before = copy.deepcopy(population.networks)
    population.member(1).freeze()
    with pytest.raises(ValueError, match=r"network 1: .*all its layers are frozen"):
        population.fit(X, LABELS, optimizer=nn.SGD(0.5, momentum=0.9))
    bad = nn.SGD(nn.schedules.Function(lambda t: 0.1 if t < 1 else 1 / 0))
    population.member(1).unfreeze()
    with pytest.raises(Exception, match="zero"):
        population.fit(X, LABELS, optimizer=["adam", bad])
    for ours, theirs in zip(population.networks, before, strict=True):
        same(ours, theirs)


def test_what_no_file_can_hold_can_be_trained():
    rate = nn.SGD(nn.schedules.Function(lambda t: 0.1))
    population = nn.Population(network(), 2)
    population.fit(X, LABELS, optimizer=rate, epochs=2)
    alone = network(1)
    alone.fit(X, LABELS, optimizer=rate, epochs=2, verbose=0)
    same(population.member(1), alone)


def test_networks_of_the_same_layers_share_a_plan(monkeypatch):
    made = []

    class Counting(nn.network.population.Members):
        def __init__(self, executors, *args):
            made.append(len({id(one) for one in executors}))
            super().__init__(executors, *args)

    monkeypatch.setattr(nn.network.population, "Members", Counting)
    for build in BUILDERS.values():
        nn.Population(build()).fit(X, LABELS, validation_data=(X, LABELS))
    nn.Population([image_network(k) for k in range(3)]).fit(IMAGES, np.arange(40) % 3)
    assert made == [1, 1, 3, 3, 3, 3, 1, 1, 1, 1, 1]


def test_addresses_of_other_calls_are_not_taken_over():
    def recurrent(k):
        return nn.Sequential([nn.GRU(4), nn.Dense(1)], (5, 2), seed=k)

    x, y = RANDOM.standard_normal((30, 5, 2)).astype("float32"), TARGETS[:30] / 1000
    population, alone = nn.Population([recurrent(k) for k in range(2)]), recurrent(0)
    first = population.member(0)
    executor = first.executors.evaluation(first.resolve_loss(None), x.dtype, y.dtype, False, 30, 1)
    executor.bind(nn.plan.columns.LENGTHS, np.full(30, 1))
    histories = population.fit(x, y, validation_data=(x, y))
    history = alone.fit(x, y, validation_data=(x, y), verbose=0)
    assert histories[0].history["val_loss"] == pytest.approx(history.history["val_loss"])


def test_a_table_is_copied_while_no_other_call_uses_it():
    population = nn.Population(network(), 2)
    seen = []

    class Watched(nn.network.population.Members):
        def __init__(self, *args):
            locks = [one.executors.lock for one in population.networks]
            with ThreadPoolExecutor(1) as pool:
                seen.extend(pool.map(lambda lock: lock.acquire(blocking=False), locks))
            super().__init__(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.network.population, "Members", Watched)
        population.fit(X, LABELS, validation_data=(X, LABELS))
    assert seen == [False] * 4


def test_scaled_targets():
    population = nn.Population(network(outputs=1), 3)
    rows = [None, np.arange(45), np.arange(45, 90)]
    validation = X[:20], TARGETS[:20]
    for epochs in (2, 1):
        histories = population.fit(
            X, TARGETS, rows=rows, scale_targets=True, epochs=epochs, validation_data=validation
        )
    for k, chosen in enumerate(rows):
        alone, part = network(k, outputs=1), slice(None) if chosen is None else chosen
        for epochs in (2, 1):
            history = alone.fit(
                X[part],
                TARGETS[part],
                scale_targets=True,
                epochs=epochs,
                validation_data=validation,
                verbose=0,
            )
        same(population.member(k), alone)
        assert histories[k].history["val_loss"] == pytest.approx(history.history["val_loss"])


def test_frozen_layers_stay():
    population = nn.Population([network(k) for k in range(2)])
    population.member(1).freeze(0)
    before = population.member(1).layers[0].weights.copy()
    population.fit(X, LABELS, epochs=2)
    assert np.array_equal(population.member(1).layers[0].weights, before)
    assert not np.array_equal(population.member(0).layers[0].weights, network(0).layers[0].weights)


def test_parameters_are_one_matrix():
    population = nn.Population(network(), 3)
    assert population.parameters.shape == (3, network().parameters.size)
    population.parameters[1] = 0
    assert not population.member(1).parameters.any()
    assert np.array_equal(population.member(2).parameters, network(2).parameters)
    for copied in (pickle.loads(pickle.dumps(population)), copy.deepcopy(population)):
        copied.parameters[2] = 0
        assert not copied.member(2).parameters.any()
        assert population.member(2).parameters.any()
        copied.fit(X, LABELS)
    with pytest.raises(ValueError, match="different layers"):
        _ = nn.Population([network(0, 4), network(1, 5)]).parameters
    standardized = nn.Sequential([nn.Standardize(), nn.Dense(1)], 3)
    hidden = nn.Sequential([nn.Dense(2), nn.Dense(1)], 3)
    assert standardized.memory.size == hidden.memory.size
    with pytest.raises(ValueError, match="different layers"):
        _ = nn.Population([standardized, hidden]).parameters


def test_networks_that_left_the_memory_are_named():
    population = nn.Population(network(), 3)
    nn.Population([population.member(1), network(9)])
    with pytest.raises(ValueError, match="network 1 does not lie in this population's memory"):
        _ = population.parameters
    population.fit(X, LABELS)  # each with its own memory
    population.networks[1] = network(1, dtype="float64")
    with pytest.raises(ValueError, match="network 0 is of float32, network 1 of float64"):
        population.fit(X, LABELS)
    population.networks[1] = network(7)
    with pytest.raises(ValueError, match="network 1 does not lie"):
        _ = population.parameters
    population.networks.pop()
    with pytest.raises(ValueError, match="2 networks, where the population was made of 3"):
        _ = population.parameters
    assert nn.Population(population.networks).parameters.shape[0] == 2


def test_best_predictions_and_ensemble(tmp_path):
    population = nn.Population([network(k, 2 + 6 * k) for k in range(3)])
    population.fit(X, LABELS, epochs=20, optimizer=nn.Adam(0.02), validation_data=(X, LABELS))
    outputs = population.predict(X)
    assert outputs.shape == (3, 90, 3)
    assert np.array_equal(outputs[1], population.member(1).predict(X))
    losses = [history.history["val_loss"] for history in population.histories]
    assert population.scores() == pytest.approx([min(one) for one in losses])
    assert population.best() is population.member(int(np.argmin(population.scores())))
    accuracy = population.scores("val_accuracy")
    assert population.best("val_accuracy") is population.member(int(np.argmax(accuracy)))
    ensemble = population.ensemble(2)
    assert len(ensemble.networks) == 2
    ensemble.save(tmp_path / "two.safetensors")
    assert np.array_equal(nn.load(tmp_path / "two.safetensors").predict(X), ensemble.predict(X))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_of_many_parameter_vectors(dtype):
    net = network(dtype=dtype, layers=[nn.Standardize()])
    net.adapt(X)
    before = net.memory.copy()
    vectors = np.random.default_rng(1).standard_normal((7, net.parameters.size)).astype(dtype)
    found = nn.evaluate_parameters(net, vectors, X, LABELS)
    assert np.array_equal(net.memory, before)
    for vector, value in zip(vectors, found, strict=True):
        net.parameters[:] = vector
        assert value == net.evaluate(X, LABELS)["loss"]
    with pytest.raises(ValueError, match=r"must have shape \(n, "):
        nn.evaluate_parameters(net, vectors[:, 1:], X, LABELS)
    with pytest.raises(ValueError, match="parameters has no row"):
        nn.evaluate_parameters(net, vectors[:0], X, LABELS)
    with pytest.raises(TypeError, match="parameters"):
        nn.evaluate_parameters(net, vectors + 1j, X, LABELS)
    vectors[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"parameters has NaN at \[2, 3\]"):
        nn.evaluate_parameters(net, vectors, X, LABELS)


WRONG = [
    ({"epochs": [1, 2]}, ValueError, "epochs: 2 for 3 networks"),
    ({"optimizer": ["adam", "sgd", "adma"]}, ValueError, "network 2: unknown optimizer 'adma'"),
    ({"optimizer": "lbfgs"}, ValueError, "network 0: L-BFGS takes no mini-batches"),
    (
        {"batch_size": [1, 0, 3]},
        ValueError,
        "network 1: batch_size must be an integer of at least 1",
    ),
    ({"patience": [1, 1, -1]}, ValueError, "network 2: patience must be an integer of at least 0"),
    ({"rows": [[0], [1], [90]]}, ValueError, r"rows of network 2 has 90 at \[0\], of 90 samples"),
    ({"rows": [[0], [], [1]]}, ValueError, "rows of network 1 must be indices"),
    ({"rows": [[0], [0.5], [1]]}, ValueError, "rows of network 1 must be indices"),
    ({"rows": "folds"}, ValueError, "rows is a list with the .*, or .bootstrap., not 'folds'"),
    ({"rows": 5}, ValueError, "rows is a list with the indices of each network's samples.* not 5"),
    (
        {"validation_rows": "bootstrap"},
        ValueError,
        "validation_rows is a list with the indices of each network's samples, not 'bootstrap'",
    ),
    ({"rows": [[0]]}, ValueError, "rows: 1 for 3 networks"),
    ({"validation_rows": [[0]] * 3, "validation_data": (X, LABELS)}, ValueError, "not both"),
    ({"epoch": 3}, TypeError, "Population.fit has no argument 'epoch'; did you mean 'epochs'"),
    ({"callbacks": None}, TypeError, "networks of a population take no callbacks"),
    (
        {"optimizer": ["adam", nn.SGD(nn.schedules.ReduceOnPlateau(0.1)), "adam"]},
        ValueError,
        "network 1: ReduceOnPlateau: no metric 'val_loss' to watch.*pass validation_data",
    ),
    ({"metrics": "f1"}, TypeError, r"see evaluate\(x, y, metrics=…\)"),
    ({"loss": "binary_cross_entropy"}, ValueError, "network 0: .* needs a network that ends in"),
]


@pytest.mark.parametrize(("settings", "error", "message"), WRONG, ids=lambda one: str(one)[:40])
def test_bad_settings(settings, error, message):
    population = nn.Population(network(), 3)
    before = population.parameters.copy()
    with pytest.raises(error, match=message):
        population.fit(X, LABELS, **settings)
    assert np.array_equal(population.parameters, before)
    assert not population.member(0).class_names
    population.fit(X, LABELS)


def test_what_networks_must_have_in_common():
    with pytest.raises(ValueError, match="network 0 is of float32, network 1 of float64"):
        nn.Population([network(), network(dtype="float64")])
    with pytest.raises(ValueError, match="network 1 takes"):
        nn.Population([network(), image_network()])
    with pytest.raises(ValueError, match="size must be an integer of at least 1"):
        nn.Population(network(), 0)
    with pytest.raises(ValueError, match="size says how many copies"):
        nn.Population([network(), network(1)], 3)
    with pytest.raises(ValueError, match="a population needs at least one network"):
        nn.Population([])
    with pytest.raises(TypeError, match="a population is made of Sequentials, got 1 at place 0"):
        nn.Population([1, 2])
    with pytest.raises(ValueError, match=r"build\(0\) and build\(1\) made the same network"):
        nn.Population.from_builder(lambda seed: network())
    three = nn.Population(network(), 3)
    with pytest.raises(IndexError, match=r"network 9 of 3: there are 0 … 2"):
        three.member(9)
    with pytest.raises(TypeError, match=r"one network at a time, .* population.networks is the"):
        three[:2]
    assert [*three] == three.networks and three[0] is three.member(0) and three[-1] is [*three][2]
    with pytest.raises(ValueError, match="no network has trained an epoch; call fit first"):
        three.scores()
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        three.fit(X, LABELS, optimizer=nn.SGD(1e38), epochs=2)
    with pytest.raises(ValueError, match="the training of all ended at once: "):
        three.best()
    population = nn.Population([network(), network(1, outputs=1)][:1])
    with pytest.raises(ValueError, match="x has NaN"):
        population.fit(np.full_like(X, np.nan), LABELS)


def test_a_network_in_training_is_refused():
    net, population = network(), None

    def nested(epoch, logs, trained):
        with pytest.raises(RuntimeError, match="in training"):
            population.fit(X, LABELS)

    population = nn.Population([net, network(1)])
    net.fit(X, LABELS, callbacks=nested, verbose=0)
    assert net.epoch == 1 and population.member(1).epoch == 0
