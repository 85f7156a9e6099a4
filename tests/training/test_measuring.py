"""The rewards of a config, measured as the spaces of a run are."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxdrl import data, stored_config
from jaxdrl.evaluation import reward_spaces
from jaxdrl.evaluation.collect import collect
from jaxdrl.rewards import image_statistics, jpeg
from jaxdrl.training import loading, measuring, mesh, models, reward_weights
from jaxdrl.training.context import Run
from jaxdrl.training.methods import common
from jaxdrl.training.metrics import MetricWriter
from jaxdrl.training.workdir import data_directory
from jaxdrl.weights import files


@pytest.fixture(scope="module")
def measured(tiny_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("measured")
    for part in ("data", "encoders"):
        (workdir / part).symlink_to(tiny_run / part)
    config: Any = stored_config.get_config(str(tiny_run))
    config.posttrain.rewards = ml_collections.ConfigDict(
        {
            "discriminator": {},
            "sure": {"name": "class_confidence", "log": False},
            "ink": {"name": "brightness", "scale": 2.0},
            "jpeg_compressibility": {"classes": (1, 2)},
        }
    )
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2, 3, 4, 5], np.int32)
    source = _Source(images, labels)
    run = Run(config=config, workdir=workdir, mesh=mesh.create_mesh(), writer=MetricWriter(workdir))
    weights = reward_weights.load(run)
    found = measuring.reward_spaces(config, tiny_run, weights)
    logit = measuring.logit_space(config, tiny_run, measuring.encoder_space(config, tiny_run, "reward"))
    kept = collect(source, [*found, logit], None, keep=[space.name for space in [*found, logit]], batch_size=4)
    return SimpleNamespace(images=images, labels=labels, features=kept.features, run=run)


class _Source:
    def __init__(self, images, labels):
        self._images, self._labels = images, labels

    def __len__(self):
        return len(self._images)

    def batches(self, start, stop, size):
        for first in range(start, stop, size):
            last = min(first + size, stop)
            yield self._images[first:last], self._labels[first:last]


def test_rewards_are_features_traced_or_not(measured):
    floats = measured.images.astype(np.float32) / 127.5 - 1
    ink, sizes = measured.features["reward_ink"], measured.features["reward_jpeg_compressibility"]
    np.testing.assert_allclose(ink[:, 0], 2 * np.asarray(image_statistics.brightness(jnp.asarray(floats))), rtol=1e-6)
    assert (ink[:, 1] == 1).all()
    applies = np.isin(measured.labels, (1, 2))
    np.testing.assert_array_equal(sizes[:, 1], applies)
    np.testing.assert_allclose(sizes[:, 0], np.where(applies, -jpeg.sizes(floats), 0.0), rtol=1e-6)
    np.testing.assert_allclose(measured.features["reward_discriminator"][:, 0], measured.features["logit"][:, 0], rtol=1e-5)


def test_the_class_head_is_fitted_to_the_runs_data_once(measured):
    chances = measured.features["reward_sure"][:, 0]
    assert ((chances > 0) & (chances < 1)).all() and chances.std() > 1e-3
    run = measured.run
    images, labels = data.load_arrays(data.open_split(run.config.data, data_directory(run), "train"))
    reward = next(one for one in common.rewards(run.config, common.Frozen(None, None, *_weights(run))) if one.name == "sure")
    right, wrong = (np.asarray(reward(models.as_float(images), asked)) for asked in (labels, (labels + 1) % 10))
    assert (right > wrong).mean() > 0.6  # an encoder of 20 steps
    path = run.workdir / "posttrain" / "rewards" / "sure.safetensors"
    files.save_tree(path, jax.tree.map(lambda leaf: 0 * leaf, files.load_tree(path)))
    assert not reward_weights.load(run)["sure"]["kernel"].any()  # read, not fitted again


def _weights(run):
    return loading.load_encoder(run.config, run.workdir, "reward"), None, reward_weights.load(run)


def test_the_table_is_in_the_bases_standard_deviations(measured):
    tuned = {name: values + np.float32([0.5, 0.0]) for name, values in measured.features.items()}
    rows = {"base": measured.features.__getitem__, "tuned": tuned.__getitem__}
    table = reward_spaces.table(["ink", "jpeg_compressibility"], rows)
    sizes = measured.features["reward_jpeg_compressibility"]
    kept = sizes[sizes[:, 1] > 0, 0].astype(np.float64)
    assert table["jpeg_compressibility"]["base"] == {"mean": kept.mean(), "std": kept.std(), "count": 4}
    assert table["jpeg_compressibility"]["tuned"]["gain"] == pytest.approx(0.5 / kept.std(), rel=1e-4)
    assert "gain" not in table["ink"]["base"] and json.dumps(table)
