"""The OCR reward beside its formula, with a recogniser that says what it is told."""

import sys
from functools import cache
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdrl import rewards
from jaxdrl.errors import UserError
from jaxdrl.rewards import imported, ocr

PROMPTS = ('a sign that says "Open  Late"', "a cat", 'a wall with "NO', 'an empty "  " sign')
IMAGES = np.linspace(-1, 1, 4 * 2 * 3, dtype=np.float32).reshape(4, 2, 3, 1)


@pytest.fixture
def readers(monkeypatch):
    module = ModuleType("some_readers")
    monkeypatch.setitem(sys.modules, "some_readers", module)
    return module


@cache
def _distance(one, other):
    """By the definition's recursion."""
    if not one or not other:
        return len(one) + len(other)
    costs = _distance(one[1:], other), _distance(one, other[1:]), _distance(one[1:], other[1:]) - (one[0] == other[0])
    return 1 + min(costs)


@settings(max_examples=60, deadline=None)
@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_the_distance_of_texts(one, other):
    assert ocr.edit_distance(one, other) == _distance(one, other)


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ("openlate", 1),
        ("We are OPEN L ATE today", 1),  # a part, after spaces and capitals are gone
        ("open", 0.5),
        ("opan late", 1 - 1 / 8),
        ("", 0),
        ("nothing like it, and much too long", 0),  # clipped
        ("open\nlate", 1 - 1 / 8),  # only spaces are removed
    ],
)
def test_scores(read, expected):
    assert ocr.score(read, ocr.target(PROMPTS[0])) == pytest.approx(expected)


def test_targets():
    assert [ocr.target(prompt) for prompt in PROMPTS] == ["openlate", "", "no", ""]
    assert ocr.target('"a" or "b"') == "a"


def test_only_what_has_a_target_is_read(readers):
    seen = []

    def read(images):
        seen.append(images)
        return ["open late", "n"][: len(images)]

    readers.read = read
    reward = rewards.create("ocr", recogniser="some_readers:read", prompts=PROMPTS)
    assert reward.selective and not reward.traced
    labels = np.array([1, 0, 3, 2], np.int32)
    np.testing.assert_array_equal(reward(IMAGES, labels), np.float32([np.nan, 1, np.nan, 0.5]))
    (images,) = seen
    expected = np.round((IMAGES[[1, 3]] + 1) * 127.5).astype(np.uint8)
    assert images.dtype == np.uint8 and np.array_equal(images, np.repeat(expected, 3, axis=-1))
    assert np.isnan(reward(IMAGES[:1], labels[:1])).all() and len(seen) == 1


def test_errors(readers):
    readers.read, readers.number = lambda images: ["a", None], 3
    labels = np.array([0, 2], np.int32)
    with pytest.raises(ValueError, match="some_readers:read must give one string for each of 2 images, got"):
        rewards.create("ocr", recogniser="some_readers:read", prompts=PROMPTS)(IMAGES[:2], labels)
    with pytest.raises(ValueError, match="prompts has 4 entries, none for class 4"):
        rewards.create("ocr", recogniser="some_readers:read", prompts=PROMPTS)(IMAGES[:1], labels[:1] + 4)
    for fields, said in (
        ({"prompts": ("a", "b")}, "prompts: none has a text in double quotes"),
        ({"recogniser": "read"}, "recogniser: 'read' must be module:function"),
        ({"recogniser": "no_such_module:read"}, "no_such_module cannot be imported .*PYTHONPATH"),
        ({"recogniser": "some_readers:number"}, "some_readers has no function number"),
        ({"recogniser": "some_readers:reed"}, "some_readers has no function reed"),
    ):
        with pytest.raises(UserError, match=said):
            rewards.create("ocr", **{"recogniser": "some_readers:read", "prompts": PROMPTS} | fields)


def test_functions_of_ones_own(readers):
    readers.mean = lambda images, condition: images.mean(axis=(1, 2, 3)) + condition
    labels = np.arange(4, dtype=np.int32)
    expected = IMAGES.mean(axis=(1, 2, 3)) + labels
    for name, traced in (("function", False), ("traced_function", True)):
        reward = rewards.create(name, path="some_readers:mean", label="mine", scale=2.0)
        assert reward.traced == traced and reward.name == "mine" and not reward.selective
        np.testing.assert_allclose(reward(IMAGES, labels), 2 * expected, rtol=1e-6)
    with pytest.raises(UserError, match="path: ':mean' must be module:function"):
        imported.load(":mean")
