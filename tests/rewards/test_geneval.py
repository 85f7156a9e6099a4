"""GenEval's scoring on detections made by hand; expected numbers follow the papers' rules by counting."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest

from jaxdrl import rewards
from jaxdrl.errors import UserError
from jaxdrl.rewards import geneval
from jaxdrl.rewards.geneval import Detection, Settings

IMAGES = np.zeros((3, 4, 4, 1), np.float32)


def _at(name, x, y, score=0.95, colour="red", size=10.0):
    return Detection(name, score, (x - size / 2, y - size / 2, x + size / 2, y + size / 2), colour)


def _judged(found, include, tag="", exclude=(), **settings):
    return geneval.judge(found, geneval.task({"tag": tag, "include": include, "exclude": exclude}), Settings(**settings))


CUPS = [_at("cup", 20.0 * i, 0.0) for i in range(3)]


@pytest.mark.parametrize(
    ("found", "count", "expected"),
    [
        (CUPS[:2], 2, (1, 1, 1)),
        (CUPS, 2, (0.5, 0, 1)),  # one too many: not strict, still correct
        (CUPS[:1], 2, (0.5, 0, 0)),
        (CUPS, 1, (-1, 0, 1)),
        ([], 2, (0, 0, 0)),
    ],
)
def test_counts(found, count, expected):
    assert _judged(found, [{"class": "cup", "count": count}]) == expected


def test_thresholds():
    cups = [_at("cup", 20.0 * i, 0.0, score) for i, score in enumerate((0.3, 0.31, 0.9, 0.91))]
    three, one = [{"class": "cup", "count": 3}], [{"class": "cup", "count": 1}]
    assert _judged(cups, three).strict == 1 and _judged(cups, three, tag="counting").strict == 0
    assert _judged(cups, one, tag="counting").strict == 1 and _judged(cups, one, threshold=0.9).strict == 1
    assert _judged(cups, [{"class": "cup", "count": 2}], tag="counting", counting_threshold=0.5).strict == 1
    many = [_at("cup", 20.0 * i, 0.0, 0.5 + i / 100) for i in range(20)]
    assert _judged(many, [{"class": "cup", "count": 16}]).strict == 1
    assert _judged(many, [{"class": "cup", "count": 4}], max_objects=4).strict == 1


def test_colours():
    wanted = [{"class": "cup", "count": 2, "color": "red"}]
    blue = _at("cup", 0.0, 0.0, colour="blue")
    assert _judged(CUPS[:2], wanted) == (1, 1, 1)
    assert _judged([CUPS[0], blue], wanted) == ((1 + 0.5) / 2, 0, 0)
    assert _judged(CUPS, wanted) == ((0.5 + 0) / 2, 0, 1)
    # The surest ones are looked at.
    assert _judged([*CUPS[:2], blue._replace(score=0.99)], wanted).correct == 0
    assert _judged([*CUPS[:2], blue._replace(score=0.5)], wanted).correct == 1


def test_relations():
    middle = _at("dog", 0.0, 0.0)
    for x, y, expected in (
        (-30, 0, {"left of"}),
        (30, 0, {"right of"}),
        (0, -30, {"above"}),
        (0, 30, {"below"}),
        (30, 30, {"right of", "below"}),
        (1.9, 0, set()),  # within .1 (10 + 10)
        (0, 0, set()),
        (3.9, 0, set()),  # (3.9 - 2) / 3.9 is below a half
        (4.1, 0, {"right of"}),
    ):
        assert geneval.relations(_at("cup", x, y), middle, 0.1) == expected
    assert geneval.relations(_at("cup", 3.9, 0), middle, 0.05) == {"right of"}
    wide = Detection("cup", 1.0, (-30.0, -1.0, 50.0, 1.0))  # centre 10, width 80: (10 - 9) / 10
    assert geneval.relations(wide, middle, 0.1) == set() and geneval.relations(wide, middle, 0.0) == {"right of"}


def test_positions():
    wanted = [{"class": "dog", "count": 1}, {"class": "cup", "count": 1, "position": ["left of", 0]}]
    dog, left, right = _at("dog", 0.0, 0.0), _at("cup", -30.0, 0.0), _at("cup", 30.0, 0.0)
    assert _judged([dog, left], wanted) == (1, 1, 1)
    assert _judged([dog, right], wanted) == (3 / 4, 0, 0)  # the released code's further 1
    assert _judged([dog, right], wanted, position_terms="paper") == (2 / 3, 0, 0)
    assert _judged([left], wanted) == ((0 + 1 + 0) / 3, 0, 0)  # there is no dog
    assert _judged([dog], wanted) == ((1 + 0 + 0) / 3, 0, 0)
    assert _judged([dog, left, right._replace(score=0.99)], wanted).correct == 0  # the surest is looked at
    assert _judged([dog, left, right._replace(score=0.5)], wanted).correct == 1
    two = [wanted[0], {"class": "cup", "count": 2, "position": ["left of", 0], "color": "red"}]
    assert _judged([dog, left, right], two) == ((1 + 1 + 1 + 0 + 1) / 5, 0, 0)  # every pair counts
    blue = [{"class": "dog", "count": 1}, wanted[1] | {"color": "blue"}]
    assert _judged([dog, left], blue) == ((1 + 1 + 0) / 3, 0, 0)  # a position is not looked at where the colour is wrong


def test_what_must_not_be_there():
    wanted, unwanted = [{"class": "cup", "count": 2}], [{"class": "cup", "count": 3}]
    assert _judged(CUPS[:2], wanted, exclude=unwanted).correct == 1
    assert _judged(CUPS, wanted).correct == 1 and _judged(CUPS, wanted, exclude=unwanted).correct == 0


@pytest.fixture
def detectors(monkeypatch):
    module = ModuleType("some_detectors")
    monkeypatch.setitem(sys.modules, "some_detectors", module)
    return module


TASKS = ({"tag": "a", "include": [{"class": "cup", "count": 2}]}, {"tag": "b", "include": [{"class": "dog", "count": 1}]})


@pytest.mark.parametrize("kind", geneval.KINDS)
def test_the_reward_by_name(kind, detectors, tmp_path):
    seen = []

    def detect(images):
        seen.append(images)
        return [[("cup", 0.99, np.array([0, 0, 9, 9.0]))] * i for i in range(1, 4)]  # tuples, without colours

    detectors.detect = detect
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(map(json.dumps, TASKS)) + "\n")
    labels = np.array([0, 1, 0], np.int32)
    for tasks in (TASKS, str(file)):
        reward = rewards.create("geneval", detector="some_detectors:detect", tasks=tasks, kind=kind)
        expected = {"partial": [0.5, 0, 0.5], "strict": [0, 0, 0], "correct": [0, 0, 1]}[kind]
        np.testing.assert_array_equal(reward(IMAGES, labels), np.float32(expected))
    assert seen[0].shape == (3, 4, 4, 3) and seen[0].dtype == np.uint8
    with pytest.raises(ValueError, match="tasks has 2 entries, none for class 2"):
        reward(IMAGES, labels + 1)


def test_errors(detectors, tmp_path):
    create = lambda **fields: rewards.create("geneval", **{"detector": "some_detectors:detect", "tasks": TASKS} | fields)  # noqa: E731
    labels = np.zeros(3, np.int32)
    for answer, said in (
        ([[]], "one list for each of 3 images, got 1"),
        ([[("cup", 0.9)]] * 3, r"must give \(class, score, box, colour\), got \('cup', 0.9\)"),
        ([[("cup", 0.9, (1, 2, 3))]] * 3, r"boxes \(left, top, right, bottom\)"),
    ):
        detectors.detect = lambda images, answer=answer: answer
        with pytest.raises(ValueError, match=said):
            create()(IMAGES, labels)
    (tmp_path / "tasks").write_text("{")
    include = lambda **part: ({"include": [{"class": "a", "count": 1}, {"class": "b", "count": 1} | part]},)  # noqa: E731
    for fields, said in (
        ({"kind": "loose"}, "kind: 'loose' must be one of partial, strict, correct"),
        ({"position_terms": "both"}, "position_terms code or paper"),
        ({"max_objects": 0}, r"max_objects \(0\)"),
        ({"tasks": str(tmp_path / "none")}, "tasks: .*none cannot be read"),
        ({"tasks": str(tmp_path / "tasks")}, "tasks: .*cannot be read"),
        ({"tasks": ({"tag": "x"},)}, "tasks: number 0 must have tag and include"),
        ({"tasks": include(count=0)}, "must have class and count"),
        ({"tasks": include(colour="red")}, "may have color and position"),
        ({"tasks": include(position=["left of", 1])}, r"position \['left of', 1\] must be .* an earlier entry"),
        ({"tasks": include(position=["inside", 0])}, "must be .one of left of, right of, above, below"),
        ({"tasks": include(position="left of")}, "an earlier entry"),
        ({"detector": "some_detectors:found"}, "detector: some_detectors has no function found"),
    ):
        with pytest.raises(UserError, match=said):
            create(**fields)
