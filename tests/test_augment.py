"""Augmentation: against SciPy and by hand, its limits, and what a draw depends on.

It depends on seed, epoch and sample alone.
"""

import numpy as np
import pytest

import numbanet as nn
from numbanet.engine.cpu.executor import InferenceExecutor
from numbanet.nn import data
from numbanet.nn.augment import inverse_map
from numbanet.plan.columns import EPOCH, INPUTS, OUTPUTS, PERMUTATION, SEED

SHAPE = (9, 12, 2)
EVERYTHING = {
    "shift": (2, 1),
    "rotation": 30,
    "zoom": 0.2,
    "shear": 0.2,
    "flip_vertical": True,
    "flip_horizontal": True,
    "brightness": 0.3,
    "noise": 0.1,
    "cutout": 4,
}


def images(samples=7, shape=SHAPE):
    return np.random.default_rng(samples).uniform(0.1, 1, (samples, *shape))


def moved(x, augment, seed=3, epoch=0, order=None, batch=4, threads=1, dtype="float64"):
    """The images as the first layer would see them."""
    n = int(np.prod(x.shape[1:]))
    ops = [data.inputs(n, x.dtype), augment.op(x.shape[1:]), data.outputs(n)]
    executor, outputs = (
        InferenceExecutor(ops, np.dtype(dtype), batch=batch, threads=threads),
        np.empty(x.shape, dtype),
    )
    executor.plan.set_context(SEED, seed)
    executor.plan.set_context(EPOCH, epoch)
    executor.bind(INPUTS, x)
    executor.bind(OUTPUTS, outputs)
    if order is not None:
        executor.bind(PERMUTATION, order)
    executor.infer(np.zeros(0, dtype), len(x))
    return outputs


# --- moving ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"rotation": 40},
        {"zoom": 0.3},
        {"shear": 0.4},
        {"flip_vertical": True},
        {"flip_horizontal": True},
        {"shift": 3},
        {
            name: EVERYTHING[name]
            for name in ("shift", "rotation", "zoom", "shear", "flip_vertical", "flip_horizontal")
        },
    ],
    ids=lambda options: " ".join(options),
)
@pytest.mark.parametrize("shape", [SHAPE, (6, 5, 1), (4, 7, 3)], ids=str)
def test_images_move_as_in_scipy(options, shape):
    ndimage = pytest.importorskip("scipy.ndimage")
    x, augment = images(20, shape), nn.Augment(**options)
    found = moved(x, augment, epoch=5)
    for i, image in enumerate(x):
        a, b, c, d, e, f = inverse_map(augment, shape, 3, 5, i)
        for k in range(shape[2]):
            wanted = ndimage.affine_transform(
                image[..., k], [[a, b], [c, d]], (e, f), order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(found[i, ..., k], wanted, rtol=1e-9, atol=1e-9)


def maps(samples=300, shape=SHAPE, **options):
    """Matrices (samples, 2, 2) and offsets (samples, 2)."""
    rows = np.array([inverse_map(nn.Augment(**options), shape, 1, 2, i) for i in range(samples)])
    return rows[:, :4].reshape(-1, 2, 2), rows[:, 4:]


def middle_of(matrices, offsets):
    """Where the middle of an image comes from, counted from the middle."""
    middle = (np.array(SHAPE[:2]) - 1) / 2
    return matrices @ middle + offsets - middle


def test_a_rotation_turns_about_the_middle_by_up_to_its_degrees():
    matrices, offsets = maps(rotation=25)
    np.testing.assert_allclose(
        matrices @ matrices.transpose(0, 2, 1),
        np.broadcast_to(np.eye(2), matrices.shape),
        atol=1e-12,
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1)
    np.testing.assert_allclose(middle_of(matrices, offsets), 0, atol=1e-12)
    degrees = np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    assert -25 <= degrees.min() < -23 and 23 < degrees.max() <= 25 and abs(degrees.mean()) < 2.5


def test_a_zoom_and_a_shear_stay_within_their_amounts():
    matrices, offsets = maps(zoom=0.2)
    size = 1 / matrices[:, 0, 0]
    np.testing.assert_allclose(matrices, np.eye(2) / size[:, None, None])
    assert 0.8 <= size.min() < 0.82 and 1.18 < size.max() <= 1.2
    matrices, offsets = maps(shear=0.3)
    slant = matrices[:, 1, 0]
    np.testing.assert_allclose(
        matrices - np.eye(2), slant[:, None, None] * np.array([[0, 0], [1, 0]]), atol=1e-12
    )
    assert -0.3 <= slant.min() < -0.28 and 0.28 < slant.max() <= 0.3
    np.testing.assert_allclose(middle_of(matrices, offsets), 0, atol=1e-12)


def test_flips_turn_half_of_the_images_over_exactly():
    x = images(200)
    found = moved(x, nn.Augment(flip_horizontal=True))
    over = np.array(
        [(image == given[:, ::-1]).all() for image, given in zip(found, x, strict=True)]
    )
    assert 70 < over.sum() < 130
    np.testing.assert_array_equal(found[~over], x[~over])
    found = moved(x, nn.Augment(flip_vertical=True))
    assert (
        70 < sum((image == given[::-1]).all() for image, given in zip(found, x, strict=True)) < 130
    )


def shifted(image, down, right):
    height, width = image.shape[:2]
    framed = np.pad(image, ((height, height), (width, width), (0, 0)))
    return framed[height - down : 2 * height - down, width - right : 2 * width - right]


def test_shifts_are_exact_and_every_one_comes():
    x, seen = images(150), set()
    found = moved(x, nn.Augment(shift=(2, 1)))
    for image, given in zip(found, x, strict=True):
        places = [
            (down, right)
            for down in range(-3, 4)
            for right in range(-3, 4)
            if (image == shifted(given, down, right)).all()
        ]
        assert len(places) == 1
        seen.update(places)
    assert seen == {(down, right) for down in (-2, -1, 0, 1, 2) for right in (-1, 0, 1)}


# --- disturbing --------------------------------------------------------------------------------


def test_noise_has_its_deviation_and_no_pattern():
    black = np.zeros((400, *SHAPE))
    noise = moved(black, nn.Augment(noise=0.5)).reshape(400, -1)
    assert abs(noise.mean()) < 0.005 and abs(noise.std() - 0.5) < 0.005
    # the kurtosis of a sum of four uniform values is 3 − 1.2 / 4
    assert np.abs(noise).max() <= 0.5 * np.sqrt(12) and 2.7 < (noise**4).mean() / 0.5**4 < 2.8
    others = [
        noise[:, 1:],
        np.roll(noise, 1, axis=0)[:, 1:],
        moved(black, nn.Augment(noise=0.5), epoch=1).reshape(400, -1)[:, 1:],
    ]
    for place, other in zip((noise[:, :-1], noise[:, 1:], noise[:, 1:]), others, strict=True):
        assert abs(np.corrcoef(place.ravel(), other.ravel())[0, 1]) < 0.02


def test_brightness_scales_whole_images():
    x = images(300)
    share = moved(x, nn.Augment(brightness=0.2)) / x
    one = share[:, 0, 0, 0]
    np.testing.assert_allclose(
        share, np.broadcast_to(one[:, None, None, None], share.shape), rtol=1e-12
    )
    assert 0.8 <= one.min() < 0.81 and 1.19 < one.max() <= 1.2 and abs(one.mean() - 1) < 0.02


@pytest.mark.parametrize("side", [1, 4, 5])
def test_a_cutout_is_a_square_of_zeros(side):
    x = images(1500)
    found, heights, widths = moved(x, nn.Augment(cutout=side)), [], []
    touched = np.zeros(SHAPE[:2], int)
    for image, given in zip(found, x, strict=True):
        hole = (image == 0).all(axis=2)
        np.testing.assert_array_equal(image[~hole], given[~hole])
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert (
            hole.sum() == len(rows) * len(columns) > 0
            and np.ptp(rows) + 1 == len(rows)
            and np.ptp(columns) + 1 == len(columns)
        )
        heights.append(len(rows))
        widths.append(len(columns))
        touched += hole
    assert max(heights) == max(widths) == side and (touched > 0).all()
    assert side == 1 or min(heights) < side  # some hang over the edge


def test_nothing_asked_for_is_nothing_done():
    x = images()
    np.testing.assert_array_equal(moved(x, nn.Augment()), x)


def test_bytes_are_numbers_like_others():
    x = np.random.default_rng(1).integers(0, 256, (5, *SHAPE)).astype(np.uint8)
    expected = moved(x.astype(float), nn.Augment(**EVERYTHING))
    np.testing.assert_allclose(moved(x, nn.Augment(**EVERYTHING)), expected, atol=1e-12)
    single = moved(x, nn.Augment(**EVERYTHING), dtype="float32")
    np.testing.assert_allclose(single, expected, atol=255e-4)


# --- what a draw depends on --------------------------------------------------------------------


def test_a_draw_depends_on_seed_epoch_and_sample():
    x, augment = np.repeat(images(1), 6, axis=0), nn.Augment(**EVERYTHING)
    drawn = [moved(x, augment, seed, epoch) for seed in (3, 4) for epoch in (0, 1, 2)]
    different = np.unique(np.concatenate(drawn).reshape(36, -1), axis=0)
    assert len(different) == 36
    np.testing.assert_array_equal(drawn[1], moved(x, augment, 3, 1))


def test_a_draw_does_not_depend_on_batch_threads_or_order():
    x, augment = images(23), nn.Augment(**EVERYTHING)
    wanted = moved(x, augment)
    for options in ({"batch": 1}, {"batch": 23, "threads": 2}, {"batch": 10, "threads": 4}):
        np.testing.assert_array_equal(moved(x, augment, **options), wanted)
    order = np.random.default_rng(0).permutation(23)
    np.testing.assert_array_equal(moved(x, augment, order=order), wanted[order])


def network(threads=None, seed=5, **options):
    layers = [nn.Conv2D(3, 3, activation="relu"), nn.Flatten(), nn.Dense(2, activation="softmax")]
    return nn.Sequential(layers, SHAPE, seed=seed, threads=threads, **options)


def trained(threads=None, epochs=(3,), **options):
    x, y = images(30).astype("float32"), np.arange(30) % 2
    net = network(threads)
    for n in epochs:
        net.fit(
            x,
            y,
            **{
                "optimizer": nn.SGD(0.05, momentum=0.9),
                "batch_size": 8,
                "verbose": 0,
                "epochs": n,
                **options,
            },
        )
    return net.parameters


def test_training_is_the_same_bits_for_any_number_of_threads_and_when_resumed():
    augment = nn.Augment(**EVERYTHING)
    one = trained(1, augment=augment)
    for threads in (2, 4):
        np.testing.assert_array_equal(trained(threads, augment=augment), one)
    np.testing.assert_array_equal(trained(1, (1, 2), augment=augment), one)
    assert not np.array_equal(trained(1), one)


def test_fit_hands_the_moved_image_to_the_first_layer():
    """From zero weights and a target of −1, one step of size 1 gives minus the image."""
    x, augment = images(1), nn.Augment(**EVERYTHING)
    net = nn.Sequential(
        [nn.Flatten(), nn.Dense(1, initializer="zeros", bias=False)], SHAPE, "float64", seed=8
    )
    for epoch in range(3):
        net.parameters[:] = 0
        net.fit(x, [[-1.0]], loss="quadratic", optimizer=nn.SGD(1.0), augment=augment, verbose=0)
        np.testing.assert_array_equal(-net.parameters, moved(x, augment, 8, epoch).ravel())


def test_validation_and_prediction_see_images_as_they_are():
    x, y = images(30).astype("float32"), np.arange(30) % 2
    net = network()
    history = net.fit(x, y, augment=nn.Augment(**EVERYTHING), validation_data=(x, y), verbose=0)
    assert history.history["val_loss"][-1] == net.evaluate(x, y)["loss"]


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shift": -1}, "shift must be a finite number of at least 0, got -1"),
        ({"shift": (1, -2)}, r"shift must be a finite number of at least 0, got \(1, -2\)"),
        ({"shift": 1.5}, "shift counts whole pixels, got 1.5"),
        ({"cutout": 2.5}, "cutout counts whole pixels"),
        ({"rotation": float("nan")}, "rotation must be a finite number"),
        ({"rotation": float("inf")}, "rotation must be a finite number"),
        ({"noise": "loud"}, "noise must be a finite number of at least 0, got 'loud'"),
        ({"zoom": 1.0}, "a zoom of 1.0 would shrink an image to nothing"),
    ],
)
def test_amounts_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        nn.Augment(**options)


def test_a_network_without_images_is_refused():
    net = nn.Sequential([nn.Dense(1)], 12)
    with pytest.raises(
        ValueError,
        match=r"Augment expects images \(height, width, channels\), "
        r"the network's input is \(12,\)",
    ):
        net.fit(np.ones((3, 12)), np.ones(3), augment=nn.Augment(shift=1), verbose=0)


# --- expand ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[:2]], ids=["channels", "no channels"])
def test_the_five_fold_set(shape):
    x = np.random.default_rng(1).integers(1, 256, (4, *shape)).astype(np.uint8)
    y = np.arange(4)
    many, labels = nn.shift_copies(x, y)
    assert (
        many.shape == (20, *shape)
        and many.dtype == np.uint8
        and labels.tolist() == [0, 1, 2, 3] * 5
    )
    np.testing.assert_array_equal(many[:4], x)
    np.testing.assert_array_equal(many[4:8, :, 1:], x[:, :, :-1])  # to the right
    np.testing.assert_array_equal(many[8:12, :, :-1], x[:, :, 1:])  # to the left
    np.testing.assert_array_equal(many[12:16, 1:], x[:, :-1])  # down
    np.testing.assert_array_equal(many[16:, :-1], x[:, 1:])  # up
    for edge in (many[4:8, :, 0], many[8:12, :, -1], many[12:16, 0], many[16:, -1]):
        assert (edge == 0).all()


def test_other_shifts():
    x, y = images(3), np.eye(3)
    many, targets = nn.shift_copies(x, y, [(2, -3), (-8, 11)])
    for block, (down, right) in zip((many[:3], many[3:]), [(2, -3), (-8, 11)], strict=True):
        np.testing.assert_array_equal(block, [shifted(image, down, right) for image in x])
    np.testing.assert_array_equal(targets, np.concatenate([y, y]))


@pytest.mark.parametrize(
    ("x", "y", "shifts", "words"),
    [
        (np.ones((3, 12)), np.ones(3), [(0, 0)], r"shift_copies needs images .*got \(3, 12\)"),
        (np.ones((3, 4, 4)), np.ones(2), [(0, 0)], r"as many targets, got \(3, 4, 4\) and \(2,\)"),
        (
            np.ones((3, 4, 5)),
            np.ones(3),
            [(0, -5)],
            r"a shift of \(0, -5\) moves an image of 4 by 5 out of sight",
        ),
    ],
)
def test_what_cannot_be_expanded_is_refused(x, y, shifts, words):
    with pytest.raises(ValueError, match=words):
        nn.shift_copies(x, y, shifts)
