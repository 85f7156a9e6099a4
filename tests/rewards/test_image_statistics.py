"""Each statistic against a picture whose value is known, its range on any picture, and its gradient."""

import colorsys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxdrl.rewards import image_statistics as statistics
from jaxdrl.rewards.image_statistics import STATISTICS

TOP = {"contrast": 0.5, "colourfulness": 1.17, "sharpness": 16.0, "stroke_width": 30 / 11}
INK = ("stroke_weight", "inked_pixels", "stroke_width", "symmetry", "centredness")


def _grey(light):
    """One image of the given luminance in [0, 1]."""
    return jnp.asarray(2 * np.asarray(light, np.float32) - 1)[None, ..., None]


def _colours(*colours):
    """One row of pixels of colours in [0, 1]."""
    return jnp.asarray(2 * np.asarray(colours, np.float32) - 1)[None, None]


@cache
def _compiled(name, fields):
    return jax.jit(partial(STATISTICS[name], **dict(fields)))


def _value(name, images, **fields):
    return float(_compiled(name, tuple(fields.items()))(images)[0])


def _box(shape, top, left, height, width):
    image = np.zeros(shape)
    image[top : top + height, left : left + width] = 1
    return image


def test_light():
    half = np.zeros((4, 6))
    half[:, :3] = 0.8
    assert _value("brightness", _grey(half)) == pytest.approx(0.4)
    assert _value("contrast", _grey(half)) == pytest.approx(0.4)
    assert _value("brightness", _colours((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))) == pytest.approx(0.5)
    assert _value("brightness", _colours((0.2, 0.4, 0.6))) == pytest.approx(0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6)
    assert _value("whiteness", _colours((0.2, 0.4, 0.6), (0.8, 0.7, 0.9))) == pytest.approx(0.45)
    assert _value("brightness", 5 + _grey(half)) == 1 and _value("contrast", _grey(3 * half - 1)) == pytest.approx(0.5)


def test_colour():
    colours = [(0.2, 0.4, 0.6), (0.9, 0.1, 0.3), (0.0, 0.0, 0.0), (0.5, 0.5, 0.5)]
    expected = np.mean([colorsys.rgb_to_hsv(*colour)[1] for colour in colours])
    assert _value("saturation", _colours(*colours)) == pytest.approx(expected)
    rg = [255 * (r - g) for r, g, _ in colours]
    yb = [255 * ((r + g) / 2 - b) for r, g, b in colours]
    published = np.hypot(np.std(rg), np.std(yb)) + 0.3 * np.hypot(np.mean(rg), np.mean(yb))
    assert 255 * _value("colourfulness", _colours(*colours)) == pytest.approx(published, rel=1e-5)
    assert _value("colourfulness", _colours((1, 0, 0), (0, 1, 1))) == pytest.approx(1.25**0.5)
    grey = _grey(np.random.default_rng(0).uniform(size=(4, 5)))
    assert _value("colourfulness", grey) == 0 and _value("saturation", grey) == 0
    # Grey in one channel is grey in three, whatever the statistic.
    for name in STATISTICS:
        one, three = _value(name, grey), _value(name, jnp.broadcast_to(grey, (1, 4, 5, 3)))
        assert three == pytest.approx(one, abs=2e-6), name


def test_sharpness_and_high_frequency():
    rows, columns = np.indices((8, 8))
    chessboard = (rows + columns) % 2
    assert _value("sharpness", _grey(chessboard)) == pytest.approx(16)
    assert _value("sharpness", _grey(rows / 16 + columns / 32)) == pytest.approx(0, abs=1e-10)
    assert _value("sharpness", _grey((rows / 8) ** 2)) == pytest.approx((2 / 64) ** 2, rel=1e-4)  # the second derivative
    slow, fast = np.cos(2 * np.pi * rows / 8), np.cos(2 * np.pi * 3 * columns / 8)
    assert _value("high_frequency", _grey(chessboard)) == pytest.approx(1)
    assert _value("high_frequency", _grey(0.5 + 0.3 * slow)) == pytest.approx(0, abs=1e-6)
    mixed = 0.5 + 0.3 * slow + 0.1 * fast
    assert _value("high_frequency", _grey(mixed)) == pytest.approx(0.1, rel=1e-4)  # 1 : 9 in power
    assert _value("high_frequency", _grey(mixed / 3 + 0.2)) == pytest.approx(0.1, rel=1e-4)
    assert _value("high_frequency", _grey(np.full((8, 8), 0.3))) == 0


def test_strokes():
    bar = _box((12, 10), 2, 3, 8, 2)
    assert _value("stroke_weight", _grey(bar)) == pytest.approx(16 / 120)
    assert _value("inked_pixels", _grey(0.6 * bar + 0.4 * _box((12, 10), 0, 0, 2, 2))) == pytest.approx(16 / 120)
    assert _value("stroke_width", _grey(bar)) == pytest.approx(8 * 2 / (8 + 2))
    assert _value("stroke_width", _grey(0.3 * bar)) == pytest.approx(8 * 2 / (8 + 2))  # its width, not its ink
    assert _value("stroke_width", _grey(np.ones((12, 10)))) == pytest.approx(120 / 22)
    assert _value("symmetry", _grey(_box((6, 6), 1, 2, 3, 2))) == pytest.approx(1)
    assert _value("symmetry", _grey(_box((6, 6), 1, 0, 3, 3))) == 0
    assert _value("symmetry", _grey(_box((6, 6), 1, 1, 3, 3))) == pytest.approx(2 / 3)
    assert _value("symmetry", _grey(_box((6, 7), 0, 3, 2, 1))) == pytest.approx(1)
    assert _value("centredness", _grey(_box((6, 6), 2, 2, 2, 2))) == pytest.approx(1)
    assert _value("centredness", _grey(_box((4, 8), 0, 0, 1, 1))) == pytest.approx(1 - (0.75**2 + 0.875**2) / 2)
    assert _value("centredness", _grey(_box((4, 8), 0, 3, 4, 2) / 2)) == pytest.approx(1)


@pytest.mark.parametrize("name", INK)
def test_dark_strokes_are_bright_ones_turned_round(name):
    light = np.random.default_rng(0).uniform(size=(5, 6))
    assert _value(name, _grey(1 - light), dark=True) == pytest.approx(_value(name, _grey(light)), rel=1e-5)
    assert _value(name, _grey(np.zeros((5, 6)))) == 0 == _value(name, _grey(np.ones((5, 6))), dark=True)


PIXELS = st.floats(-1.5, 1.5, width=32, allow_subnormal=False)


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.float32, st.tuples(st.just(2), st.just(5), st.just(6), st.sampled_from([1, 3])), elements=PIXELS))
def test_ranges(images):
    """Every statistic of every picture is in the range that the table says, image by image."""
    found = _ALL(images)
    assert set(found) == set(STATISTICS)
    for name, values in found.items():
        assert values.shape == (2,) and np.all(values >= -1e-6) and np.all(values <= TOP.get(name, 1.0) * (1 + 1e-5)), name
    turned = _ALL(images[::-1])
    for name, values in found.items():
        np.testing.assert_allclose(turned[name][::-1], values, rtol=1e-5, atol=1e-6)


_ALL = jax.jit(lambda images: {name: statistic(images) for name, statistic in STATISTICS.items()})


def test_gradients_are_the_slopes():
    images = jnp.asarray(np.random.default_rng(1).uniform(-0.9, 0.9, (1, 5, 6, 3)), jnp.float32)
    direction = jnp.asarray(np.random.default_rng(2).standard_normal(images.shape), jnp.float32)
    together = lambda images: jnp.stack([statistic(images)[0] for statistic in STATISTICS.values()])  # noqa: E731
    values, slopes = jax.jit(lambda images: jax.jvp(together, (images,), (direction,)))(images)
    ahead, behind = (np.asarray(jax.jit(together)(images + sign * 1e-3 * direction), np.float64) for sign in (1, -1))
    np.testing.assert_allclose(slopes, (ahead - behind) / 2e-3, rtol=2e-2, atol=2e-3)
    assert np.all(np.isfinite(values))
    for name, slope in zip(STATISTICS, np.asarray(slopes), strict=True):
        assert (slope == 0) if name == "inked_pixels" else (abs(slope) > 1e-5), name  # a count has no gradient


@pytest.mark.parametrize("level", [-1.0, -0.3, 1.0])
def test_gradients_of_constant_pictures_are_finite(level):
    images = jnp.full((1, 4, 4, 3), level)
    together = lambda images: sum(statistic(images)[0] for statistic in STATISTICS.values())  # noqa: E731
    assert np.isfinite(np.asarray(jax.jit(jax.grad(together))(images))).all()


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"one or three channels, got images of shape \(1, 4, 4, 2\)"):
        statistics.brightness(jnp.zeros((1, 4, 4, 2)))
