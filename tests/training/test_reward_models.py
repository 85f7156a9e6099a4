"""Published reward models in a run: from the folder that the config names to numbers."""

import shutil
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import stored_config
from jaxdrl.errors import UserError
from jaxdrl.rewards import preference
from jaxdrl.rewards.preference import tokens
from jaxdrl.training import mesh, reward_weights
from jaxdrl.training.context import Run
from jaxdrl.training.methods import common
from jaxdrl.training.metrics import MetricWriter
from jaxdrl.weights import model_directory
from tests.golden import preference_cases as cases
from tests.rewards.test_preference import write_vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small CLIPScore, as `jaxdrl convert` would have left it."""
    place = tmp_path_factory.mktemp("clipscore")
    files = write_vocabulary(place)[0]
    tokenizer = tokens.clip(files)
    model = preference.create("clipscore", **cases.FIELDS["clipscore"], tokenizer=tokenizer)
    params = model.init(jax.random.key(0))
    model_directory.save(place / "model", model, params)
    for name, path in files.items():
        shutil.copy(path, place / "model" / name)
    return SimpleNamespace(path=str(place / "model"), model=model, params=params)


def _run(tiny_run, workdir, **fields):
    config: Any = stored_config.get_config(str(tiny_run))
    config.posttrain.rewards = {"clip": {"name": "clipscore", **fields}}
    return Run(config=config, workdir=workdir, mesh=mesh.create_mesh(), writer=MetricWriter(workdir))


def test_a_class_is_a_prompt(folder, tiny_run, tmp_path):
    run = _run(tiny_run, tmp_path, weights=folder.path, prompt="a scan of the digit {class}", scale=2.0)
    weights = reward_weights.load(run)
    reward = common.rewards(run.config, common.Frozen(None, None, None, None, weights))[0]
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)).astype(np.float32))
    text = folder.model.text(folder.params, ["a scan of the digit three", "a scan of the digit zero"])
    expected = 2 * folder.model.score(folder.params, images, text)
    np.testing.assert_allclose(reward(images, jnp.array([3, 0])), expected, rtol=1e-5)
    assert reward.name == "clip" and not np.allclose(*expected)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, r"config\.posttrain\.rewards\.clip: weights: clipscore needs the folder"),
        ({"weights": "nowhere"}, "nowhere holds no model"),
        ({"weights": "{folder}", "name": "pickscore"}, "holds clipscore, not pickscore"),
        ({"weights": "{folder}", "prompt": "a digit"}, r"config\.posttrain\.rewards\.clip: the prompt template"),
        ({"weights": "{folder}", "class_names": ("one", "two")}, "there are 2, must be 10"),
        ({"weights": "{folder}", "colour": 1}, "unknown fields"),
    ],
)
def test_mistakes_are_one_line(fields, said, folder, tiny_run, tmp_path):
    run = _run(tiny_run, tmp_path, **{k: v.format(folder=folder.path) if isinstance(v, str) else v for k, v in fields.items()})
    with pytest.raises(UserError, match=said) as error:
        common.rewards(run.config)
        reward_weights.load(run)
    assert "\n" not in str(error.value)
