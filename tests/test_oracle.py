"""PyTorch agrees in float64: trajectories of every optimiser, every loss and activation."""

import numpy as np
import pytest
from checkers import close

import numbanet as nn
from numbanet.training.epoch import epoch_permutation

torch = pytest.importorskip("torch")
functional = torch.nn.functional

SAMPLES, N_IN, HIDDEN, CLASSES = 50, 7, 9, 4


def tensor(array):
    return torch.tensor(np.asarray(array), dtype=torch.float64)


# --- optimisers --------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": (nn.SGD(0.2), lambda p: torch.optim.SGD(p, 0.2)),
    "momentum": (nn.SGD(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "nesterov": (
        nn.SGD(0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    ),
    "adagrad": (nn.Adagrad(0.05), lambda p: torch.optim.Adagrad(p, 0.05)),
    "rmsprop": (nn.RMSprop(0.01), lambda p: torch.optim.RMSprop(p, 0.01)),
    "rmsprop with momentum": (
        nn.RMSprop(0.003, alpha=0.9, epsilon=1e-6, momentum=0.8),
        lambda p: torch.optim.RMSprop(p, 0.003, alpha=0.9, eps=1e-6, momentum=0.8),
    ),
    "adam": (nn.Adam(0.01), lambda p: torch.optim.Adam(p, 0.01)),
    "adam with betas": (
        nn.Adam(0.02, beta_1=0.7, beta_2=0.95, epsilon=1e-6),
        lambda p: torch.optim.Adam(p, 0.02, betas=(0.7, 0.95), eps=1e-6),
    ),
    "adamw": (
        nn.AdamW(0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ),
    "default sgd": (nn.SGD(), lambda p: torch.optim.SGD(p)),
    "default adagrad": (nn.Adagrad(), lambda p: torch.optim.Adagrad(p)),
    "default rmsprop": (nn.RMSprop(), lambda p: torch.optim.RMSprop(p)),
    "default adam": (nn.Adam(), lambda p: torch.optim.Adam(p)),
    "default adamw": (nn.AdamW(), lambda p: torch.optim.AdamW(p)),
}


def classifier(penalty=None):
    return nn.Sequential(
        [nn.Dense(HIDDEN, activation="tanh"), nn.Dense(CLASSES, activation="softmax")],
        N_IN,
        "float64",
        seed=4,
        penalty=penalty,
    )


def data():
    generator = np.random.default_rng(11)
    return generator.normal(size=(SAMPLES, N_IN)), generator.integers(0, CLASSES, SAMPLES)


def torch_parameters(net):
    return [
        tensor(values).requires_grad_()
        for built in net.layers
        for values in built.parameters.values()
    ]


def flat(tensors):
    return np.concatenate([one.detach().numpy().ravel() for one in tensors])


def cross_entropy(parameters, x, y, class_weight=None):
    w, b, v, c = parameters
    return functional.cross_entropy(torch.tanh(x @ w + b) @ v + c, y, class_weight)


SCHEDULES = {
    "cosine": (
        nn.schedules.Cosine(0.1),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=100),
    ),
    "cosine to a floor": (
        nn.schedules.Cosine(0.1, 0.02, epochs=30),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=150, eta_min=0.02),
    ),
    "exponential": (
        nn.schedules.Exponential(0.1, 0.8),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.8**0.2),
    ),
    "steps": (
        nn.schedules.StepDecay(0.1, every=3, factor=0.4),
        lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=15, gamma=0.4),
    ),
    "warm-up": (
        nn.schedules.WarmUp(0.1, epochs=4),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: min(1, (k + 1) / 20)),
    ),
    "one cycle": (
        nn.schedules.OneCycle(0.1),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 100, cycle_momentum=False),
    ),
    "one steep cycle": (
        nn.schedules.OneCycle(0.1, 20, rise=0.77, start_divisor=3, end_divisor=20),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, 0.1, 100, pct_start=0.77, div_factor=3, final_div_factor=20, cycle_momentum=False
        ),
    ),
    "a function of steps": (
        nn.schedules.Function(lambda k: 0.1 / (1 + k), of="step"),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)),
    ),
    "a function of epochs": (
        nn.schedules.Function(lambda t: 0.1 / (1 + t)),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k / 5)),
    ),
}


@pytest.mark.parametrize("kind", [nn.SGD, nn.Adam])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_hundred_steps_with_a_schedule_are_those_of_torch(name, kind):
    ours, theirs = SCHEDULES[name]
    optimizer = getattr(torch.optim, kind.__name__)
    train_both(kind(ours), lambda parameters: optimizer(parameters, 0.1), theirs)


@pytest.mark.parametrize("least", [0.0, 0.02])
def test_reduction_on_a_plateau_is_that_of_torch(least):
    values = np.random.default_rng(2).uniform(0.4, 0.6, 100) + 1 / (1 + np.arange(100))
    ours = nn.schedules.ReduceOnPlateau(0.1, factor=0.7, patience=3, min_delta=0.05, least=least)
    stepper, state, found, expected = torch.optim.SGD([torch.zeros(1)], 0.1), (), [], []
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        stepper, factor=0.7, patience=2, threshold=0.05, threshold_mode="abs", min_lr=least, eps=0
    )
    for epoch, value in enumerate(values):
        found.append(ours.epoch(epoch, 1, 100, state)[0])
        expected.append(stepper.param_groups[0]["lr"])
        state = ours.observe(state, {"val_loss": value})
        theirs.step(value)
    assert expected[-1] < 0.05
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_hundred_steps_are_those_of_torch(name):
    train_both(*OPTIMIZERS[name])


def test_weights_of_classes_are_those_of_torch():
    train_both(*OPTIMIZERS["adam"], class_weight=np.array([0.3, 2.0, 1.0, 0.05]))


def train_both(ours, theirs, schedule=None, net=None, class_weight=None):
    """Train one network by both for 20 epochs of 5 batches."""
    net, (x, y) = classifier() if net is None else net, data()
    parameters = torch_parameters(net)
    before, stepper = net.parameters.copy(), theirs(parameters)
    scheduler = schedule(stepper) if schedule else None
    for epoch in range(20):
        shuffled = epoch_permutation(net.seed, epoch, SAMPLES)
        for first in range(0, SAMPLES, 10):
            here = shuffled[first : first + 10]
            stepper.zero_grad()
            weights = None if class_weight is None else tensor(class_weight)
            cross_entropy(parameters, tensor(x[here]), torch.tensor(y[here]), weights).backward()
            stepper.step()
            if scheduler:
                scheduler.step()
    net.fit(x, y, optimizer=ours, batch_size=10, epochs=20, class_weight=class_weight)
    assert net.optimizer_steps == 100
    assert np.abs(net.parameters - before).max() > 0.01
    np.testing.assert_allclose(net.parameters, flat(parameters), rtol=1e-9, atol=1e-12)


# --- around the update -------------------------------------------------------------------------


def clip_value(most):
    return lambda parameters: torch.nn.utils.clip_grad_value_(parameters, most)


def clip_norm(most):
    return lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, most)


STEERED = {
    "clipped values": (
        nn.SGD(0.2, momentum=0.5, clip_value=0.02),
        lambda p: torch.optim.SGD(p, 0.2, momentum=0.5),
        clip_value(0.02),
    ),
    "clipped norm": (
        nn.SGD(0.2, momentum=0.5, clip_norm=0.1),
        lambda p: torch.optim.SGD(p, 0.2, momentum=0.5),
        clip_norm(0.1),
    ),
    "a norm that is rarely too large": (
        nn.Adam(0.02, clip_norm=0.25),
        lambda p: torch.optim.Adam(p, 0.02),
        clip_norm(0.25),
    ),
    "two batches": (nn.Adam(0.02, accumulate=2), lambda p: torch.optim.Adam(p, 0.02), None),
    "an epoch": (nn.SGD(0.5, accumulate=9), lambda p: torch.optim.SGD(p, 0.5), None),
    "averages": (nn.Adam(0.02, average=0.9), lambda p: torch.optim.Adam(p, 0.02), None),
    "all of it": (
        nn.AdamW(0.02, clip_norm=0.15, accumulate=3, average=0.8),
        lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.01),
        clip_norm(0.15),
    ),
}


@pytest.mark.parametrize("name", STEERED)
def test_a_hundred_batches_with_clipping_accumulation_and_averages_are_those_of_torch(name):
    """Gradients of `accumulate` batches, or of the rest of an epoch, are averaged."""
    ours, theirs, clip = STEERED[name]
    net, (x, y) = classifier(), data()
    parameters = torch_parameters(net)
    stepper, before = theirs(parameters), net.parameters.copy()
    averages = [one.detach().clone() for one in parameters]
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(ours.average)
    clipped, updates = 0, 0
    for epoch in range(20):
        shuffled = epoch_permutation(net.seed, epoch, SAMPLES).reshape(5, 10)
        for first in range(0, 5, ours.accumulate):
            group = shuffled[first : first + ours.accumulate]
            stepper.zero_grad()
            for here in group:
                loss = cross_entropy(parameters, tensor(x[here]), torch.tensor(y[here]))
                (loss / len(group)).backward()
            if clip is not None:
                whole = flat([one.grad for one in parameters])
                clip(parameters)
                clipped += not np.array_equal(whole, flat([one.grad for one in parameters]))
            stepper.step()
            average(averages, [one.detach() for one in parameters], 1)
            updates += 1
    net.fit(x, y, optimizer=ours, batch_size=10, epochs=20)
    assert net.optimizer_steps == updates
    assert np.abs(net.parameters - before).max() > 0.01
    assert clip is None or clipped > 5
    np.testing.assert_allclose(net.parameters, flat(parameters), rtol=1e-9, atol=1e-12)
    if ours.average:
        expected = flat(averages)
        np.testing.assert_allclose(net.averaged_parameters, expected, rtol=1e-9, atol=1e-12)
        assert np.abs(expected - net.parameters).max() > 1e-3


@pytest.mark.parametrize("scheduled", [False, True])
def test_rates_and_decays_of_layers_are_the_parameter_groups_of_torch(scheduled):
    rate = nn.schedules.Exponential(0.02, 0.9) if scheduled else 0.02
    schedule = torch.optim.lr_scheduler.ExponentialLR

    def grouped(parameters):
        groups = [
            {"params": parameters[:2], "lr": 0.002, "weight_decay": 0.5},
            {"params": parameters[2:], "weight_decay": 0.1},
        ]
        return torch.optim.AdamW(groups, 0.02)

    def with_groups():
        net = classifier()
        net.layers[0].learning_rate_factor, net.layers[0].weight_decay = 0.1, 0.5
        return net

    train_both(
        nn.AdamW(rate, weight_decay=0.1),
        grouped,
        (lambda o: schedule(o, gamma=0.9**0.2)) if scheduled else None,
        with_groups(),
    )


def test_the_decay_of_layers_is_decoupled_from_momentum():
    net = classifier()
    for built in net.layers:
        built.weight_decay = 0.3
    train_both(nn.Adam(0.02), lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.3), net=net)


def test_l2_is_the_weight_decay_of_torch_on_weights_alone():
    net, (x, y) = classifier(nn.L2(0.05)), data()
    parameters = torch_parameters(net)
    stepper = torch.optim.SGD(
        [{"params": parameters[0::2], "weight_decay": 0.05}, {"params": parameters[1::2]}], 0.1
    )
    for _ in range(30):
        stepper.zero_grad()
        cross_entropy(parameters, tensor(x), torch.tensor(y)).backward()
        stepper.step()
    net.fit(x, y, optimizer=nn.SGD(0.1), batch_size=None, epochs=30)
    np.testing.assert_allclose(net.parameters, flat(parameters), rtol=1e-9, atol=1e-12)


# --- losses ------------------------------------------------------------------------------------


def each(function, **options):
    """A loss of torch without its mean: the losses of the elements."""
    return lambda a, y: function(a, y, reduction="none", **options)


def quantiles(a, y):
    """The quantile losses of five outputs, each with a level of its own: torch has none."""
    levels = tensor([0.1, 0.3, 0.5, 0.6, 0.9])
    return torch.maximum(levels * (y - a), (levels - 1) * (y - a)).mean(dim=1)


LOSSES = {
    "quadratic": (
        "quadratic",
        None,
        lambda a, y: 0.5 * each(functional.mse_loss)(a, y).sum(dim=1),
    ),
    "mean_squared_error": (
        "mean_squared_error",
        None,
        lambda a, y: each(functional.mse_loss)(a, y).mean(dim=1),
    ),
    "mean_absolute_error": (
        "mean_absolute_error",
        None,
        lambda a, y: each(functional.l1_loss)(a, y).mean(dim=1),
    ),
    "huber": (
        nn.Huber(0.7),
        None,
        lambda a, y: each(functional.huber_loss, delta=0.7)(a, y).mean(dim=1),
    ),
    "quantile": (nn.Quantile((0.1, 0.3, 0.5, 0.6, 0.9)), None, lambda a, y: quantiles(a, y)),
    "binary_cross_entropy": (
        "binary_cross_entropy",
        "sigmoid",
        lambda a, y: each(functional.binary_cross_entropy)(a, y).sum(dim=1),
    ),
    "cross_entropy": ("cross_entropy", "softmax", lambda a, y: -(y * a.log()).sum(dim=1)),
    "poisson": (
        "poisson",
        "exp",
        lambda a, y: (a - y + torch.xlogy(y, y) - torch.xlogy(y, a)).sum(dim=1),
    ),
}
"""Our loss, the activation that it needs, and torch's losses of the samples."""
ACTIVATIONS = {
    "identity": lambda z: z,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "exp": torch.exp,
    "leaky_relu": lambda z: functional.leaky_relu(z, 0.01),
    "softmax": lambda z: torch.softmax(z, dim=1),
}


def compare(activation, name, reference, weights=None, missing=None):
    """Loss and gradient of one dense layer against torch's.

    weights   of the samples
    missing   which targets are masked, bool: torch sees 0 as output and target there
    """
    generator = np.random.default_rng(len(activation))
    net = nn.Sequential([nn.Dense(5, activation=activation)], 6, "float64", seed=8)
    net.layers[0].bias = generator.normal(size=5)
    x, y = 2 * generator.normal(size=(13, 6)), generator.uniform(0.05, 0.95, (13, 5))
    y /= y.sum(axis=1, keepdims=True) if name == "cross_entropy" else 1
    parameters = torch_parameters(net)
    outputs = ACTIVATIONS[activation](tensor(x) @ parameters[0] + parameters[1])
    close(net.predict(x), outputs.detach().numpy(), 1e-14)
    if missing is not None:
        outputs, y = outputs.masked_fill(torch.tensor(missing), 0), np.where(missing, 0, y)
    losses, options = reference(outputs, tensor(y)), {"sample_weight": weights}
    y = y if missing is None else np.ma.array(y, mask=missing)
    weights = np.ones(13) if weights is None else weights
    value = (tensor(weights) * losses).sum() / weights.sum()
    value.backward()
    for training in (False, True):
        close(net.loss(x, y, name, training=training, **options), value.item(), 1e-13)
        gradient = net.gradient(x, y, name, training=training, **options)
        close(gradient, flat([one.grad for one in parameters]), 1e-13)
    close(net.evaluate(x, y, loss=name, **options)["loss"], value.item(), 1e-13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "name", ["quadratic", "mean_squared_error", "mean_absolute_error", "huber", "quantile"]
)
def test_a_loss_after_any_activation_is_that_of_torch(name, activation):
    given, _, reference = LOSSES[name]
    compare(activation, given, reference)


@pytest.mark.parametrize("name", ["binary_cross_entropy", "cross_entropy", "poisson"])
def test_a_fused_loss_is_that_of_torch(name):
    given, activation, reference = LOSSES[name]
    compare(activation, given, reference)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_weighted_samples_is_that_of_torch(name):
    given, activation, reference = LOSSES[name]
    weights = np.random.default_rng(3).uniform(0, 4, 13)
    weights[4] = 0
    compare(activation or "tanh", given, reference, weights)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross_entropy"])
def test_a_loss_of_known_targets_is_that_of_torch(name):
    given, activation, reference = LOSSES[name]
    generator = np.random.default_rng(3)
    missing = generator.uniform(size=(13, 5)) < 0.4
    missing[6] = True
    compare(activation or "tanh", given, reference, None, missing)
    compare(activation or "tanh", given, reference, generator.uniform(0, 4, 13), missing)


def test_cross_entropies_stay_exact_where_probabilities_vanish():
    """torch's losses of weighted inputs are exact there, too."""
    x = np.array([[-80.0], [-3.0], [0.5], [40.0], [90.0]])
    net = nn.Sequential([nn.Dense(2, activation="sigmoid")], 1, "float64")
    net.parameters = [1.0, -0.75, 0.25, 0.5]
    y = np.array([[1, 0], [0, 1], [0.25, 0.5], [1, 1], [0, 0.125]])
    z = tensor(x @ net.layers[0].weights + net.layers[0].bias).requires_grad_()
    value = functional.binary_cross_entropy_with_logits(z, tensor(y), reduction="sum") / 5
    value.backward()
    close(net.loss(x, y, "binary_cross_entropy"), value.item(), 1e-14)
    close(net.gradient(x, y, "binary_cross_entropy")[2:], z.grad.sum(dim=0).numpy(), 1e-14)
    net = nn.Sequential([nn.Dense(3, activation="softmax")], 1, "float64")
    net.parameters = [1.0, -1.25, 0.5, 0.25, 0.5, -0.125]
    labels = np.array([0, 1, 2, 1, 2])
    z = tensor(x @ net.layers[0].weights + net.layers[0].bias).requires_grad_()
    value = functional.cross_entropy(z, torch.tensor(labels))
    value.backward()
    close(net.loss(x, labels), value.item(), 1e-14)
    close(net.gradient(x, labels)[3:], z.grad.sum(dim=0).numpy(), 1e-14)
