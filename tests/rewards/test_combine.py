"""Rewards by name: stacked, restricted to classes, traced and on the host; JPEG beside Pillow."""

import io
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdrl import rewards
from jaxdrl.data import images as image_range
from jaxdrl.errors import UserError
from jaxdrl.rewards import discriminator, image_statistics, jpeg

LABELS = np.array([0, 1, 2, 1, 0], np.int32)


def _images(channels=3, count=5, seed=0):
    return np.random.default_rng(seed).uniform(-1.1, 1.1, (count, 9, 16, channels)).astype(np.float32)


def _pillow(image, quality=95):
    pixels = Image.fromarray(image_range.to_uint8(image).squeeze())
    buffer = io.BytesIO()
    pixels.save(buffer, format="JPEG", quality=quality)
    return len(buffer.getvalue()) / 1000


def test_every_weightless_name_is_its_function():
    images = _images()
    for name, statistic in image_statistics.STATISTICS.items():
        np.testing.assert_allclose(rewards.create(name)(images, LABELS), statistic(jnp.asarray(images)), rtol=1e-6)
    assert rewards.create("symmetry", dark=True)(images, LABELS).tolist() == pytest.approx(
        image_statistics.symmetry(jnp.asarray(images), dark=True).tolist()
    )
    traced = {name: maker[1] for name, maker in rewards.combine._MAKERS.items()}
    hosted = [name for name, is_traced in traced.items() if not is_traced]
    assert hosted == ["jpeg_incompressibility", "jpeg_compressibility", "ocr", "geneval", "remote", "function"]
    assert rewards.names() == list(traced)


def test_stacked_columns_and_masks():
    chosen = [
        rewards.create("brightness"),
        rewards.create("contrast", classes=(1,)),
        rewards.create("brightness", classes=[0, 2], scale=-2.0, label="darkness"),
    ]
    images = _images()
    found = np.asarray(jax.jit(rewards.stack(chosen))(images, LABELS))
    assert found.shape == (5, 3) and found.dtype == np.float32
    light = np.asarray(image_statistics.brightness(jnp.asarray(images)))
    np.testing.assert_allclose(found[:, 0], light, rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(found[:, 1]), LABELS != 1)
    np.testing.assert_allclose(found[LABELS != 1, 2], -2 * light[LABELS != 1], rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(found[:, 2]), LABELS == 1)


def test_a_mask_does_not_poison_gradients():
    chosen = rewards.create("contrast", classes=(1,))
    gradient = jax.grad(lambda images: jnp.nansum(chosen(images, LABELS)))(jnp.asarray(_images()))
    per_image = np.abs(gradient).sum(axis=(1, 2, 3))
    assert np.isfinite(per_image).all() and np.array_equal(per_image > 0, LABELS == 1)


def test_mixed_rewards_on_the_host():
    chosen = [
        rewards.create("jpeg_compressibility", kilobytes=500.0, classes=(0,)),
        rewards.create("brightness"),
        rewards.create("jpeg_incompressibility", quality=50),
        rewards.create("contrast", classes=(2,)),
    ]
    images, evaluate = _images(), rewards.evaluator(chosen)
    found = evaluate(images, LABELS)
    assert found.shape == (5, 4) and found.dtype == np.float32
    expected = np.where(LABELS == 0, [-_pillow(image) / 500 for image in images], np.nan)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(found[:, 2], [_pillow(image, 50) for image in images], rtol=1e-6)
    half = jax.jit(rewards.stack([chosen[1], chosen[3]]))(images, LABELS)
    np.testing.assert_allclose(found[:, [1, 3]], half, rtol=1e-6)
    np.testing.assert_array_equal(evaluate(images, LABELS, traced=half), found)
    given_half = evaluate(images, LABELS, traced=np.full((5, 2), 7.0))  # taken as they are
    assert np.all(given_half[:, [1, 3]] == 7) and np.array_equal(given_half[:, 2], found[:, 2])
    with pytest.raises(ValueError, match=r"traced must be \(5, 2\), a column a traced reward; got \(5, 3\)"):
        evaluate(images, LABELS, traced=np.zeros((5, 3)))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.lists(st.one_of(st.none(), st.sets(st.integers(0, 3), min_size=1)), min_size=1, max_size=3),
)
def test_shapes_and_masks_of_any_list(labels, restrictions):
    kinds = ["mean", "host", "other"]
    apply = lambda images, condition: images.mean(axis=(1, 2, 3))  # noqa: E731
    chosen = [
        rewards.Reward(name=kinds[i], apply=apply, traced=False, classes=None if kept is None else tuple(kept))
        for i, kept in enumerate(restrictions)
    ]
    found = rewards.evaluator(chosen)(np.ones((len(labels), 2, 3, 1), np.float32), np.array(labels))
    expected = [[np.nan if kept is not None and label not in kept else 1.0 for kept in restrictions] for label in labels]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_the_discriminator_by_name():
    params = discriminator.init(jax.random.key(0), 3, 3, width=4)
    params = jax.tree.map(lambda leaf: leaf + 0.5, params)
    features = lambda images: images.mean(axis=(1, 2))  # noqa: E731
    images = jnp.asarray(_images())

    @jax.jit
    def step(params, images):
        """Weights are arguments of the compiled function, not constants."""
        return rewards.stack([rewards.create("discriminator", params=params, features=features)])(images, LABELS)

    expected = discriminator.logits(params, features(images), jnp.asarray(LABELS))
    np.testing.assert_allclose(step(params, images)[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("sparkle", {}, "'sparkle' is unknown; choose one of brightness, contrast"),
        ("symmetry", {"bright": True}, r"unknown fields \['bright'\], missing fields \[\]; it takes classes, scale, label, dark"),
        ("class_confidence", {"head": 1}, r"missing fields \['features'\]"),
        ("brightness", {"classes": ()}, "classes is empty"),
    ],
)
def test_mistakes_in_a_config(name, fields, said):
    with pytest.raises(UserError, match=said):
        rewards.create(name, **fields)


def test_wrong_arrays_and_lists():
    light = rewards.create("brightness")
    for images, labels, said in (
        (_images()[0], LABELS, r"takes float images \[batch, h, w, c\] in \[-1, 1\], got float32 \(9, 16, 3\)"),
        (_images().astype(np.uint8), LABELS, "takes float images .* got uint8"),
        (_images(), LABELS[:3], "one integer condition for each of 5 images, got int32"),
        (_images(), LABELS.astype(np.float32), "one integer condition for each of 5 images, got float32"),
    ):
        with pytest.raises(ValueError, match=said):
            light(images, labels)
    broken = rewards.Reward(name="broken", apply=lambda images, condition: images.mean())
    with pytest.raises(ValueError, match=r"reward broken gave \(\) for 5 images"):
        broken(_images(), LABELS)
    size = rewards.create("jpeg_incompressibility")
    with pytest.raises(ValueError, match="jpeg_incompressibility cannot be traced"):
        rewards.stack([light, size])
    with pytest.raises(ValueError, match="call it between compiled functions"):
        jax.jit(size.__call__)(_images(), LABELS)
    for wrong in ([], [light, light]):
        for make in (rewards.stack, rewards.evaluator):
            with pytest.raises(ValueError, match="each with its own name"):
                make(wrong)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_sizes_are_pillows(channels):
    images = _images(channels, count=6) * np.linspace(0.01, 1, 6)[:, None, None, None].astype(np.float32)
    expected = [_pillow(image) for image in images]
    assert len(set(expected)) == 6
    np.testing.assert_allclose(jpeg.sizes(images), expected, rtol=1e-6)
    np.testing.assert_allclose(jpeg.compressibility(images), -np.array(expected), rtol=1e-6)
    np.testing.assert_allclose(jpeg.incompressibility(images, kilobytes=500.0), np.array(expected) / 500, rtol=1e-6)
    assert np.all(jpeg.sizes(images, quality=20) < expected)


def test_jpeg_keeps_the_order_of_images_whatever_thread_is_first(monkeypatch):
    """The first image's file is made to wait for the last one's."""
    images = _images(count=4) * np.linspace(0.01, 1, 4)[:, None, None, None].astype(np.float32)
    expected, last, save = jpeg.sizes(images, workers=1), threading.Event(), Image.Image.save

    def slow_first(self, *args, **kwargs):
        pixels = np.asarray(self)
        if np.array_equal(pixels, image_range.to_uint8(images[0])):
            assert last.wait(10)
        save(self, *args, **kwargs)
        if np.array_equal(pixels, image_range.to_uint8(images[-1])):
            last.set()

    monkeypatch.setattr(Image.Image, "save", slow_first)
    np.testing.assert_array_equal(jpeg.sizes(images, workers=4), expected)


def test_jpeg_refuses_what_is_no_image():
    broken = _images()
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"images \[3\] have values that are not finite"):
        jpeg.sizes(broken)
    with pytest.raises(ValueError, match=r"\[batch, h, w, 1 or 3\]"):
        jpeg.sizes(_images(2))


def test_a_reward_has_no_gradient_where_it_does_not_apply():
    """Not 0 times one that is not finite either: the root's at a black image."""
    root = rewards.Reward(name="root", apply=lambda images, _: jnp.sqrt((images + 1).mean(axis=(1, 2, 3))), classes=(1,))
    images, labels = jnp.stack([jnp.full((4, 4, 1), -1.0), jnp.zeros((4, 4, 1))]), jnp.array([0, 1])
    values, pullback = jax.vjp(lambda images: root(images, labels), images)
    gradient = pullback(jnp.array([0.0, 1.0]))[0]
    assert np.isnan(values[0]) and values[1] == 1
    assert not gradient[0].any() and gradient[1] == pytest.approx(0.5 / 16)
