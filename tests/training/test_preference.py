"""Learning a reward from synthetic choices, as the run does it."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdrl.errors import UserError
from jaxdrl.rewards import bradley_terry
from jaxdrl.rewards.image_statistics import STATISTICS
from jaxdrl.training import models, preference
from jaxdrl.training.methods import common

ROOT = Path(__file__).parent.parent.parent


def _config(variant="tiny") -> Any:
    spec: Any = importlib.util.spec_from_file_location("prl_digits", ROOT / "configs" / "prl_digits.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.get_config(variant)


def test_pairs_are_of_one_class_and_choices_by_utility():
    rng = np.random.default_rng(0)
    utility, labels = rng.normal(size=300), np.arange(300) % 3
    among = np.arange(300) < 200
    found = preference.synthetic_choices(jax.random.key(0), utility, labels, among, 2000, 0.25)
    assert (labels[found.first] == labels[found.second]).all() and (found.first != found.second).all()
    assert among[found.first].all() and among[found.second].all() and set(labels[found.first]) == {0, 1, 2}
    better = utility[found.first] > utility[found.second]
    assert (better == (found.chosen > 0.5)).mean() == pytest.approx(found.surely.mean(), abs=0.03)


def test_utilities_are_standardised_statistics():
    images = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 1), np.uint8)
    values = {name: np.asarray(STATISTICS[name](models.as_float(images)), np.float64) for name in ("symmetry", "brightness")}
    z = {name: (value - value.mean()) / value.std() for name, value in values.items()}
    expected = 2 * z["symmetry"] - z["brightness"]
    np.testing.assert_allclose(preference.utilities(images, {"symmetry": 2.0, "brightness": -1.0}), expected, rtol=1e-5)


def test_a_head_is_fitted_to_choices():
    """Utilities that are linear in the features are found, apart from what their scale leaves open."""
    rng = np.random.default_rng(2)
    features = rng.normal(size=(600, 4)).astype(np.float32) * np.float32([1, 5, 1, 1]) + 3
    labels = (np.arange(600) % 2).astype(np.int32)
    utility = features @ np.array([1.0, 0.4, 0.0, -1.0])
    config = _config("")
    config.data.num_classes = 2
    config.preference.update(steps=1500, learning_rate=1e-2)
    choices = preference.synthetic_choices(jax.random.key(0), utility, labels, np.ones(600, bool), 10_000, 0.5)
    head = preference.fit(jax.random.key(1), features, labels, choices, config)
    scores = np.asarray(bradley_terry.scores(head, jax.numpy.asarray(features), jax.numpy.asarray(labels)))
    assert preference._within_classes(scores, utility, labels) > 0.98
    np.testing.assert_allclose(head["mean"], features.mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"utility": {"beauty": 1.0}}, r"config\.preference\.utility.*beauty"),
        ({"temperature": 0.0}, r"config\.preference: temperature"),
        ({"held_out": 1.0}, "held_out"),
        ({"images": 50}, r"config\.preference\.images"),
    ],
)
def test_settings_out_of_range_are_told(changes, said):
    config = _config()
    with config.unlocked():
        for key, value in changes.items():
            config.preference[key] = value
    with pytest.raises(UserError, match=said):
        common.rewards(config)


def test_a_label_is_given_once():
    config = _config()
    with config.unlocked():
        config.evaluate.rewards.bradley_terry = {}
    with pytest.raises(UserError, match=r"config\.evaluate\.rewards\.bradley_terry is a label of config\.posttrain\.rewards"):
        common.rewards(config, measured=True)
    with config.unlocked():
        del config.evaluate.rewards["bradley_terry"]
        config.evaluate.rewards.beauty = {}
    with pytest.raises(UserError, match=r"config\.evaluate\.rewards\.beauty: reward 'beauty' is unknown"):
        common.rewards(config, measured=True)
    labels = [reward.name for reward in common.rewards(config)]
    assert labels == ["bradley_terry"]
