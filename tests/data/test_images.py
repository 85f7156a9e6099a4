"""Bytes and floats, and ADM's crop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdrl import data
from jaxdrl.data.images import centre_crop

BYTES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("rule", ["round", "truncate"])
def test_every_byte_comes_back(rule):
    floats = data.to_float(BYTES)
    assert floats.dtype == np.float32 and floats.min() == -1 and floats.max() == 1
    np.testing.assert_array_equal(data.to_uint8(floats, rule), BYTES)


@given(st.floats(-3, 3, width=32))
def test_rules_are_those_of_the_papers(value):
    image = np.array([value], np.float32)
    clipped = min(max(value, -1), 1)
    assert abs(int(data.to_uint8(image)[0]) - 127.5 * (clipped + 1)) <= 0.5001
    truncated = min(max(float(np.float32(127.5) * np.float32(value) + np.float32(128)), 0), 255)
    assert int(data.to_uint8(image, "truncate")[0]) == int(truncated)


@pytest.mark.parametrize("rule", ["round", "truncate"])
def test_grey_and_out_of_range(rule):
    assert data.to_uint8(np.array([-9, -1, 0, 1, 9], np.float32), rule).tolist() == [0, 0, 128, 255, 255]


def test_unknown_rule():
    with pytest.raises(ValueError, match="round or truncate"):
        data.to_uint8(np.zeros(1, np.float32), "floor")


def test_crop_leaves_a_picture_of_the_right_size_alone():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(centre_crop(image, 16), image)


def test_crop_halves_with_a_box_and_cuts_the_middle():
    image = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    means = image.reshape(16, 2, 24, 2, 3).astype(float).mean((1, 3))
    assert np.abs(centre_crop(image, 16).astype(float) - means[:, 4:20]).max() <= 1


@pytest.mark.parametrize("shape", [(37, 50, 3), (90, 41, 1)])
def test_crop_of_odd_sizes(shape):
    flat = np.full(shape, 77, np.uint8)
    cropped = centre_crop(flat, 16)
    assert cropped.shape == (16, 16, shape[2]) and (cropped == 77).all()


def test_crop_resizes_as_bicubic_does():
    torch = pytest.importorskip("torch")
    # Low contrast: Pillow clips between its two passes, the oracle does not.
    image = np.random.default_rng(2).integers(90, 160, (24, 30, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(tensor, (16, 20), mode="bicubic", antialias=True).clamp(0, 255)
    expected = resized[0].permute(1, 2, 0).numpy()[:, 2:18]
    assert np.abs(centre_crop(image, 16) - expected).max() <= 1.5
